"""Which tensors are chosen: as PEFT does, within a budget, and only of the weights they were chosen by."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from families import config_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from atoms.conditioning import Budget, Candidate, Selection, candidates_of, select, survey, weights_of
from atoms.errors import AtomsError

laws = settings(deadline=None, max_examples=60)
ORDERS = ["kappa", "reversed", "random", "relative"]


def candidate(name: str, kappa: float = 2.0, parameters: int = 10, **more: object) -> Candidate:
    settings = {"kind": "linear", "relative": kappa / 2, "exact": True, "digest": "0"} | more
    return Candidate(name=name, kappa=kappa, parameters=parameters, **settings)  # type: ignore[arg-type]


def several(*kappas: float) -> list[Candidate]:
    return [candidate(f"layers.{place}.fc.weight", kappa) for place, kappa in enumerate(kappas)]


def places(selection: Selection) -> list[int]:
    return [int(name.split(".")[1]) for name in selection.names]


def causal(family: str, seed: int, **changes: object) -> nn.Module:
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(
        config_of(family, initializer_range=0.2, tie_word_embeddings=False, **changes)
    )


def measured(model: nn.Module) -> list[Candidate]:
    return candidates_of(survey(weights_of(model)))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("gpt_neox", {}),
        ("qwen3", {}),
        ("opt", {}),
        ("mixtral", {"num_local_experts": 4}),
        ("qwen3_moe", {}),
    ],
)
def test_peft_chooses_the_same_in_the_same_order(family, changes, seed):
    peft = pytest.importorskip("peft", reason="extra tune")
    model = causal(family, seed, **changes)
    every = measured(model)
    linear = {name for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    modules = [each for each in every if each.name.removesuffix(".weight") in linear]
    stacks = [each for each in every if each.kind == "experts"]
    assert len(modules) == len(linear)
    assert any(each.kind == "unembedding" for each in modules)
    assert bool(stacks) == (family in ("mixtral", "qwen3_moe"))
    for top_p in (0.01, 0.2, 0.5, 0.77, 1.0):
        theirs = peft.find_kappa_target_modules(model, top_p, show_progress=False)
        ours = select(modules, Budget(fraction=top_p), embeddings=True).names
        assert [name.removesuffix(".weight") for name in ours] == theirs["target_modules"]
        if stacks:
            assert select(stacks, Budget(fraction=top_p)).names == theirs["target_parameters"]
        else:
            assert theirs["target_parameters"] is None


def test_a_tensor_of_experts_has_their_mean():
    stack = nn.ParameterDict({"down_proj": nn.Parameter(torch.randn(4, 6, 5))})
    conditions = survey(weights_of(nn.ModuleDict({"experts": stack})))
    (found,) = candidates_of(conditions)
    assert found.name == "experts.down_proj"
    assert found.kind == "experts"
    assert found.parameters == 120
    assert found.kappa == pytest.approx(np.mean([each.kappa for each in conditions]))
    assert found.relative == pytest.approx(np.mean([each.relative for each in conditions]))
    assert found.digest == conditions[0].digest
    spoilt = [replace(conditions[0], kappa=math.inf, relative=math.inf), *conditions[1:]]
    assert candidates_of(spoilt)[0].kappa == math.inf
    assert not candidates_of([replace(conditions[0], exact=False), *conditions[1:]])[0].exact


def test_candidates_keep_the_models_order():
    model = nn.Sequential(*(nn.Linear(3 + place, 4) for place in range(5)))
    assert [each.name for each in measured(model)] == [f"{place}.weight" for place in range(5)]
    assert candidates_of([]) == []


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (Budget(count=1), [2]),
        (Budget(count=3), [2, 0, 4]),
        (Budget(count=99), [2, 0, 4, 1, 3]),
        (Budget(fraction=0.01), [2]),
        (Budget(fraction=0.59), [2, 0]),
        (Budget(fraction=0.6), [2, 0, 4]),
        (Budget(fraction=1.0), [2, 0, 4, 1, 3]),
        (Budget(parameters=10), [2]),
        (Budget(parameters=39), [2, 0, 4]),
        (Budget(parameters=10**9), [2, 0, 4, 1, 3]),
    ],
)
def test_budgets(budget, chosen):
    found = select(several(3, 8, 2, 9, 5), budget)
    assert places(found) == chosen
    assert found.parameters == 10 * len(chosen)
    assert (found.order, found.budget, found.candidates, found.unknown) == ("kappa", budget, 5, ())


def test_a_budget_of_parameters_passes_over_what_does_not_fit():
    every = [candidate(f"layers.{place}.w", place + 1, size) for place, size in enumerate([50, 60, 30, 25, 20])]
    assert places(select(every, Budget(parameters=100))) == [0, 2, 4]
    assert places(select(every, Budget(parameters=45))) == [2]
    assert places(select(every, Budget(parameters=49))) == [2]
    assert places(select(every, Budget(parameters=50))) == [0]
    assert places(select(every, Budget(parameters=24))) == [4]
    with pytest.raises(AtomsError, match="parameters is 19, and the smallest tensor has 20: give at least that"):
        select(every, Budget(parameters=19))


@laws
@given(
    st.lists(st.tuples(st.floats(1, 1e6), st.integers(1, 100)), min_size=1, max_size=20),
    st.integers(1, 500),
    st.sampled_from(ORDERS),
)
def test_what_is_left_out_of_a_full_budget_would_not_have_fitted(found, limit, order):
    every = [candidate(f"layers.{place}.w", kappa, size) for place, (kappa, size) in enumerate(found)]
    if min(size for _, size in found) > limit:
        with pytest.raises(AtomsError, match=f"parameters is {limit}"):
            select(every, Budget(parameters=limit), order)
        return
    chosen = select(every, Budget(parameters=limit), order)
    assert chosen.parameters <= limit
    left_out = [each for each in every if each not in chosen.chosen]
    assert all(each.parameters > limit - chosen.parameters for each in left_out)
    assert len(set(chosen.names)) == len(chosen.names)


@laws
@given(st.lists(st.one_of(st.floats(1, 1e6), st.just(math.inf)), min_size=1, max_size=20), st.integers(1, 20))
def test_lowest_and_highest(kappas, count):
    lowest = select(several(*kappas), Budget(count=count))
    highest = select(several(*kappas), Budget(count=count), "reversed")
    assert [each.kappa for each in lowest.chosen] == sorted(kappas)[:count]
    assert [each.kappa for each in highest.chosen] == sorted(kappas, reverse=True)[:count]
    assert math.inf not in [each.kappa for each in lowest.chosen[: len(kappas) - kappas.count(math.inf)]]


def test_relative_order_is_by_what_the_shape_would_have():
    every = [candidate("a", 3, relative=1.5), candidate("b", 900, relative=0.5), candidate("c", 50, relative=math.inf)]
    assert select(every, Budget(count=3)).names == ["a", "c", "b"]
    assert select(every, Budget(count=3), "relative").names == ["b", "a", "c"]


def test_a_random_order_is_its_seeds():
    every = several(*range(1, 31))
    first = select(every, Budget(count=10), "random", seed=1)
    assert first == select(every, Budget(count=10), "random", seed=1)
    assert first.names != select(every, Budget(count=10), "random", seed=2).names
    assert first.seed == 1
    assert sorted(places(select(every, Budget(count=30), "random"))) == list(range(30))
    firsts = [places(select(every, Budget(count=1), "random", seed=seed))[0] for seed in range(600)]
    assert max(np.bincount(firsts, minlength=30)) < 45  # 20 each in the mean
    assert min(np.bincount(firsts, minlength=30)) > 4


@pytest.mark.parametrize("order", ["kappa", "reversed", "relative"])
def test_of_equal_ones_the_first_comes_first(order):
    assert places(select(several(3, 3, 3, 3), Budget(count=4), order)) == [0, 1, 2, 3]
    mixed = places(select(several(5, 3, 5, 3), Budget(count=4), order))
    assert mixed == ([0, 2, 1, 3] if order == "reversed" else [1, 3, 0, 2])
    assert places(select(several(math.inf, 3, math.inf), Budget(count=3), "reversed")) == [0, 2, 1]


def test_filters_by_name():
    every = [
        candidate(f"layers.{at}.{part}.weight", at + 1) for at, part in itertools.product(range(3), ["mlp", "attn"])
    ]
    wide = Budget(count=99)

    def names(**filters: object) -> list[str]:
        return select(every, wide, **filters).names  # type: ignore[arg-type]

    assert names(include=["*.mlp.*"]) == [f"layers.{at}.mlp.weight" for at in range(3)]
    assert names(include=["layers.0.*", "layers.2.attn.weight"]) == [
        "layers.0.mlp.weight", "layers.0.attn.weight", "layers.2.attn.weight",
    ]  # fmt: skip
    assert names(exclude=["*attn*", "layers.[01].*"]) == ["layers.2.mlp.weight"]
    assert names(include=["*.mlp.*"], exclude=["layers.1.*"]) == ["layers.0.mlp.weight", "layers.2.mlp.weight"]
    assert len(names()) == 6
    assert select(every, Budget(fraction=0.5), include=["*.mlp.*"]).candidates == 3
    with pytest.raises(AtomsError, match=r"^no tensor of 6 may be chosen \(include=\['\*.MLP.\*'\], exclude=\[\], emb"):
        select(every, wide, include=["*.MLP.*"])
    with pytest.raises(AtomsError, match=r"no tensor of 6 may be chosen .*exclude=\['\*'\]"):
        select(every, wide, exclude=["*"])
    with pytest.raises(AtomsError, match="no tensor of 0 may be chosen"):
        select([], wide)


def test_embeddings_are_left_out_unless_wanted():
    every = [
        candidate("embed", 1, kind="embedding"), candidate("head", 2, kind="unembedding"), candidate("fc", 3),
        candidate("conv", 4, kind="conv"), candidate("mlp.experts", 5, kind="experts"),
    ]  # fmt: skip
    assert select(every, Budget(count=5)).names == ["fc", "conv", "mlp.experts"]
    assert select(every, Budget(count=5), embeddings=True).names == ["embed", "head", "fc", "conv", "mlp.experts"]
    with pytest.raises(AtomsError, match=r"no tensor of 2 may be chosen .*embeddings=False"):
        select(every[:2], Budget(count=1))


def test_what_only_has_a_bound_is_left_out_and_named():
    every = [candidate("a", 1, exact=False), candidate("b", 2), candidate("c", 3), candidate("d", 9, exact=False)]
    for order in ORDERS:
        found = select(every, Budget(fraction=0.5), order)
        assert len(found.chosen) == 1
        assert set(found.names) <= {"b", "c"}
        assert (found.candidates, found.unknown) == (2, ("a", "d"))
    assert select(every, Budget(count=1), exclude=["a"]).unknown == ("d",)
    with pytest.raises(AtomsError, match=r"no tensor of 2 may be chosen .*; of 2 only a bound is known: raise max_dim"):
        select([every[0], every[3]], Budget(count=1))


def test_what_holds_only_zeros_is_no_matter_of_max_dim():
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 4))
    nn.init.zeros_(model[1].weight)
    exact, bounded = (candidates_of(survey(weights_of(model), max_dim=most)) for most in (12, 4))
    assert [each.zeros for each in exact] == [False, True]
    assert select(exact, Budget(count=2)).unknown == ("1.weight",)
    said = r"; 1 hold a matrix of zeros, by which nothing is chosen: change the patterns$"
    with pytest.raises(AtomsError, match=r"embeddings=False\)" + said):
        select(exact, Budget(count=1), include=["1.*"])
    with pytest.raises(AtomsError, match="; of 1 only a bound is known: raise max_dim" + said):
        select(bounded, Budget(count=1))


def test_a_survey_with_a_limit_names_what_it_does_not_know():
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 4), nn.Linear(4, 20))
    found = select(candidates_of(survey(weights_of(model), max_dim=4)), Budget(count=3))
    assert sorted(found.names) == ["1.weight", "2.weight"]
    assert found.unknown == ("0.weight",)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "the budget sets nothing: give one of count, fraction and parameters"),
        ({"count": 3, "parameters": 5}, "the budget sets count and parameters: give one"),
        ({"count": 3, "fraction": 0.1, "parameters": 5}, "the budget sets count and fraction and parameters: give one"),
        ({"count": 0}, "count is 0: give a whole number of at least 1"),
        ({"count": 2.5}, "count is 2.5: give a whole number of at least 1"),
        ({"count": -3}, "count is -3: give"),
        ({"parameters": 0}, "parameters is 0: give a whole number of at least 1"),
        ({"fraction": 0.0}, "fraction is 0.0: give a number above 0 and at most 1"),
        ({"fraction": 1.01}, "fraction is 1.01: give"),
        ({"fraction": -0.2}, "fraction is -0.2: give"),
        ({"fraction": math.nan}, "fraction is nan: give"),
        ({"fraction": math.inf}, "fraction is inf: give"),
    ],
)
def test_budgets_that_say_nothing(values, said):
    with pytest.raises(AtomsError, match=f"^{said}"):
        Budget(**values)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("budget", [Budget(count=2), Budget(fraction=0.7), Budget(parameters=25)])
def test_a_selection_survives_its_file(tmp_path, order, budget):
    every = [*several(3, math.inf, 2.5), candidate("huge", 4, exact=False), candidate("head", 1, kind="unembedding")]
    chosen = select(every, budget, order, seed=5, embeddings=True)
    path = tmp_path / "chosen.json"
    path.write_text(json.dumps(chosen.to_json(), allow_nan=False))
    assert Selection.load(path) == Selection.load(str(path)) == chosen
    assert Selection.from_json(chosen.to_json()) == chosen
    assert Selection.load(path).to_json() == chosen.to_json()


def test_files_that_are_no_selection(tmp_path):
    record = select(several(3, 2), Budget(count=2)).to_json()
    path = tmp_path / "chosen.json"
    with pytest.raises(
        AtomsError, match=rf"^{path} cannot be read \(.*No such file.*\): name a file of chosen tensors$"
    ):
        Selection.load(path)
    with pytest.raises(AtomsError, match=rf"^{tmp_path} cannot be read"):
        Selection.load(tmp_path)
    for content in (b"", b'{"version": 1, "ord', b"\xff\xfe\x00", b"nothing"):
        path.write_bytes(content)
        with pytest.raises(AtomsError, match=rf"^{path} cannot be read \(.+\): name a file of chosen tensors$"):
            Selection.load(path)

    first, *rest = record["chosen"]
    versions = [record | {"version": 2}, {"version": "0"}, {"version": 3, "tensors": []}]
    for other in versions:
        path.write_text(json.dumps(other))
        with pytest.raises(
            AtomsError, match=f"^{path} is of version {other['version']}: choose again, this is version 1$"
        ):
            Selection.load(path)
    wrong = [
        [], {}, None, 3, "text",
        *({key: value for key, value in record.items() if key != gone} for gone in record),
        record | {"chosen": []},
        record | {"chosen": None},
        record | {"chosen": [{**first, "kappa": "much"}, *rest]},
        record | {"chosen": [{**first, "colour": "red"}]},
        record | {"chosen": [{key: value for key, value in first.items() if key != "digest"}]},
        record | {"order": "alphabetical"},
        record | {"budget": {"tensors": 3}},
        record | {"budget": {"fraction": "all"}},
    ]  # fmt: skip
    for other in wrong:
        path.write_text(json.dumps(other))
        with pytest.raises(AtomsError, match=rf"^{path} is no selection of tensors \(.+\): choose again$"):
            Selection.load(path)
    with pytest.raises(AtomsError, match=r"^the checkpoint's choice is no selection"):
        Selection.from_json({}, "the checkpoint's choice")
    with pytest.raises(AtomsError, match="count is 0"):
        Selection.from_json(record | {"budget": {"count": 0}})


def test_the_model_must_be_the_one_it_was_chosen_by():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5), nn.Linear(5, 6))
    chosen = Selection.from_json(select(measured(model), Budget(count=2)).to_json())
    chosen.check(model)
    unchosen = next(place for place in (0, 2, 3) if f"{place}.weight" not in chosen.names)
    with torch.no_grad():
        model[unchosen].weight.zero_()
        for place in (0, 2, 3):
            model[place].bias.zero_()
    chosen.check(model)
    name = chosen.names[1]
    with torch.no_grad():
        model.get_parameter(name)[0, 0] += 1e-3
    with pytest.raises(AtomsError, match=f"^{name} was chosen by other weights than this model has: choose again$"):
        chosen.check(model)
    with pytest.raises(AtomsError, match=f"^{chosen.names[0]} was chosen and is not in this model: choose again$"):
        chosen.check(nn.ModuleDict({"other": nn.Linear(4, 3)}))
    with pytest.raises(AtomsError, match=r"was chosen by other weights"):
        chosen.check(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5), nn.Linear(5, 6)))


def test_experts_are_checked_whole():
    model = causal("mixtral", 0, num_local_experts=4)
    chosen = select(measured(model), Budget(count=1), include=["*experts*"])
    chosen.check(model)
    with torch.no_grad():
        model.get_parameter(chosen.names[0])[3, -1, -1] *= 1.01
    with pytest.raises(AtomsError, match="was chosen by other weights"):
        chosen.check(model)
