"""``atoms tune`` as its users call it."""

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import yaml
from tiny_models import write_experts, write_llama, write_text, write_tokenizer
from transformers import AutoModelForCausalLM

from atoms.cli import main
from atoms.commands import tune
from atoms.errors import AtomsError
from atoms.tuning import experiment
from atoms.tuning.arms import ARMS

CONFIGS = Path(__file__).parent.parent / "configs" / "tune"
QUICK = ["--recipe.steps=3", "--recipe.batch_size=4", "--recipe.points=2", "--recipe.eval_tokens=128", "--context=16"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model and two corpora."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("llama", "experts", "task", "general"):
        (folder / name).mkdir()
    write_llama(folder / "llama")
    write_experts(folder / "experts")
    write_text(folder / "general", 12)
    for number in range(40):
        (folder / "task" / f"{number}.txt").write_text(" ".join(f"w{(number * k * k + k) % 23}" for k in range(30)))
    return folder


def words(made, *more, model="llama"):
    corpora = [
        f"--{name}.corpus={{class_path: TextFiles, init_args: {{paths: [{made / name}]}}}}"
        for name in ("task", "general")
    ]
    return ["tune", f"--model.name={made / model}", *corpora, "--trainer.accelerator=cpu", *QUICK, *more]


def said(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_an_experiment_from_its_settings_to_its_runs(made, database, monkeypatch, capsys):
    asked = ["--budget.fraction=0.3", "--budget.adapted=0.5", "--recipe.learning_rates=[1e-3, 1e-2]"]
    asked += ["--recipe.seeds=2", "--recipe.extensions=1", "--keep_models=true", "--arms=[full, lora, kappa, random]"]
    main(words(made, *asked))
    out, err = capsys.readouterr()
    for line in ("text     tokens: train", "arm      kappa: ", "cost     16 runs of 3 steps", "memory   "):
        assert line in out
    assert "forgetting at equal training loss" in " ".join(out.split())
    assert "kappa - lora" in out
    assert all(line.startswith(("tune: ", "survey: ")) for line in err.splitlines())

    found = json.loads(Path("tune/tune.json").read_text())
    assert set(found["runs"]) == {"full", "lora", "kappa", "random"}
    assert all([run["seed"] for run in runs] == [1, 2] for runs in found["runs"].values())
    assert all(3 <= len(runs) <= 4 for runs in found["searched"].values())  # the best of two is always at an end
    start = {name: runs[0]["curve"]["losses"]["general"][0] for name, runs in found["runs"].items()}
    assert len(set(start.values())) == 1
    trained = {name: runs[0]["trained"] for name, runs in found["runs"].items()}
    assert trained["full"] > 3 * trained["kappa"]
    assert trained["lora"] == pytest.approx(trained["kappa"], rel=0.2)
    compared = {(each["axis"], each["depth"]) for each in found["compared"]}
    assert compared == {(axis, depth) for axis in ("train", "test") for depth in (0.5, 1.0)}
    rows = list(csv.DictReader(Path("tune/curves.csv").read_text().splitlines()))
    assert {row["stage"] for row in rows} == {"search", "run"}
    assert all(bool(row["test_loss"]) == (row["stage"] == "run") for row in rows)
    assert all(bool(row["val_loss"]) == (row["stage"] == "search") for row in rows)
    assert set(found["start"]) == {"train", "val", "test", "general"}
    assert {file.name for file in Path("tune/figures").iterdir()} == {
        "curves.png", "forgetting.png", "differences.png", "learning_rates.png",
    }  # fmt: skip
    assert {folder.name for folder in Path("tune/models").iterdir()} == {
        f"{arm}-lr{runs[0]['lr']}-seed1" for arm, runs in found["runs"].items()
    }
    assert found["settings"]["recipe"]["seeds"] == 2
    assert found["settings"]["task"]["corpus"]["class_path"].endswith("TextFiles")

    (experiment,) = database.search_experiments(filter_string="name = 'tune'")
    runs = database.search_runs([experiment.experiment_id], max_results=100)
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(runs) - 1 == sum(map(len, [*found["runs"].values(), *found["searched"].values()]))
    assert parent.data.metrics["tune/kappa/forgetting"] == pytest.approx(found["numbers"]["kappa/forgetting"])
    child = next(run for run in children if run.data.tags["mlflow.runName"].endswith("seed 1"))
    history = database.get_metric_history(child.info.run_id, "tune/general")
    assert [point.step for point in history] == [0, 64, 192]
    assert {file.path for file in database.list_artifacts(parent.info.run_id)} >= {"tune.json", "curves.csv", "figures"}

    # A second call finds every run, and another experiment finds no room.
    monkeypatch.setattr("atoms.commands.tune.draw", lambda _: {})
    main(words(made, *asked, "--tracking_uri=none"))
    assert json.loads(Path("tune/tune.json").read_text())["runs"] == found["runs"]
    with pytest.raises(SystemExit):
        main(words(made, *asked, "--context=12", "--tracking_uri=none"))
    assert "output is tune, which holds another experiment" in said(capsys)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["--budget.fraction=0.3", "--arms=[kappa, nothing]"], "arms names 'nothing': there are full, lora, kappa"),
        (["--budget.fraction=0.3", "--arms=[]"], "arms is empty"),
        (["--budget.fraction=0.3", "--references=[all]"], "references names 'all'"),
        (["--budget.fraction=0.3", "--context=1000"], "context is 1000: give at least 2 and at most 63"),
        (["--budget.fraction=0.3", "--context=1"], "context is 1: give at least 2"),
        (["--budget.parameters=3"], "budget: parameters is 3, and the smallest tensor has 256"),
        (["--budget.parameters=3", "--budget.fraction=0.1"], "give one of budget.parameters and budget.fraction"),
        ([], "budget: give one of budget.parameters and budget.fraction"),
        (["--budget.fraction=0.3", "--budget.include=[nothing]", "--arms=[kappa]"], "budget: no tensor of 16 may be"),
        (["--budget.fraction=0.3", "--task.corpus.paths=[nowhere]"], "task.corpus.paths: no .txt file matches"),
        (["--budget.fraction=0.3", "--recipe.steps=0"], "recipe.steps is 0: give at least 1"),
        (["--budget.fraction=0.3", "--model.name=nowhere/at/all"], "model.name='nowhere/at/all' is not a folder"),
        (["--budget.fraction=0.3", "--trainer.accelerator=cuda", "--arms=[kappa]"], "trainer: "),
    ],
)
def test_what_cannot_be_asked(changes, line, made, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words(made, "--arms=[kappa]", *changes, "--tracking_uri=none"))
    assert stop.value.code == 1
    assert line in said(capsys)
    assert not Path("tune").exists()


