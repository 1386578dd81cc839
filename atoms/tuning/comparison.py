"""What arms forget where they have learnt the same: curves at equal loss, and differences paired by seed.

An end point compares a fast learner with a slow one. Here a pair of arms is compared where both have come to the same
loss, once of the training text and once of held-out task text, by interpolation on the way down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from atoms.tuning.curves import Curve

Axis = Literal["train", "test"]
AXES: dict[Axis, str] = {"train": "training loss", "test": "held-out task loss"}
"""Losses at which arms are compared, and what they are called."""
Floats = NDArray[np.float64]
DEPTHS = (0.5, 1.0)
"""How far down to the lowest loss that both arms reach on every seed a pair is compared."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Paired:
    """Two arms at one loss.

    Attributes:
        arm: The first.
        reference: The second.
        axis: Which loss is equal.
        depth: How far down from the loss at the start to the lowest that both reach on every seed.
        level: That loss, in nats a token.
        forgetting: Mean forgetting of the arm there, in nats a token.
        forgetting_reference: The reference's.
        difference: Mean over seeds of the arm's less the reference's; below 0 the arm forgets less.
        low: Lower end of its 95 % interval (Student's t over seeds); NaN for one seed.
        high: Upper end.
        seeds: Seeds both were run on.
        fewer: On how many of them the arm forgets less; where the reference is drawn anew for every seed, how many
            draws it is ahead of.
    """

    arm: str
    reference: str
    axis: Axis
    depth: float
    level: float
    forgetting: float
    forgetting_reference: float
    difference: float
    low: float
    high: float
    seeds: int
    fewer: int

    @property
    def verdict(self) -> str:
        """What the interval says of the arm."""
        return "forgets less" if self.high < 0 else "forgets more" if self.low > 0 else "not told apart"

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for NaN."""
        return {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(self).items()
        } | {"verdict": self.verdict}


def forgetting_at(curve: Curve, axis: Axis, level: float) -> float:
    """Forgetting where a loss first comes down to a level; NaN if it never does.

    Between the points at which the loss is lower than ever before, forgetting is a straight line over the loss. (A
    monotone cubic comes no closer to curves that were measured at every step: what is off is a step's noise.)

    Args:
        curve: One run.
        axis: Which loss.
        level: In nats a token.
    """
    losses, forgotten = descent(curve, axis)
    reached = np.flatnonzero(losses <= level)
    if not len(reached):
        return math.nan
    after = int(reached[0])
    if after == 0:
        return float(forgotten[0])
    around = slice(after - 1, after + 1)
    return float(np.interp(level, losses[around][::-1], forgotten[around][::-1]))  # ascending, as it wants them


def descent(curve: Curve, axis: Axis) -> tuple[Floats, Floats]:
    """The points of a curve at which a loss is lower than ever before, up to where the run diverges.

    Args:
        curve: One run.
        axis: Which loss.

    Returns:
        That loss, strictly falling, and forgetting there, in nats a token, (points,) each.
    """
    broken = np.flatnonzero(~np.isfinite([*curve.losses.values()]).all(0))
    stop = int(broken[0]) if len(broken) else len(curve.steps)
    losses, forgotten = np.array(curve.losses[axis][:stop]), np.array(curve.forgetting()[:stop])
    new = np.append(True, losses[1:] < np.minimum.accumulate(losses)[:-1])[:stop]
    return losses[new], forgotten[new]


def common_level(curves: Sequence[Curve], axis: Axis, depth: float) -> float:
    """A loss that all curves come down to.

    Args:
        curves: Runs that begin alike.
        axis: Which loss.
        depth: Share of the way from the loss at the start to the lowest that all of them reach.
    """
    ways = [descent(curve, axis)[0] for curve in curves]
    start = min(float(way[0]) for way in ways)
    lowest = min(start, max(float(way[-1]) for way in ways))
    return lowest + (1 - depth) * (start - lowest)  # never below what was measured, by rounding either


def compare(
    arm: str, reference: str, runs: Mapping[str, Mapping[int, Curve]], axis: Axis, depth: float
) -> Paired | None:
    """Two arms at equal loss, paired by seed.

    Args:
        arm: The first.
        reference: The second.
        runs: Curves by arm and seed.
        axis: Which loss is equal.
        depth: How far down.

    Returns:
        The comparison; None if they share no seed or one of them never lowers the loss on some seed.
    """
    seeds = sorted(runs[arm].keys() & runs[reference].keys())
    curves = [runs[name][seed] for name in (arm, reference) for seed in seeds]
    if not seeds or any(len(descent(curve, axis)[0]) < 2 for curve in curves):
        return None
    level = common_level(curves, axis, depth)
    if any(level >= curve.losses[axis][0] for curve in curves):
        return None
    ours, theirs = (
        np.array([forgetting_at(runs[name][seed], axis, level) for seed in seeds]) for name in (arm, reference)
    )
    mean, low, high = interval(ours - theirs)
    return Paired(
        arm,
        reference,
        axis,
        depth,
        level,
        forgetting=float(ours.mean()),
        forgetting_reference=float(theirs.mean()),
        difference=mean,
        low=low,
        high=high,
        seeds=len(seeds),
        fewer=int((ours < theirs).sum()),
    )


def forgetting_by_rate(
    searched: Mapping[str, Mapping[float, Curve]], taken: Mapping[str, float]
) -> tuple[float, dict[str, dict[float, float]]]:
    """How much of what an arm forgets hangs on its learning rate; arms that learn nothing at theirs are left out.

    Args:
        searched: Curves by arm and rate, one seed each.
        taken: The rate of each arm.

    Returns:
        The lowest training loss that all these arms reach at the rates taken, NaN if there are none; and forgetting
        there by arm and rate, in nats a token, NaN at rates that do not come down to it.
    """
    learning = [arm for arm, curves in searched.items() if len(descent(curves[taken[arm]], "train")[0]) > 1]
    if not learning:
        return math.nan, {}
    level = common_level([searched[arm][taken[arm]] for arm in learning], "train", DEPTHS[-1])
    return level, {
        arm: {lr: forgetting_at(curve, "train", level) for lr, curve in searched[arm].items()} for arm in learning
    }


def interval(differences: Floats) -> tuple[float, float, float]:
    """Mean of independent differences and its 95 % interval by Student's t; NaN ends for a single one.

    Args:
        differences: One a seed, (seeds,).
    """
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, math.nan, math.nan
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * error
    return mean, mean - half, mean + half


def pairs_of(arms: Iterable[str], references: Sequence[str]) -> list[tuple[str, str]]:
    """Every arm with every reference, a pair of references once.

    Args:
        arms: Arms that were run.
        references: Arms to compare with; those that were not run are passed over.
    """
    run = list(arms)
    there = [reference for reference in dict.fromkeys(references) if reference in run]
    return [
        (arm, reference)
        for place, reference in enumerate(there)
        for arm in run
        if arm != reference and arm not in there[:place]
    ]


def comparisons(runs: Mapping[str, Mapping[int, Curve]], references: Sequence[str]) -> list[Paired]:
    """Every arm against every reference, on both axes and at all `DEPTHS`.

    Args:
        runs: Curves by arm and seed.
        references: Arms to compare with; those that were not run are passed over.
    """
    pairs = pairs_of(runs, references)
    found = (compare(*pair, runs, axis, depth) for pair in pairs for axis in AXES for depth in DEPTHS)
    return [paired for paired in found if paired is not None]
