"""Units of given directions on planted rows, and rows shown to a check as a certificate shows them."""

from typing import Any

import torch
from torch import Tensor

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.planted import SITE
from atoms.activations.site_rows import SiteRows
from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.settings import CheckSettings
from atoms.geometry import AtomicInnerProduct
from atoms.sae import SparseCodes
from atoms.units import Unit
from atoms.units.pursuit import orthogonal_matching_pursuit


class Pursuer(Unit):
    """Codes by matching pursuit in S, on any directions."""

    def __init__(self, atoms: Tensor, geometry: AtomicInnerProduct, k: int, nonnegative: bool = False) -> None:
        self.name, self.atoms, self.centre = "pursuer", atoms.float(), torch.zeros(atoms.shape[1])
        self.geometry, self.k, self.nonnegative, self.target_l0 = geometry, k, nonnegative, float(k)

    def encode(self, rows: Tensor) -> SparseCodes:
        white, norms = self.geometry.whiten(self.atoms.double()), self.geometry.norm(self.atoms)
        target = self.geometry.whiten((rows - self.centre).double())
        found = orthogonal_matching_pursuit(target, white / norms[:, None], self.k, nonnegative=self.nonnegative)
        dense = torch.zeros(len(rows), len(self.atoms), dtype=torch.float64)
        dense.scatter_add_(1, found.support.clamp_min(0), found.coefficients)
        return SparseCodes.from_dense(dense / norms)


class Dense(Unit):
    """The rows' own coordinates: as many atoms as dimensions, all of them in use."""

    def __init__(self, width: int) -> None:
        self.name, self.atoms, self.centre = "dense", torch.eye(width), torch.zeros(width)

    def encode(self, rows: Tensor) -> SparseCodes:
        return SparseCodes.from_dense(rows)


def subject_of(unit: Unit, data: ActivationDataModule, **settings: Any) -> Subject:
    train, held_out = (SiteRows(data, SITE, split) for split in ("train", "val"))
    unit.fit(train)
    return Subject(unit, train, held_out, CheckSettings(**settings), torch.device("cpu"))


def judge(check: Check, batch_rows: int = 128, rank: int = 0, world_size: int = 1) -> Any:
    """What a check finds in the held-out rows."""
    subject = check.subject
    limit = subject.settings.rows
    for batch in subject.held_out.stream(batch_rows, rank=rank, world_size=world_size, limit=limit):
        rows = batch.rows[SITE].float()
        codes = subject.unit.encode(rows)
        check.update(Encoded("val", batch.row_index, rows, codes, subject.unit.decode(codes)))
    return check.compute()
