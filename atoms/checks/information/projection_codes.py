"""The controls: codes by directions that nobody trained, as many and as sparse as the unit's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from atoms.checks.check import Subject
from atoms.checks.row_sample import Sampled

_BATCH = 1024


class Whitening:
    """Rows about the mean of the training rows, in coordinates where S is Euclid's.

    Args:
        subject: What is judged.
    """

    def __init__(self, subject: Subject) -> None:
        self._map = subject.geometry.map(unitless=True).cpu().float()
        self._mean, self._unit = subject.train.moments.mean.cpu(), subject.geometry.unit

    def __call__(self, rows: NDArray[np.float32]) -> Tensor:
        """Rows (n, H) float32 in these coordinates."""
        return ((torch.from_numpy(rows).double() - self._mean) / self._unit).float() @ self._map


def random_directions(count: int, width: int, seed: int) -> Tensor:
    """Directions (count, width) of unit length, isotropic, float32."""
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return drawn.div_(drawn.norm(dim=1, keepdim=True))


def row_directions(sample: Sampled, white: Whitening, count: int) -> Tensor:
    """Directions of rows of the sample, spread evenly, as many or all there are: (count, H) of unit length, float32."""
    count = min(count, len(sample.index))
    found = white(sample.rows[np.arange(count) * len(sample.index) // count])
    return found.div_(found.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))


class ProjectionCodes:
    """A row's largest projections, in whitened coordinates: its code by directions that have no encoder.

    As many projections a row as the unit has atoms on average; the largest ones, or the largest in size where the
    unit's codes have either sign.

    Args:
        white: The coordinates.
        directions: Directions in them, (A, H) float32.
        per_row: Mean number of atoms of a row.
        one_sided: Whether no code of the unit is negative.
    """

    def __init__(self, white: Whitening, directions: Tensor, per_row: float, one_sided: bool) -> None:
        self.white, self.directions = white, directions
        self.k = min(len(directions), max(1, round(per_row)))
        self.one_sided = one_sided

    @torch.no_grad()
    def of(self, sample: Sampled) -> Any:
        """Codes of the rows of a sample, (n, A) float32 by rows."""
        starts = range(0, len(sample.rows), _BATCH)
        return sparse.vstack([self._encode(sample.rows[at : at + _BATCH]) for at in starts], format="csr")

    def _encode(self, rows: NDArray[np.float32]) -> Any:
        projections = self.white(rows) @ self.directions.T
        _, chosen = (projections if self.one_sided else projections.abs()).topk(self.k, dim=1)
        values = projections.gather(1, chosen)
        if self.one_sided:
            values = values.clamp_min(0)
        index = np.repeat(np.arange(len(rows)), self.k)
        found = sparse.csr_matrix(
            (values.numpy().ravel(), (index, chosen.numpy().ravel())), shape=(len(rows), len(self.directions))
        )
        found.eliminate_zeros()
        return found
