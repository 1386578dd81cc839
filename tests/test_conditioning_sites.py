"""What writes a site is what its value depends on; ranks follow from the matrices, however a checkpoint names them."""

import math

import pytest
import torch
import transformers
from families import BLOCKS, EXPERTS, FAMILIES, GROUPED, SPECIALS, config_of, sentences, tiny

from atoms.activations.model_source import ModelSpec
from atoms.activations.site_reader import SiteReader
from atoms.conditioning import survey
from atoms.conditioning.site_weights import rank_sites, site_writers
from atoms.conditioning.weights import named_weight
from atoms.errors import AtomsError

LLAMA = {
    "resid_pre.0": ("embed_tokens.weight",),
    "attn_out.1": ("layers.1.self_attn.o_proj.weight",),
    "mlp_in.1": ("layers.1.mlp.gate_proj.weight", "layers.1.mlp.up_proj.weight"),
    "mlp_out.1": ("layers.1.mlp.down_proj.weight",),
    "resid_post.1": ("layers.1.self_attn.o_proj.weight", "layers.1.mlp.down_proj.weight"),
}


@pytest.fixture
def writers(tmp_path):
    """Writers of a model of which there is nothing but a configuration."""

    def find(config):
        config.save_pretrained(tmp_path)
        return site_writers(ModelSpec(str(tmp_path)))

    return find


def surveyed(**tensors):
    """The condition of tensors by name; those of tuples are drawn."""
    generator = torch.Generator().manual_seed(0)
    values = {
        name: torch.randn(*value, generator=generator) if isinstance(value, tuple) else value
        for name, value in tensors.items()
    }
    return survey([named_weight(name, tuple(value.shape), lambda value=value: value) for name, value in values.items()])


