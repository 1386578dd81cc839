"""What a threshold SAE is trained to do, and the settings that say so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from atoms.errors import AtomsError
from atoms.sae.model import ThresholdSAE


@dataclass(frozen=True)
class Objective:
    """Reconstruct in the metric ``S^error_power`` with `target_l0` atoms per row, and keep every atom in use.

    The loss is a mean over rows of shares of the data's variance; no term depends on a batch as a whole. The number of
    active atoms is no term of it: `Control` holds it at the target through the thresholds.

    Args:
        target_l0: Mean number of active atoms per row.
        error_power: r, the metric of the reconstruction error: 0 is Euclidean, 1 the atomic inner product.
        bandwidth: Width of the threshold's straight-through window, as a fraction of the threshold.
        gain: How strongly the thresholds answer to a mean L0 off target, per step.
        revival: Weight of the term that lets silent atoms explain what the others leave (AuxK, arXiv 2406.04093).
        dead_after: Rows without firing after which an atom counts as silent; None for a twentieth of training, at most
            ten million rows.
    """

    target_l0: float = 32.0
    error_power: float = 0.25
    bandwidth: float = 0.2
    gain: float = 0.1
    revival: float = 0.25
    dead_after: int | None = None

    def __post_init__(self) -> None:
        if not self.target_l0 > 0:
            raise AtomsError(f"target_l0 is {self.target_l0}: give a positive number of atoms per row, for example 32")
        if not 0 <= self.error_power <= 1:
            raise AtomsError(f"error_power is {self.error_power}: give a number from 0 (Euclidean) to 1 (whitened)")
        if not 0 < self.bandwidth <= 2:
            raise AtomsError(f"bandwidth is {self.bandwidth}: give a fraction of the threshold above 0 and up to 2")
        if not 0 < self.gain <= 1:
            raise AtomsError(f"gain is {self.gain}: give a number above 0 and up to 1, for example 0.1")
        if not self.revival >= 0:
            raise AtomsError(f"revival is {self.revival}: give 0 or a positive weight")
        if self.dead_after is not None and self.dead_after < 1:
            raise AtomsError(f"dead_after is {self.dead_after}: give a number of rows of at least 1, or none")


def default_lr(width: int) -> float:
    """Learning rate of the weights for rows of ``width`` H, ``0.12 / sqrt(H)``.

    One step then turns an atom by at most 0.12 radians, whatever H. Measured best for some thousand steps; longer
    training wants less.
    """
    return 0.12 / math.sqrt(width)


def parameter_groups(
    sae: ThresholdSAE, lr: float | None = None, threshold_lr: float | None = None
) -> list[dict[str, Any]]:
    """Groups for Adam: weights, and thresholds, where they are learnt, with a rate of their own.

    Both forget squared gradients within some hundred steps (second beta 0.99): those of the first steps are many times
    larger than later ones, and at 0.999 they would hold back a short training to its end.

    Args:
        sae: The SAE.
        lr: Learning rate of the weights; None for `default_lr`.
        threshold_lr: Learning rate of the thresholds, in root mean squares of a coordinate of z. None for a tenth of
            `lr`.
    """
    lr = default_lr(sae.width) if lr is None else lr
    threshold_lr = lr / 10 if threshold_lr is None else threshold_lr
    weights: list[nn.Parameter] = [p for name, p in sae.named_parameters() if name != "threshold"]
    betas = (0.9, 0.99)
    groups: list[dict[str, Any]] = [{"params": weights, "lr": lr, "betas": betas, "name": "weights"}]
    if sae.threshold.requires_grad:
        groups.append({"params": [sae.threshold], "lr": threshold_lr, "betas": betas, "name": "thresholds"})
    return groups


def learning_rate_factor(step: int, steps: int, *, warm_up: float = 0.02, decay: float = 0.3) -> float:
    """Multiple of the learning rate at a step: linear warm-up, a plateau, a linear fall to zero.

    Args:
        step: Optimizer steps taken so far.
        steps: Optimizer steps in all.
        warm_up: Share of training over which the rate rises, at most 1,000 steps.
        decay: Share of training over which it falls at the end.
    """
    rising = max(1, min(1000, math.ceil(warm_up * steps)))
    falling = max(1, math.ceil(decay * steps))
    return max(0.0, min((step + 1) / rising, 1.0, (steps - step) / falling))
