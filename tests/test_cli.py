"""What the ``atoms`` command says of itself, and of whatever it cannot do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import WORDS
from mlflow.tracking import MlflowClient

import atoms
from atoms.activations.lock import StoreLock
from atoms.activations.planted import PlantedSpec
from atoms.cli import main

CONFIGS = Path(atoms.__file__).parents[1] / "configs"


@pytest.fixture
def refused(capsys):
    """Run a command that must fail with one line and leave no codes and no finished run; gives the line."""

    def run(*words, code=1) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert stop.value.code == code
        assert not out
        # What the work would cost and how far it is may come first.
        lines = [line for line in err.splitlines() if line.split("  ")[0] not in ("fit", "memory", "note")]
        assert len(lines) == 1, err
        assert lines[0].startswith("atoms: error: ")
        assert not list(Path().glob("codes*"))
        if Path("mlflow.db").exists():
            client = MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")
            found = client.get_experiment_by_name("atoms")
            runs = client.search_runs([found.experiment_id]) if found else []
            assert {run.info.status for run in runs} <= {"FAILED"}
        return lines[0].removeprefix("atoms: error: ")

    return run


# ---------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_usage_names_every_command(words, capsys):
    main(words)
    said = capsys.readouterr().out
    for command in ("cache", "fit", "validate", "test", "predict", "sites"):
        assert f"  atoms {command}" in said


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"atoms {atoms.__version__}\n"


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        ("cache", "--data.store"),
        ("fit", "--model.target_l0"),
        ("validate", "--ckpt_path"),
        ("test", "--ckpt_path"),
        ("predict", "--output"),
        ("sites", "--modules"),
    ],
)
def test_help_of_every_command(command, setting, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert f"{setting} " in said
    assert "--model.width" not in said  # linked, never set


def test_the_package_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "atoms", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"atoms {atoms.__version__}\n"


def test_help_imports_no_heavy_library():
    heavy = "{'torch', 'lightning', 'mlflow'}"
    script = f"import sys, atoms.cli; atoms.cli.main(['--help']); assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


# ---------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frobnicate"], "unknown command 'frobnicate'; 'atoms --help' lists them"),
        (["fit", "--model.lrr=1"], "model.lrr is no setting: did you mean model.lr?"),
        (["fit", "--trainer.max_epohcs", "1"], "trainer.max_epohcs is no setting: did you mean trainer.max_epochs?"),
        (["fit", "--data.planted.widht=3"], "data.planted: widht is no setting: did you mean width?"),
        (["fit", "--zzzzzz=3"], "zzzzzz is no setting: --help lists the settings"),
        (["fit", "--model.target_l0=many"], "model.target_l0: expected float, got many"),
        (["fit", "--model.encoder=free!"], "model.encoder: expected one of 'tied', 'aligned', 'free', got free!"),
        (["fit", "--trainer.max_epochs=three"], "trainer.max_epochs: expected int, got three"),
        (["fit", "--data.planted={}", "--seed_everything=-5"], "seed_everything: -5 is not in bounds"),
        (["fit", "--data.planted.seed=null"], "data.planted.seed is null: give a value, or leave it out"),
        (["fit", "--data.batch_size=1.5"], "data.batch_size: expected int, got 1.5"),
        (["fit", "--data.planted.width=wide"], "data.planted: width: expected int, got wide"),
        (["fit", "--model.members={a: {sit: x}}"], "model.members: sit is no setting: did you mean site?"),
        (["fit", "--data.planted.width=0"], "data.planted.width is 0: give a number of at least 1"),
        (["fit", "--data.planted={}", "--data.batch_size=0"], "data.batch_size"),
        (["fit", "--data.planted={}", "--data.lanes=7"], "data.batch_size=4096: not a multiple of data.lanes=7"),
        (["fit"], "data has neither store, harvest, matrix nor planted"),
        (["fit", "--data.store=nowhere"], "data.store is nowhere, where there is no store"),
        (["fit", "--data.planted={}", "--trainer.accelerator=abacus"], "trainer: You selected an invalid accelerator"),
        (["fit", "--config=nowhere.yaml"], "config: File does not exist"),
        (["validate", "--ckptpath=x"], "ckptpath is no setting: did you mean ckpt_path?"),
        (["validate"], "nothing to judge: name a checkpoint with --ckpt_path, or a unit with --unit"),
        (["predict", "--splits=[trn]"], "splits: expected one of 'train', 'val', 'test', got trn"),
    ],
)
def test_settings_that_cannot_be(words, said, refused, tmp_path):
    assert refused(*words, code=2 if words == ["frobnicate"] else 1).startswith(said)
    assert not list(tmp_path.glob("activations*"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {lrr: 3}", "model.lrr is no setting: did you mean model.lr?"),
        ("modl: {lr: 3}", "modl.lr is no setting: did you mean model.lr?"),
        ("data: {plantd: {rows: 3}}", "data.plantd.rows is no setting: did you mean data.planted?"),
        ("model: {lr: [1, 2]}", "model.lr: expected float, got [1, 2]"),
        ("data: [1", "Problems parsing config"),
        ("model: {target_l0: null}", "model.target_l0 is null: give a value, or leave it out"),
        ("data: [1]", "data"),
        ("trainer: [1]", "trainer"),
        ("trainer: null", "trainer"),
        ("trainer: {accumulate_grad_batches: null}", "trainer.accumulate_grad_batches is null: give a value, or leave"),
        ("- a list", "Unexpected config"),
    ],
)
def test_config_files_that_cannot_be(text, said, refused):
    Path("config.yaml").write_text(text)
    assert refused("fit", "--config=config.yaml").startswith(said)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("--data.batch_size=8192", "data.batch_size is 8192, but the store has only 4800 training rows"),
        ("--trainer.precision=bf16-true", "trainer.precision is 'bf16-true'"),
        ("--trainer.gradient_clip_val=1.0", "trainer.gradient_clip_val is 1.0, but each member is clipped alone: set"),
        (
            "--model.expansion=1e9",
            "model.expansion is 1000000000.0, which makes 1.6e+10 atoms of rows of width 16: lower",
        ),
        ("--trainer.max_epochs=0", "trainer.max_epochs and trainer.max_steps leave no step to take"),
        ("--model.site=resid_post.3", "model.site is 'resid_post.3', which the store does not hold: use planted"),
        ("--model.members={a/b: {}}", "model.members has 'a/b'"),
        ("--model.power=1.5", "power is 1.5: give a number from 0"),
        ("--model.target_l0=0", "target_l0 is 0.0: give a positive number"),
        ("--data.pool_mib=0", "data.pool_mib is 0"),
    ],
)
def test_settings_that_do_not_fit_the_store(setting, said, fit_words, refused, database):
    assert refused(*fit_words, setting).startswith(said)


# ---------------------------------------------------------------------------------------------- stores


def damage(name):
    def break_shard(store: Path) -> None:
        shard = store / "train" / "planted" / "acts" / "c" / "0" / "0"
        if name == "missing shard":
            shard.unlink()
        elif name == "truncated shard":
            os.truncate(shard, shard.stat().st_size - 1)
        else:
            content = bytearray(shard.read_bytes())
            content[100] ^= 1  # in the first chunk
            shard.write_bytes(content)

    return break_shard


@pytest.fixture
def store(planted_store, tmp_path):
    """A copy of the planted store, to be broken."""
    return Path(shutil.copytree(planted_store, tmp_path / "store"))


class TestStores:
    """A store that is not whole is refused by every command that reads it."""

    @pytest.fixture
    def commands(self, fitted, fit_words, store):
        words = [word for word in fit_words[1:] if not word.startswith("--data.store")]
        source = f"--data.store={store}"
        return {
            "fit": ["fit", *words, source],
            "cache": ["cache", *words, source],
            "validate": ["validate", source, f"--ckpt_path={fitted.last}", "--trainer.accelerator=cpu"],
            "test": ["test", source, f"--ckpt_path={fitted.last}", "--trainer.accelerator=cpu"],
            "predict": ["predict", source, f"--ckpt_path={fitted.last}", "--trainer.accelerator=cpu"],
        }

    @pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
    @pytest.mark.parametrize("fault", ["missing shard", "truncated shard", "no end", "no store"])
    def test_not_whole(self, command, fault, commands, store, refused, database):
        if fault == "no store":
            shutil.rmtree(store)
        elif fault == "no end":
            (store / "complete.json").unlink()
        else:
            damage(fault)(store)
        assert refused(*commands[command]).startswith("data.store")

    @pytest.mark.parametrize("command", ["fit", "validate", "predict"])
    def test_flipped_bit(self, command, commands, store, refused, database):
        damage("flipped bit")(store)
        said = refused(*commands[command])
        assert "chunk 0 in train/planted/acts" in said
        assert "run `atoms cache`" in said

    def test_incomplete_cannot_be_mended_without_its_source(self, commands, store, refused):
        (store / "complete.json").unlink()
        assert "incomplete" in refused(*commands["cache"])

    def test_made_with_other_settings(self, commands, store, refused, database):
        said = refused(*commands["fit"], "--data.planted.width=16", "--data.planted.rows=7000")
        assert "rows" in said

    def test_written_by_another(self, refused, tmp_path):
        with StoreLock(tmp_path / "store"):
            said = refused("cache", "--data.store=store", "--data.planted.rows=100")
        assert f"process {os.getpid()}" in said or "lock" in said

    def test_another_store_is_not_what_the_checkpoint_learnt(self, commands, fitted, refused, database, tmp_path):
        spec = PlantedSpec(width=16, atoms=24, active=2.0, rows=6000, seed=1)
        said = refused(
            *(word for word in commands["fit"] if "data.store" not in word), f"--ckpt_path={fitted.last}",
            *(f"--data.planted.{name}={getattr(spec, name)}" for name in ("width", "atoms", "active", "rows", "seed")),
        )  # fmt: skip
        assert "the checkpoint learnt from" in said


# ---------------------------------------------------------------------------------------------- checkpoints


class TestCheckpoints:
    """A checkpoint is never overruled without a word, nor does it overrule."""

    @pytest.mark.parametrize(
        ("setting", "said"),
        [
            ("--model.lr=0.1", "model.lr is 0.1 but 0.002 in the checkpoint"),
            ("--model.members={a: {}}", "model.members is {'a': "),
            ("--data.seed=4", "data.seed is 4 but 0 in the checkpoint"),
            ("--data.batch_size=512", "data.batch_size is 512 but 256 in the checkpoint"),
            ("--data.max_norm=3", "data.max_norm is 3.0 but 10.0 in the checkpoint"),
        ],
    )
    def test_conflicts(self, setting, said, fitted, fit_words, refused):
        assert said in refused(*fit_words, setting, f"--ckpt_path={fitted.at(30)}")

    def test_conflict_in_a_file(self, fitted, fit_words, refused):
        Path("config.yaml").write_text("model: {lr: 0.1}")
        said = refused(*fit_words, "--config=config.yaml", f"--ckpt_path={fitted.at(30)}")
        assert "model.lr is 0.1 but 0.002 in the checkpoint" in said

    @pytest.mark.parametrize("command", ["fit", "test", "predict", "validate"])
    def test_missing_or_something_else(self, command, fit_words, refused):
        words = [command, *fit_words[1:]] if command != "validate" else [command]
        assert refused(*words, "--ckpt_path=").startswith("ckpt_path is empty: name a checkpoint")
        assert refused(*words, "--ckpt_path=nowhere.ckpt").startswith("ckpt_path is nowhere.ckpt, which is not a file")
        Path("text.ckpt").write_text("not a checkpoint")
        assert refused(*words, "--ckpt_path=text.ckpt").startswith("ckpt_path is text.ckpt, which is not a checkpoint")

    @pytest.mark.parametrize("command", ["test", "predict"])
    def test_needed(self, command, fit_words, refused):
        assert refused(command, *fit_words[1:]).startswith("ckpt_path is not set")


# ---------------------------------------------------------------------------------------------- configs

FACTS = ("gemma-2-2b", "gemma-2-9b", "llama-3.1-8b")
# A tiny model of the family with as many blocks as the config is written for, so that its sites are run as they are.
TINY = {
    "quickstart": ("bert", {"special": "bert", "num_hidden_layers": 6}),
    "gpt2": ("gpt2", {"special": None, "n_layer": 12}),
    "gemma-2-2b": ("gemma2", {"num_hidden_layers": 26}),
    "gemma-2-9b": ("gemma2", {"num_hidden_layers": 42}),
    "llama-3.1-8b": ("llama", {"num_hidden_layers": 32}),
    "pythia-70m": ("gpt_neox", {"num_hidden_layers": 6, "special": None}),
    "pythia-160m": ("gpt_neox", {"num_hidden_layers": 12, "special": None}),
    "qwen3": ("qwen3", {"num_hidden_layers": 28, "special": None}),
}


@pytest.fixture
def facts(tmp_path):
    """A file in CounterFact's format: 200 subjects of two words, a prompt and a paraphrase about each."""
    records = []
    for case in range(200):
        subject = f"{WORDS[case]} {WORDS[case * 7 % 200]}"
        rewrite = {"prompt": f"the {WORDS[case * 3 % 200]} of {{}} the", "subject": subject}
        paraphrase = f"{WORDS[case * 11 % 200]} the {subject} {WORDS[case * 13 % 200]}"
        records.append({"case_id": case, "requested_rewrite": rewrite, "paraphrase_prompts": [paraphrase]})
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture
def hub_text(tmp_path, text_folder):
    """The texts as a local file that the hub's library reads."""
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": file.read_text()}) + "\n" for file in text_folder.glob("*.txt")))
    return path


