"""What is read at the sites of tiny models of every family is what the model computes there."""

import pytest
import torch
from families import BLOCKS, EXPERTS, FAMILIES, NEURONS, POST_NORM, PRE_NORM, WIDTH, meta, sentences, tiny
from torch import nn

from atoms.activations.site_reader import Ends, SiteReader, module_widths, site_widths
from atoms.activations.sites import KINDS, model_blocks
from atoms.errors import AtomsError


@pytest.fixture
def batch():
    return sentences()


def read(model, names, batch):
    with torch.no_grad(), SiteReader(model, names) as reader:
        return reader.read(**batch)


def block_of(model, number):
    return model_blocks(model)[1][number]


# ------------------------------------------------------------------------------------------ the residual stream


@pytest.mark.parametrize("family", FAMILIES)
def test_residual_stream_is_the_hidden_states_bit_for_bit(family, batch):
    model = tiny(family)
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    pre = read(model, [f"resid_pre.{n}" for n in range(BLOCKS)], batch)
    post = read(model, [f"resid_post.{n}" for n in range(BLOCKS)], batch)
    assert all(torch.equal(pre[f"resid_pre.{n}"], states[n]) for n in range(BLOCKS))
    # where a final norm or a projection follows, the model's last hidden state has passed it
    equal = [torch.equal(post[f"resid_post.{n}"], states[n + 1]) for n in range(BLOCKS)]
    assert equal == [True, True, family in POST_NORM and family != "opt projected"]


@pytest.mark.parametrize(
    ("family", "behind"),
    [
        ("gpt2", "ln_f"), ("gpt_neox", "final_layer_norm"), ("llama", "norm"), ("gemma3", "norm"),
        ("phi", "final_layernorm"), ("opt", "decoder.final_layer_norm"), ("opt projected", "decoder.project_out"),
        ("modernbert", "final_norm"),
    ],
)  # fmt: skip
def test_last_residual_becomes_the_last_hidden_state(family, behind, batch):
    model = tiny(family)
    rows = read(model, ["resid_post.2"], batch)["resid_post.2"]
    with torch.no_grad():
        assert torch.equal(model.get_submodule(behind)(rows), model(**batch).last_hidden_state)


@pytest.mark.parametrize("family", [*PRE_NORM, *EXPERTS])
@pytest.mark.parametrize("block", [0, 2])
def test_branches_add_up_to_the_residual_stream(family, block, batch):
    names = [f"{kind}.{block}" for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
    before, attn, mlp, after = read(tiny(family), names, batch).values()
    torch.testing.assert_close(before + attn + mlp, after)
    assert attn.abs().max() > 1e-4
    assert mlp.abs().max() > 1e-7


@pytest.mark.parametrize("family", POST_NORM)
def test_branches_add_up_before_the_norms(family, batch):
    model = tiny(family)
    _, _, attn_norm, mlp_norm = POST_NORM[family]
    before, attn, mlp, after = read(model, ["resid_pre.1", "attn_out.1", "mlp_out.1", "resid_post.1"], batch).values()
    with torch.no_grad():
        middle = block_of(model, 1).get_submodule(attn_norm)(before + attn)
        torch.testing.assert_close(block_of(model, 1).get_submodule(mlp_norm)(middle + mlp), after)


# ------------------------------------------------------------------------------------------ neurons


def gated(mlp, x):
    return mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)


def halves(projected, activation):
    first, second = projected.chunk(2, dim=-1)
    return activation(first) * second


# Where an MLP's input is read within a block, its neurons by hand from that input, and the MLP's output from them.
NEURONS_BY_HAND = {
    "gpt2": ("mlp", lambda b, x: b.mlp.act(b.mlp.c_fc(x)), lambda b, n: b.mlp.c_proj(n), "mlp"),
    "gpt_neox": ("mlp", lambda b, x: b.mlp.act(b.mlp.dense_h_to_4h(x)), lambda b, n: b.mlp.dense_4h_to_h(n), "mlp"),
    **{
        family: ("mlp", lambda b, x: gated(b.mlp, x), lambda b, n: b.mlp.down_proj(n), "mlp")
        for family in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2")
    },
    "opt": ("fc1", lambda b, x: b.activation_fn(b.fc1(x)), lambda b, n: b.fc2(n), "fc2"),
    "opt projected": ("fc1", lambda b, x: b.activation_fn(b.fc1(x)), lambda b, n: b.fc2(n), "fc2"),
    "phi": ("mlp", lambda b, x: b.mlp.activation_fn(b.mlp.fc1(x)), lambda b, n: b.mlp.fc2(n), "mlp"),
    "phi3": (
        "mlp", lambda b, x: halves(b.mlp.gate_up_proj(x), b.mlp.activation_fn), lambda b, n: b.mlp.down_proj(n), "mlp",
    ),
    "bert": ("intermediate", lambda b, x: b.intermediate(x), lambda b, n: b.output.dense(n), "output.dense"),
    "roberta": ("intermediate", lambda b, x: b.intermediate(x), lambda b, n: b.output.dense(n), "output.dense"),
    "modernbert": ("mlp", lambda b, x: halves(b.mlp.Wi(x), b.mlp.act), lambda b, n: b.mlp.Wo(n), "mlp"),
}  # fmt: skip


