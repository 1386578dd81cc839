"""Named sites are held to what the model says; whatever disagrees is refused by name."""

import pytest
import torch
from families import BLOCKS, EXPERTS, FAMILIES, config_of, sentences, tiny
from torch import nn
from transformers import GPT2Model, LlamaModel
from transformers.models.llama.modeling_llama import LlamaMLP

from atoms.activations import TextFiles, sites
from atoms.activations.harvest import harvest
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.manifest import COMPLETE
from atoms.activations.model_source import ModelSpec
from atoms.activations.site_check import check_sites
from atoms.activations.sites import KINDS
from atoms.errors import AtomsError


def names_of(family: str) -> list[str]:
    kinds = [kind for kind in KINDS if family not in EXPERTS or kind != "mlp_in"]
    return [f"{kind}.{block}" for kind in kinds for block in range(BLOCKS)]


def check(model, *names):
    return check_sites(model, names, sentences())


# ------------------------------------------------------------------------------------------ what is right passes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_named_sites_of_every_family_pass(family, dtype):
    assert check(tiny(family).to(dtype), *names_of(family)) == []


@pytest.mark.parametrize("family", ["llama", "bert", "gemma2"])
@pytest.mark.parametrize("name", ["resid_pre.0", "resid_post.2", "mlp_in.1", "mlp_out.0", "attn_out.2"])
def test_each_passes_alone(family, name):
    assert check(tiny(family), name) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_massive_activations_are_no_disagreement(dtype):
    """A few huge coordinates, as trained models have, swallow what is added to them in half precision."""
    model = tiny("gpt2").to(dtype)
    model.wte.weight.data[:, 3] = 3e4
    assert check(model, *names_of("gpt2")) == []


def test_overflow_is_no_disagreement():
    model = tiny("gpt2").to(torch.float16)
    model.wte.weight.data[:, 3] = 6e4
    model.h[0].mlp.c_proj.bias.data[3] = 6e4
    with torch.no_grad():
        assert model(**sentences(), output_hidden_states=True).hidden_states[1].isinf().any()
    assert check(model, "resid_post.0", "mlp_out.0") == []


def test_places_by_path_promise_nothing_and_run_nothing():
    model = tiny("gpt2")
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    assert check(model, "h.0.mlp.c_fc", "wte:output", "h.1:input") == []
    assert not calls
    check(model, "resid_post.0")
    assert len(calls) == 1


def test_only_a_few_tokens_are_run():
    model = tiny("bert")
    seen = []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"].shape), with_kwargs=True)
    long = {"input_ids": torch.full((4, 200), 7), "attention_mask": torch.ones(4, 200, dtype=torch.int64)}
    check_sites(model, names_of("bert"), long)
    # once for the sites, and once for each branch that a norm keeps from the residual stream
    assert seen == [(1, 16)] * (1 + 2 * BLOCKS)


# ------------------------------------------------------------------------------------------ what is wrong does not


@pytest.mark.parametrize(
    ("name", "entry"), [("resid_pre.0", 0), ("resid_pre.2", 2), ("resid_post.1", 2), ("resid_post.2", 3)]
)
def test_wrong_blocks(name, entry):
    model = tiny("bert")
    model.decoy = nn.ModuleList(nn.Identity() for _ in range(BLOCKS))
    for block, decoy in zip(model.encoder.layer, model.decoy, strict=True):

        def listen(_module, _args, given, decoy=decoy):
            decoy(given[0])

        block.attention.register_forward_hook(listen)
    message = (
        rf"{name.replace('.', '[.]')}' \(decoy\.\d:\w+\) is not what that name promises, because in BertModel it "
        rf"differs from entry {entry} of hidden_states by up to \d\.\d+; write 'decoy\.\d:\w+' if that place is "
        r"meant, or another module's path \(`atoms sites --model NAME --modules` lists them\)$"
    )
    with pytest.raises(AtomsError, match=message):
        check(model, name)
    assert check(model, "encoder.layer.1") == []


def test_wrong_side(monkeypatch):
    """What enters a block is not what leaves it."""
    monkeypatch.setattr(sites, "_path_in_block", lambda _model, block, _kind: f"{block}.ln_1")
    with pytest.raises(AtomsError, match=r"'resid_post\.0' \(h\.0\.ln_1:output\) .* entry 1 of hidden_states"):
        check(tiny("gpt2"), "resid_post.0")


