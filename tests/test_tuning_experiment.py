"""Rates found by one rule, runs that can be repeated, and experiments that go on where they were killed."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_models import write_experts, write_llama
from transformers import AutoConfig, AutoModelForCausalLM

from atoms.activations.language_model import load_causal_model, load_tokenizer
from atoms.activations.model_source import ModelSpec, resolve
from atoms.conditioning import candidates_of, survey, weights_of
from atoms.errors import AtomsError
from atoms.tuning import experiment
from atoms.tuning.adapters import adaptable
from atoms.tuning.arms import ARMS, Share, plan
from atoms.tuning.curves import LOSSES, Curve
from atoms.tuning.experiment import ASKED_IN_RUNS, Bench, Recipe, Run, best_of, claim, make_trainer, run, search
from atoms.tuning.text import Blocks, Text

RECIPE = Recipe(steps=4, batch_size=4, warmup=1, learning_rates=[1e-3, 1e-2], seeds=2, points=2, eval_tokens=100)


@pytest.fixture
def bench(tmp_path):
    folder = write_llama(tmp_path / "llama")
    drawn = torch.randint(3, 40, (24, 12), generator=torch.Generator().manual_seed(0))
    parts = {name: Blocks(part, part) for name, part in zip(LOSSES, drawn.split([12, 4, 4, 4]), strict=True)}
    model = AutoModelForCausalLM.from_pretrained(folder)
    return Bench(
        model=resolve(ModelSpec(str(folder), dtype="float32")),
        candidates=candidates_of(survey(weights_of(model))),
        text=Text(**parts, notes=()),
        recipe=RECIPE,
        share=Share(parameters=1100),
        trainer={"accelerator": "cpu", "devices": 1},
        folder=tmp_path / "found",
    )


def given(losses):
    """A run whose validation losses are these."""
    curve = Curve(list(range(len(losses))), list(range(len(losses))), {"val": losses})
    return Run("kappa", 0.0, 0, 1, None, [], curve)


def test_points_lie_at_equal_steps_of_the_square_root():
    assert Recipe(steps=64, points=8).at == [0, 1, 4, 9, 16, 25, 36, 49, 64]
    assert Recipe(steps=3, points=10).at == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "recipe.steps is 0"),
        ({"seeds": 0}, "recipe.seeds is 0"),
        ({"clip": -1.0}, "recipe.clip is -1.0"),
        ({"tie": math.nan}, "recipe.tie is nan: give a number of at least 0 and below 1"),
        ({"clip": math.inf}, "recipe.clip is inf: give 0 or more"),
        ({"learning_rates": []}, r"recipe.learning_rates is \[\]"),
        ({"learning_rates": [1e-2, 1e-3]}, "give ascending numbers above 0"),
        ({"learning_rates": [0.0, 1e-3]}, "give ascending numbers above 0"),
    ],
)
def test_recipes_that_cannot_be_run(settings, said):
    with pytest.raises(AtomsError, match=said):
        Recipe(**settings)


def test_the_rate_is_that_of_the_lowest_validation_loss_on_the_way():
    runs = [
        replace(given([4.0, 3.0, 3.5]), lr=1.0),
        replace(given([4.0, 3.2, 3.1]), lr=0.5),
        replace(given([4.0, math.nan, math.nan]), lr=2.0),
        replace(given([4.0, 3.0, 3.9]), lr=3.0),
    ]
    assert best_of(runs).lr == 1.0
    assert best_of(runs, 0.09).lr == 1.0  # the gains are 1 and .9
    assert best_of(runs, 0.11).lr == 0.5
    assert best_of([replace(given([4.0, 4.0]), lr=lr) for lr in (2.0, 1.0)], 0.5).lr == 1.0
    assert given([4.0, math.nan, math.nan]).best == math.inf


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1e-2, [1e-3, 1e-2, 1e-1]),
        (1e-1, [1e-3, 1e-2, 1e-1, 0.316]),
        (10.0, [1e-3, 1e-2, 1e-1, 0.316, 0.999]),
        (1e-3, [3.16e-4, 1e-3, 1e-2, 1e-1]),
        (1e-9, [9.99e-5, 3.16e-4, 1e-3, 1e-2, 1e-1]),
    ],
)
def test_the_search_goes_on_past_an_end_where_the_best_lies_there(best, tried, bench, monkeypatch):
    def pretended(bench, arm, lr, seed):
        assert seed == 0
        return replace(given([9.0, abs(math.log(lr / best))]), lr=lr)

    monkeypatch.setattr(experiment, "run", pretended)
    found = search(replace(bench, recipe=replace(RECIPE, learning_rates=[1e-3, 1e-2, 1e-1])), ARMS["kappa"])
    assert [each.lr for each in found] == pytest.approx(tried)


def test_what_is_reported_is_not_looked_at_while_rates_are_tried(bench):
    assert set(run(bench, ARMS["kappa"], 1e-2, 0).curve.losses) == {"train", "val", "general"}
    assert set(run(bench, ARMS["kappa"], 1e-2, 1).curve.losses) == {"train", "test", "general"}


def test_runs_repeat_and_all_begin_alike(bench, tmp_path):
    first = {name: run(bench, ARMS[name], 1e-2, 1) for name in ("full", "kappa", "lora", "random")}
    again = run(replace(bench, folder=tmp_path / "elsewhere"), ARMS["random"], 1e-2, 1)
    assert again == first["random"]
    other = run(bench, ARMS["random"], 1e-2, 2)
    assert other.curve.losses["train"][-1] != again.curve.losses["train"][-1]
    starts = {tuple(each.curve.losses[name][0] for name in ASKED_IN_RUNS) for each in first.values()}
    assert len(starts) == 1
    assert all(each.curve.losses["train"][-1] < each.curve.losses["train"][0] for each in first.values())
    assert first["full"].trained > 5 * first["kappa"].trained


def test_finished_runs_are_not_run_again(bench, monkeypatch):
    done = []
    bench = replace(bench, said=done.append)
    first = run(bench, ARMS["kappa"], 1e-2, 1)
    assert done == [48] * 4
    monkeypatch.setattr(experiment, "_train", None)
    assert run(bench, ARMS["kappa"], 1e-2, 1) == first
    assert sum(done) == 2 * 192
    (file,) = (bench.folder / "runs").iterdir()
    assert file.name == "kappa-lr0.01-seed1.json"
    file.write_text(file.read_text()[:50])
    with pytest.raises(AtomsError, match=r"seed1\.json is damaged"):
        run(bench, ARMS["kappa"], 1e-2, 1)


@pytest.mark.parametrize("name", ["full", "kappa", "kappa_lora"])
def test_models_are_kept_whole(name, bench):
    bench = replace(bench, keep=True, share=replace(bench.share, adapted=0.6))
    found = run(bench, ARMS[name], 1e-2, 1)
    folder = bench.folder / "models" / f"{name}-lr0.01-seed1"
    kept = AutoModelForCausalLM.from_pretrained(folder)
    few = bench.text.test.take(100)
    loss = kept(input_ids=few.ids, labels=few.labels).loss.item()
    assert loss == pytest.approx(found.curve.losses["test"][-1], rel=1e-5)
    if name != "full":
        chosen = json.loads((folder / "selection.json").read_text())["chosen"]
        assert [each["name"] for each in chosen] == found.chosen


def test_a_folder_is_of_one_experiment(tmp_path):
    claim(tmp_path / "a", {"context": 64, "budget": {"fraction": 0.2}})
    claim(tmp_path / "a", {"budget": {"fraction": 0.2}, "context": 64})
    with pytest.raises(AtomsError, match="holds another experiment: name another folder, or delete it"):
        claim(tmp_path / "a", {"context": 32, "budget": {"fraction": 0.2}})
    (tmp_path / "a" / "experiment.json").write_text("{")
    with pytest.raises(AtomsError, match="holds another experiment"):
        claim(tmp_path / "a", {"context": 64, "budget": {"fraction": 0.2}})


def test_a_place_that_is_not_there(bench):
    with pytest.raises(AtomsError, match=r"^trainer: "):
        run(replace(bench, trainer={"accelerator": "cuda", "devices": 1}), ARMS["kappa"], 1e-2, 1)


def test_a_rate_at_which_a_run_diverges_is_not_taken():
    """Not even where it had come lower than any other before; on another seed it may not come so far."""
    diverged = replace(given([4.0, 1.0, math.nan]), lr=1.0)
    overflown = replace(given([4.0, 1.0, math.inf]), lr=1.0)
    assert diverged.best == overflown.best == math.inf
    assert best_of([replace(given([4.0, 3.9]), lr=0.5), diverged], 0.02).lr == 0.5
    assert best_of([diverged, replace(diverged, lr=0.5)], 0.02).lr == 0.5


@pytest.mark.parametrize("rates", [[1.0], [1.0, 10.0]])
def test_a_search_where_all_diverge_goes_down_alone(rates, bench, monkeypatch):
    def pretended(bench, arm, lr, seed):
        return replace(given([4.0, 3.0 if lr < 0.2 else math.nan]), lr=lr)

    monkeypatch.setattr(experiment, "run", pretended)
    found = search(replace(bench, recipe=replace(RECIPE, learning_rates=rates)), ARMS["kappa"])
    assert [each.lr for each in found] == pytest.approx([0.0999, 0.316, *rates])
    assert best_of(found).lr == pytest.approx(0.0999)


def test_every_arm_is_tuned_by_the_same_rule_and_none_on_a_seed_it_is_judged_on(bench, monkeypatch):
    asked = []
    monkeypatch.setattr(
        experiment, "run", lambda bench, arm, lr, seed: asked.append((arm.name, lr, seed)) or given([1])
    )
    for name in ("full", "lora", "reversed"):
        search(replace(bench, recipe=replace(RECIPE, extensions=0)), ARMS[name])
    assert asked == [(name, lr, 0) for name in ("full", "lora", "reversed") for lr in RECIPE.learning_rates]


def test_arms_see_the_same_batches_in_the_same_order(bench, monkeypatch):
    seen = {}

    def noted(module, batch, batch_idx):
        seen.setdefault(batch_idx, []).append(batch[0])
        return step(module, batch, batch_idx)

    step = experiment.CausalLM.training_step
    monkeypatch.setattr(experiment.CausalLM, "training_step", noted)
    for name in ("full", "kappa", "lora"):
        run(bench, ARMS[name], 1e-2, 1)
    assert len(seen) == RECIPE.steps
    assert all(
        len(same) == 3 and torch.equal(same[0], same[1]) and torch.equal(same[0], same[2]) for same in seen.values()
    )
    run(bench, ARMS["full"], 1e-2, 2)
    assert not all(torch.equal(same[0], same[3]) for same in seen.values())


def test_rates_that_differ_in_a_late_digit_are_runs_of_their_own(bench):
    first, second = (run(bench, ARMS["full"], lr, 1) for lr in (1e-2, 1.0000001e-2))
    assert (first.lr, second.lr) == (1e-2, 1.0000001e-2)
    assert len(list((bench.folder / "runs").iterdir())) == 2


def test_a_kept_model_is_made_again_where_its_run_is_missing_and_the_run_where_its_model_is(bench, monkeypatch):
    """As after a kill between the two, or a damaged file that was deleted as its message says."""
    bench = replace(bench, keep=True)
    first = run(bench, ARMS["kappa"], 1e-2, 1)
    file, kept = bench.folder / "runs" / "kappa-lr0.01-seed1.json", bench.folder / "models" / "kappa-lr0.01-seed1"
    weights = (kept / "model.safetensors").read_bytes()
    file.unlink()
    (kept / "model.safetensors").write_bytes(b"half")
    assert run(bench, ARMS["kappa"], 1e-2, 1) == first
    assert (kept / "model.safetensors").read_bytes() == weights
    shutil.rmtree(kept)
    assert run(bench, ARMS["kappa"], 1e-2, 1) == first
    assert (kept / "model.safetensors").read_bytes() == weights
    assert {each.name for each in (bench.folder / "models").iterdir()} == {"kappa-lr0.01-seed1"}
    run(bench, ARMS["kappa"], 1e-2, 2)
    monkeypatch.setattr(experiment, "_train", None)
    run(bench, ARMS["kappa"], 1e-2, 1)


@pytest.mark.parametrize("name", ["full", "kappa", "lora"])
def test_a_kept_model_is_ready_to_be_used(name, bench):
    """Its configuration is the source's, its tokenizer beside it, and nothing of PEFT or of training is left in it."""
    run(replace(bench, keep=True), ARMS[name], 1e-2, 1)
    folder = bench.folder / "models" / f"{name}-lr0.01-seed1"
    source, kept = (AutoConfig.from_pretrained(path).to_dict() for path in (bench.model.path, folder))
    named = {"_name_or_path", "transformers_version"}
    assert {key: value for key, value in kept.items() if key not in named} == {
        key: value for key, value in source.items() if key not in named
    }
    assert load_tokenizer(resolve(ModelSpec(str(folder))))("w1 w2")["input_ids"] == [1, 5, 6]
    resolved = resolve(ModelSpec(str(folder), dtype="float32"))
    begun, tuned = (load_causal_model(each).state_dict() for each in (bench.model, resolved))
    assert begun.keys() == tuned.keys()
    moved = {key for key, value in begun.items() if not torch.equal(value, tuned[key])}
    planned = plan(ARMS[name], load_causal_model(bench.model), bench.candidates, bench.share, 1)
    if name == "kappa":
        assert moved == set(planned.selection.names)
    elif name == "lora":
        assert moved == set(adaptable(load_causal_model(bench.model)))
    else:
        assert moved == set(begun)


