"""Sites in tiny random models of every family, and in the real MiniLM."""

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModel

from atoms.activations.sites import Site, SiteReader, resolve_site, site_widths
from atoms.errors import AtomsError

BLOCKS = 3
COMMON = {"num_hidden_layers": BLOCKS, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
SPECIALS = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"n_layer": BLOCKS, "n_embd": 16, "n_head": 2}

PRE_NORM = {
    "GPT2Config": GPT2,
    "GPTJConfig": {**GPT2, "rotary_dim": 4},
    "GPTNeoXConfig": COMMON,
    "BloomConfig": {"n_layer": BLOCKS, "hidden_size": 16, "n_head": 2},
    "OPTConfig": {**COMMON, "word_embed_proj_dim": 16, "ffn_dim": 24},
    "FalconConfig": COMMON,
    "PhiConfig": COMMON,
    "LlamaConfig": {**COMMON, "num_key_value_heads": 1},
    "MistralConfig": {**COMMON, "num_key_value_heads": 1},
    "MixtralConfig": {**COMMON, "num_key_value_heads": 1},
    "Qwen3Config": {**COMMON, "num_key_value_heads": 1, "head_dim": 8},
    "GemmaConfig": {**COMMON, "num_key_value_heads": 1, "head_dim": 8},
    "Gemma2Config": {**COMMON, "num_key_value_heads": 1, "head_dim": 8},
    "Gemma3TextConfig": {**COMMON, "num_key_value_heads": 1, "head_dim": 8},
    "Olmo2Config": {**COMMON, "num_key_value_heads": 1},
    "Glm4Config": {**COMMON, "num_key_value_heads": 1, "head_dim": 8},
    "ModernBertConfig": {**COMMON, "cls_token_id": 1, "sep_token_id": 2},
}
"""Families whose blocks add branch outputs to a residual stream that nothing else touches."""

# Families that normalise after the addition, with the paths within a block of the two norms.
POST_NORM = {
    "BertConfig": (COMMON, "attention.output.LayerNorm", "output.LayerNorm"),
    "RobertaConfig": (COMMON, "attention.output.LayerNorm", "output.LayerNorm"),
    "ElectraConfig": ({**COMMON, "embedding_size": 16}, "attention.output.LayerNorm", "output.LayerNorm"),
    "DebertaV2Config": (COMMON, "attention.output.LayerNorm", "output.LayerNorm"),
    "MPNetConfig": (COMMON, "attention.LayerNorm", "output.LayerNorm"),
    "DistilBertConfig": (
        {"n_layers": BLOCKS, "dim": 16, "n_heads": 2, "hidden_dim": 24},
        "sa_layer_norm",
        "output_layer_norm",
    ),
}
FAMILIES = {**PRE_NORM, **{name: settings for name, (settings, *_) in POST_NORM.items()}}


def config_of(family, **changes):
    return getattr(transformers, family)(**{**SPECIALS, **FAMILIES.get(family, COMMON), **changes})


def tiny(family, **changes):
    torch.manual_seed(0)
    return AutoModel.from_config(config_of(family, **changes)).eval()


def meta(family):
    with torch.device("meta"):
        return AutoModel.from_config(config_of(family)).eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    return {"input_ids": torch.randint(5, 50, (2, 7)), "attention_mask": mask}


