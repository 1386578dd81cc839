"""At how many atoms per row the conditions of theorems are asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atoms.checks.check import Subject
from atoms.checks.claim import Claim, Verdict

LEVELS = {"median": 0.5, "q95": 0.95, "max": 1.0}


@dataclass(frozen=True, eq=False)
class SparsityLevels:
    """Atoms per row of a unit.

    Attributes:
        at: K by level, at least 1; a level that is not known is not there.
        source: What K is of: ``median of 39,361 held-out rows`` and so on, by level.
        histogram: Number of rows by their number of atoms, (A + 1,) int64; None where rows were not counted.
    """

    at: dict[str, int]
    source: dict[str, str]
    histogram: Tensor | None

    def __bool__(self) -> bool:
        return bool(self.at)


def sparsity_levels(subject: Subject, found: Mapping[str, Any]) -> SparsityLevels:
    """Take K from the rows, else from what the unit aims at, else from nowhere.

    Args:
        subject: What is judged.
        found: Results by check; the row certificates' ``rows`` holds K of every held-out row as ``k``, (rows,) int64.
    """
    if "rows" in found and len(found["rows"].k):
        k: Tensor = found["rows"].k
        kinds = {"median": "median", "q95": ".95 quantile", "max": "largest"}
        source = {name: f"{kinds[name]} of {len(k):,} held-out rows" for name in LEVELS}
        return SparsityLevels(at_levels(k), source, torch.bincount(k, minlength=subject.num_atoms + 1))
    if subject.unit.target_l0 is not None:
        k_aimed = max(1, round(subject.unit.target_l0))
        return SparsityLevels({"median": k_aimed}, {"median": "the unit's target L0"}, None)
    return SparsityLevels({}, {}, None)


def at_levels(k: Tensor) -> dict[str, int]:
    """Atoms per row at each of `LEVELS`, at least 1, of rows of k atoms each, (rows,) int64, at least one row."""
    ascending = k.sort().values
    return {name: max(1, int(ascending[math.ceil(q * len(k)) - 1])) for name, q in LEVELS.items()}


def unknown_sparsity(name: str, what: str, source: str, computed_on: str) -> Claim:
    """A claim that cannot be judged, since K is not known at its level.

    Args:
        name: As in `Claim`.
        what: The statement, without a full stop.
        source: As in `Claim`.
        computed_on: As in `Claim`.
    """
    return Claim(
        name=name,
        statement=f"{what}.",
        verdict=Verdict.NOT_APPLICABLE,
        why="K of the rows is not known: the row certificates were left out or could not be made",
        source=source,
        computed_on=computed_on,
    )