@pytest.mark.parametrize("left_out", ["model", "task", "general"])
def test_settings_that_are_missing(left_out, made, capsys):
    kept = [word for word in words(made, "--budget.fraction=0.3") if not word.startswith(f"--{left_out}.")]
    with pytest.raises(SystemExit) as stop:
        main(kept)
    assert stop.value.code == 1
    assert left_out in said(capsys)


def test_a_model_without_a_causal_head(made, tiny_bert, tiny_gpt2, capsys):
    for folder, kind in ((tiny_bert, "BertModel"), (tiny_gpt2, "GPT2Model")):
        with pytest.raises(SystemExit):
            main(words(made, f"--model.name={folder}", "--budget.fraction=0.3", "--tracking_uri=none"))
        assert f"model.name='{folder}' has no causal head ({kind}), so it predicts no next token" in said(capsys)


def test_rates_at_which_an_arm_diverges(made, database, capsys):
    with pytest.raises(SystemExit):
        main(words(made, "--budget.fraction=0.3", "--arms=[full]", "--recipe.learning_rates=[1e30]", "--recipe.clip=0"))
    assert "arms full diverge at every rate: set recipe.learning_rates lower" in said(capsys)
    (experiment,) = database.search_experiments(filter_string="name = 'tune'")
    runs = database.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert parent.info.status == "FAILED"


