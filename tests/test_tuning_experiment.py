"""Rates found by one rule, runs that can be repeated, and experiments that go on where they were killed."""

import json
import math
from dataclasses import replace

import pytest
import torch
from tiny_models import write_llama
from transformers import AutoModelForCausalLM

from atoms.activations.language_model import ModelSpec, resolve
from atoms.conditioning import candidates_of, survey, weights_of
from atoms.errors import AtomsError
from atoms.tuning import experiment
from atoms.tuning.arms import ARMS, Share
from atoms.tuning.curves import LOSSES, Curve
from atoms.tuning.experiment import Bench, Recipe, Run, best_of, claim, run, search
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


def test_points_lie_at_equal_ratios():
    assert Recipe(steps=64, points=6).at == [0, 2, 4, 8, 16, 32, 64]
    assert Recipe(steps=3, points=10).at == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "recipe.steps is 0"),
        ({"seeds": 0}, "recipe.seeds is 0"),
        ({"clip": -1.0}, "recipe.clip is -1.0"),
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
    assert set(run(bench, ARMS["kappa"], 1e-2, 0).curve.losses) == {"val"}
    assert set(run(bench, ARMS["kappa"], 1e-2, 1).curve.losses) == set(LOSSES)


def test_runs_repeat_and_all_begin_alike(bench, tmp_path):
    first = {name: run(bench, ARMS[name], 1e-2, 1) for name in ("full", "kappa", "lora", "random")}
    again = run(replace(bench, folder=tmp_path / "elsewhere"), ARMS["random"], 1e-2, 1)
    assert again == first["random"]
    other = run(bench, ARMS["random"], 1e-2, 2)
    assert other.curve.losses["train"][-1] != again.curve.losses["train"][-1]
    starts = {tuple(each.curve.losses[name][0] for name in LOSSES) for each in first.values()}
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
    folder = bench.folder / "models" / name
    kept = AutoModelForCausalLM.from_pretrained(folder)
    few = bench.text.val.take(100)
    loss = kept(input_ids=few.ids, labels=few.labels).loss.item()
    assert loss == pytest.approx(found.curve.losses["val"][-1], rel=1e-5)
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
