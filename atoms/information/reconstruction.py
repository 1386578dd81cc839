"""Perfect reconstruction: is a variable known once its components are?

Components X_i = f_i(X) determine X if and only if ``X = X_1 ∨ … ∨ X_n``, that is ``H(X | X_1, …, X_n) = 0``. Then they
are not globally too far from X: ``Σ D(X, X_i) ≤ (n - 1) H(X)`` and ``Σ d(X, X_i) ≤ n - 1``. Both say
``Σ H(X_i) ≥ H(X)``. The condition is necessary; it is sufficient where components are independent.

Source: Delsol et al. 2024, An information theoretic condition for perfect reconstruction (arXiv 2306.15540).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from atoms.errors import AtomsError
from atoms.information.estimation import Estimate, FewSamplesWarning, estimate_all, few_samples, unseen
from atoms.information.labels import distinct_pairs
from atoms.information.lattice import independent, join, two_values
from atoms.information.measures import (
    Measure,
    conditional_entropy,
    entropy,
    rajski_distance,
    redundancy,
    shannon_distance,
)
from atoms.information.subsets import Subsets, sufficient_subsets
from atoms.information.variable import SampleSpace, Variable, common_space, compressed

ROUNDING = 1e-9
"""Bits by which sums of entropies may miss each other by rounding alone."""
_WITNESSES = 5


class Problem:
    """A variable and the components it is to be rebuilt from.

    A plain class, so that a config may name a function that makes one and set its arguments.

    Args:
        x: The variable.
        components: What is known of it; should be functions of it.
        title: What the problem is called.
        source: Where it comes from, free form.
        groups: Group of every sample, where samples of a group are not independent.
    """

    def __init__(
        self, x: Variable, components: Sequence[Variable], title: str, source: str = "", groups: Any = None
    ) -> None:
        self.x, self.components = x, tuple(components)
        self.title, self.source, self.groups = title, source, groups


class Verdict(StrEnum):
    """What may be said of perfect reconstruction."""

    PERFECT = "perfect"
    """The components determine X."""
    RULED_OUT = "ruled out"
    """They are too far from X: the necessary condition fails, so they cannot determine it."""
    NOT_PERFECT = "not perfect"
    """The condition holds and they do not determine X: there are witnesses."""
    NOT_APPLICABLE = "not applicable"
    """A component is no function of X: distances and condition do not speak of it."""


@dataclass(frozen=True)
class Component:
    """One component of a problem.

    Attributes:
        name: What it is called.
        size: Size of its alphabet.
        entropy: H(X_i), bits.
        unknown: H(X | X_i), bits.
        extra: H(X_i | X), bits: 0 for a function of X.
        distance: D(X, X_i), bits.
        rajski: d(X, X_i), in [0, 1].
        is_function: Whether it is almost surely a function of X, by counting.
        witness: Where it is none: a value of X and two of the component's that go with it.
    """

    name: str
    size: int
    entropy: float
    unknown: float
    extra: float
    distance: float
    rajski: float
    is_function: bool
    witness: tuple[Any, Any, Any] | None


@dataclass(frozen=True)
class Reconstruction:
    """What follows for one problem. Entropies are bits; on samples, of the relative frequencies.

    Attributes:
        title: Of the problem.
        x: Name of the variable.
        size: Size of its alphabet.
        draws: Number of samples, None where probabilities are known.
        entropy: H(X).
        components: Each of them.
        joint: H(X_1, …, X_n).
        gap: H(X | X_1, …, X_n): 0 if and only if they determine X.
        redundancy: R = Σ H(X_i) - H(X_1, …, X_n). Where components are functions of X,
            ``gap = H(X) - Σ H(X_i) + R`` exactly.
        independent: Whether components are mutually independent. Then the condition is sufficient.
        condition: Whether Σ D(X, X_i) ≤ (n - 1) H(X); None where a component is no function of X.
        slack: (n - 1) H(X) - Σ D(X, X_i) = Σ H(X_i) - H(X); NaN where a component is no function of X.
        rajski_slack: n - 1 - Σ d(X, X_i); NaN there too.
        verdict: What may be said.
        witnesses: Pairs of values of X that all components confuse, up to five of them.
        confused: Number of values of X that share all components with another.
        subsets: Sets of components that determine X; None where the verdict is `Verdict.NOT_APPLICABLE`.
        estimates: Where X was sampled: by name (``H(X)``, ``H(joint)``, ``gap``, ``R``, ``H(NAME)`` of components,
            with their number where the name is taken), with bias and interval.
        notes: What else is to be said, a sentence each.
    """

    title: str
    x: str
    size: int
    draws: int | None
    entropy: float
    components: tuple[Component, ...]
    joint: float
    gap: float
    redundancy: float
    independent: bool
    condition: bool | None
    slack: float
    rajski_slack: float
    verdict: Verdict
    witnesses: tuple[tuple[Any, Any], ...]
    confused: int
    subsets: Subsets | None
    estimates: dict[str, Estimate]
    notes: tuple[str, ...]

    @property
    def why(self) -> str:
        """The verdict's reason in one line, with its numbers."""
        n, total = len(self.components), sum(component.distance for component in self.components)
        sides = f"Σ D = {total:.3f} {'≤' if self.condition else '>'} (n - 1) H({self.x}) = {(n - 1) * self.entropy:.3f}"
        if self.verdict is Verdict.NOT_APPLICABLE:
            alien = next(component for component in self.components if not component.is_function)
            assert alien.witness is not None
            value, one, other = alien.witness
            still = f"; all the same, components determine {self.x}" if not self.confused else ""
            return (
                f"{alien.name} is no function of {self.x}: where that is {value!r}, it is {one!r} and {other!r}{still}"
            )
        if self.verdict is Verdict.RULED_OUT:
            return f"the components are too far from {self.x}: {sides}"
        if self.verdict is Verdict.NOT_PERFECT:
            one, other = self.witnesses[0]
            return f"{self.x} = {one!r} and {self.x} = {other!r} have the same components, though {sides}"
        reason = "components are independent and " if self.independent else ""
        return f"{reason}{sides}; no two values of {self.x} share all components"


