"""Random variables on a finite sample space: partitions of its outcomes, whose blocks carry a label."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atoms.errors import AtomsError
from atoms.information.labels import Labels, as_array, join_labels, label, weigh
from atoms.memory import require_memory

_MOST = 2**53  # samples whose number float64 holds exactly
_BYTES = 40  # an outcome takes: weight, value, a label each of a few variables


@dataclass(frozen=True, eq=False)
class SampleSpace:
    """Outcomes and how much each weighs: known probabilities, or how often each was drawn.

    Outcomes without weight are left out when a space is made, since all that is said here is said almost surely.

    Attributes:
        weights: (n,) float64, positive: probabilities that sum to 1, or counts.
        draws: Number of samples N that were drawn, None where probabilities are known.
        outcomes: Value of every outcome, (n,), that functions are functions of.
        kept: Which of the outcomes that were given have weight, bool; None where all have.
        rounding: Relative error that the probabilities may have, by the type they came in.
    """

    weights: NDArray[np.float64]
    draws: int | None
    outcomes: NDArray[Any]
    kept: NDArray[np.bool_] | None = None
    rounding: float = 1e-9

    @classmethod
    def of(cls, probabilities: Any, outcomes: Any = None) -> SampleSpace:
        """Outcomes of known probabilities.

        Args:
            probabilities: (n,), not negative, summing to 1.
            outcomes: What they are, (n,); 0 to n - 1 if left out.

        Raises:
            AtomsError: If the probabilities are none.
        """
        array = as_array(probabilities)
        weights = _weights(array, "probabilities")
        total = float(weights.sum())
        eps = float(np.finfo(array.dtype if array.dtype.kind == "f" else np.float64).eps)
        if abs(total - 1) > math.sqrt(eps):
            raise AtomsError(
                f"probabilities sum to {total:.10g}, not to 1: divide them by their sum, or give counts as samples"
            )
        return replace(cls._with(weights / total, None, outcomes), rounding=max(cls.rounding, 16 * eps))

    @classmethod
    def uniform(cls, outcomes: int | Sequence[Any] | NDArray[Any]) -> SampleSpace:
        """Equally probable outcomes.

        Args:
            outcomes: What they are, or how many.

        Raises:
            AtomsError: If there are none, or more than memory holds.
        """
        known = None if isinstance(outcomes, (int, np.integer)) else as_array(outcomes)
        if known is not None and not known.ndim:
            raise AtomsError(f"outcomes is {outcomes!r}: give a whole number of them, or a sequence")
        count = int(outcomes) if known is None else len(known)  # type: ignore[arg-type]
        if count < 1:
            raise AtomsError(f"a sample space of {count} outcomes: give at least one")
        require_memory(_BYTES * count, f"a sample space of {count:,} outcomes", "make the alphabet smaller")
        return cls._with(np.full(count, 1 / count), None, known)

    @classmethod
    def of_samples(cls, count: int, counts: Any = None) -> SampleSpace:
        """Samples, an outcome each.

        Args:
            count: Number of them, n.
            counts: How often each was drawn, (n,) whole numbers; once if left out.

        Raises:
            AtomsError: If there are none, or the counts are none.
        """
        if count < 1:
            raise AtomsError("there are no samples: give at least one")
        require_memory(_BYTES * count, f"a space of {count:,} samples", "give fewer, or counts of different ones")
        if counts is None:
            return cls(np.ones(count), count, np.arange(count))
        weights = _weights(counts, "counts")
        if weights.sum() > _MOST:
            raise AtomsError(f"counts add up to {weights.sum():.3g}: give counts of 2^53 samples at most")
        if len(weights) != count:
            raise AtomsError(f"there are {len(weights):,} counts for {count:,} samples: give one each")
        if (weights != np.rint(weights)).any():
            raise AtomsError("counts are not whole numbers: give probabilities as such, in a table")
        return cls._with(weights, int(weights.sum()), None)

    @classmethod
    def _with(cls, weights: NDArray[np.float64], draws: int | None, outcomes: Any) -> SampleSpace:
        known = np.arange(len(weights)) if outcomes is None else as_array(outcomes)
        if known.ndim == 0 or len(known) != len(weights):
            raise AtomsError(f"there are {known.size:,} outcomes and {len(weights):,} probabilities: give one each")
        if (weights > 0).all():
            return cls(weights, draws, known)
        kept = weights > 0
        return cls(weights[kept], draws, known[kept], kept)

    def __len__(self) -> int:
        return len(self.weights)

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Of every outcome, (n,); relative frequencies of samples."""
        return np.asarray(self.weights / self.weights.sum(), np.float64)

    @cached_property
    def alike(self) -> bool:
        """Whether all outcomes weigh the same."""
        return bool((self.weights == self.weights[0]).all())

    def variable(self, values: Any, name: str = "X") -> Variable:
        """A random variable: a value for every outcome.

        Args:
            values: (n,) values for all outcomes given to the space (those without weight included), or (n, c) rows of
                them; or a function of the array of outcomes that returns such.
            name: What it is called.

        Raises:
            AtomsError: If there is not one value for each outcome, or values are missing.
        """
        array = as_array(values(self.outcomes) if callable(values) else values)
        given = len(self) if self.kept is None or callable(values) else len(self.kept)
        if not array.ndim:
            raise AtomsError(f"variable {name} is the single value {plain(array[()])!r}: give one for each outcome")
        if len(array) != given:
            raise AtomsError(
                f"variable {name} has {len(array):,} values and the sample space {given:,} outcomes: give one each"
            )
        if given != len(self):
            array = array[self.kept]
        labels, size = label(array, name)
        return Variable(self, labels, size, name, lambda outcome: plain(array[outcome]))


