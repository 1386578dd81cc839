"""The weight tensors of a model: what each is, which matrices it holds, and how to get at its values.

A tensor is known by its name and shape before its values are read, so that a survey says what it costs and holds one
tensor at a time.

Not every tensor of two dimensions holds a matrix that something is multiplied with. What torch's own modules hold is
known by the module. The rest goes by name and shape, in files all of it:

- Biases (of experts, of heads, GPT-2's stored masks) and coefficients of a recurrence hold none, whatever their shape.
- Nor does what is a vector but for dimensions of size 1, as a class token (1, 1, width), unless it is called a weight:
  a linear map to one output is a matrix.
- Tables of tokens or positions are embeddings, a row each, and so is what is repeated over the batch (1, n, width).
- A stack (k, m, n) holds a matrix for each of its first dimension, as experts, groups and block-diagonal maps do. In a
  file, where it is called ``.weight`` and nothing else, it is a convolution's instead, by far the more frequent.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from atoms.errors import AtomsError

Kind = Literal["linear", "embedding", "unembedding", "conv", "experts"]

EXPERTS = re.compile(r"expert|moe\.|(^|\.)(gate_up_proj|down_proj|gate_proj|up_proj)(\.weight)?$")
"""Names of three-dimensional tensors that hold a matrix for each expert; PEFT goes by the same endings."""
_UNEMBEDDING = re.compile(
    r"(^|\.)(lm_head|embed_out)(\.weight)?$|^(\D*\.)?(output_projection|output_layer|decoder_head)(\.weight)?$"
)
_EMBEDDING = re.compile(
    r"(^|\.)(?!\w*(proj|mapping|transform))"
    r"(\w*embed\w*|(\w*_)?emb|\w*_tokens?|wte|wpe|shared|rel_pos\w*|relative_\w*bias\w*)(\.weight)?$"
)
_NO_MATRIX = re.compile(r"(^|[._])bias(es)?$|(^|\.)(A_log|time_(decay|faaaa|first|mix_\w+))$")
_BITSANDBYTES = ("Params4bit", "Int8Params")
_CALLED_WEIGHT = re.compile(r"weight(?!_g$)[^.]*$")
_ONLY_WEIGHT = re.compile(r"(^|\.)(weight(_v)?|parametrizations\.weight\.\w+)$")  # and its norm taken apart
_NUMBER = re.compile(r"(?<=\.)(\d+)(?=\.)")


@dataclass(frozen=True, eq=False)
class Weight:
    """One tensor of at least two dimensions.

    Attributes:
        name: As the model or file names it.
        kind: What it is.
        shape: Its own.
        read: Returns the values, floating, of the shape; nothing is read before.
        transposed: Whether rows of its matrix are inputs, as in GPT-2's ``Conv1D``; singular values do not care.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    transposed: bool = False

    @property
    def layer(self) -> int | None:
        """The first number in the name: which block it belongs to, counted from 0; None outside of blocks."""
        found = _NUMBER.search(f".{self.name}.")
        return int(found[1]) if found else None

    @property
    def role(self) -> str:
        """The name within its block, without ``.weight``; further numbers, of experts for instance, as ``N``."""
        dotted = f".{self.name.removesuffix('.weight')}."
        found = _NUMBER.search(dotted)
        return _NUMBER.sub("N", dotted[found.end() :] if found else dotted).strip(".") or "weight"

    @property
    def numel(self) -> int:
        """Number of values."""
        return torch.Size(self.shape).numel()

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Outputs and inputs of a matrix it holds."""
        if self.kind == "experts":
            return self.shape[1], self.shape[2]
        columns = self.shape[-1] if self.kind == "embedding" else torch.Size(self.shape[1:]).numel()
        rows = torch.Size(self.shape[:-1]).numel() if self.kind == "embedding" else self.shape[0]
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def count(self) -> int:
        """How many matrices it holds."""
        return self.shape[0] if self.kind == "experts" else 1

    def matrices(self, values: Tensor) -> Iterator[Tensor]:
        """The matrices in its values: one an expert, one otherwise; a convolution's kernels are its rows.

        Args:
            values: What `read` returned.
        """
        if self.kind == "experts":
            yield from values.unbind(0)
        elif self.kind == "embedding":
            yield values.flatten(0, -2)
        else:
            yield values.flatten(1).mT if self.transposed else values.flatten(1)


def weights_of(module: nn.Module) -> list[Weight]:
    """All weight tensors of a module that hold matrices; a tensor that several modules share is named once.

    Args:
        module: Any torch module, on any device; weights quantised by bitsandbytes are read through it.

    Raises:
        AtomsError: If the module holds no matrix, has no values (meta device), or is quantised by a library that is not
            there or cannot give the values back.
    """
    found: dict[int, Weight] = {}
    for path, part in module.named_modules():
        _require_unpacked(part, path)
        for key, parameter in part.named_parameters(recurse=False):
            name = f"{path}.{key}" if path else key
            shape = _true_shape(parameter)
            kind = _kind_in(part, key, name, shape)
            if kind is None or id(parameter) in found or parameter.dtype in (torch.int64, torch.bool):
                continue
            _require_values(parameter, name)
            turned = type(part).__name__ == "Conv1D" or isinstance(part, nn.modules.conv._ConvTransposeNd)
            read = partial(_values, parameter, name, getattr(part, "state", None))
            found[id(parameter)] = Weight(name, kind, shape, read, turned)
    if not found:
        raise AtomsError(f"{type(module).__name__} holds no matrix: tensors of one dimension have no condition number")
    return list(found.values())


def named_weight(name: str, shape: tuple[int, ...], read: Callable[[], Tensor], transposed: bool = False) -> Weight:
    """A tensor of a file, known by its name and shape alone; a linear map where `kind_of` knows no kind.

    Args:
        name: Its name.
        shape: Its shape, of at least two dimensions.
        read: Returns its values.
        transposed: Whether rows of its matrix are inputs.
    """
    return Weight(name, kind_of(name, shape) or "linear", shape, read, transposed)


def kind_of(name: str, shape: tuple[int, ...], weights: Kind = "conv") -> Kind | None:
    """What a tensor is by its name and shape; None if it holds no matrix.

    Args:
        name: Its name.
        shape: Its shape.
        weights: What one of three dimensions is that is called a weight and nothing else.
    """
    called = bool(_CALLED_WEIGHT.search(name))
    vector = sum(size != 1 for size in shape) < 2
    if len(shape) < 2 or _NO_MATRIX.search(name) or (vector and not (called and len(shape) == 2)):
        return None
    if len(shape) == 2:
        if _UNEMBEDDING.search(name):
            return "unembedding"
        return "embedding" if _EMBEDDING.search(name) else "linear"
    if len(shape) == 3 and EXPERTS.search(name):
        return "experts"
    if not called and (shape[0] == 1 or _EMBEDDING.search(name)):
        return "embedding"
    if len(shape) == 3:
        return weights if _ONLY_WEIGHT.search(name) else "experts"
    return "conv"


def digest(values: Tensor) -> str:
    """Hexadecimal sha256 of a tensor's type, shape and bytes.

    Args:
        values: Any tensor.
    """
    content = hashlib.sha256(f"{values.dtype} {tuple(values.shape)}".encode())
    content.update(values.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()


def _kind_in(part: nn.Module, key: str, name: str, shape: tuple[int, ...]) -> Kind | None:
    """What a module's parameter is; None if it holds no matrix."""
    if key == "weight":
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            return "embedding"
        if isinstance(part, nn.modules.conv._ConvNd):
            return "conv"
        if isinstance(part, nn.Linear):
            return "unembedding" if _UNEMBEDDING.search(name) else "linear"
    convolved = isinstance(part, nn.modules.conv._ConvNd | nn.utils.parametrize.ParametrizationList)
    return kind_of(name, shape, "conv" if convolved else "experts")


