"""How far entropies of relative frequencies may be off: bias, intervals, and when there are too few samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from atoms.errors import AtomsError
from atoms.information.labels import as_array, distinct_pairs, label, masses, weigh
from atoms.information.lattice import join
from atoms.information.measures import Measure, entropy_of
from atoms.information.variable import SampleSpace, Variable, common_space, compressed
from atoms.memory import require_memory
from atoms.progress import Meter

UNSEEN = 0.05
"""Share of the probability on values never sampled above which entropies of samples are warned of."""
_LONG = 10**7  # outcomes times resamplings from which progress is shown


class FewSamplesWarning(UserWarning):
    """There are too few samples for the alphabet."""


@dataclass(frozen=True)
class Estimate:
    """A measure of variables that were sampled.

    Attributes:
        plug_in: Of the relative frequencies. Entropies are too low by about (values - 1) / (2 N ln 2) bits.
        miller_madow: With every entropy raised by that much.
        low: Lower end of the bootstrap interval; NaN where nothing was resampled.
        high: Upper end.
        note: What is to be said of the number of samples, with numbers; None if nothing.
    """

    plug_in: float
    miller_madow: float
    low: float
    high: float
    note: str | None


def miller_madow(x: Variable, *more: Variable) -> float:
    """Joint entropy in bits plus the first order of its bias, (K - 1) / (2 N ln 2) for K values in N samples.

    Where probabilities are known there is nothing to correct.

    Source: Miller 1955, Note on the bias of information estimates.

    Args:
        x: A variable.
        more: Further ones on its space.
    """
    space = common_space([x, *more])
    counts = masses([variable.part for variable in (x, *more)], space.weights, space.alike)
    return entropy_of(counts) + (0.0 if space.draws is None else _bias(counts, space.draws))


def _bias(counts: NDArray[np.float64], draws: float) -> float:
    return float((np.count_nonzero(counts) - 1) / (2 * draws * math.log(2)))


def unseen(x: Variable, *more: Variable) -> float:
    """Share of the probability that lies on values never sampled, as Good and Turing estimate it; 0 for known tables.

    It is the share of samples whose value was drawn once.

    Source: Good 1953, The population frequencies of species and the estimation of population parameters.

    Args:
        x: A variable.
        more: Further ones on its space, for combinations of values.
    """
    space = common_space([x, *more])
    if space.draws is None:
        return 0.0
    counts = masses([variable.part for variable in (x, *more)], space.weights, space.alike)
    return float((counts == 1).sum() / space.draws)


def few_samples(*variables: Variable) -> str | None:
    """One sentence with numbers where there are too few samples for the joint alphabet, else None.

    Args:
        variables: On one space, at least one.
    """
    space = common_space(variables)
    if space.draws is None or (missing := unseen(*variables)) <= UNSEEN:
        return None
    counts = masses([variable.part for variable in variables], space.weights, space.alike)
    return (
        f"{space.draws:,} samples are too few for the {np.count_nonzero(counts):,} values seen of "
        f"({_named(variables)}): {missing:.0%} of the samples have one that was seen once, so about as much of the "
        f"probability lies on values never seen; their entropy is too low, by {_bias(counts, space.draws):.3f} bits to "
        "first order, and information and redundancy are too high."
    )


def estimate(
    measure: Measure,
    *variables: Variable,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
    groups: Any = None,
) -> Estimate:
    """A measure of sampled variables with its bias and its interval; of known ones, exact, an interval of no width.

    The interval is the basic bootstrap's, [2 θ - q_high, 2 θ - q_low] for quantiles q of the measure over resamplings:
    resampling repeats the bias of θ, so that percentiles themselves would lie too low by twice as much. It knows no
    upper bound: of a variable that is nearly uniform it lies about log2 of its values, or above. A measure that is 0 in
    the sample for want of a counterexample is 0 in every resampling. There is no interval where there are too few
    samples, or groups, for the values there are. Miller and Madow's correction takes samples as independent, with
    groups or without.

    Args:
        measure: A function of `atoms.information.measures`, or one like them: variables, and ``entropy=``.
        variables: On one space.
        resamples: How often to resample; 0 for no interval.
        level: Share of the resamplings inside the interval.
        seed: Seed of the resampling.
        groups: Group of every sample, (n,) for n outcomes of the space, where samples of a group are not independent:
            groups are resampled, not samples.

    Raises:
        AtomsError: If there are fewer than two groups, or not one for each sample, or if level or resamples is none.

    Warns:
        FewSamplesWarning: If there are too few samples for the alphabet.

    Example:
        >>> from atoms.information import from_samples, mutual_information
        >>> x, y = from_samples([0, 1] * 500, [0, 1] * 500)
        >>> found = estimate(mutual_information, x, y)
        >>> round(found.plug_in, 4), round(found.miller_madow, 4)
        (1.0, 1.0007)
    """
    asked = {"": (measure, variables)}
    found = estimate_all(asked, resamples=resamples, level=level, seed=seed, groups=groups)[""]
    if found.note is not None:
        warnings.warn(found.note, FewSamplesWarning, stacklevel=2)
    return found


def estimate_all(
    asked: Mapping[str, tuple[Measure, tuple[Variable, ...]]],
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
    groups: Any = None,
) -> dict[str, Estimate]:
    """Several measures on the same resamplings; see `estimate`, but nothing is warned of.

    Args:
        asked: By name a measure and its variables, all on one space.
        resamples: How often to resample; 0 for no interval.
        level: Share of the resamplings inside the interval.
        seed: Seed of the resampling.
        groups: Group of every sample.

    Raises:
        AtomsError: If there are fewer than two groups, or not one for each sample, or if level or resamples is none.
    """
    if resamples < 0:
        raise AtomsError(f"resamples is {resamples}: give how often to resample, 0 for no interval")
    if not 0 < level < 1:
        raise AtomsError(f"level is {level}: give a share between 0 and 1, as 0.95")
    variables = list({id(each): each for _, own in asked.values() for each in own}.values())
    space = common_space(variables)
    if space.draws is None:
        values = {name: measure(*own) for name, (measure, own) in asked.items()}
        return {name: Estimate(value, value, value, value, None) for name, value in values.items()}
    small = dict(zip(map(id, variables), compressed(variables), strict=True))
    moved = {name: (measure, tuple(small[id(each)] for each in own)) for name, (measure, own) in asked.items()}
    values = {name: measure(*own) for name, (measure, own) in moved.items()}
    ends = dict.fromkeys(asked, (math.nan, math.nan))
    notes = {name: few_samples(*own) or _few_groups(own, groups) for name, (_, own) in asked.items()}
    if resamples:
        draw = _draws(variables, next(iter(small.values())).space, seed, groups)
        outcomes = len(next(iter(small.values())).space)
        with Meter("resample", resamples, "resamplings", enabled=outcomes * resamples > _LONG) as meter:
            again = _again(moved, (draw() for _ in range(resamples)), meter)
        for name, value in values.items():
            if notes[name] is None:
                low, high = np.quantile(again[name], [(1 - level) / 2, (1 + level) / 2])
                ends[name] = max(0.0, float(2 * value - high)), max(0.0, float(2 * value - low))
    return {
        name: Estimate(values[name], measure(*own, entropy=miller_madow), *ends[name], notes[name])
        for name, (measure, own) in moved.items()
    }


def _few_groups(variables: Sequence[Variable], groups: Any) -> str | None:
    """As `few_samples`, where it is groups that were sampled: values that were met in one group alone."""
    if groups is None:
        return None
    space = variables[0].space
    values, group = join(*variables), label(_by_outcome(space, groups), "groups")
    in_groups = np.bincount(distinct_pairs(values.part, group)[0], minlength=values.size)
    alone = float(values.probabilities[in_groups == 1].sum())
    if alone <= UNSEEN:
        return None
    return (
        f"{group[1]:,} groups are too few for the {values.size:,} values seen of ({_named(variables)}): {alone:.0%} of "
        "the samples have one that was met in one group alone; other groups would have values of their own."
    )


def _named(variables: Sequence[Variable]) -> str:
    return ", ".join(variable.name for variable in variables[:4]) + (", …" if len(variables) > 4 else "")


def _again(
    asked: Mapping[str, tuple[Measure, tuple[Variable, ...]]], drawn: Iterable[NDArray[np.float64]], meter: Meter
) -> dict[str, list[float]]:
    """The measures on outcomes of other weights."""
    numbered: dict[tuple[int, ...], Variable] = {}
    found: dict[str, list[float]] = {name: [] for name in asked}
    for weights in drawn:

        def reweighted(*own: Variable, weights: NDArray[np.float64] = weights) -> float:
            key = tuple(map(id, own))
            if key not in numbered:
                numbered[key] = join(*own)
            return entropy_of(weigh(numbered[key].part, weights))

        for name, (measure, own) in asked.items():
            found[name].append(measure(*own, entropy=reweighted))
        meter.advance(1)
    return found


def _draws(
    variables: Sequence[Variable], small: SampleSpace, seed: int, groups: Any
) -> Callable[[], NDArray[np.float64]]:
    """What draws new weights for the outcomes of the compressed space."""
    generator = np.random.default_rng(seed)
    if groups is not None:
        table = _by_group(variables, groups, len(small))
        count = table.shape[0]
        return lambda: np.asarray(np.bincount(generator.integers(0, count, count), minlength=count) @ table, np.float64)
    draws = small.draws or 0
    return lambda: generator.multinomial(draws, small.probabilities).astype(np.float64)


def _by_group(variables: Sequence[Variable], groups: Any, outcomes: int) -> Any:
    """Weight of each outcome of the compressed space in each group, (groups, outcomes) sparse."""
    space = variables[0].space
    group, count = label(_by_outcome(space, groups), "groups")
    if count < 2:
        raise AtomsError("groups are all the same: an interval needs at least two that differ")
    outcome = join(*variables).labels
    require_memory(32 * len(space), f"a table of {len(space):,} samples by group", "give fewer samples")
    return sparse.csr_matrix((space.weights, (group, outcome)), shape=(count, outcomes))


def _by_outcome(space: SampleSpace, groups: Any) -> NDArray[Any]:
    """The group of every outcome that has weight, (n,)."""
    given = as_array(groups)
    if space.kept is not None and given.shape == space.kept.shape:
        given = given[space.kept]
    if given.ndim != 1 or len(given) != len(space):
        raise AtomsError(f"groups has shape {given.shape} for {len(space):,} samples: give one each")
    return given