@pytest.mark.parametrize("family", NEURONS_BY_HAND)
def test_mlp_in_is_the_neurons(family, batch):
    entrance, neurons, down, end = NEURONS_BY_HAND[family]
    model = tiny(family)
    block, path = block_of(model, 1), f"{model_blocks(model)[0]}.1"
    names = [f"{path}.{entrance}:input", "mlp_in.1", f"{path}.{end}"]
    x, found, out = read(model, names, batch).values()
    with torch.no_grad():
        torch.testing.assert_close(found, neurons(block, x))
        torch.testing.assert_close(down(block, found), out)
    assert found.shape == (2, 7, NEURONS)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - EXPERTS))
def test_mlp_in_is_what_the_down_projection_takes(family, batch):
    model = tiny(family)
    with SiteReader(model, ["mlp_in.1"]) as reader:
        (site,) = reader.sites
        rows = read(model, ["mlp_in.1", f"{site.module_path}:output"], batch)
    with torch.no_grad():
        torch.testing.assert_close(
            model.get_submodule(site.module_path)(rows["mlp_in.1"]), rows[f"{site.module_path}:output"]
        )


# ------------------------------------------------------------------------------------------ widths


@pytest.mark.parametrize("family", FAMILIES)
def test_widths_without_weights_are_those_with(family, batch):
    kinds = [kind for kind in KINDS if family not in EXPERTS or kind != "mlp_in"]
    names = [f"{kind}.1" for kind in kinds]
    widths = site_widths(meta(family), names)
    assert widths == {name: rows.shape[-1] for name, rows in read(tiny(family), names, batch).items()}
    assert {width for name, width in widths.items() if name != "mlp_in.1"} == {WIDTH}


def test_widths_of_module_paths():
    assert site_widths(meta("gpt2"), ["h.0.mlp.c_proj:input", "h.1.mlp.c_fc", "wte", "wte:output"]) == {
        "h.0.mlp.c_proj:input": 24, "h.1.mlp.c_fc": 24, "wte": 16, "wte:output": 16,
    }  # fmt: skip


def looks_at_values(family):
    """A model without weights whose forward cannot run."""
    model = meta(family)
    model.get_input_embeddings().register_forward_hook(lambda *_: torch.zeros(1, device="meta").item())
    return model


def test_widths_where_the_meta_forward_fails():
    """A forward that looks at values cannot run there; widths come from what the modules declare."""
    names = ["resid_pre.0", "resid_post.1", "mlp_in.1", "encoder.layer.0.intermediate.dense"]
    assert site_widths(looks_at_values("bert"), names) == dict(zip(names, [16, 16, 24, 24], strict=True))
    assert site_widths(looks_at_values("gpt2"), ["mlp_in.1", "h.0.attn.c_attn"]) == {
        "mlp_in.1": 24, "h.0.attn.c_attn": 48,
    }  # fmt: skip
    with pytest.raises(AtomsError, match=r"width of 'encoder\.layer\.0\.output\.dropout' cannot be told without"):
        site_widths(looks_at_values("bert"), ["encoder.layer.0.output.dropout"])


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"lfm2"}))  # whose convolutions look at the mask's values
def test_widths_of_modules_are_those_of_what_passes_them(family, batch):
    listed = module_widths(meta(family))
    model = tiny(family)
    assert {f"{model_blocks(model)[0]}.{n}" for n in range(BLOCKS)} < set(listed)
    expected = {
        f"{path}:{end}": width for path, ends in listed.items() for end, width in ends._asdict().items() if width
    }
    rows = read(model, expected, batch)
    assert {name: values.shape for name, values in rows.items()} == {n: (2, 7, width) for n, width in expected.items()}


