"""Weights read from files: the same as the module's that were saved, or a line that says why not."""

from pathlib import Path

import pytest
import torch
import transformers
from families import config_of
from safetensors import safe_open
from safetensors.torch import save_file

from atoms.conditioning import Condition, survey, weights_in, weights_of
from atoms.conditioning.weights import digest
from atoms.errors import AtomsError


def causal(family: str, **changes: object) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config_of(family, **changes))


def saved(tensors: dict[str, torch.Tensor], name: str = "model.safetensors") -> Path:
    path = Path.cwd() / name
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def described(conditions: list[Condition]) -> dict[str, dict[str, object]]:
    return {condition.name: vars(condition) for condition in conditions}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt_oss"])
def test_a_saved_model_has_the_modules_numbers(family, dtype):
    model = causal(family, **({"num_local_experts": 4} if family in ("mixtral", "gpt_oss") else {})).to(dtype)
    shared = {"lm_head.weight"} if family == "gpt2" else set()  # tied, and safetensors refuses both
    file = saved({name: value for name, value in model.state_dict().items() if name not in shared})
    of_file, of_module = weights_in([file], model.config.model_type), weights_of(model)
    assert {weight.name for weight in of_file} == {weight.name for weight in of_module}
    assert described(survey(of_file)) == described(survey(of_module))


def test_transformers_own_shards(tmp_path):
    model = causal("mixtral")
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    files = sorted((tmp_path / "saved").glob("*.safetensors"))
    assert len(files) > 2
    weights = weights_in(files, "mixtral")
    # It stores every expert as a matrix of its own, and gate and up apart.
    of_experts = [weight for weight in weights if "experts" in weight.name]
    assert len(of_experts) == 3 * 8 * 3
    assert {weight.kind for weight in of_experts} == {"linear"}
    down = model.model.layers[1].mlp.experts.down_proj
    one = next(weight for weight in of_experts if weight.name.endswith("layers.1.block_sparse_moe.experts.5.w2.weight"))
    assert torch.equal(one.read(), down[5])
    assert sum(weight.numel for weight in weights) == sum(weight.numel for weight in weights_of(model))


def test_gpt2s_layers_are_stored_with_inputs_as_rows():
    tensors = {
        "h.0.attn.c_attn.weight": torch.randn(4, 12),
        "h.0.mlp.c_proj.weight": torch.randn(16, 4),
        "wte.weight": torch.randn(9, 4),
        "h.0.attn.bias": torch.ones(1, 1, 8, 8).tril(),  # a mask, as the first releases stored it
        "h.0.ln_1.weight": torch.ones(4),
    }
    file = saved(tensors)
    shapes = {weight.name: weight.matrix_shape for weight in weights_in([file], "gpt2")}
    assert shapes == {"h.0.attn.c_attn.weight": (12, 4), "h.0.mlp.c_proj.weight": (4, 16), "wte.weight": (9, 4)}
    for family in ("gpt_bigcode", ""):  # the former's are of the same names, and linear layers
        assert {weight.name: weight.matrix_shape for weight in weights_in([file], family)} == {
            name: tuple(tensors[name].shape) for name in shapes
        }


def test_norms_masks_and_positions_are_skipped():
    file = saved(
        {
            "layers.0.fc.weight": torch.randn(4, 3),
            "layers.0.fc.bias": torch.randn(4),
            "norm.weight": torch.randn(4),
            "scale": torch.tensor(2.0),
            "embeddings.position_ids": torch.arange(12)[None],
            "attention.places": torch.arange(12).reshape(3, 4),
            "attention.mask": torch.ones(3, 3, dtype=torch.bool),
            "attention.bias": torch.ones(1, 1, 3, 3, dtype=torch.uint8),
            "cls_token": torch.randn(1, 1, 4),
        }
    )
    assert [weight.name for weight in weights_in([file])] == ["layers.0.fc.weight"]


def test_nothing_is_read_before_it_is_asked_for(monkeypatch):
    file = saved({"a.weight": torch.zeros(2, 3), "b.weight": torch.zeros(3, 2)})
    weights = {weight.name: weight for weight in weights_in([file])}
    saved({"a.weight": torch.full((2, 3), 7.0), "b.weight": torch.ones(3, 2)})
    asked = []

    class Opened:
        def __init__(self, *words: object) -> None:
            self.inner = safe_open(*words)

        def __enter__(self) -> "Opened":
            self.inner.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.inner.__exit__(*error)

        def get_tensor(self, name: str) -> torch.Tensor:
            asked.append(name)
            return self.inner.get_tensor(name)

    monkeypatch.setattr("atoms.conditioning.checkpoint.safe_open", Opened)
    assert torch.equal(weights["a.weight"].read(), torch.full((2, 3), 7.0))
    assert asked == ["a.weight"]


