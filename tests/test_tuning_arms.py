"""What each recipe trains, and that it is as much as the others do."""

import pytest
import torch
from families import tiny
from peft import find_kappa_target_modules
from tiny_models import write_experts, write_llama
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from atoms.conditioning import candidates_of, survey, weights_of
from atoms.errors import AtomsError
from atoms.tuning.adapters import adaptable, adapted, matched_rank, require_peft, targets_of, trainable
from atoms.tuning.arms import ARMS, Share, plan


def dense(tmp_path, seed=0):
    return AutoModelForCausalLM.from_pretrained(write_llama(tmp_path / f"dense{seed}", seed))


def experts(tmp_path):
    return AutoModelForCausalLM.from_pretrained(write_experts(tmp_path / "experts"))


def gpt2(tmp_path):
    torch.manual_seed(0)
    return GPT2LMHeadModel(tiny("gpt2", vocab_size=60).config)


def surveyed(model):
    return candidates_of(survey(weights_of(model)))


@pytest.mark.parametrize("make", [dense, experts, gpt2])
@pytest.mark.parametrize("wanted", [700, 2000])
def test_a_rank_has_the_parameters_it_is_said_to_have(make, wanted, tmp_path):
    model = make(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = adaptable(model)
    try:
        rank, count = matched_rank(model, names, wanted)
    except AtomsError:  # tiny matrices have room for few
        rank, count = matched_rank(model, names, 900)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    wrapped = adapted(model, names, rank)
    assert trainable(wrapped) == count
    assert all("lora_" in name for name, value in wrapped.named_parameters() if value.requires_grad)


def test_an_adapter_begins_as_nothing_and_is_merged_as_what_it_was(tmp_path):
    model, ids = dense(tmp_path), torch.arange(3, 15)[None]
    start = model(input_ids=ids).logits
    wrapped = adapted(model, adaptable(model), 2)
    assert torch.allclose(wrapped(input_ids=ids).logits, start)
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            value.data.normal_()
    moved = wrapped(input_ids=ids).logits
    assert not torch.allclose(moved, start)
    assert torch.allclose(wrapped.merge_and_unload()(input_ids=ids).logits, moved, atol=1e-4)


def test_experts_are_parameters_and_linear_maps_modules(tmp_path):
    model = experts(tmp_path)
    names = adaptable(model)
    assert "model.layers.0.mlp.gate.weight" not in names  # a router is a bare parameter
    assert targets_of(model, names) == {
        "target_modules": [f"model.layers.0.self_attn.{part}_proj" for part in "qkvo"],
        "target_parameters": [f"model.layers.0.mlp.experts.{part}_proj" for part in ("gate_up", "down")],
    }
    turned = gpt2(tmp_path)
    modules = targets_of(turned, adaptable(turned))["target_modules"]
    assert {name.rpartition(".")[2] for name in modules} == {"c_attn", "c_proj", "c_fc"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_kappa_lora_takes_what_peft_takes(seed, share, tmp_path):
    model = dense(tmp_path, seed)
    head, model.lm_head = model.lm_head, torch.nn.Identity()  # which PEFT counts, and we leave out
    theirs = find_kappa_target_modules(model, top_p=share, show_progress=False)["target_modules"]
    model.lm_head = head
    ours = plan(ARMS["kappa_lora"], model, surveyed(model), Share(parameters=600, adapted=share), 0)
    assert targets_of(model, ours.selection.names)["target_modules"] == theirs


@pytest.mark.parametrize("make", [dense, experts])
@pytest.mark.parametrize("name", ARMS)
def test_arms_train_what_they_say(make, name, tmp_path):
    model = make(tmp_path)
    found = surveyed(model)
    share = Share(fraction=0.25, adapted=0.5)
    planned = plan(ARMS[name], model, found, share, 1)
    wanted = share.of(found)
    wrapped = planned.apply(model)
    if ARMS[name].method == "full":
        assert planned.trained == trainable(wrapped) == sum(value.numel() for value in model.parameters())
        return
    if ARMS[name].method == "adapters":
        assert planned.trained == trainable(wrapped)
        assert planned.trained == pytest.approx(wanted, rel=0.15)
        return
    sizes = {each.name: each.parameters for each in found}
    assert planned.trained == sum(sizes[each] for each in planned.selection.names) <= wanted
    smallest = min(size for each, size in sizes.items() if each not in planned.selection.names and "proj" in each)
    assert wanted - planned.trained < smallest  # nothing that is left would fit
    assert not {"embed_tokens", "lm_head"} & {part for each in planned.selection.names for part in each.split(".")}


def test_patterns_bind_all_arms_but_full(tmp_path):
    model = dense(tmp_path)
    share = Share(fraction=0.25, adapted=0.5, include=("*.mlp.*",), exclude=("*.down_proj.*",))
    for arm in ARMS.values():
        planned = plan(arm, model, surveyed(model), share, 1)
        if arm.method != "full":
            named = set(planned.adapters or planned.selection.names)
            assert {name.split(".")[-2] for name in named} <= {"gate_proj", "up_proj"}, arm.name
    wrapped = plan(ARMS["lora"], model, surveyed(model), share, 1).apply(model)
    parts = {name.partition(".lora_")[0] for name, value in wrapped.named_parameters() if value.requires_grad}
    assert {part.rpartition(".")[2] for part in parts} == {"gate_proj", "up_proj"}


def test_seeds_deal_random_choices_alone(tmp_path):
    model = dense(tmp_path)
    found, share = surveyed(model), Share(fraction=0.3)

    def chosen(name, seed):
        return plan(ARMS[name], model, found, share, seed).selection.names

    assert chosen("kappa", 1) == chosen("kappa", 2)
    assert len({tuple(chosen("random", seed)) for seed in range(6)}) > 3
    assert chosen("random", 4) == chosen("random", 4)
    assert chosen("kappa", 1)[0] == min(
        (each for each in found if each.kind == "linear"), key=lambda each: each.kappa
    ).name  # fmt: skip
    assert chosen("reversed", 1)[0] == max(
        (each for each in found if each.kind == "linear"), key=lambda each: each.kappa
    ).name  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "budget: give one of budget.parameters and budget.fraction"),
        ({"parameters": 5, "fraction": 0.5}, "budget: give one of"),
        ({"parameters": 0}, "budget.parameters is 0"),
        ({"fraction": 1.5}, "budget.fraction is 1.5"),
        ({"fraction": 0.5, "adapted": 0.0}, "budget.adapted is 0.0"),
    ],
)
def test_shares_that_say_nothing(settings, said):
    with pytest.raises(AtomsError, match=said):
        Share(**settings)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("kappa", {"parameters": 10}, "budget: parameters is 10, and the smallest tensor has 256"),
        ("kappa", {"fraction": 0.5, "include": ("nothing*",)}, "budget: no tensor of 16 may be chosen"),
        ("lora", {"fraction": 0.5, "exclude": ("*",)}, r"budget: include=\[\] and exclude=\['\*'\] leave no l"),
        ("lora", {"parameters": 10}, "budget of 10 parameters: adapters of rank 1 on 14 tensors have"),
        ("kappa_lora", {"parameters": 4000, "adapted": 0.01}, "would need rank"),
    ],
)
def test_budgets_that_cannot_be_matched(name, settings, said, tmp_path):
    model = dense(tmp_path)
    with pytest.raises(AtomsError, match=said):
        plan(ARMS[name], model, surveyed(model), Share(**settings), 0)


