"""Units that are directions alone: their codes are found for them, in the atomic inner product."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from atoms.activations.site_rows import SiteRows
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct
from atoms.geometry.inner_product import unit_rows
from atoms.sae import SparseCodes
from atoms.units.pursuit import orthogonal_matching_pursuit, top_k_least_squares
from atoms.units.unit import Unit

Encoder = Literal["omp", "topk"]
_PURSUITS = {"omp": orthogonal_matching_pursuit, "topk": top_k_least_squares}
_MOST_ATOMS = 32  # per row where nothing else is said; the usual target of the SAEs these units stand beside


class CodedUnit(Unit):
    """Directions whose codes a pursuit finds, with at most k atoms per row and errors measured in ``S``.

    A subclass says in `learn` which directions. Coefficients may be negative.

    Args:
        name: What tables call it.
        atoms: Number of atoms; None for what the subclass takes.
        encoder: ``omp`` for orthogonal matching pursuit, ``topk`` for least squares on the k atoms a row is most
            correlated with.
        k: Most atoms per row; None for an eighth of the width, at most 32.
        seed: Seed of what is drawn.

    Raises:
        AtomsError: If a number is less than 1 or the encoder is unknown.
    """

    def __init__(self, name: str, *, atoms: int | None, encoder: str, k: int | None, seed: int = 0) -> None:
        self.name = name
        if atoms is not None and atoms < 1:
            raise AtomsError(f"unit {name}: atoms is {atoms}: give at least 1, or null for the usual number")
        if k is not None and k < 1:
            raise AtomsError(f"unit {name}: k is {k}: give at least 1, or null for an eighth of the width")
        if encoder not in get_args(Encoder):
            raise AtomsError(f"unit {name}: encoder is {encoder!r}: use {' or '.join(map(repr, get_args(Encoder)))}")
        self.count, self.encoder, self.k, self.seed = atoms, encoder, k, seed

    @abstractmethod
    def learn(self, rows: SiteRows) -> tuple[Tensor, Tensor]:
        """Atoms (A, H) and centre (H,) in activation units, from training rows."""

    def fit(self, rows: SiteRows) -> None:
        """Learn the directions and make ready to code rows of this site.

        Args:
            rows: The training split.

        Raises:
            AtomsError: If ``k`` reaches the rank of the rows, where any directions rebuild anything; or as `Unit.fit`.
        """
        if self.k is None:
            self.k = min(_MOST_ATOMS, max(1, rows.width // 8))
        if self.k >= rows.geometry.rank:
            raise AtomsError(
                f"unit {self.name}: k is {self.k}, but the rows of {rows.site} have rank {rows.geometry.rank}, which "
                f"as many directions of any kind rebuild: give k below that, for example {max(1, rows.width // 8)}"
            )
        atoms, centre = self.learn(rows)
        self.atoms, self.centre = atoms.float(), centre.float()
        super().fit(rows)
        self._ready(rows.geometry)

    def _ready(self, geometry: AtomicInnerProduct) -> None:
        """Derive what `encode` needs: whitened directions, and what turns their coefficients into those of atoms."""
        assert self.k is not None
        self.target_l0 = min(self.k, len(self.atoms))
        self._geometry = geometry
        whitened = geometry.whiten(self.atoms.double())
        self._directions = unit_rows(whitened)
        self._per_length = torch.where(whitened.any(1), whitened.norm(dim=1), torch.inf).reciprocal()

    def encode(self, rows: Tensor) -> SparseCodes:
        """Code rows (B, H) with at most k atoms each."""
        assert self.target_l0 is not None
        whitened = self._geometry.whiten(rows.double() - self.centre)
        found = _PURSUITS[self.encoder](whitened, self._directions, int(self.target_l0))
        values = found.coefficients * self._per_length[found.support.clamp_min(0)]
        return SparseCodes.from_support(found.support, values, len(self.atoms))