def test_every_config_is_run():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*TINY, "planted", "text", "controls"}


@pytest.mark.parametrize("config", [("planted",), *((name,) for name in TINY), *((name, "text") for name in FACTS)])
def test_configs_run_on_a_tiny_model_of_the_family(config, tiny_folder, text_folder, facts, hub_text, database, capsys):
    words = ["fit", *(f"--config={CONFIGS / name}.yaml" for name in config)]
    if config == ("planted",):
        words += ["--data.planted.rows=2000", "--data.batch_size=128"]
    else:
        family, settings = TINY[config[0]]
        model = tiny_folder(family, **settings)
        pinned = config == ("quickstart",)  # to the digest of other weights
        words += [
            f"--data.harvest.model={{name: {model}, sha256: null}}" if pinned else f"--data.harvest.model.name={model}"
        ]
        words += ["--data.harvest.context=32", "--data.batch_size=64"]
        corpus = yaml.safe_load((CONFIGS / f"{config[-1]}.yaml").read_text())["data"]["harvest"]["corpus"]
        words += {
            # the tiny tokenizer knows none of the docstrings' words
            "StdlibDocstrings": [
                f"--data.harvest.corpus={{class_path: TextFiles, init_args: {{paths: [{text_folder}]}}}}"
            ],
            "TextFiles": [f"--data.harvest.corpus.paths=[{text_folder}]"],
            "CounterFact": [f"--data.harvest.corpus.path={facts}"],
            "HubText": ["--data.harvest.corpus.name=json", f"--data.harvest.corpus.data_files=[{hub_text}]"],
        }[corpus["class_path"].rpartition(".")[2]]
    logged = config in (("planted",), ("gpt2",))
    words += [] if logged else ["--trainer.logger=false"]
    main([*words, "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--model.target_l0=3"])
    out, err = capsys.readouterr()
    assert "R² centred, raw" in out
    if config[-1] in FACTS:
        assert "400 documents" in err
        assert "rows     400 (" in err  # one for each subject
    if logged:
        experiment = database.get_experiment_by_name("planted" if config == ("planted",) else "atoms")
        (run,) = database.search_runs([experiment.experiment_id])
        assert run.info.status == "FINISHED"


