"""Which thresholds the theorem on threshold SAEs allows each row, and which one most rows share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from atoms.checks.predicates import threshold_window
from atoms.checks.separability import Separability


@dataclass(frozen=True, eq=False)
class Amplitudes:
    """What the theorem's windows follow from, in one inner product: on atoms of unit length in it.

    Attributes:
        low: Least coefficient of each row, (rows,) float64; negative where a code is.
        high: Largest absolute coefficient, (rows,) float64.
        theta_on: Largest deployed threshold on the row's support; NaN for a unit without thresholds.
        theta_off: Least deployed threshold off it; NaN likewise.
    """

    low: Tensor
    high: Tensor
    theta_on: Tensor
    theta_off: Tensor


@dataclass(frozen=True, eq=False)
class Windows:
    """Where the theorem wants the threshold of each row to be, in one inner product.

    Attributes:
        low: ``lo`` of each row, (rows,) float64; NaN where the atoms' coherence is not known.
        high: ``hi``, (rows,) float64; there is no such threshold where it is not above `low`.
        tau: The threshold in most windows; NaN where all are empty.
        coverage: Share of rows whose window holds it.
        deployed: Rows whose windows hold the unit's own thresholds, (rows,) bool; None for a unit without.
    """

    low: Tensor
    high: Tensor
    tau: float
    coverage: float
    deployed: Tensor | None

    def numbers(self) -> Iterator[tuple[str, float]]:
        """Scalars by name."""
        yield "window", (self.low < self.high).double().mean().item()
        yield "tau", self.tau
        yield "coverage", self.coverage
        yield "deployed_window", math.nan if self.deployed is None else self.deployed.double().mean().item()


def windows_of(
    k: Tensor, amplitudes: Mapping[str, Amplitudes], separability: Separability | None
) -> dict[str, Windows]:
    """The theorem's windows in every inner product in which amplitudes are known, by its name.

    Args:
        k: Atoms of each row, (rows,) int64.
        amplitudes: In ``"S"``, and perhaps in ``"encoder"``.
        separability: Gives epsilon, the exact largest ``|cos|``; None leaves all windows unknown.
    """
    epsilon = {"S": math.nan, "encoder": math.nan}
    if separability is not None:
        epsilon["S"] = separability.maximum
        if separability.encoder is not None:
            epsilon["encoder"] = separability.encoder.maximum
    found = {}
    for name, a in amplitudes.items():
        low, high = threshold_window(k, epsilon[name], a.low, a.high)
        deployed = None if a.theta_on.isnan().any() else (low < a.theta_off) & (a.theta_on < high)
        found[name] = Windows(low, high, *best_threshold(low, high), deployed)
    return found


def best_threshold(low: Tensor, high: Tensor) -> tuple[float, float]:
    """The threshold inside most of the windows ``low < tau < high``, in the middle of where it may lie.

    Args:
        low: (rows,) float64, not negative; NaN makes a window that holds nothing.
        high: (rows,) float64.

    Returns:
        The threshold, NaN where no window holds any, and the share of the windows that hold it.
    """
    open_ = low < high
    begins, ends = low[open_].sort().values, high[open_].sort().values
    if not len(begins):
        return math.nan, 0.0
    held = torch.searchsorted(begins, begins, right=True) - torch.searchsorted(ends, begins, right=True)
    best = int(held.argmax())
    begin = begins[best]
    end = ends[torch.searchsorted(ends, begin, right=True)]
    later = begins[begins > begin]
    if len(later):
        end = torch.minimum(end, later[0])
    return ((begin + end) / 2).item(), int(held[best]) / len(low)