def test_a_file_that_is_gone_when_it_is_read():
    file = saved({"a.weight": torch.ones(2, 3)})
    (weight,) = weights_in([file])
    file.unlink()
    with pytest.raises(AtomsError, match=r"model.safetensors: a.weight cannot be read \(.*\): fetch the file again$"):
        weight.read()
    file.write_bytes(b"{}")
    with pytest.raises(AtomsError, match=r"a.weight cannot be read"):
        weight.read()


def test_digests_are_those_of_what_was_saved():
    values = torch.randn(5, 3).bfloat16()
    (weight,) = weights_in([saved({"a.weight": values})])
    assert digest(weight.read()) == digest(values)


def test_files_together_are_one_checkpoint():
    one, two = (
        saved({"a.weight": torch.randn(2, 3)}, "1.safetensors"),
        saved({"b.weight": torch.randn(2, 3)}, "2.safetensors"),
    )
    assert [weight.name for weight in weights_in([one, two])] == ["a.weight", "b.weight"]
    with pytest.raises(
        AtomsError, match=r"^a.weight is in .*1.safetensors and in .*3.safetensors: name the files of one"
    ):
        weights_in([one, saved({"a.weight": torch.randn(2, 3)}, "3.safetensors")])


def test_files_that_cannot_be_read_are_named(tmp_path):
    whole = saved({"a.weight": torch.randn(40, 30)})
    empty, cut, short, text = (tmp_path / name for name in ("empty", "cut", "short", "text"))
    empty.touch()
    cut.write_bytes(whole.read_bytes()[:-10])
    short.write_bytes(whole.read_bytes()[:20])
    text.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    for file in (empty, cut, short, text, tmp_path):
        with pytest.raises(AtomsError, match=rf"^{file} is no whole safetensors file \(.+\): fetch or save it again$"):
            weights_in([whole, file])
    with pytest.raises(AtomsError, match=rf"^{tmp_path}/nowhere does not exist: name a .safetensors file$"):
        weights_in([tmp_path / "nowhere"])
    with pytest.raises(AtomsError, match=r"^no file is given"):
        weights_in([])


def test_files_without_matrices_are_named():
    with pytest.raises(AtomsError, match=r"model.safetensors holds no tensor: name a file with weights"):
        weights_in([saved({})])
    file = saved({"norm.weight": torch.ones(4), "norm.bias": torch.ones(4), "position_ids": torch.arange(4)[None]})
    with pytest.raises(AtomsError, match=r"model.safetensors: no matrix among 3 tensors; tensors of one dimension"):
        weights_in([file])


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"q.weight": torch.zeros(6, 1, dtype=torch.uint8)}, r"q.weight \(U8\)"),
        ({"q.weight.absmax": torch.zeros(6)}, r"q.weight.absmax \(F32\)"),
        (
            {"q.weight.quant_state.bitsandbytes__nf4": torch.zeros(6, dtype=torch.uint8)},
            r"q.weight.quant_state.bitsandbytes__nf4 \(U8\)",
        ),
        ({"q.weight": torch.zeros(6, 3, dtype=torch.int8)}, r"q.weight \(I8\)"),
        ({"q.SCB": torch.zeros(6)}, r"q.SCB \(F32\)"),
        ({"q.weight": torch.zeros(6, 3).to(torch.float8_e4m3fn)}, r"q.weight \(F8_E4M3\)"),
        ({"q.weight": torch.zeros(6, 3).to(torch.float8_e5m2)}, r"q.weight \(F8_E5M2\)"),
        ({"q.weight_scale_inv": torch.zeros(2, 2)}, r"q.weight_scale_inv \(F32\)"),
        ({"q.qweight": torch.zeros(6, 3, dtype=torch.int32)}, r"q.qweight \(I32\)"),
        ({"q.weight_packed": torch.zeros(6, 3, dtype=torch.int32)}, r"q.weight_packed \(I32\)"),
        ({"q.weight": torch.zeros(6, 3, dtype=torch.int32)}, r"q.weight \(I32\)"),
        ({"experts.down_proj_blocks": torch.zeros(2, 6, 3, 4, dtype=torch.uint8)}, r"experts.down_proj_blocks \(U8\)"),
        ({"q.W_q": torch.zeros(6, 3, dtype=torch.uint8)}, r"q.W_q \(U8\)"),
    ],
)
def test_quantised_files_are_refused(tensors, named):
    file = saved({"a.weight": torch.randn(3, 3), **tensors})
    with pytest.raises(
        AtomsError, match=rf"^{file}: {named} is quantised, and a file does not say how to undo it: load"
    ):
        weights_in([file])
