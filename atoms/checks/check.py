"""What a check is: something that looks at encoded rows and says what follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from atoms.activations.site_rows import SiteRows
from atoms.checks.claim import Section
from atoms.checks.settings import CheckSettings
from atoms.geometry import AtomicInnerProduct, directions
from atoms.sae import SparseCodes
from atoms.units import Unit


@dataclass(frozen=True, eq=False)
class Subject:
    """The unit under judgement and all that the checks share about it. Everything acts on raw atoms.

    Attributes:
        unit: The unit, fitted.
        train: Its site's training rows; geometry and moments come from them.
        held_out: Its site's held-out rows.
        settings: How to judge.
        device: Where to compute.
        others: The same unit from other seeds, fitted; for stability across seeds.
    """

    unit: Unit
    train: SiteRows
    held_out: SiteRows
    settings: CheckSettings
    device: torch.device
    others: tuple[Unit, ...] = ()

    @property
    def geometry(self) -> AtomicInnerProduct:
        """S, from the training rows."""
        return self.train.geometry

    @property
    def width(self) -> int:
        """H."""
        return self.train.width

    @property
    def num_atoms(self) -> int:
        """A."""
        return len(self.unit.atoms)

    @cached_property
    def norms(self) -> Tensor:
        """‖d‖_S of the raw atoms, (A,) float64 on the device; coefficients are multiplied by it before theorems."""
        return torch.cat([self.geometry.norm(block) for block in torch.split(self.unit.atoms.to(self.device), 8192)])

    @cached_property
    def directions(self) -> Tensor:
        """Raw atoms in whitened coordinates at unit length, (A, H) float64: ``directions @ directions.T`` is cos_S.

        Atoms of zero norm are rows of zeros.
        """
        return directions(self.unit.atoms.to(self.device), aip=self.geometry)

    @cached_property
    def max_k(self) -> int | None:
        """Most atoms a row may have in the joint claim, or None where only the unit's own codes can tell."""
        if self.settings.max_k is not None:
            return self.settings.max_k
        return None if self.unit.target_l0 is None else round(2 * self.unit.target_l0)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A batch of rows with its codes, worked out once for all checks.

    Attributes:
        split: ``"val"`` or ``"train"``.
        index: Place of each row in its split, (B,) int64.
        rows: (B, H) float32.
        codes: As the unit gave them: raw coefficients on raw atoms.
        reconstruction: (B, H) float32.
    """

    split: str
    index: Tensor
    rows: Tensor
    codes: SparseCodes
    reconstruction: Tensor


class Check(ABC):
    """One section of a certificate.

    `update` sees every batch of the splits it names once; ranks take turns with whole batches, so that a batch holds
    the same rows for any number of ranks. What is known row by row goes into a `RowTable`, which puts all ranks' rows
    back into one order: what is computed from it is the same for any number of ranks. Sums over rows of anything larger
    go into torchmetrics (sums in float64, counts in int64).

    Every rank runs `update`, `compute` and `report`. A check that cannot be done raises `AtomsError` in any of them:
    the certificate then says so in its place and the other checks go on. In `compute`, it does so on all ranks or on
    none.

    Args:
        subject: What is judged.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    splits: ClassVar[frozenset[str]] = frozenset({"val"})
    """Splits whose batches it wants to see; none for a check of the atoms alone."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def update(self, batch: Encoded) -> None:  # noqa: B027  # not all look at rows
        """Look at a batch."""

    @abstractmethod
    def compute(self) -> Any:
        """What was found, over all batches and ranks: a result of a type of its own, which other checks may read."""

    @abstractmethod
    def report(self, found: Mapping[str, Any]) -> Section:
        """The section.

        Args:
            found: What `compute` of every check that could be done returned, by its name.
        """
