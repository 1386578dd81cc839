"""Which components are enough: small sets whose join is all that X is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atoms.information.labels import Labels, combine, dense, masses
from atoms.information.measures import entropy_of
from atoms.information.variable import Variable

Part = tuple[Labels, int]
_STEPS = 2**22  # labels looked at in an exhaustive search, at the most


@dataclass(frozen=True)
class Subsets:
    """Sets of components, by their places, that determine X.

    Attributes:
        greedy: Places in the order taken, each the one that adds most to the entropy of those before it; none of them
            can be left out. Empty where all components together do not determine X.
        told: Entropy of the first 1, 2, … of all components in greedy order, in bits, until nothing is added.
        order: That order.
        minimal: All sets of which no component can be left out, the smallest first; None where there are too many
            components to search all sets.
    """

    greedy: tuple[int, ...]
    told: tuple[float, ...]
    order: tuple[int, ...]
    minimal: tuple[tuple[int, ...], ...] | None


def sufficient_subsets(x: Variable, components: Sequence[Variable]) -> Subsets:
    """Find sets of components that determine X.

    Args:
        x: A variable whose space has one outcome for each of its values.
        components: Functions of it.
    """
    order, told = _greedy(x, components)
    taken = list(order)
    if _size(components, taken) < x.size:
        return Subsets((), tuple(told), tuple(order), () if _searchable(x, components) else None)
    for place in order:  # the first ones taken may have become superfluous
        rest = [other for other in taken if other != place]
        if rest and _size(components, rest) == x.size:
            taken = rest
    minimal = _minimal(x, components) if _searchable(x, components) else None
    return Subsets(tuple(taken), tuple(told), tuple(order), minimal)


def _searchable(x: Variable, components: Sequence[Variable]) -> bool:
    return bool(2 ** len(components) * x.size <= _STEPS)


def _together(left: Part, right: Part) -> Part:
    return dense(*combine([left, right]))


def _nothing(x: Variable) -> Part:
    return np.zeros(len(x.labels), np.int32), 1


def _size(components: Sequence[Variable], places: Sequence[int]) -> int:
    """Number of different values of components together."""
    if not places:
        return 1
    return dense(*combine([components[place].part for place in places]))[1]


def _greedy(x: Variable, components: Sequence[Variable]) -> tuple[list[int], list[float]]:
    """Components in the order in which each adds most, and what they tell together, until nothing is added."""
    order: list[int] = []
    told: list[float] = []
    known = _nothing(x)
    while len(order) < len(components) and known[1] < x.size:
        entropies = {
            place: entropy_of(masses([known, component.part], x.space.weights, x.space.alike))
            for place, component in enumerate(components)
            if place not in order
        }
        best = max(
            entropies, key=lambda place: (round(entropies[place], 12), -place)
        )  # equal but for rounding: the first
        joined = _together(known, components[best].part)
        if joined[1] == known[1]:
            break
        known = joined
        order.append(best)
        told.append(entropies[best])
    return order, told


def _minimal(x: Variable, components: Sequence[Variable]) -> tuple[tuple[int, ...], ...]:
    """All minimal sets, by going through sets in order of their places, without what can come to nothing."""
    later = [_nothing(x)]  # what components from a place on tell together
    for component in reversed(components):
        later.append(_together(later[-1], component.part))
    later.reverse()
    found: list[tuple[int, ...]] = []

    def search(chosen: tuple[int, ...], known: Part, start: int) -> None:
        if known[1] == x.size:
            others = ([place for place in chosen if place != left_out] for left_out in chosen)
            if all(_size(components, rest) < x.size for rest in others):
                found.append(chosen)
            return
        for place in range(start, len(components)):
            if _together(known, later[place])[1] < x.size:
                return
            more = _together(known, components[place].part)
            if more[1] > known[1]:  # what adds nothing here can be left out of every set that has these
                search((*chosen, place), more, place + 1)

    search((), _nothing(x), 0)
    return tuple(sorted(found, key=lambda each: (len(each), each)))