def perfect_reconstruction(
    x: Variable,
    components: Sequence[Variable],
    *,
    title: str = "",
    resamples: int = 200,
    seed: int = 0,
    groups: Any = None,
) -> Reconstruction:
    """Say whether components determine X, and why or why not.

    First it is verified that each component is a function of X; else distances prove nothing and the verdict is
    `Verdict.NOT_APPLICABLE`. What decides is counted, not computed: entropies only explain. On samples it is decided of
    the samples: a pair of values that was never drawn is not known to differ.

    Args:
        x: The variable.
        components: At least one, on the same space.
        title: What to call the problem.
        resamples: Of the bootstrap, where X was sampled; 0 for no intervals.
        seed: Of the bootstrap.
        groups: Group of every sample, where samples of a group are not independent.

    Raises:
        AtomsError: If there is no component, or one is on another space.

    Example:
        >>> from atoms.information.examples import chinese_remainders
        >>> problem = chinese_remainders(24, [4, 6])
        >>> found = perfect_reconstruction(problem.x, problem.components)
        >>> found.verdict.value, found.condition, round(found.joint, 3)
        ('not perfect', True, 3.585)
        >>> found.witnesses[0]
        (0, 12)
    """
    if not components:
        raise AtomsError("there are no components: give at least one")
    given = (x, *components)
    space = common_space(given)
    x, *components = compressed(given)
    parts = tuple(_component(x, each) for each in components)
    n, h = len(parts), entropy(x)
    confused, witnesses = _confused(x, join(*components))
    subsets, condition, slack, rajski_slack = None, None, math.nan, math.nan
    if all(part.is_function for part in parts):
        slack = (n - 1) * h - sum(part.distance for part in parts)
        rajski_slack = n - 1 - sum(part.rajski for part in parts)
        condition = slack >= -ROUNDING * n
        verdict = Verdict.PERFECT if not confused else Verdict.NOT_PERFECT if condition else Verdict.RULED_OUT
        subsets = sufficient_subsets(*_by_value(x, components))
    else:
        verdict = Verdict.NOT_APPLICABLE
    return Reconstruction(
        title=title,
        x=x.name,
        size=x.size,
        draws=space.draws,
        entropy=h,
        components=parts,
        joint=entropy(*components),
        gap=conditional_entropy(x, *components) if confused else 0.0,
        redundancy=redundancy(*components),
        independent=independent(*components),
        condition=condition,
        slack=slack,
        rajski_slack=rajski_slack,
        verdict=verdict,
        witnesses=witnesses,
        confused=confused,
        subsets=subsets,
        estimates={} if space.draws is None else _estimates(given[0], given[1:], resamples, seed, groups),
        notes=tuple(_notes(x, components, verdict)),
    )


