"""The control: codes by random directions, as many and as sparse as the unit's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse

from atoms.checks.check import Subject
from atoms.checks.row_sample import Sampled

_BATCH = 1024


class RandomCodes:
    """A row's largest projections on random directions, isotropic in whitened space.

    As many directions as the unit has atoms, as many projections a row as it has atoms on average; the largest ones, or
    the largest in size where the unit's codes have either sign.

    Args:
        subject: What is judged.
        per_row: Mean number of atoms of a row.
        one_sided: Whether no code of the unit is negative.
    """

    def __init__(self, subject: Subject, per_row: float, one_sided: bool) -> None:
        generator = torch.Generator().manual_seed(subject.settings.seed)
        drawn = torch.randn(subject.num_atoms, subject.width, generator=generator, dtype=torch.float64)
        self.directions = (drawn / drawn.norm(dim=1, keepdim=True)).float()
        self.to_white = subject.geometry.map(unitless=True).cpu().float()
        self.mean, self.unit = subject.train.moments.mean.cpu(), subject.geometry.unit
        self.k = min(subject.num_atoms, max(1, round(per_row)))
        self.one_sided = one_sided

    @torch.no_grad()
    def of(self, sample: Sampled) -> Any:
        """Codes of the rows of a sample, (n, A) float32 by rows."""
        batches = torch.split(torch.from_numpy(sample.rows), _BATCH)
        return sparse.vstack([self._encode(rows) for rows in batches], format="csr")

    def _encode(self, rows: torch.Tensor) -> Any:
        white = ((rows.double() - self.mean) / self.unit).float() @ self.to_white
        projections = white @ self.directions.T
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
