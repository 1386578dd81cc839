"""Bases: as many directions as coordinates at most, and codes that are dense."""

from __future__ import annotations

import torch
from torch import Tensor

from atoms.activations.site_rows import SiteRows
from atoms.errors import AtomsError
from atoms.sae import SparseCodes
from atoms.units.unit import Unit


class LinearUnit(Unit):
    """Directions whose codes are a linear map of the centred row: no coefficient is zero but by chance.

    Checks that ask for few atoms cut each row to its largest coefficients.
    """

    analysis: Tensor
    """(H, A) float64: codes are ``(x - centre) @ analysis``."""

    @property
    def encoder_weights(self) -> Tensor:
        """The linear map, (A, H) float64."""
        return self.analysis.T

    def encode(self, rows: Tensor) -> SparseCodes:
        """Code rows (B, H)."""
        return SparseCodes.from_dense((rows.double() - self.centre) @ self.analysis)


class WhiteningBasis(LinearUnit):
    """A rotation of a whitening basis, ``Q M^(1/2)``: the degenerate optimum of coherence.

    Its atoms are exactly orthonormal in ``S``, whatever the rotation, so that their coherence is 0 and q* is 1, and
    they rebuild every row, with codes that hold nothing back. Any score it wins says nothing of atoms.

    Args:
        seed: Seed of the rotation; null for none, which leaves the principal axes of the activations.
    """

    def __init__(self, seed: int | None = 0) -> None:
        self.name = "whitening basis" if seed is None else "rotated basis"
        self.seed = seed

    def fit(self, rows: SiteRows) -> None:
        """Take the geometry of the training rows."""
        axes = rows.geometry.eigenvectors.T
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.randn(rows.width, rows.width, generator=generator, dtype=torch.float64)
            axes = torch.linalg.qr(drawn).Q @ axes
        # In single precision, rounding along the strongest axes would leave coherence along the weakest.
        self.atoms = rows.geometry.unwhiten(axes)
        self.centre = rows.moments.mean.float()
        self.analysis = rows.geometry.whiten(axes).T.contiguous()
        super().fit(rows)


class PCA(LinearUnit):
    """Principal components about the mean, from the covariance of all training rows.

    Orthonormal in Euclid's metric; with all of them, codes rebuild every row.

    Args:
        atoms: Number of components, the largest first; the width if left out.

    Raises:
        AtomsError: If ``atoms`` is less than 1.
    """

    def __init__(self, atoms: int | None = None) -> None:
        self.name, self.count = "PCA", atoms
        if atoms is not None and atoms < 1:
            raise AtomsError(f"unit PCA: atoms is {atoms}: give at least 1, or null for the width")

    def fit(self, rows: SiteRows) -> None:
        """Decompose the covariance.

        Raises:
            AtomsError: If there are fewer coordinates than components, or as `Unit.fit`.
        """
        count = self.count or rows.width
        if count > rows.width:
            raise AtomsError(f"unit PCA: atoms is {count}, but rows of {rows.site} have width {rows.width}: lower it")
        components = torch.linalg.eigh(rows.moments.covariance).eigenvectors.T.flip(0)[:count]
        self.atoms, self.centre = components.float(), rows.moments.mean.float()
        self.analysis = components.T.contiguous()
        super().fit(rows)