def _component(x: Variable, component: Variable) -> Component:
    clash = two_values(x, component)
    return Component(
        name=component.name,
        size=component.size,
        entropy=entropy(component),
        unknown=conditional_entropy(x, component),
        extra=conditional_entropy(component, x) if clash else 0.0,
        distance=shannon_distance(x, component),
        rajski=rajski_distance(x, component),
        is_function=clash is None,
        witness=None if clash is None else (clash[0], *clash[1]),
    )


def _confused(x: Variable, whole: Variable) -> tuple[int, tuple[tuple[Any, Any], ...]]:
    """How many values of X share the value of `whole` with another, and the first pairs of them."""
    left, right = distinct_pairs(whole.part, x.part)  # in ascending order, values that are confused side by side
    alone = np.bincount(left, minlength=whole.size)[left] == 1
    same = np.flatnonzero(left[1:] == left[:-1])
    pairs = np.stack([right[same], right[same + 1]], 1)
    firsts = np.sort(np.unique(pairs, axis=0, return_index=True)[1])[:_WITNESSES]
    witnesses = tuple((x.symbol(int(one)), x.symbol(int(other))) for one, other in pairs[firsts])
    return len(np.unique(right[~alone])), witnesses


def _by_value(x: Variable, components: Sequence[Variable]) -> tuple[Variable, list[Variable]]:
    """X and functions of it on a space with one outcome for each value of X, in the order of its labels."""
    space = SampleSpace(x.probabilities, x.space.draws, np.arange(x.size), rounding=x.space.rounding)

    def moved(variable: Variable) -> Variable:
        return replace(variable, space=space, labels=variable.labels[x.firsts])

    return moved(x), [moved(component) for component in components]


def _estimates(
    x: Variable, components: Sequence[Variable], resamples: int, seed: int, groups: Any
) -> dict[str, Estimate]:
    asked: dict[str, tuple[Measure, tuple[Variable, ...]]] = {f"H({x.name})": (entropy, (x,))}
    for number, component in enumerate(components, start=1):
        name = f"H({component.name})"
        asked[f"{name} #{number}" if name in (*asked, "H(joint)") else name] = entropy, (component,)
    asked |= {
        "H(joint)": (entropy, tuple(components)),
        "gap": (conditional_entropy, (x, *components)),
        "R": (redundancy, tuple(components)),
    }
    return estimate_all(asked, resamples=resamples, seed=seed, groups=groups)


def _notes(x: Variable, components: Sequence[Variable], verdict: Verdict) -> Iterator[str]:
    draws = x.space.draws
    if draws is None:
        return
    short = few_samples(x, *components)
    if short is not None:
        warnings.warn(short, FewSamplesWarning, stacklevel=3)
        yield short
        if verdict is Verdict.PERFECT:
            yield "Rows that are nearly all different are told apart by anything: this reconstruction shows little."
    if verdict is Verdict.PERFECT:
        yield (
            "It is perfect of the samples. Of combinations never drawn, on which about "
            f"{unseen(x, *components):.2g} of the probability lies (Good and Turing), nothing is known."
        )
