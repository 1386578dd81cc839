"""Which atoms of a unit fire on held-out rows, and which of them are training rows themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

# A unit whose atoms left the training rows they began as does not come this close to them again, but for atoms of rows
# that are all alike (the first token's), of which there are few.
_ON_A_ROW = 0.999


class Seen(Metric):
    """Counts what rows say of one unit's atoms, over all ranks.

    Args:
        atoms: A.
    """

    full_state_update = False
    rows: Tensor
    firing: Tensor
    looked_at: Tensor
    on_rows: Tensor

    def __init__(self, atoms: int) -> None:
        super().__init__()
        for name, shape in (("rows", ()), ("firing", (atoms,)), ("looked_at", ()), ("on_rows", (atoms,))):
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, rows: int, fired: Tensor) -> None:
        """Count so many held-out rows and the atoms, (entries,), that fire on them."""
        self.rows = self.rows + rows
        self.firing = self.firing + torch.bincount(fired.long(), minlength=len(self.firing))

    def look(self, rows: int, hit: Tensor) -> None:
        """Count so many training rows, and the atoms (A,) bool that lie on one of them."""
        self.looked_at = self.looked_at + rows
        self.on_rows = self.on_rows + hit

    def compute(self) -> Counts:
        """The counts of all rows."""
        return self._counts()

    def pooled(self) -> Counts:
        """The counts over all ranks, also where this one had no rows; every rank must call it."""
        with self.sync_context():
            return self._counts()

    def _counts(self) -> Counts:
        return Counts(int(self.rows), self.firing.clone(), int(self.looked_at), self.on_rows.clone())


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts of one unit.

    Attributes:
        rows: Held-out rows.
        firing: Those each atom fires on, (A,) int64.
        looked_at: Training rows.
        on_rows: Batches of those in which an atom lies on one, (A,) int64.
    """

    rows: int
    firing: Tensor
    looked_at: int
    on_rows: Tensor

    def from_rows(self, living: Tensor, training_rows: int) -> float:
        """Estimate the share of the living atoms that are training rows.

        A share of the training rows was looked at, so that as large a share of these atoms was met. NaN where a
        dictionary of nothing but rows would have met fewer than three.
        """
        looked_at = self.looked_at / training_rows
        if looked_at * len(living) < 3:
            return float("nan")
        return min(1.0, (self.on_rows[living] > 0).double().mean().item() / looked_at)


@torch.no_grad()
def on_a_row(directions: Tensor, rows: Tensor, centres: Sequence[Tensor]) -> Tensor:
    """Which directions are those of a row, once a centre is taken from it.

    Args:
        directions: Unit vectors (A, H).
        rows: (B, H), in the same coordinates.
        centres: What to take from the rows, each (H,); one that fits is enough.

    Returns:
        (A,) bool.
    """
    hit = torch.zeros(len(directions), dtype=torch.bool, device=rows.device)
    products = rows @ directions.T
    for centre in centres:
        cosines = (products - directions @ centre).abs_()
        cosines /= (rows - centre).norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        hit |= cosines.amax(0) >= _ON_A_ROW
    return hit
