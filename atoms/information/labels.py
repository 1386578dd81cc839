"""Values of any kind as integer labels, and several labels as one: all else here counts labels."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atoms.errors import AtomsError, printable

Labels = NDArray[np.signedinteger[Any]]
"""(n,) int32, or int64 where int32 does not reach."""
_LARGEST = 2**62  # keys stay below, so that a step up cannot overflow int64


def label(values: Any, name: str) -> tuple[Labels, int]:
    """Number the distinct values 0, 1, …: numbers in ascending order, anything else in order of appearance.

    Args:
        values: (n,) numbers, strings or any hashable objects, as a numpy array, a torch tensor or a sequence; or
            (n, c), a value being a row of c.
        name: What messages call them.

    Returns:
        Labels (n,) and how many there are.

    Raises:
        AtomsError: If there are none, if one is missing (NaN, None) or cannot be hashed, or if the array has no rows.
    """
    array = as_array(values)
    if array.ndim == 0 or array.ndim > 2:
        raise AtomsError(f"variable {name} has shape {array.shape}: give one value a sample, or a row of them")
    if not array.size:
        raise AtomsError(f"variable {name} has no values: give at least one sample")
    if array.ndim == 2:
        return join_labels([label(column, f"{name}[{place}]") for place, column in enumerate(array.T)])
    if array.dtype.kind in "OSUV":  # a look-up each is cheaper than sorting them
        return _of_objects(array.tolist(), name)
    if array.dtype.kind in "fcmM" and (missing := int((array != array).sum())):
        raise _missing(name, missing, len(array))
    if array.dtype.kind in "iub":
        low, high = int(array.min()), int(array.max())
        if high - low < _LARGEST and high < 2**63:
            return dense(array.astype(np.int64) - low, high - low + 1)
    distinct, labels = np.unique(array, return_inverse=True)
    return _compact(labels, len(distinct)), len(distinct)


def as_array(values: Any) -> NDArray[Any]:
    """Values as an array; tuples and other objects stay what they are.

    Args:
        values: An array, a tensor or a sequence.
    """
    if isinstance(values, torch.Tensor):
        host = values.detach().cpu()
        return (host.float() if host.dtype == torch.bfloat16 else host).numpy()  # numpy knows no bfloat16
    if isinstance(values, np.ma.MaskedArray):
        return as_array(values.tolist())  # None for what is masked
    if isinstance(values, np.ndarray):
        return values
    try:
        listed = list(values)
    except TypeError:  # a single value
        return np.asarray(values)
    if any(isinstance(value, (torch.Tensor, np.ndarray)) for value in listed):  # tensors are hashed by address
        listed = [value.tolist() if isinstance(value, (torch.Tensor, np.ndarray)) else value for value in listed]
    if all(isinstance(value, (bool, int, float, np.number, np.bool_)) for value in listed):
        numbers = np.asarray(listed)
        if numbers.dtype.kind != "f" or not any(_inexact(value) for value in listed):
            return numbers
    array = np.empty(len(listed), object)
    array[:] = listed
    return array


def dense(keys: NDArray[np.int64], bound: int) -> tuple[Labels, int]:
    """Number distinct keys in ascending order.

    Args:
        keys: (n,) in [0, bound).
        bound: What they stay below.
    """
    if _countable(keys, bound):
        seen = np.zeros(bound, bool)
        seen[keys] = True
        number = _compact(np.cumsum(seen) - 1, bound)
        return number[keys], int(seen.sum())
    distinct, labels = np.unique(keys, return_inverse=True)
    return _compact(labels, len(distinct)), len(distinct)


def combine(parts: Sequence[tuple[Labels, int]]) -> tuple[NDArray[np.int64], int]:
    """One key for each combination of labels, and what keys stay below; the last part varies fastest.

    Args:
        parts: Labels (n,) with their number, at least one. Where the product of the numbers is too large for a key,
            combinations that do not occur are taken out between.
    """
    keys, bound = parts[0][0].astype(np.int64), parts[0][1]
    for labels, size in parts[1:]:
        if bound * size >= _LARGEST:
            numbered, bound = dense(keys, bound)
            keys = numbered.astype(np.int64)
        keys *= size
        keys += labels
        bound *= size
    return keys, bound


def join_labels(parts: Sequence[tuple[Labels, int]]) -> tuple[Labels, int]:
    """A label for each combination of labels that occurs, in ascending order of the parts.

    Args:
        parts: Labels (n,) with their number, at least one.
    """
    return parts[0] if len(parts) == 1 else dense(*combine(parts))


def weigh(part: tuple[Labels, int], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Total weight of every label, those without outcome included.

    Args:
        part: Labels (n,) with their number.
        weights: Of every outcome, (n,).
    """
    return np.bincount(part[0], weights, minlength=part[1]).astype(np.float64, copy=False)


def masses(parts: Sequence[tuple[Labels, int]], weights: NDArray[np.float64], alike: bool) -> NDArray[np.float64]:
    """Total weight of every combination of labels that occurs.

    Args:
        parts: Labels (n,) with their number, at least one.
        weights: Of every outcome, (n,).
        alike: Whether all weights are the same, which saves following outcomes through the sorting.

    Returns:
        As many as there are combinations, in ascending order of the parts; zeros where labels have no outcome.
    """
    keys, bound = (parts[0][0], parts[0][1]) if len(parts) == 1 else combine(parts)
    if _countable(keys, bound):
        return weigh((keys, bound), weights)
    if alike:
        keys = np.sort(keys)
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
        return np.asarray(np.diff(starts) * weights[0], np.float64)
    return weigh(dense(keys.astype(np.int64), bound), weights)


def distinct_pairs(left: tuple[Labels, int], right: tuple[Labels, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of labels that occur, each once.

    Args:
        left: Labels (n,) with their number.
        right: Others.
    """
    keys, bound = combine([left, right])
    if _countable(keys, bound):
        seen = np.zeros(bound, bool)
        seen[keys] = True
        keys = np.flatnonzero(seen)
    else:
        keys = np.sort(keys)
        keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
    return keys // right[1], keys % right[1]


def _countable(keys: NDArray[Any], bound: int) -> bool:
    """Whether a place for every possible key costs no more than sorting the keys there are."""
    return bound <= max(4 * len(keys), 2**16)


def _inexact(value: Any) -> bool:
    """Whether a whole number is too large to become a float beside others that are."""
    return isinstance(value, (int, np.integer)) and abs(int(value)) > 2**53


def _absent(value: Any) -> bool:
    """Whether a value, or an entry of a tuple, is missing."""
    if isinstance(value, tuple):
        return any(map(_absent, value))
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas' NA is neither equal to itself nor not
        return True


def _compact(labels: NDArray[Any], size: int) -> Labels:
    return labels.astype(np.int32 if size < 2**31 else np.int64)


def _of_objects(values: Iterable[Hashable], name: str) -> tuple[Labels, int]:
    known: dict[Hashable, int] = {}
    try:
        labels = np.array([known.setdefault(value, len(known)) for value in values], np.int64)
    except TypeError as error:
        raise AtomsError(
            f"variable {name} holds what cannot be compared ({printable(str(error))}): give numbers, text or tuples"
        ) from error
    absent = [place for value, place in known.items() if _absent(value)]
    if absent:
        raise _missing(name, int(np.isin(labels, absent).sum()), len(labels))
    return _compact(labels, len(known)), len(known)


def _missing(name: str, count: int, total: int) -> AtomsError:
    return AtomsError(
        f"variable {name} has {count:,} missing values (NaN or null) among {total:,}: fill them or leave these samples "
        "out"
    )