def _weights(values: Any, what: str) -> NDArray[np.float64]:
    array = as_array(values)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "fiub":
        raise AtomsError(f"{what} are an array of shape {array.shape} and type {array.dtype}: give numbers, one each")
    weights = array.astype(np.float64)
    if bad := int((~np.isfinite(weights)).sum()):
        raise AtomsError(f"{what} hold {bad:,} NaN or infinite: give finite numbers")
    if (weights < 0).any():
        raise AtomsError(f"{what} hold {weights.min():g}: give numbers that are not negative")
    if not (weights > 0).any():
        raise AtomsError(f"{what} are all zero: give at least one that is positive")
    return weights


def plain(value: Any) -> Any:
    """A value as Python's own: a row of a table as a tuple."""
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True, eq=False)
class Variable:
    """A random variable on a finite sample space. Only its partition matters: values are names of blocks.

    Attributes:
        space: The sample space.
        labels: Label of every outcome, (n,); all of 0 to `size` - 1 occur.
        size: Size of its alphabet.
        name: What it is called.
        value_at: Its value at an outcome.
    """

    space: SampleSpace
    labels: Labels
    size: int
    name: str
    value_at: Callable[[int], Any]

    @property
    def part(self) -> tuple[Labels, int]:
        """Labels and their number, as `atoms.information.labels` takes them."""
        return self.labels, self.size

    @cached_property
    def firsts(self) -> NDArray[np.int64]:
        """For each label the first outcome that has it, (size,)."""
        found = np.full(self.size, len(self.labels), np.int64)
        np.minimum.at(found, self.labels, np.arange(len(self.labels)))
        return found

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Of each label, (size,)."""
        return weigh(self.part, self.space.probabilities)

    def symbol(self, at: int) -> Any:
        """The value that a label stands for."""
        return self.value_at(int(self.firsts[at]))

    def named(self, name: str) -> Variable:
        """The same variable under another name."""
        return replace(self, name=name)

    def __repr__(self) -> str:
        return f"Variable({self.name}: {self.size:,} values on {len(self.space):,} outcomes)"


def common_space(variables: Sequence[Variable]) -> SampleSpace:
    """The space that variables share.

    Raises:
        AtomsError: If there is no variable, or they are on different spaces.
    """
    if not variables:
        raise AtomsError("no variable is given: give at least one")
    space = variables[0].space
    for other in variables[1:]:
        if other.space is not space:
            raise AtomsError(
                f"variables {variables[0].name} and {other.name} are on different sample spaces: make both with one "
                "call of from_samples or from_table, or from one SampleSpace"
            )
    return space


def compressed(variables: Sequence[Variable]) -> tuple[Variable, ...]:
    """The same variables on the smallest space that carries them: an outcome for each combination of their values.

    Entropies, order and all else are as before; ten million samples of a few columns become as many outcomes as there
    are different rows.

    Args:
        variables: On one space, at least one.
    """
    space = common_space(variables)
    labels, size = join_labels([variable.part for variable in variables])
    whole = Variable(space, labels, size, "all", lambda outcome: outcome)
    first = whole.firsts
    weights = weigh(whole.part, space.weights)
    small = SampleSpace(weights, space.draws, space.outcomes[first], rounding=space.rounding)

    def moved(variable: Variable) -> Variable:
        return replace(
            variable,
            space=small,
            labels=variable.labels[first],
            value_at=lambda outcome: variable.value_at(int(first[outcome])),
        )

    return tuple(moved(variable) for variable in variables)


def from_samples(*columns: Any, names: Sequence[str] | None = None, counts: Any = None) -> tuple[Variable, ...]:
    """Variables of which samples were drawn together.

    Args:
        columns: Of each variable its values, (n,) or (n, c), row i of all belonging to sample i.
        names: What they are called; X1, X2, … if left out.
        counts: How often each row was drawn, (n,); once if left out.

    Raises:
        AtomsError: If there is no column or no sample, if lengths differ or values are missing.

    Example:
        >>> x, parity = from_samples([0, 1, 2, 3], ["even", "odd", "even", "odd"], names=["x", "parity"])
        >>> parity.size, parity.symbol(1)
        (2, 'odd')
    """
    if not columns:
        raise AtomsError("no column is given: give at least one")
    arrays = [as_array(column) for column in columns]
    names = _names(names, len(arrays))
    lengths = [len(array) if array.ndim else 1 for array in arrays]
    if len(set(lengths)) > 1:
        said = ", ".join(f"{name} {length:,}" for name, length in zip(names, lengths, strict=True))
        raise AtomsError(f"columns have different lengths ({said}): give one value of each a sample")
    space = SampleSpace.of_samples(lengths[0], counts)
    return tuple(space.variable(array, name) for array, name in zip(arrays, names, strict=True))


def from_table(
    table: Any, names: Sequence[str] | None = None, symbols: Sequence[Sequence[Any]] | None = None
) -> tuple[Variable, ...]:
    """Variables of which the joint distribution is known.

    Args:
        table: Probabilities, an axis for each variable.
        names: What they are called; X1, X2, … if left out.
        symbols: Their values, for each axis as many as it is long; 0, 1, … if left out.

    Raises:
        AtomsError: If the table is no joint distribution, or there is not one value for each place along an axis.

    Example:
        >>> x, y = from_table([[0.5, 0.0], [0.25, 0.25]])
        >>> x.probabilities.tolist(), y.probabilities.tolist()
        ([0.5, 0.5], [0.75, 0.25])
    """
    try:
        array = as_array(table) if isinstance(table, torch.Tensor) else np.asarray(table)
    except ValueError as error:
        raise AtomsError("the table has rows of different lengths: give a probability for each combination") from error
    if not array.ndim or not array.size:
        raise AtomsError(f"the table has shape {array.shape}: give a probability for each combination of values")
    names = _names(names, array.ndim)
    space = SampleSpace.of(array.reshape(-1))
    places = np.unravel_index(np.arange(array.size), array.shape)
    if symbols is None:
        return tuple(space.variable(place, name) for place, name in zip(places, names, strict=True))
    if [len(own) for own in symbols] != list(array.shape):
        raise AtomsError(
            f"symbols are {[len(own) for own in symbols]} in number and the table has shape {array.shape}: give one "
            "for each place along each axis"
        )
    return tuple(
        space.variable(as_array(own)[place], name) for own, place, name in zip(symbols, places, names, strict=True)
    )


def _names(names: Sequence[str] | None, count: int) -> Sequence[str]:
    if names is None:
        return [f"X{number + 1}" for number in range(count)]
    if len(names) != count:
        raise AtomsError(f"names has {len(names)} entries for {count} variables: give one each")
    return names