@pytest.mark.parametrize(
    ("family", "kind", "places"),
    [
        ("bert", "mlp_out", (("output",),)),  # after the norm
        ("bert", "attn_out", (("attention",),)),
        ("bert", "attn_out", (("attention.self",),)),  # before the projection
        ("bloom", "attn_out", (("self_attention",),)),  # performs the addition itself
        ("bloom", "mlp_out", (("mlp",),)),
        ("mpt", "mlp_out", (("ffn",),)),
        ("gemma2", "mlp_out", (("mlp",),)),  # before the norm in between
        ("gemma2", "attn_out", (("self_attn",),)),
        ("opt post-norm", "mlp_out", (("final_layer_norm",),)),
        ("opt post-norm", "attn_out", (("self_attn_layer_norm",),)),
        ("llama", "mlp_out", (("self_attn",),)),
        ("llama", "attn_out", (("input_layernorm",),)),
        ("gpt2", "mlp_out", (("ln_2",),)),
    ],
)
def test_wrong_branches(family, kind, places, monkeypatch):
    monkeypatch.setitem(sites._PLACES, kind, places)
    with pytest.raises(AtomsError, match=rf"'{kind}\.1' .* sum to what differs from resid_post by up to \d"):
        check(tiny(family), f"{kind}.1")


def test_branches_that_are_scaled_before_they_are_added():
    model = tiny("granite", residual_multiplier=0.5)
    for name in ("attn_out.1", "mlp_out.1"):
        with pytest.raises(AtomsError, match=rf"'{name}' \(layers\.1\.\w+:output\) .* in GraniteModel .* resid_post"):
            check(model, name)
    assert check(model, "resid_pre.1", "mlp_in.1", "resid_post.1") == []


@pytest.mark.parametrize(
    ("place", "end", "size"),
    [("mlp.gate_proj", "mlp:output", "in width"), ("self_attn.o_proj", "mlp:input", r"by up to \d\.\d+")],
)
def test_wrong_down_projection(place, end, size, monkeypatch):
    monkeypatch.setitem(sites._PLACES, "mlp_in", ((place,),))
    message = rf"'mlp_in\.0' .*{place} gives what differs from the MLP's layers\.0\.{end} {size}; write"
    with pytest.raises(AtomsError, match=message):
        check(tiny("llama"), "mlp_in.0")


def test_projection_that_is_no_function_of_its_input():
    model = tiny("llama")
    calls = []
    model.layers[1].mlp.down_proj.register_forward_hook(lambda _, __, out: calls.append(1) or out * len(calls))
    with pytest.raises(AtomsError, match=r"'mlp_in\.1' .* makes of it something that differs from its output"):
        check(model, "mlp_in.1")


def test_mlp_that_scales_its_projection():
    class Scaled(LlamaMLP):
        def forward(self, rows):
            return 2 * super().forward(rows)

    model = LlamaModel(config_of("llama")).eval()
    model.layers[0].mlp = Scaled(model.config)
    with pytest.raises(AtomsError, match=r"'mlp_in\.0' .* differs from the MLP's layers\.0\.mlp:output"):
        check(model, "mlp_in.0")


# ------------------------------------------------------------------------------------------ models that say less


class Silent(GPT2Model):
    """A model that takes no ``output_hidden_states``."""

    def forward(self, input_ids, attention_mask):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask)


@pytest.fixture
def silent():
    torch.manual_seed(0)
    return Silent(config_of("gpt2")).eval()


def test_without_hidden_states_neighbours_are_compared(silent):
    assert check(silent, "resid_pre.1", "resid_post.0", "mlp_in.2", "attn_out.0", "mlp_out.2") == []
    assert check(silent, "resid_pre.0", "resid_post.2") == [
        f"note     {name} is unchecked: Silent gives no hidden_states to compare with"
        for name in ("resid_pre.0", "resid_post.2")
    ]


def test_without_hidden_states_neighbours_may_disagree(silent):
    silent.h[1].register_forward_pre_hook(lambda _, given: (given[0] + 1, *given[1:]))
    with pytest.raises(AtomsError, match=r"'resid_post\.0' .* in Silent it differs from resid_pre\.1 by up to 1;"):
        check(silent, "resid_post.0")


def test_errors_of_the_model_are_its_own():
    model = tiny("gpt2")
    model.forward = lambda **_: len(3)
    with pytest.raises(TypeError, match=r"has no len"):
        check(model, "resid_post.0")


# ------------------------------------------------------------------------------------------ in a harvest


def test_a_harvest_ends_before_it_writes_what_is_misnamed(tiny_bert, text_folder, monkeypatch):
    monkeypatch.setitem(sites._PLACES, "mlp_out", (("output",),))
    spec = HarvestSpec(
        ModelSpec(str(tiny_bert)), TextFiles([str(text_folder)]), ["resid_post.0", "mlp_out.1"], context=30
    )
    place = spec.directory()
    with pytest.raises(AtomsError, match=r"'mlp_out\.1' \(encoder\.layer\.1\.output:output\) is not what that name"):
        harvest(spec, place, {"accelerator": "cpu", "devices": 1})
    assert not (place / COMPLETE).exists()
    assert not (place / "manifest").exists() or not any((place / "manifest").children())
