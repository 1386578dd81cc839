"""Directions with nothing to them, or nothing but memory: what they earn is no achievement."""

from __future__ import annotations

import torch
from torch import Tensor

from atoms.activations.site_rows import SiteRows
from atoms.errors import AtomsError
from atoms.geometry.inner_product import unit_rows
from atoms.units.coded import CodedUnit, Encoder
from atoms.units.trained import TrainedUnit
from atoms.units.unit import Unit


class RandomUnits(CodedUnit):
    """Random directions, isotropic in whitened space: no direction is more likely than another to whom S measures.

    In raw space they stretch as the activations do; isotropic in raw space they would look far more coherent in ``S``
    than chance requires.

    Args:
        atoms: Number of atoms; four times the width if left out.
        encoder: ``omp`` or ``topk``, see `CodedUnit`.
        k: Most atoms per row; an eighth of the width, at most 32, if left out.
        seed: Seed of the directions.
    """

    def __init__(self, atoms: int | None = None, encoder: Encoder = "omp", k: int | None = None, seed: int = 0) -> None:
        super().__init__("random", atoms=atoms, encoder=encoder, k=k, seed=seed)

    def learn(self, rows: SiteRows) -> tuple[Tensor, Tensor]:
        """Draw."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(self.count or 4 * rows.width, rows.width, generator=generator, dtype=torch.float64)
        return rows.geometry.unwhiten(unit_rows(drawn)), rows.moments.mean


class PermutedUnits(CodedUnit):
    """Another unit's atoms with every coordinate shuffled among them, each on its own.

    The coordinates are those along the principal axes of the activations, of atoms brought to unit length in ``S``.
    What survives is how much of the dictionary lies along each axis, exactly, and how it is spread there: a dictionary
    that merely follows the spectrum of the activations is as good after the shuffle. What is lost is which coordinates
    go together, hence every single atom. Along these axes whitening is a change of scale, so that raw coordinates
    shuffled give the same directions; along the model's own coordinates they would not.

    Args:
        unit: The unit, or the folder of a saved dictionary; beside a checkpoint, its first member if left out.
        encoder: ``omp`` or ``topk``, see `CodedUnit`.
        k: Most atoms per row; the unit's target L0 if left out, see `CodedUnit` where it has none.
        seed: Seed of the shuffle.
    """

    def __init__(
        self, unit: str | Unit | None = None, encoder: Encoder = "omp", k: int | None = None, seed: int = 0
    ) -> None:
        super().__init__("permuted", atoms=None, encoder=encoder, k=k, seed=seed)
        self.unit: Unit | None = None
        if unit is not None:
            self.permute(unit if isinstance(unit, Unit) else TrainedUnit.load(unit))

    def permute(self, unit: Unit) -> None:
        """Take the unit whose atoms are to be shuffled."""
        self.unit, self.site, self.name = unit, unit.site, f"{unit.name} permuted"
        if self.k is None and unit.target_l0 is not None:
            self.k = max(1, round(unit.target_l0))

    def learn(self, rows: SiteRows) -> tuple[Tensor, Tensor]:
        """Shuffle."""
        if self.unit is None:
            raise AtomsError("unit permuted: there is nothing to shuffle: give unit, or a checkpoint beside it")
        self.unit.fit(rows)
        axes = rows.geometry.eigenvectors
        coordinates = unit_rows(rows.geometry.whiten(self.unit.atoms.cpu().double())) @ axes
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.rand(coordinates.shape, generator=generator, dtype=torch.float64).argsort(dim=0)
        return rows.geometry.unwhiten(coordinates.gather(0, order) @ axes.T), self.unit.centre.cpu()


class DataUnits(CodedUnit):
    """Training rows as atoms: the memoriser.

    With as many atoms as rows it rebuilds each of them from a single atom, so that q* is 1 and the error 0 on whatever
    it has seen, noise included. Only rows it has not seen tell.

    Args:
        atoms: Number of rows to keep, spread evenly over the training rows, or all if there are fewer; four times the
            width if left out.
        encoder: ``omp`` or ``topk``, see `CodedUnit`.
        k: Most atoms per row; null for an eighth of the width, at most 32.
    """

    initialised_from_data = True

    def __init__(self, atoms: int | None = None, encoder: Encoder = "omp", k: int | None = 1) -> None:
        super().__init__("data", atoms=atoms, encoder=encoder, k=k)

    def learn(self, rows: SiteRows) -> tuple[Tensor, Tensor]:
        """Keep rows."""
        kept = rows.sample(self.count or 4 * rows.width)[rows.site].double()
        return kept - rows.moments.mean, rows.moments.mean