def test_adapters_need_peft(monkeypatch):
    require_peft()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AtomsError, match=r"arms with adapters need peft: pip install 'atoms\[tune\]'"):
        require_peft()


@pytest.mark.parametrize("name", ARMS)
def test_quantised_weights_are_trained_by_adapters_alone(name, tmp_path, monkeypatch):
    """What `bitsandbytes` packed has no gradient; that is said when arms are planned, and not when they are run."""
    model = dense(tmp_path)
    found = surveyed(model)
    codes = torch.nn.Parameter(torch.zeros(128, 1, dtype=torch.uint8), requires_grad=False)
    model.model.layers[1].self_attn.q_proj.weight = codes
    share = Share(fraction=0.3, adapted=0.5)
    if ARMS[name].method == "adapters":
        monkeypatch.setattr("atoms.tuning.arms.adaptable", lambda _: [each.name for each in found][1:15])
        monkeypatch.setattr("atoms.tuning.arms.matched_rank", lambda *_: (1, 10))
        assert plan(ARMS[name], model, found, share, 1).trained == 10
        return
    said = (
        rf"^arms names {name}, which trains weights themselves, and model\.layers\.1\.self_attn\.q_proj\.weight is quan"
    )
    with pytest.raises(AtomsError, match=said):
        plan(ARMS[name], model, found, share, 1)