def test_experts_are_trained_by_every_arm(bench, tmp_path):
    """A mixture of experts, whose weights are tensors of three dimensions, in bfloat16."""
    folder = write_experts(tmp_path / "experts", torch.bfloat16)
    resolved = resolve(ModelSpec(str(folder), dtype="bfloat16"))
    candidates = candidates_of(survey(weights_of(load_causal_model(resolved))))
    mixed = {**bench.trainer, "precision": "bf16-mixed"}
    share = Share(fraction=0.25, adapted=0.5)
    bench = replace(bench, model=resolved, candidates=candidates, trainer=mixed, share=share)
    starts = set()
    for name, arm in ARMS.items():
        found = run(bench, arm, 1e-2, 1)
        losses = found.curve.losses["train"]
        assert losses[-1] < losses[0], name
        assert all(math.isfinite(value) for values in found.curve.losses.values() for value in values)
        starts.add(round(losses[0], 2))
    assert len(starts) == 1


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({"precision": "bf16-true"}, r"trainer\.precision is bf16-true: give one of 32-true, bf16-mixed, 16-mixed"),
        ({"precision": "64-true"}, r"trainer\.precision is 64-true: give one of"),
        ({"strategy": "ddp_spawn", "devices": 2}, r"trainer\.strategy is ddp_spawn, under which atoms does not tune"),
        ({"strategy": "ddp_notebook", "devices": 2}, r"trainer\.strategy is ddp_notebook, under which atoms does not"),
        ({"strategy": "nonsense"}, r"trainer: You selected an invalid strategy name"),
        ({"precision": "bf17"}, r"trainer: Precision 'bf17' is invalid"),
    ],
)
def test_places_where_runs_cannot_be_compared(place, said):
    with pytest.raises(AtomsError, match=f"^{said}"):
        make_trainer({"accelerator": "cpu", "devices": 1, **place}, [])


@pytest.mark.parametrize("content", ["[]", "{}", '{"arm": "kappa"}', "nothing", "null", '{"curve": {"steps": 3}}'])
def test_files_that_are_no_run(content, bench):
    file = bench.folder / "runs" / "kappa-lr0.01-seed1.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(AtomsError, match=r"seed1\.json is damaged \(.*\): delete it, and it is run again$"):
        run(bench, ARMS["kappa"], 1e-2, 1)