def test_controls_are_judged_beside_a_checkpoint(fitted, planted_store, capsys):
    """All but the neurons, which are a language model's: the store has none."""
    config = yaml.safe_load((CONFIGS / "controls.yaml").read_text())
    assert config["units"].pop("neurons") == {"class_path": "atoms.units.Neurons"}
    Path("controls.yaml").write_text(yaml.safe_dump(config))
    few = ["--checks.rows=100", "--checks.train_rows=50", "--checks.null_rows=32", "--checks.bootstrap=5"]
    few += ["--checks.skip=[use, l1, isometry, identifiability, shift, metric, stability, information, conditioning]"]
    words = ["--config=controls.yaml", f"--ckpt_path={fitted.last}", "--trainer.accelerator=cpu", *few]
    main(["validate", *words, "--tracking_uri=none"])
    assert {path.parent.name for path in Path("certificates").glob("*/certificate.json")} == {
        "planted",
        *config["units"],
    }


@pytest.mark.parametrize("model", FACTS)
def test_text_takes_the_place_of_facts(model, tiny_folder, capsys):
    """The second file changes the corpus, and leaves model and sites as they are."""
    family, settings = TINY[model]
    files = [f"--config={CONFIGS / name}.yaml" for name in (model, "text")]
    with pytest.raises(SystemExit):
        main(["fit", *files, f"--data.harvest.model.name={tiny_folder(family, **settings)}", "--print_config"])
    merged, first, text = (
        yaml.safe_load(source)["data"]["harvest"]
        for source in (capsys.readouterr().out, *((CONFIGS / f"{name}.yaml").read_text() for name in (model, "text")))
    )
    assert merged["corpus"]["class_path"].endswith("HubText")
    assert "path" not in merged["corpus"]["init_args"]
    assert {key: merged[key] for key in text if key != "corpus"} == {k: v for k, v in text.items() if k != "corpus"}
    assert merged["sites"] == first["sites"]
    assert merged["model"]["dtype"] == "bfloat16"
