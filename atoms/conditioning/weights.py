"""The weight tensors of a model: what each is, which matrices it holds, and how to get at its values.

A tensor is known by its name and shape before its values are read, so that a survey says what it costs and holds one
tensor at a time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from atoms.errors import AtomsError

Kind = Literal["linear", "embedding", "unembedding", "conv", "experts"]

EXPERTS = re.compile(r"expert|(^|\.)(gate_up_proj|down_proj|gate_proj|up_proj)(\.weight)?$")
"""Names of three-dimensional tensors that hold a matrix for each expert; PEFT goes by the same endings."""
_UNEMBEDDING = re.compile(r"(^|\.)(lm_head|embed_out|output_projection|output_layer|decoder_head)(\.weight)?$")
_EMBEDDING = re.compile(r"(^|\.)(\w*embed(ding|dings|_tokens|_positions|_in)?\w*|wte|wpe|shared)(\.weight)?$")
_NUMBER = re.compile(r"(?<=\.)(\d+)(?=\.)")
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)


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
        return _NUMBER.sub("N", dotted[found.end() :] if found else dotted).strip(".")

    @property
    def numel(self) -> int:
        """Number of values."""
        return torch.Size(self.shape).numel()

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Outputs and inputs of a matrix it holds."""
        if self.kind == "experts":
            return self.shape[1], self.shape[2]
        rows, columns = self.shape[0], self.numel // self.shape[0]
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def count(self) -> int:
        """How many matrices it holds."""
        return self.shape[0] if self.kind == "experts" else 1

    def matrices(self, values: Tensor) -> Iterator[Tensor]:
        """The matrices in its values: one an expert, one otherwise, a convolution's kernels as its rows.

        Args:
            values: What `read` returned.
        """
        if self.kind == "experts":
            yield from values.unbind(0)
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
        if any(key in dict(part.named_buffers(recurse=False)) for key in ("qweight", "weight_packed")):
            raise AtomsError(f"{path} is quantised ({type(part).__name__}): give the checkpoint it was made from")
        for key, parameter in part.named_parameters(recurse=False):
            name = f"{path}.{key}" if path else key
            shape = _true_shape(parameter)
            if len(shape) < 2 or id(parameter) in found:
                continue
            kind = _kind_in(part, key, name, len(shape))
            turned = type(part).__name__ == "Conv1D"
            found[id(parameter)] = Weight(name, kind, shape, partial(_values, parameter, name), turned)
    if not found:
        raise AtomsError(f"{type(module).__name__} holds no matrix: tensors of one dimension have no condition number")
    return list(found.values())


def named_weight(name: str, shape: tuple[int, ...], read: Callable[[], Tensor], transposed: bool = False) -> Weight:
    """A tensor of a file, known by its name and shape alone.

    Args:
        name: Its name.
        shape: Its shape, of at least two dimensions.
        read: Returns its values.
        transposed: Whether rows of its matrix are inputs.
    """
    kind: Kind = "linear"
    if _UNEMBEDDING.search(name):
        kind = "unembedding"
    elif len(shape) == 2 and _EMBEDDING.search(name):
        kind = "embedding"
    elif len(shape) == 3 and EXPERTS.search(name):
        kind = "experts"
    elif len(shape) > 2:
        kind = "conv"
    return Weight(name, kind, shape, read, transposed)


def digest(values: Tensor) -> str:
    """Hexadecimal sha256 of a tensor's type, shape and bytes.

    Args:
        values: Any tensor.
    """
    content = hashlib.sha256(f"{values.dtype} {tuple(values.shape)}".encode())
    content.update(values.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return content.hexdigest()


def _kind_in(part: nn.Module, key: str, name: str, dimensions: int) -> Kind:
    if isinstance(part, nn.Embedding):
        return "embedding"
    if isinstance(part, _CONVOLUTIONS):
        return "conv"
    if isinstance(part, nn.Linear) and key == "weight":
        return "unembedding" if _UNEMBEDDING.search(name) else "linear"
    if dimensions == 3:
        return "experts"
    return "linear" if dimensions == 2 else "conv"


def _true_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the values; bitsandbytes packs those of 4 bits."""
    state = getattr(parameter, "quant_state", None)
    return tuple(state.shape if state is not None else parameter.shape)


def _values(parameter: nn.Parameter, name: str) -> Tensor:
    values = parameter.detach()
    if values.is_meta:
        raise AtomsError(f"{name} has no values (meta device): load the weights")
    kind = type(parameter).__name__
    if kind in ("Params4bit", "Int8Params"):
        return _dequantised(parameter, name)
    if not values.is_floating_point() or values.element_size() < 2:
        raise AtomsError(
            f"{name} is quantised ({str(values.dtype).removeprefix('torch.')}): give the checkpoint it was made from"
        )
    return values


def _dequantised(parameter: Any, name: str) -> Tensor:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise AtomsError(
            f"{name} is quantised by bitsandbytes, which is not installed: pip install bitsandbytes, or give the "
            "checkpoint it was made from"
        )
    from bitsandbytes import functional

    values: Tensor = parameter.detach()  # quantised only once it is moved to a device
    if getattr(parameter, "quant_state", None) is not None:
        values = functional.dequantize_4bit(parameter.data, parameter.quant_state)
    elif getattr(parameter, "CB", None) is not None:
        values = functional.int8_vectorwise_dequant(parameter.CB, parameter.SCB)
    return values.float()