def test_modules_that_hold_no_vector_per_token_are_not_listed():
    listed = module_widths(meta("llama"))
    assert listed["embed_tokens"] == Ends(None, 16)
    assert listed["layers.2.mlp.down_proj"] == Ends(24, 16)
    assert listed["rotary_emb"].output is None  # one vector per position, whatever the token
    assert "layers" not in listed
    assert list(listed)[-1] == "norm"


def test_modules_where_the_meta_forward_fails():
    with pytest.raises(AtomsError, match=r"modules of BertModel cannot be listed without its weights .*--modules out"):
        module_widths(looks_at_values("bert"))


# ------------------------------------------------------------------------------------------ reading


def test_input_is_what_the_module_before_gave(batch):
    model = tiny("llama")
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
        (["resid_pre.0"], []),
        (["resid_pre.1"], [0]),
        (["resid_post.0"], [0]),
        (["mlp_out.1", "resid_post.0"], [0]),
        (["resid_post.1", "attn_out.0"], [0, 1]),
        (["layers.1:input"], [0]),
    ],
)
def test_stops_after_the_last_site(names, executed, batch):
    model = tiny("llama")
    calls = count_calls(model.layers)
    with SiteReader(model, names) as reader:
        for _ in range(2):
            calls.clear()
            rows = reader.read(**batch)
            assert calls == executed
            assert list(rows) == names


def test_hooks_are_gone_afterwards(batch):
    model = tiny("gpt2")
    whole = model(**batch).last_hidden_state
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    reader = SiteReader(model, ["resid_post.0", "mlp_in.1"])

    def fail_inside():
        with reader:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    read(model, ["resid_post.0"], batch)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert torch.equal(model(**batch).last_hidden_state, whole)
    with pytest.raises(RuntimeError, match="reads within its context"):
        reader.read(**batch)


def test_model_may_run_on_its_own_meanwhile(batch):
    model = tiny("bert")
    with torch.no_grad(), SiteReader(model, ["resid_post.0"]) as reader:
        reader.read(**batch)
        assert model(**batch).last_hidden_state.shape == (2, 7, 16)


def test_rows_are_detached_copies(batch):
    model = tiny("gpt2")

    class InPlace(nn.Module):
        def forward(self, hidden, *_args, **_kwargs):
            return hidden.mul_(0)

    model.h[1] = InPlace()
    rows = read(model, ["resid_post.0", "resid_post.1"], batch)
    assert rows["resid_post.0"].abs().max() > 0
    with SiteReader(tiny("gpt2"), ["resid_post.0"]) as reader:
        assert not reader.read(**batch)["resid_post.0"].requires_grad


def test_first_tensor_of_a_tuple(batch):
    model = tiny("gpt2")
    rows = read(model, ["h.0.attn", "h.0.attn.c_proj"], batch)  # attention returns (output, weights)
    assert torch.equal(rows["h.0.attn"], rows["h.0.attn.c_proj"])


def test_first_tensor_of_a_model_output(batch):
    model = tiny("bert")
    rows = read(model, ["encoder", "resid_post.2"], batch)
    assert torch.equal(rows["encoder"], rows["resid_post.2"])


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        ("bert", "pooler", r"'pooler' \(pooler\) holds torch.float32 of shape \(2, 16\) for a batch of \(2, 7\)"),
        ("bert", "embeddings.word_embeddings:input", r"holds torch\.int64 of shape \(2, 7\)"),
        ("bert", "encoder.layer", r"forward of BertModel never reaches \['encoder\.layer'\]"),
        ("llama", "rotary_emb", r"'rotary_emb' .* not one vector per token"),
    ],
)
def test_rejects_sites_without_a_vector_per_token(family, name, message, batch):
    with pytest.raises(AtomsError, match=message):
        read(tiny(family), [name], batch)


@pytest.mark.parametrize("names", [[], ["resid_post.0", "resid_post.0"]])
def test_rejects_lists_of_sites(names):
    with pytest.raises(AtomsError, match=r"harvest\.sites must name each site once"):
        SiteReader(meta("bert"), names)


def test_works_in_inference_mode(batch):
    with torch.inference_mode(), SiteReader(tiny("bert"), ["resid_post.0"]) as reader:
        assert reader.read(**batch)["resid_post.0"].shape == (2, 7, 16)