def read(model, names, batch):
    with torch.no_grad(), SiteReader(model, names) as reader:
        return reader.read(**batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_resid_is_the_hidden_state_bit_for_bit(family, batch):
    model = tiny(family)
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    rows = read(model, [f"resid_post.{n}" for n in range(BLOCKS)], batch)
    # where a final norm follows, the model's last hidden state is already normalised
    equal = [torch.equal(rows[f"resid_post.{n}"], states[n + 1]) for n in range(BLOCKS)]
    assert equal == [True, True, family in POST_NORM]


@pytest.mark.parametrize("family", ["GPT2Config", "LlamaConfig"])
def test_last_resid_becomes_the_last_hidden_state(family, batch):
    model = tiny(family)
    final_norm = model.ln_f if family == "GPT2Config" else model.norm
    rows = read(model, ["resid_post.2"], batch)["resid_post.2"]
    with torch.no_grad():
        assert torch.equal(final_norm(rows), model(**batch).last_hidden_state)


@pytest.mark.parametrize("family", PRE_NORM)
@pytest.mark.parametrize("block", [1, 2])
def test_branches_add_up_to_the_residual_stream(family, block, batch):
    names = [f"resid_post.{block - 1}", f"attn_out.{block}", f"mlp_out.{block}", f"resid_post.{block}"]
    before, attn, mlp, after = read(tiny(family), names, batch).values()
    torch.testing.assert_close(before + attn + mlp, after)
    assert attn.abs().max() > 1e-4
    assert mlp.abs().max() > 1e-7


@pytest.mark.parametrize("family", POST_NORM)
def test_branches_add_up_before_the_norms(family, batch):
    model = tiny(family)
    _, attn_norm, mlp_norm = POST_NORM[family]
    before, attn, mlp, after = read(model, ["resid_post.0", "attn_out.1", "mlp_out.1", "resid_post.1"], batch).values()
    block = model.get_submodule(resolve_site(model, "resid_post.1").module_path)
    with torch.no_grad():
        middle = block.get_submodule(attn_norm)(before + attn)
        torch.testing.assert_close(block.get_submodule(mlp_norm)(middle + mlp), after)


@pytest.mark.parametrize("family", FAMILIES)
def test_widths_from_the_meta_device(family):
    names = [f"{kind}.1" for kind in ("resid_post", "mlp_out", "attn_out")]
    assert site_widths(meta(family), names) == dict.fromkeys(names, 16)


def test_widths_of_module_paths():
    assert site_widths(meta("GPT2Config"), ["h.0.mlp.c_proj:input", "h.1.mlp.c_fc", "wte"]) == {
        "h.0.mlp.c_proj:input": 64, "h.1.mlp.c_fc": 64, "wte": 16,
    }  # fmt: skip


def test_widths_where_the_meta_forward_fails():
    """A forward that looks at values cannot run there; widths come from what the modules declare."""
    model = meta("BertConfig")
    model.embeddings.LayerNorm.register_forward_hook(lambda *_: torch.zeros(1, device="meta").item())
    names = ["resid_post.1", "encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense:input"]
    assert site_widths(model, names) == dict(zip(names, [16, 24, 24], strict=True))
    with pytest.raises(AtomsError, match=r"width of 'encoder\.layer\.0\.output\.dropout' cannot be told without"):
        site_widths(model, ["encoder.layer.0.output.dropout"])


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        ("BertConfig", "resid_post.1", ("encoder.layer.1", "output", 1)),
        ("BertConfig", "mlp_out.2", ("encoder.layer.2.output.dense", "output", 2)),
        ("BertConfig", "mlp_out.2:input", ("encoder.layer.2.output.dense", "input", 2)),
        ("DistilBertConfig", "mlp_out.0", ("transformer.layer.0.ffn", "output", 0)),
        ("GPT2Config", "mlp_out.0", ("h.0.mlp", "output", 0)),
        ("GPT2Config", "transformer.h.1.attn", ("h.1.attn", "output", 1)),
        ("GPT2Config", "wte", ("wte", "output", None)),
        ("LlamaConfig", "model.layers.2.mlp.down_proj:input", ("layers.2.mlp.down_proj", "input", 2)),
        ("LlamaConfig", "attn_out.1", ("layers.1.self_attn", "output", 1)),
    ],
)
def test_names(family, name, expected):
    assert resolve_site(meta(family), name) == Site(name, *expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resid_post.3",
            r"no place 'resid_post\.3'; resid_post, mlp_out and attn_out go from 0 to 2; nearest names: resid_post\.",
        ),
        ("risid.1", r"nearest names: resid_post\.1"),
        ("resid", r"nearest names: resid_post"),
        ("encoder.layer.1.outptu", r"nearest names: encoder\.layer\.1\.output"),
        ("zzz", r"nearest names: embeddings"),
        ("", r"no place ''"),
        (
            "resid_post.1:output",
            r"'resid_post\.1:output' ends in 'output'; write 'resid_post\.1' or 'resid_post\.1:input'",
        ),
        ("resid_post.1:", r"ends in ''"),
    ],
)
def test_rejects_unknown_names(name, message):
    with pytest.raises(AtomsError, match=message):
        resolve_site(meta("BertConfig"), name)


def test_rejects_branch_of_an_unknown_kind():
    model = meta("BertConfig")
    model.encoder.layer[1].output = nn.Identity()
    with pytest.raises(AtomsError, match=r"cannot tell where bert adds its mlp; .* encoder\.layer\.1\. .*intermediate"):
        resolve_site(model, "mlp_out.1")


def test_model_without_a_list_of_blocks():
    """ALBERT runs one block over and over."""
    model = tiny("AlbertConfig", embedding_size=16)
    with pytest.raises(AtomsError, match=r"AlbertModel has no place 'resid_post\.0'; nearest names"):
        resolve_site(model, "resid_post.0")
    assert resolve_site(model, "embeddings").depth is None


