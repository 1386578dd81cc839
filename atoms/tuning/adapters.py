"""Low-rank adapters through PEFT, with as many parameters as are wanted."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import nn

from atoms.conditioning.weights import weights_of
from atoms.errors import AtomsError

SCALE = 2
"""What an adapter's product is multiplied with (``lora_alpha / r``); the learning rate is tuned at it."""


def require_peft() -> None:
    """Refuse adapters where PEFT is not installed.

    Raises:
        AtomsError: If it is not.
    """
    if importlib.util.find_spec("peft") is None:
        raise AtomsError("arms with adapters need peft: pip install 'atoms[tune]', or leave them out of arms")


def adaptable(model: nn.Module) -> list[str]:
    """Names of the tensors that may get an adapter: of linear maps that are modules, and of experts.

    These are PEFT's own candidates but for the output embedding. Routers that hold a bare parameter are none.

    Args:
        model: The model.
    """
    parts = dict(model.named_modules())
    return [
        weight.name
        for weight in weights_of(model)
        if weight.kind == "experts" or (weight.kind == "linear" and _is_linear(parts, weight.name))
    ]


def targets_of(model: nn.Module, tensors: Sequence[str]) -> dict[str, list[str]]:
    """What PEFT calls tensors: modules by their paths where they are linear maps, parameters otherwise.

    Args:
        model: The model.
        tensors: Names of parameters.

    Returns:
        ``target_modules`` and ``target_parameters`` of a ``LoraConfig``.
    """
    parts = dict(model.named_modules())
    modules = [name.removesuffix(".weight") for name in tensors if _is_linear(parts, name)]
    return {"target_modules": modules, "target_parameters": [name for name in tensors if not _is_linear(parts, name)]}


def _is_linear(parts: Mapping[str, nn.Module], name: str) -> bool:
    part = parts[name.rpartition(".")[0]]
    return name.endswith(".weight") and (isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D")


def matched_rank(model: nn.Module, tensors: Sequence[str], parameters: int) -> tuple[int, int]:
    """The rank at which adapters on tensors come closest to a number of parameters, and how many they have then.

    Args:
        model: The model; it is not changed.
        tensors: Names of parameters that get an adapter each.
        parameters: Wanted number.

    Raises:
        AtomsError: If rank 1 has twice as many, or the rank would exceed the dimensions of one of the tensors.
    """
    each = trainable(adapted(_without_values(model), tensors, 1))
    if each > 2 * parameters:
        raise AtomsError(
            f"budget of {parameters:,} parameters: adapters of rank 1 on {len(tensors)} tensors have {each:,}: raise "
            "the budget, or change budget.include, exclude or adapted so that fewer tensors get one"
        )
    rank = max(1, round(parameters / each))
    most = min(min(weight.matrix_shape) for weight in weights_of(model) if weight.name in set(tensors))
    if rank > most:
        raise AtomsError(
            f"budget of {parameters:,} parameters: adapters on {len(tensors)} tensors would need rank {rank}, and the "
            f"smallest has {most} dimensions: lower the budget, or change budget.include, exclude or "
            "adapted so that more tensors get one"
        )
    return rank, rank * each


def _without_values(model: nn.Module) -> nn.Module:
    """A copy on the meta device."""
    parameters = {
        id(each): nn.Parameter(torch.empty_like(each, device="meta"), each.requires_grad) for each in model.parameters()
    }
    buffers = {id(each): torch.empty_like(each, device="meta") for each in model.buffers()}
    return deepcopy(model, {**parameters, **buffers})


def adapted(model: nn.Module, tensors: Sequence[str], rank: int) -> nn.Module:
    """Put adapters on tensors and freeze all else; the model itself is changed.

    Args:
        model: The model.
        tensors: Names of parameters that get an adapter each.
        rank: Of each.

    Returns:
        PEFT's model around it.
    """
    from peft import LoraConfig, get_peft_model

    found = targets_of(model, tensors)
    config = LoraConfig(
        r=rank,
        lora_alpha=SCALE * rank,
        lora_dropout=0.0,
        target_modules=found["target_modules"] or [],
        target_parameters=found["target_parameters"] or None,
    )
    with warnings.catch_warnings():
        # GPT-2's layers hold their weights the other way round, and PEFT says that it noticed.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
        # PEFT 0.21 asks transformers 5.23 for a name that goes with its version 6.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        return get_peft_model(model, config)


def trainable(model: nn.Module) -> int:
    """Number of parameters that are trained.

    Args:
        model: The model.
    """
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
