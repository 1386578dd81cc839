"""Weight tensors of safetensors files, read one at a time: a model larger than memory passes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from atoms.conditioning.weights import Weight, named_weight
from atoms.errors import AtomsError

_FLOATING = {"F64", "F32", "F16", "BF16"}
_PACKED = ("qweight", "weight_packed", "absmax", "SCB", "_blocks", "weight_scale", "weight_scale_inv")
_CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "gpt_bigcode"}
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight", "q_attn.weight")


def weights_in(files: Sequence[Path], model_type: str = "") -> list[Weight]:
    """All tensors of safetensors files that hold matrices.

    Args:
        files: The files, one checkpoint together.
        model_type: What ``config.json`` calls the family; GPT-2's layers are stored with inputs as rows.

    Raises:
        AtomsError: If a file is missing, empty, damaged, no safetensors or quantised, or if there is no matrix.
    """
    found: dict[str, Weight] = {}
    flat = 0
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                keys = list(opened.keys())
                if not keys:
                    raise AtomsError(f"{file} holds no tensor: name a file with weights")
                for key in keys:
                    part = opened.get_slice(key)
                    shape, kind = tuple(part.get_shape()), part.get_dtype()
                    _require_plain(file, key, kind, shape)
                    flat += len(shape) < 2
                    if len(shape) < 2 or kind not in _FLOATING:
                        continue  # norms and biases; masks and positions
                    turned = model_type in _CONV1D and key.endswith(_TRANSPOSED)
                    found[key] = named_weight(key, shape, partial(_read, file, key), turned)
        except FileNotFoundError as error:
            raise AtomsError(f"{file} does not exist: name a .safetensors file") from error
        except (OSError, SafetensorError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise AtomsError(f"{file} is no whole safetensors file ({said}): fetch or save it again") from error
    if not found:
        names = ", ".join(str(file) for file in files)
        raise AtomsError(f"{names}: no matrix among {flat} tensors; tensors of one dimension have no condition number")
    return list(found.values())


def _require_plain(file: Path, key: str, kind: str, shape: tuple[int, ...]) -> None:
    packed = key.endswith(_PACKED) or ".quant_state." in key
    narrow = len(shape) >= 2 and (kind.startswith("F8") or kind in ("I8", "U8", "I4", "F4"))
    if packed or narrow:
        raise AtomsError(
            f"{file}: {key} ({kind}) is quantised, and a file does not say how to undo it: load the model with its "
            "library and survey the module, or give the checkpoint it was made from"
        )


def _read(file: Path, key: str) -> Tensor:
    try:
        with safe_open(file, "pt") as opened:
            values: Tensor = opened.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise AtomsError(f"{file}: {key} cannot be read ({error}): fetch the file again") from error
    return values