def test_input_is_what_the_module_before_gave(batch):
    model = tiny("LlamaConfig")
    names = ["resid_post.0", "layers.1:input", "layers.1.mlp.down_proj:input", "mlp_out.1", "layers.1.self_attn:input"]
    rows = read(model, names, batch)
    assert torch.equal(rows["resid_post.0"], rows["layers.1:input"])
    with torch.no_grad():
        mlp = model.layers[1].mlp.down_proj(rows["layers.1.mlp.down_proj:input"])
        assert torch.equal(mlp, rows["mlp_out.1"])
        # passed by keyword
        assert torch.equal(model.layers[1].input_layernorm(rows["resid_post.0"]), rows["layers.1.self_attn:input"])


def count_calls(modules):
    calls = []
    for index, module in enumerate(modules):
        module.register_forward_hook(lambda *_, index=index: calls.append(index))
    return calls


@pytest.mark.parametrize(
    ("names", "executed"),
    [
        (["resid_post.0"], [0]),
        (["mlp_out.1", "resid_post.0"], [0]),
        (["resid_post.1", "attn_out.0"], [0, 1]),
        (["layers.1:input"], [0]),
    ],
)
def test_stops_after_the_last_site(names, executed, batch):
    model = tiny("LlamaConfig")
    calls = count_calls(model.layers)
    with SiteReader(model, names) as reader:
        for _ in range(2):
            calls.clear()
            rows = reader.read(**batch)
            assert calls == executed
            assert list(rows) == names


def test_hooks_are_gone_afterwards(batch):
    model = tiny("GPT2Config")
    whole = model(**batch).last_hidden_state
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    reader = SiteReader(model, ["resid_post.0", "mlp_out.1:input"])

    def fail_inside():
        with reader:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    read(model, ["resid_post.0"], batch)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert torch.equal(model(**batch).last_hidden_state, whole)
    with pytest.raises(RuntimeError, match="needs the reader's context"):
        reader.read(**batch)


def test_model_may_run_on_its_own_meanwhile(batch):
    model = tiny("BertConfig")
    with torch.no_grad(), SiteReader(model, ["resid_post.0"]) as reader:
        reader.read(**batch)
        assert model(**batch).last_hidden_state.shape == (2, 7, 16)


def test_rows_are_detached_copies(batch):
    model = tiny("GPT2Config")

    class InPlace(nn.Module):
        def forward(self, hidden, *_args, **_kwargs):
            return hidden.mul_(0)

    model.h[1] = InPlace()
    rows = read(model, ["resid_post.0", "resid_post.1"], batch)
    assert rows["resid_post.0"].abs().max() > 0
    with SiteReader(tiny("GPT2Config"), ["resid_post.0"]) as reader:
        assert not reader.read(**batch)["resid_post.0"].requires_grad


def test_first_tensor_of_a_tuple(batch):
    model = tiny("GPT2Config")
    rows = read(model, ["h.0.attn", "h.0.attn.c_proj"], batch)  # attention returns (output, weights)
    assert torch.equal(rows["h.0.attn"], rows["h.0.attn.c_proj"])


def test_first_tensor_of_a_model_output(batch):
    model = tiny("BertConfig")
    rows = read(model, ["encoder", "resid_post.2"], batch)
    assert torch.equal(rows["encoder"], rows["resid_post.2"])


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        ("BertConfig", "pooler", r"'pooler' \(pooler\) holds torch.float32 of shape \(2, 16\) for a batch of \(2, 7\)"),
        ("BertConfig", "embeddings.word_embeddings:input", r"holds torch\.int64 of shape \(2, 7\)"),
        ("BertConfig", "encoder.layer", r"forward of BertModel never reaches \['encoder\.layer'\]"),
        ("LlamaConfig", "rotary_emb", r"'rotary_emb' .* not one vector per token"),
    ],
)
def test_rejects_sites_without_a_vector_per_token(family, name, message, batch):
    with pytest.raises(AtomsError, match=message):
        read(tiny(family), [name], batch)


@pytest.mark.parametrize("names", [[], ["resid_post.0", "resid_post.0"]])
def test_rejects_lists_of_sites(names):
    with pytest.raises(AtomsError, match=r"harvest\.sites must name each site once"):
        SiteReader(meta("BertConfig"), names)


def test_works_in_inference_mode(batch):
    with torch.inference_mode(), SiteReader(tiny("BertConfig"), ["resid_post.0"]) as reader:
        assert reader.read(**batch)["resid_post.0"].shape == (2, 7, 16)
