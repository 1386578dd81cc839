"""What the neurons of an MLP write into the residual stream."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from atoms.activations.language_model import load_model, meta_model
from atoms.activations.model_source import ResolvedModel, read_tensors
from atoms.activations.sites import resolve_site
from atoms.errors import AtomsError


class DownProjection(NamedTuple):
    """The last linear map of an MLP: ``mlp_out = mlp_in @ weight + bias``.

    Attributes:
        weight: What each neuron writes, (neurons, H) float32.
        bias: (H,) float32; zeros where there is none.
    """

    weight: Tensor
    bias: Tensor


def read_down_projection(resolved: ResolvedModel, depth: int) -> DownProjection:
    """Read the down-projection of one block, and nothing else of the model where its checkpoint allows.

    Args:
        resolved: The model.
        depth: Number of the block, from 0.

    Raises:
        AtomsError: If the block has no single down-projection, its output passes something else before it is added to
            the residual stream, or the weights cannot be read.
    """
    model = meta_model(resolved.config)
    site = resolve_site(model, f"mlp_in.{depth}")
    out = resolve_site(model, f"mlp_out.{depth}").module_path
    if not f"{site.module_path}.".startswith(f"{out}."):
        raise AtomsError(
            f"mlp_out.{depth} of {resolved.config.model_type} is what {out} makes of the MLP's output, so no neuron "
            f"writes a fixed direction there; judge neurons at {site.module_path}:output, or at mlp_in.{depth}"
        )
    module = model.get_submodule(site.module_path)
    if not isinstance(module, (nn.Linear, Conv1D)):
        raise AtomsError(
            f"{site.module_path} of {resolved.config.model_type} is a {type(module).__name__}, not a linear map, so no "
            f"neuron writes a fixed direction; judge neurons at mlp_in.{depth}"
        )
    names = [f"{site.module_path}.{name}" for name, _ in module.named_parameters()]
    tensors = read_tensors(resolved, names)
    if len(tensors) < len(names):  # a checkpoint that names them otherwise
        loaded = load_model(resolved).get_submodule(site.module_path)
        tensors = {f"{site.module_path}.{name}": value for name, value in loaded.named_parameters()}
    weight = tensors[f"{site.module_path}.weight"].float()
    weight = weight if isinstance(module, Conv1D) else weight.T.contiguous()
    bias = tensors.get(f"{site.module_path}.bias")
    return DownProjection(weight, torch.zeros(weight.shape[1]) if bias is None else bias.float())
