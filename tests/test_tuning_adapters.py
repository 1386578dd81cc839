"""Adapters through PEFT on models of many families: where they sit, how many parameters they have, what they change."""

import pytest
import torch
import transformers
from families import config_of
from peft import LoraConfig, get_peft_model
from torch import nn

from atoms.conditioning import candidates_of, survey, weights_of
from atoms.errors import AtomsError
from atoms.tuning.adapters import SCALE, adaptable, adapted, matched_rank, targets_of, trainable
from atoms.tuning.arms import ARMS, Share, plan

FAMILIES = ["llama", "gpt2", "gpt_neox", "opt", "phi3", "lfm2", "mixtral", "gpt_oss", "qwen3_moe"]


def causal(family, **changes):
    if family == "lfm2":
        changes["layer_types"] = ["conv", "full_attention", "conv"]
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config_of(family, use_cache=False, **changes)).train()


def by_hand(model, names, rank):
    """Parameters of factors of a rank: rows and columns of every matrix, for every expert."""
    each = {weight.name: weight for weight in weights_of(model)}
    return rank * sum(sum(each[name].matrix_shape) * each[name].count for name in names)


@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_and_parameters_are_those_of_the_factors(family):
    model = causal(family)
    names = adaptable(model)
    one = by_hand(model, names, 1)
    for rank, wanted in ((1, 0.6 * one), (1, one), (1, 1.4 * one), (2, 1.6 * one), (3, 3.4 * one)):
        assert matched_rank(model, names, int(wanted)) == (rank, rank * one)
    wrapped = adapted(model, names, 3)
    assert trainable(wrapped) == 3 * one
    layers = [part for part in wrapped.modules() if hasattr(part, "lora_A") and len(part.lora_A)]
    assert len(layers) == len(names)
    assert {part.scaling["default"] for part in layers} == {SCALE}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_linear_maps_and_experts_get_one(family):
    model = causal(family)
    kinds = {weight.name: weight.kind for weight in weights_of(model)}
    names = adaptable(model)
    assert {kinds[name] for name in names} == {"linear", "experts"} & set(kinds.values())
    parts = dict(model.named_modules())
    lone = [name for name, kind in kinds.items() if kind == "linear" and name not in names]
    for name in lone:  # of a router, or another module that is no linear map
        assert not isinstance(parts[name.rpartition(".")[0]], nn.Linear)
    assert bool(lone) == (family in ("mixtral", "gpt_oss", "qwen3_moe"))
    assert any(kind == "conv" for kind in kinds.values()) == (family == "lfm2")


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_finds_what_it_is_told_and_no_more(family):
    """Half of the tensors, so that names of the others must not fit; more than 20, where PEFT shortens names."""
    model = causal(family)
    names = adaptable(model)[::2]
    wrapped = adapted(model, names, 1)
    with_adapter = {
        name.replace("base_model.model.", "").partition(".lora_A")[0].replace(".base_layer", "")
        for name, _ in wrapped.named_parameters()
        if "lora_A" in name
    }
    found = targets_of(causal(family), names)
    owners = {name.rpartition(".")[0] for name in found["target_parameters"]}
    assert with_adapter == set(found["target_modules"]) | owners
    assert trainable(wrapped) == by_hand(causal(family), names, 1)


def test_a_budget_between_ranks_takes_the_nearer_and_says_what_it_is():
    model = causal("llama")
    names = adaptable(model)
    one = by_hand(model, names, 1)
    with pytest.raises(AtomsError, match=rf"^budget of {one // 2 - 1:,} parameters: adapters of rank 1 on 21 tensors"):
        matched_rank(model, names, one // 2 - 1)
    assert matched_rank(model, names, one // 2 + 1) == (1, one)
    narrow = min(min(weight.matrix_shape) for weight in weights_of(model) if weight.name in names)
    assert matched_rank(model, names, narrow * one) == (narrow, narrow * one)
    with pytest.raises(AtomsError, match=rf"would need rank {narrow + 1}, and the smallest has {narrow} dimensions"):
        matched_rank(model, names, (narrow + 1) * one)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_planning_leaves_the_model_as_it_was(family):
    model = causal(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked = {name: value.requires_grad for name, value in model.named_parameters()}
    matched_rank(model, adaptable(model), 3000)
    assert {name: value.requires_grad for name, value in model.named_parameters()} == asked
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_adapters_are_pefts_own(family):
    """The same numbers as a configuration by hand, seed for seed, after a step of training."""
    names = adaptable(causal(family))[:4]
    found = targets_of(causal(family), names)
    ids = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))

    def stepped(wrapped):
        optimizer = torch.optim.SGD([value for value in wrapped.parameters() if value.requires_grad], lr=1.0)
        wrapped(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        return wrapped(input_ids=ids).logits

    torch.manual_seed(5)
    ours = stepped(adapted(causal(family).eval(), names, 2))
    torch.manual_seed(5)
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=found["target_modules"], fan_in_fan_out=family == "gpt2",
        target_parameters=found["target_parameters"] or None,
    )  # fmt: skip
    theirs = stepped(get_peft_model(causal(family).eval(), config))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, causal(family).eval()(input_ids=ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_chosen_tensors_are_those_of_the_lowest_condition_number_that_may_get_one(family):
    model = causal(family)
    found = candidates_of(survey(weights_of(model)))
    may = [each for each in found if each.name in adaptable(model)]
    planned = plan(ARMS["kappa_lora"], model, found, Share(fraction=0.1, adapted=0.4), 0)
    expected = sorted(may, key=lambda each: each.kappa)[: int(0.4 * len(may))]
    assert planned.selection.names == [each.name for each in expected]
    assert (
        planned.trained
        == trainable(planned.apply(model))
        == by_hand(causal(family), planned.selection.names, planned.rank)
    )


def test_embeddings_get_none_even_where_they_may_be_trained():
    model = causal("llama", tie_word_embeddings=False)
    found = candidates_of(survey(weights_of(model)))
    planned = plan(ARMS["random_lora"], model, found, Share(parameters=2000, adapted=1.0, embeddings=True), 0)
    assert sorted(planned.selection.names) == sorted(adaptable(model))