@pytest.mark.parametrize("family", FAMILIES)
def test_without_its_writers_a_site_says_nothing_of_the_input(family, writers):
    """With them at zero every token has the same there; before it has not."""
    found = writers(config_of(family))
    model = tiny(family)
    names = [name for name in found if not name.startswith("resid_post") and name != "resid_pre.0"]
    assert len(names) == BLOCKS * (2 if family in EXPERTS else 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        for name in (f"{kind}.1" for kind in ("attn_out", "mlp_in", "mlp_out")):
            if name not in found:
                continue
            own = [model.get_parameter(parameter) for parameter in found[name]]
            kept = [parameter.clone() for parameter in own]
            with SiteReader(model, [name]) as reader:
                before = reader.read(**sentences())[name].flatten(0, 1)
                for parameter in own:
                    parameter.zero_()
                after = reader.read(**sentences())[name].flatten(0, 1)
            assert (before - before[0]).abs().max() > 1e-3
            assert (after - after[0]).abs().max() < 1e-6
            for parameter, values in zip(own, kept, strict=True):
                parameter.copy_(values)


def test_writers_by_name(writers):
    found = writers(config_of("llama"))
    assert {name: found[name] for name in LLAMA} == LLAMA
    assert list(found)[:5] == ["resid_pre.0", "attn_out.0", "mlp_in.0", "mlp_out.0", "resid_post.0"]
    assert len(found) == 1 + 4 * BLOCKS


@pytest.mark.parametrize(
    ("family", "site", "expected"),
    [
        ("gpt2", "resid_pre.0", ("wpe.weight", "wte.weight")),
        ("gpt2", "mlp_in.2", ("h.2.mlp.c_fc.weight",)),
        ("phi3", "attn_out.0", ("layers.0.self_attn.o_proj.weight",)),  # defined before what it reads
        ("phi3", "mlp_in.0", ("layers.0.mlp.gate_up_proj.weight",)),  # two maps in one matrix
        ("falcon", "mlp_out.1", ("h.1.mlp.dense_4h_to_h.weight",)),  # to which attention's output is added in place
        ("gemma2", "attn_out.1", ("layers.1.self_attn.o_proj.weight",)),  # behind a norm
        ("opt projected", "resid_pre.0", ("decoder.embed_positions.weight", "decoder.project_in.weight")),
        ("mixtral", "mlp_out.1", ("layers.1.mlp.experts.down_proj",)),  # without the router
    ],
)
def test_writers_of_families(family, site, expected, writers):
    assert writers(config_of(family))[site] == expected


def test_shared_experts_write_too(writers):
    config = transformers.Qwen2MoeConfig(
        **{**SPECIALS, **GROUPED}, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8,
        shared_expert_intermediate_size=12,
    )  # fmt: skip
    assert writers(config)["resid_post.2"] == (
        "layers.2.self_attn.o_proj.weight", "layers.2.mlp.experts.down_proj",
        "layers.2.mlp.shared_expert.down_proj.weight",
    )  # fmt: skip


def test_models_without_writers_say_why(writers):
    with pytest.raises(AtomsError, match=r"^AlbertModel has no list of blocks$"):
        writers(transformers.AlbertConfig(**SPECIALS, hidden_size=16, num_attention_heads=2, intermediate_size=24))
    with pytest.raises(AtomsError, match="the forward of MixtralModel does not run without weights"):
        writers(config_of("mixtral", num_experts_per_tok=9))  # of eight


# ------------------------------------------------------------------------------------------ ranks


@pytest.mark.parametrize("prefix", ["", "model.", "language_model.model."])
def test_names_in_a_checkpoint_may_have_more_before_them(prefix):
    conditions = surveyed(**{f"{prefix}{name}": (16, 24) for names in LLAMA.values() for name in names})
    ranked, missing = rank_sites(LLAMA, conditions)
    assert not missing
    assert [site.relative for site in ranked] == sorted((site.relative for site in ranked), reverse=True)
    by_name = {each.tensor.removeprefix(prefix): each for each in conditions}
    for site in ranked:
        own = [by_name[name] for name in LLAMA[site.site]]
        assert site.writers == tuple(each.tensor for each in own)
        assert site.relative == pytest.approx(math.prod(each.relative for each in own) ** (1 / len(own)))
        ranks = [each.effective_rank / each.effective_rank_null for each in own]
        assert site.effective_rank == pytest.approx(math.prod(ranks) ** (1 / len(own)))
        assert site.exact


def test_another_prefix_before_the_blocks():
    """A part of a larger model, whose blocks lie elsewhere; of two towers neither is taken."""
    one = {"text.layers.0.mlp.w.weight": (8, 12), "head.weight": (8, 12)}
    asked = {"mlp_out.0": ("model.layers.0.mlp.w.weight",)}
    (site,), missing = rank_sites(asked, surveyed(**one))
    assert (site.writers, missing) == (("text.layers.0.mlp.w.weight",), {})
    assert rank_sites(asked, surveyed(**one, **{"vision.layers.0.mlp.w.weight": (8, 12)})) == (
        [], {"mlp_out.0": "model.layers.0.mlp.w.weight"},
    )  # fmt: skip


@pytest.mark.parametrize("named", ["block_sparse_moe.experts.{}.w2.weight", "mlp.experts.{}.down_proj.weight"])
def test_experts_that_are_a_tensor_each_count_as_one(named):
    tensors = {f"model.layers.1.{named.format(n)}": (16, 24) for n in range(3)}
    others = {f"model.layers.{n}.{named.format(0)}": (16, 24) for n in (0, 11)}
    beside = {
        "model.layers.1.mlp.experts.0.up_proj.weight": (24, 16),
        "model.layers.1.self_attn.o_proj.weight": (16, 16),
    }
    conditions = surveyed(**tensors, **others, **beside)
    asked = {"resid_post.1": ("layers.1.self_attn.o_proj.weight", "layers.1.mlp.experts.down_proj")}
    (site,), missing = rank_sites(asked, conditions)
    assert not missing
    assert site.writers == ("model.layers.1.self_attn.o_proj.weight", *tensors)
    relative = {each.tensor: each.relative for each in conditions}
    experts = math.prod(relative[name] for name in tensors) ** (1 / 3)
    assert site.relative == pytest.approx((experts * relative["model.layers.1.self_attn.o_proj.weight"]) ** 0.5)


def test_experts_in_one_tensor():
    conditions = surveyed(**{"layers.0.mlp.experts.down_proj": (4, 16, 24)})
    (site,), _ = rank_sites({"mlp_out.0": ("layers.0.mlp.experts.down_proj",)}, conditions)
    assert site.writers == ("layers.0.mlp.experts.down_proj",)
    assert site.relative == pytest.approx(math.prod(each.relative for each in conditions) ** 0.25)


def test_bounds_and_singular_writers():
    """A bound stays one; a singular matrix is infinitely ill-conditioned, not unknown."""
    drawn = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
    drawn[:, 0] = 0
    conditions = surveyed(**{"h.0.a.weight": drawn, "h.0.b.weight": (12, 8)})
    asked = {
        "attn_out.0": ("h.0.a.weight",),
        "mlp_out.0": ("h.0.b.weight",),
        "resid_post.0": ("h.0.a.weight", "h.0.b.weight"),
    }
    ranked, _ = rank_sites(asked, conditions)
    assert [math.isinf(site.relative) for site in ranked] == [True, True, False]
    assert all(0 < site.effective_rank < 1.2 for site in ranked)
    bounded = survey([named_weight("h.0.a.weight", (12, 8), lambda: drawn)], max_dim=4)
    (site,), _ = rank_sites({"attn_out.0": ("h.0.a.weight",)}, bounded)
    assert not site.exact
    assert math.isnan(site.effective_rank)
