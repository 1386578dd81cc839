"""Names of places in tiny models of every family."""

import pytest
from families import meta, tiny
from torch import nn
from transformers import AlbertConfig, AutoModel

from atoms.activations.sites import KINDS, Site, model_blocks, resolve_site
from atoms.errors import AtomsError


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        ("bert", "resid_pre.0", ("encoder.layer.0", "input", 0)),
        ("bert", "resid_post.1", ("encoder.layer.1", "output", 1)),
        ("bert", "mlp_in.2", ("encoder.layer.2.output.dense", "input", 2)),
        ("bert", "mlp_out.2", ("encoder.layer.2.output.dense", "output", 2)),
        ("bert", "attn_out.2", ("encoder.layer.2.attention.output.dense", "output", 2)),
        ("distilbert", "mlp_out.0", ("transformer.layer.0.ffn", "output", 0)),
        ("gpt2", "mlp_in.0", ("h.0.mlp.c_proj", "input", 0)),
        ("gpt2", "mlp_out.0", ("h.0.mlp", "output", 0)),
        ("gpt2", "transformer.h.1.attn", ("h.1.attn", "output", 1)),
        ("gpt2", "h.1.attn:output", ("h.1.attn", "output", 1)),
        ("gpt2", "wte", ("wte", "output", None)),
        ("gemma2", "mlp_out.1", ("layers.1.post_feedforward_layernorm", "output", 1)),
        ("gpt_neox", "mlp_in.1", ("layers.1.mlp.dense_4h_to_h", "input", 1)),
        ("llama", "mlp_in.1", ("layers.1.mlp.down_proj", "input", 1)),
        ("llama", "model.layers.2.mlp.down_proj:input", ("layers.2.mlp.down_proj", "input", 2)),
        ("llama", "attn_out.1", ("layers.1.self_attn", "output", 1)),
        ("modernbert", "mlp_in.1", ("layers.1.mlp.Wo", "input", 1)),
        ("opt", "mlp_in.1", ("decoder.layers.1.fc2", "input", 1)),
        ("phi", "mlp_in.1", ("layers.1.mlp.fc2", "input", 1)),
    ],
)
def test_names(family, name, expected):
    site = resolve_site(meta(family), name)
    assert site == Site(name, *expected)
    assert site.kind == (name.split(".")[0] if name.split(".")[0] in KINDS else None)
    assert resolve_site(meta(family), site.place) == Site(site.place, *expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resid_post.3",
            r"no place 'resid_post\.3'; resid_pre, attn_out, mlp_in, mlp_out and resid_post go from 0 to 2; "
            r"nearest names: resid_post\.",
        ),
        ("risid_pots.1", r"nearest names: resid_post\.1"),
        ("resid", r"nearest names: resid_p"),
        ("encoder.layer.1.outptu", r"nearest names: encoder\.layer\.1\.output"),
        ("zzz", r"nearest names: embeddings"),
        ("", r"no place ''"),
        (":input", r"no place ':input'"),
        ("encoder.layer.1:", r"ends in ''; write 'encoder\.layer\.1:output' or 'encoder\.layer\.1:input'$"),
        ("resid_post.1:middle", r"'resid_post\.1:middle' ends in 'middle'"),
        ("resid.3", r"'resid\.3' is now written 'resid_post\.3'$"),
        ("mlp.1", r"'mlp\.1' is now written 'mlp_out\.1'$"),
        ("attn.0", r"'attn\.0' is now written 'attn_out\.0'$"),
        (
            "mlp_out.1:input",
            r"'mlp_out\.1:input' gives a side to a place that has none; write 'mlp_out\.1', or "
            r"'encoder\.layer\.1\.output\.dense:input' for a side of that module$",
        ),
    ],
)
def test_rejects_unknown_names(name, message):
    with pytest.raises(AtomsError, match=message):
        resolve_site(meta("bert"), name)


@pytest.mark.parametrize(
    ("kind", "said"), [("mlp_out", "adds its MLP's output"), ("mlp_in", "has its MLP's down-projection")]
)
def test_rejects_kinds_that_a_block_does_not_show(kind, said):
    model = meta("bert")
    model.encoder.layer[1].output = nn.Identity()
    with pytest.raises(AtomsError, match=rf"for {kind}\.1 where bert {said}; .* encoder\.layer\.1\. .*intermediate"):
        resolve_site(model, f"{kind}.1")


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_have_no_single_down_projection(family):
    message = rf"there is no mlp_in\.1, because layers\.1 of {family} is a mixture of experts \(layers\.1\.mlp\.experts"
    with pytest.raises(AtomsError, match=message):
        resolve_site(meta(family), "mlp_in.1")


def test_model_without_a_list_of_blocks():
    """ALBERT runs one block over and over."""
    model = AutoModel.from_config(
        AlbertConfig(num_hidden_layers=3, hidden_size=16, num_attention_heads=2, embedding_size=16)
    )
    assert model_blocks(model) == ("", [])
    with pytest.raises(AtomsError, match=r"AlbertModel has no place 'resid_post\.0'; nearest names"):
        resolve_site(model, "resid_post.0")
    assert resolve_site(model, "embeddings").depth is None


def test_blocks_of_a_model_with_other_lists():
    model = tiny("gpt2")
    model.h[0].deeper = nn.ModuleList(nn.Identity() for _ in range(3))
    model.other = nn.ModuleList(nn.Identity() for _ in range(4))
    path, blocks = model_blocks(model)
    assert path == "h"
    assert blocks == list(model.h)
