"""What neurons write, in tiny models of every family."""

import pytest
import torch
from families import EXPERTS, FAMILIES, sentences, tiny
from safetensors.torch import load_file, save_file

from atoms.activations import down_projection
from atoms.activations.down_projection import read_down_projection
from atoms.activations.model_source import ModelSpec, resolve
from atoms.activations.site_reader import SiteReader
from atoms.errors import AtomsError

NORM_BEHIND = {"gemma2", "gemma3", "glm4", "olmo2"}
"""Families that normalise what the MLP gives before they add it."""


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - EXPERTS.keys() - NORM_BEHIND))
def test_neurons_sum_to_the_output_of_the_mlp(family, tmp_path, monkeypatch):
    model = tiny(family)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(down_projection, "load_model", None)  # nothing else of the model is read
    weight, bias = read_down_projection(resolve(ModelSpec(str(tmp_path))), 1)
    with torch.no_grad(), SiteReader(model, ["mlp_in.1", "mlp_out.1"]) as reader:
        rows = reader.read(**sentences())
    assert weight.shape == (rows["mlp_in.1"].shape[-1], rows["mlp_out.1"].shape[-1])
    torch.testing.assert_close(rows["mlp_in.1"] @ weight + bias, rows["mlp_out.1"])


@pytest.mark.parametrize("family", sorted(NORM_BEHIND))
def test_a_norm_behind_the_mlp_leaves_neurons_no_direction(family, tmp_path):
    tiny(family).save_pretrained(tmp_path)
    with pytest.raises(AtomsError, match=r"^mlp_out\.1 of \w+ is what layers\.1\.\w+ makes of the MLP's output, so no"):
        read_down_projection(resolve(ModelSpec(str(tmp_path))), 1)


def test_experts_have_no_single_down_projection(tmp_path):
    tiny("mixtral").save_pretrained(tmp_path)
    with pytest.raises(
        AtomsError, match=r"there is no mlp_in\.0, because layers\.0 of mixtral is a mixture of experts"
    ):
        read_down_projection(resolve(ModelSpec(str(tmp_path))), 0)


def test_a_checkpoint_with_a_head_is_read(tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    headed = {f"model.{name.removeprefix('model.')}": value for name, value in weights.items()}
    save_file(headed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = read_down_projection(resolve(ModelSpec(str(tmp_path))), 2)
    assert torch.equal(found.weight, model.layers[2].mlp.down_proj.weight.T)
    assert torch.equal(found.bias, torch.zeros(16))


def test_a_checkpoint_in_shards_is_read(tmp_path):
    model = tiny("gpt2")
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    found = read_down_projection(resolve(ModelSpec(str(tmp_path))), 2)
    assert torch.equal(found.weight, model.h[2].mlp.c_proj.weight)
    assert torch.equal(found.bias, model.h[2].mlp.c_proj.bias)


def test_a_checkpoint_that_names_its_tensors_otherwise_is_loaded_whole(tmp_path, monkeypatch):
    model = tiny("gpt2")
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(down_projection, "read_tensors", lambda *_: {})
    found = read_down_projection(resolve(ModelSpec(str(tmp_path))), 0)
    assert torch.equal(found.weight, model.h[0].mlp.c_proj.weight)


def test_half_precision_is_widened(tmp_path):
    model = tiny("gpt2").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    found = read_down_projection(resolve(ModelSpec(str(tmp_path))), 0)
    assert (found.weight.dtype, found.bias.dtype) == (torch.float32, torch.float32)
    assert torch.equal(found.weight.bfloat16(), model.h[0].mlp.c_proj.weight)


def test_damaged_weights_are_refused(tmp_path):
    tiny("gpt2").save_pretrained(tmp_path)
    resolved = resolve(ModelSpec(str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(AtomsError, match="cannot read weights"):
        read_down_projection(resolved, 0)
