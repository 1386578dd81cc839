"""Weight tensors of safetensors files, read one at a time: a model larger than memory passes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from atoms.conditioning.weights import Weight, kind_of
from atoms.errors import AtomsError, first_line

_FLOATING = {"F64", "F32", "F16", "BF16"}
_INDICES = {"I64", "I32", "I16", "BOOL"}
_PACKED = ("qweight", "weight_packed", "absmax", "SCB", "_blocks", "weight_scale", "weight_scale_inv")
_CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"}
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight", "q_attn.weight")


def weights_in(files: Sequence[Path], model_type: str = "") -> list[Weight]:
    """All tensors of safetensors files that hold matrices; no value is read before it is asked for.

    Args:
        files: The files, one checkpoint together.
        model_type: What ``config.json`` calls the family; GPT-2's layers are stored with inputs as rows.

    Raises:
        AtomsError: If a file is missing, empty, damaged, no safetensors or quantised, if two hold a tensor of the same
            name, or if there is no matrix.
    """
    if not files:
        raise AtomsError("no file is given: name the .safetensors files of a checkpoint")
    found: dict[str, Weight] = {}
    held: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                keys = list(opened.keys())
                if not keys:
                    raise AtomsError(f"{file} holds no tensor: name a file with weights")
                for key in keys:
                    if key in held:
                        raise AtomsError(f"{key} is in {held[key]} and in {file}: name the files of one checkpoint")
                    held[key] = file
                    part = opened.get_slice(key)
                    shape, kind = tuple(part.get_shape()), part.get_dtype()
                    what = kind_of(key, shape)
                    _require_plain(file, key, kind, what is not None)
                    if what is None or kind not in _FLOATING:  # norms and biases; masks and positions
                        continue
                    turned = model_type in _CONV1D and key.endswith(_TRANSPOSED)
                    found[key] = Weight(key, what, shape, partial(_read, file, key), turned)
        except FileNotFoundError as error:
            raise AtomsError(f"{file} does not exist: name a .safetensors file") from error
        except (OSError, SafetensorError) as error:
            raise AtomsError(
                f"{file} is no whole safetensors file ({first_line(error)}): fetch or save it again"
            ) from error
    if not found:
        names = ", ".join(str(file) for file in files)
        raise AtomsError(
            f"{names}: no matrix among {len(held)} tensors; tensors of one dimension have no condition number"
        )
    return list(found.values())


def _require_plain(file: Path, key: str, kind: str, matrix: bool) -> None:
    packed = key.endswith(_PACKED) or ".quant_state." in key
    coded = kind not in _FLOATING and (key.endswith("weight") or kind not in _INDICES)
    if packed or (matrix and coded):
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