def _true_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the values; bitsandbytes packs those of 4 bits."""
    state = getattr(parameter, "quant_state", None)
    return tuple(state.shape if state is not None else parameter.shape)


def _require_unpacked(part: nn.Module, path: str) -> None:
    """Refuse a layer whose weights are in buffers of codes, where no parameter shows them."""
    for key, buffer in part.named_buffers(recurse=False):
        if key in ("qweight", "weight_packed") or (key == "weight" and not buffer.is_floating_point()):
            named = f"{path} is" if path else "the module is"
            raise AtomsError(f"{named} quantised ({type(part).__name__}): give the checkpoint it was made from")


def _require_values(parameter: nn.Parameter, name: str) -> None:
    if parameter.is_meta:
        raise AtomsError(f"{name} has no values (meta device): load the weights")
    if type(parameter).__name__ in _BITSANDBYTES:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise AtomsError(
                f"{name} is quantised by bitsandbytes, which is not installed: pip install bitsandbytes, or give the "
                "checkpoint it was made from"
            )
    elif not parameter.is_floating_point() or parameter.element_size() < 2:
        raise AtomsError(
            f"{name} is quantised ({str(parameter.dtype).removeprefix('torch.')}): give the checkpoint it was made from"
        )


def _values(parameter: Any, name: str, state: Any) -> Tensor:
    """Values of a parameter, and what bitsandbytes made of it undone."""
    _require_values(parameter, name)
    if type(parameter).__name__ not in _BITSANDBYTES:
        return cast("Tensor", parameter.detach())
    from bitsandbytes import functional

    values: Tensor = parameter.detach()  # quantised only once it is moved to a device
    if getattr(parameter, "quant_state", None) is not None:
        values = functional.dequantize_4bit(parameter.data, parameter.quant_state)
    elif not values.is_floating_point():
        # The first forward pass moves codes and scales from the parameter to its layer's state.
        scaled = next((at for at in (parameter, state) if getattr(at, "CB", None) is not None), None)
        if scaled is None:
            raise AtomsError(f"{name} is quantised and its scales are gone: load the model again")
        values = functional.int8_vectorwise_dequant(scaled.CB, scaled.SCB)
    return values.float()