def test_an_arm_that_diverges_at_every_rate_costs_the_others_nothing(made, monkeypatch, capsys):
    trained = experiment._train

    def broken(bench, planned, model, lr, seed):
        run, model = trained(bench, planned, model, lr, seed)
        if planned.arm.name == "lora":
            run.curve.losses["train"][-1] = float("nan")
        return run, model

    monkeypatch.setattr(experiment, "_train", broken)
    asked = ["--budget.fraction=0.3", "--arms=[full, lora, kappa]", "--recipe.seeds=1", "--tracking_uri=none"]
    main(words(made, *asked, "--recipe.learning_rates=[1e-2]", "--recipe.extensions=0"))
    assert "note     lora: diverges at every rate, and is left out" in capsys.readouterr().out
    found = json.loads(Path("tune/tune.json").read_text())
    assert (set(found["runs"]), set(found["searched"])) == ({"full", "kappa"}, {"full", "lora", "kappa"})


def test_a_rate_that_gains_nearly_as_much_is_taken_if_it_is_lower(made, monkeypatch):
    trained = experiment._train

    def pretended(bench, planned, model, lr, seed):
        run, model = trained(bench, planned, model, lr, seed)
        if seed == 0:
            gain = {1e-3: 0.9, 1e-2: 0.98, 1e-1: 1.0}[lr]
            run.curve.losses["val"][:] = [5.0, *[5.0 - gain] * (len(run.curve.losses["val"]) - 1)]
        return run, model

    monkeypatch.setattr(experiment, "_train", pretended)
    asked = ["--budget.fraction=0.3", "--arms=[kappa]", "--recipe.seeds=1", "--tracking_uri=none"]
    asked += ["--recipe.learning_rates=[1e-3, 1e-2, 1e-1]", "--recipe.extensions=0"]
    for tie, taken in ((0.0, 1e-1), (0.05, 1e-2), (0.2, 1e-3)):  # in one folder: a run does not hang on it
        main(words(made, *asked, f"--recipe.tie={tie}"))
        assert json.loads(Path("tune/tune.json").read_text())["runs"]["kappa"][0]["lr"] == taken


def test_a_draw_that_cannot_be_run_is_found_before_anything_is_trained(made, monkeypatch, capsys):
    """Drawn tensors differ between seeds, and so does the rank that they need."""
    planned = tune.plan

    def unlucky(arm, model, candidates, share, seed):
        if seed == 2:
            raise AtomsError("budget of 9 parameters: adapters on 2 tensors would need rank 99")
        return planned(arm, model, candidates, share, seed)

    monkeypatch.setattr("atoms.commands.tune.plan", unlucky)
    monkeypatch.setattr("atoms.tuning.experiment._train", None)
    asked = ["--budget.fraction=0.3", "--arms=[kappa, random_lora]", "--recipe.seeds=2", "--tracking_uri=none"]
    with pytest.raises(SystemExit):
        main(words(made, *asked, "--budget.adapted=0.5"))
    assert "would need rank 99" in said(capsys)
    assert not Path("tune").exists()


