"""The threshold activation and its straight-through gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def window(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Which pre-activations stand close enough to their threshold to tell it where to go.

    The rectangle kernel of JumpReLU (arXiv 2407.14435) with a width of `bandwidth * threshold`: relative, so that
    nothing depends on the scale of the pre-activations.

    Args:
        pre: Pre-activations, (B, A).
        threshold: Thresholds, (A,), not negative.
        bandwidth: Width of the rectangle as a fraction of the threshold.

    Returns:
        Boolean mask, (B, A).
    """
    return (pre - threshold).abs() < (0.5 * bandwidth) * threshold


class _Threshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth  # type: ignore[attr-defined]
        return pre * (pre >= threshold)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, threshold = ctx.saved_tensors  # type: ignore[attr-defined]
        bandwidth: float = ctx.bandwidth  # type: ignore[attr-defined]
        # d/dtheta of pre·1[pre >= theta] is -theta·delta(pre - theta); the rectangle has height 1 / (bandwidth·theta)
        near = window(pre, threshold, bandwidth)
        return grad * (pre >= threshold), -(grad * near).sum(0) / bandwidth, None


def threshold_activation(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """`pre · 1[pre >= threshold]` with the rectangle straight-through gradient for the threshold.

    Args:
        pre: Pre-activations, (B, A).
        threshold: Thresholds, (A,), not negative.
        bandwidth: Width of the rectangle as a fraction of the threshold.

    Returns:
        Codes, (B, A).
    """
    code: Tensor = _Threshold.apply(pre, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return code