def test_parts_of_an_experiment_are_gathered(made, monkeypatch, database):
    """Processes that run some of the arms each leave their runs in one folder; a last call with all runs none again."""
    asked = ["--budget.fraction=0.3", "--recipe.seeds=1", "--recipe.learning_rates=[1e-2]", "--recipe.extensions=0"]
    for part in ("[kappa]", "[random, full]"):
        main(words(made, *asked, f"--arms={part}", "--tracking_uri=none"))
    monkeypatch.setattr(experiment, "_train", None)
    main(words(made, *asked, "--arms=[full, kappa, random]"))
    assert set(json.loads(Path("tune/tune.json").read_text())["runs"]) == {"full", "kappa", "random"}
    (kept,) = database.search_experiments(filter_string="name = 'tune'")
    runs = database.search_runs([kept.experiment_id])
    assert len(runs) == 1 + 3 * 2
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_what_would_fail_hours_later_is_refused_at_once(made, monkeypatch, capsys):
    """Before a text is read or an arm trained, and before anything is written."""
    halves = AutoModelForCausalLM.from_pretrained(made / "llama", dtype="bfloat16")
    halves.save_pretrained("halves")
    write_tokenizer(Path("halves"), "bos")
    monkeypatch.setattr("atoms.tuning.experiment._train", None)
    for changes, line in (
        (["--model.name=halves", "--model.dtype=auto"],
         "trainer.precision is 32-true and the model in bfloat16: what is trained is held in float32, so set "
         "trainer.precision to bf16-mixed, or model.dtype to float32"),
        (["--model.dtype=float16"], "trainer.precision is 32-true and the model in float16: "),
        (["--trainer.precision=bf16-true"], "trainer.precision is bf16-true: give one of 32-true, "),
        (["--trainer.strategy=ddp_spawn", "--trainer.devices=2"], "trainer.strategy is ddp_spawn, under which atoms"),
        (["--trainer.devices=3"], "recipe.batch_size is 4: give a multiple of the 3 processes"),
        (["--model.device_map=auto"], "model.device_map is auto: a model is tuned where trainer says; leave it out"),
        (["--recipe.learning_rates=[.inf]"], "recipe.learning_rates is [inf]: give ascending numbers above 0"),
        (["--general.share=7", "--task.corpus.paths=[nowhere]"], "general.share is 7.0: give a number above 0"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            main(words(made, "--budget.fraction=0.3", *changes, "--tracking_uri=none"))
        assert stop.value.code == 1
        assert line in said(capsys)
    assert not Path("tune").exists()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "requires bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "GPTQ quantized model requires"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ],
)
def test_quantised_weights_without_their_library(settings, line, made, capsys):
    missing = {"bitsandbytes": "bitsandbytes", "gptq": "optimum", "compressed-tensors": "compressed_tensors"}
    if importlib.util.find_spec(missing[settings["quant_method"]]):
        pytest.skip("the library is there")
    shutil.copytree(made / "llama", "quantised")
    config = json.loads(Path("quantised/config.json").read_text())
    Path("quantised/config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(SystemExit) as stop:
        main(words(made, "--model.name=quantised", "--budget.fraction=0.3", "--tracking_uri=none"))
    assert stop.value.code == 1
    error = said(capsys)
    assert error.startswith("atoms: error: model.name='quantised': cannot load weights (")
    assert line in error
    assert error.endswith("): install it, or name the checkpoint that was quantised")


def test_training_outlives_its_database(made, database, monkeypatch, capsys):
    """MLflow that fails on the way, whatever it raises, is a note; files are written all the same."""
    monkeypatch.setattr("atoms.commands.tune.draw", lambda _: {})
    trained = experiment._train

    def gone(*arguments):
        Path("mlflow.db").unlink(missing_ok=True)
        return trained(*arguments)

    monkeypatch.setattr(experiment, "_train", gone)
    asked = ["--budget.fraction=0.3", "--arms=[kappa]", "--recipe.learning_rates=[1e-2]", "--recipe.seeds=1"]
    main(words(made, *asked, "--recipe.extensions=0"))
    out, err = capsys.readouterr()
    (note,) = (line for line in err.splitlines() if line.startswith("note "))
    assert note == "note     not logged: FileNotFoundError: no such file"
    assert "logged   run" not in out
    assert set(json.loads(Path("tune/tune.json").read_text())["runs"]) == {"kappa"}


def test_a_database_that_cannot_be_used_is_a_note_too(made, monkeypatch, capsys):
    monkeypatch.setattr("atoms.commands.tune.draw", lambda _: {})
    Path("broken.db").write_bytes(b"no database" * 1000)
    asked = ["--budget.fraction=0.3", "--arms=[kappa]", "--recipe.learning_rates=[1e-2]", "--recipe.seeds=1"]
    main(words(made, *asked, "--recipe.extensions=0", "--tracking_uri=sqlite:///broken.db"))
    out, err = capsys.readouterr()
    assert "note     not logged: " in err
    assert "found    tune/" in out


def test_an_experiment_that_is_killed_goes_on(made, database, monkeypatch, capsys):
    """What was finished is not done again, and the result is that of an experiment nobody killed."""
    monkeypatch.setattr("atoms.commands.tune.draw", lambda _: {})
    asked = ["--budget.fraction=0.3", "--arms=[kappa, random]", "--recipe.learning_rates=[1e-2]", "--recipe.seeds=2"]
    asked += ["--recipe.extensions=0"]
    trained, done = experiment._train, []

    def counted(bench, planned, model, lr, seed):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append((planned.arm.name, seed))
        return trained(bench, planned, model, lr, seed)

    monkeypatch.setattr(experiment, "_train", counted)
    with pytest.raises(KeyboardInterrupt):
        main(words(made, *asked))
    assert done == [("kappa", 0), ("kappa", 1), ("kappa", 2), ("random", 0)]
    (kept,) = database.search_experiments(filter_string="name = 'tune'")
    runs = database.search_runs([kept.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert parent.info.status == "FAILED"
    assert len(runs) == 4  # kappa's are logged already

    again = []
    monkeypatch.setattr(
        experiment, "_train", lambda *given: again.append((given[1].arm.name, given[4])) or trained(*given)
    )
    main(words(made, *asked, "--tracking_uri=none"))
    assert again == [("random", 1), ("random", 2)]
    main(words(made, *asked, "--tracking_uri=none", "--output=whole"))
    resumed, whole = (json.loads(Path(folder, "tune.json").read_text()) for folder in ("tune", "whole"))
    assert (resumed["settings"].pop("output"), whole["settings"].pop("output")) == ("tune", "whole")
    assert resumed == whole
    assert len(again) == 2 + 6
    with pytest.raises(SystemExit):
        main(words(made, *asked, "--tracking_uri=none", "--trainer.precision=bf16-mixed"))
    assert "output is tune, which holds another experiment" in said(capsys)


def test_rates_seeds_and_arms_may_be_added_to_an_experiment(made, monkeypatch):
    monkeypatch.setattr("atoms.commands.tune.draw", lambda _: {})
    trained, done = experiment._train, []
    monkeypatch.setattr(
        experiment, "_train", lambda *given: done.append((given[1].arm.name, given[3], given[4])) or trained(*given)
    )
    asked = words(made, "--budget.fraction=0.3", "--tracking_uri=none", "--recipe.extensions=0")
    main([*asked, "--arms=[kappa]", "--recipe.learning_rates=[1e-2]", "--recipe.seeds=1"])
    main([*asked, "--arms=[random, kappa]", "--recipe.learning_rates=[1e-3, 1e-2]", "--recipe.seeds=2"])
    assert len(done) == len(set(done))
    assert set(done) == {
        (arm, lr, seed) for arm in ("kappa", "random") for lr, seed in ((1e-3, 0), (1e-2, 0), (1e-2, 1), (1e-2, 2))
    }


def test_what_is_not_compared_is_said(made, monkeypatch, capsys):
    monkeypatch.setattr("atoms.commands.tune.draw", lambda _: {})
    asked = ["--budget.fraction=0.3", "--recipe.learning_rates=[1e-2]", "--recipe.seeds=1", "--recipe.extensions=0"]
    main(words(made, *asked, "--arms=[kappa, reversed]", "--tracking_uri=none"))
    assert "note     nothing is compared: of references, none was run beside another arm" in capsys.readouterr().out


def test_adapters_without_peft(made, monkeypatch, capsys):
    monkeypatch.setattr("atoms.tuning.adapters.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(words(made, "--budget.fraction=0.3", "--arms=[lora]", "--tracking_uri=none"))
    assert "arms with adapters need peft: pip install 'atoms[tune]'" in said(capsys)


@pytest.mark.parametrize("name", [file.stem for file in CONFIGS.glob("*.yaml")])
def test_configs_run_on_a_tiny_model(name, made, monkeypatch, capsys):
    """All settings as they are but model, text and length."""
    monkeypatch.setattr("atoms.commands.tune.draw", lambda _: {})
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert set(written["arms"]) <= set(ARMS)
    config = [f"--config={CONFIGS / name}.yaml"]
    small = ["--recipe.seeds=1", "--recipe.learning_rates=[1e-2]", "--recipe.extensions=0", "--recipe.warmup=0"]
    model = "experts" if name == "olmoe" else "llama"
    corpora = words(made, *small, "--budget.fraction=0.3", "--budget.adapted=0.5", "--general.share=0.5", model=model)
    main([corpora[0], *config, *corpora[1:], "--tracking_uri=none", "--output=found"])
    out = capsys.readouterr().out
    assert all(f"arm      {arm}: " in out for arm in written["arms"])
    assert set(json.loads(Path("found/tune.json").read_text())["runs"]) == set(written["arms"])
