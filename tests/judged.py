"""What checks judge: a unit of given directions, and its site's rows."""

from typing import Any

import torch
from torch import Tensor

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.site_rows import SiteRows
from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.settings import CheckSettings
from atoms.sae import SparseCodes
from atoms.units import Unit


class Projections(Unit):
    """Codes are projections on the atoms above a floor."""

    def __init__(self, atoms: Tensor, floor: float = 0.5, name: str = "projections") -> None:
        self.name, self.atoms, self.floor = name, atoms.float(), floor
        self.centre = torch.zeros(atoms.shape[1])

    def encode(self, rows: Tensor) -> SparseCodes:
        pre = (rows - self.centre) @ self.atoms.T
        return SparseCodes.from_dense(pre * (pre > self.floor))


def subject_of(
    unit: Unit, data: ActivationDataModule, site: str, others: tuple[Unit, ...] = (), **settings: Any
) -> Subject:
    train, held_out = (SiteRows(data, site, split) for split in ("train", "val"))
    for each in (unit, *others):
        each.fit(train)
    return Subject(unit, train, held_out, CheckSettings(**settings), torch.device("cpu"), others)


def show(check: Check, batch_rows: int = 256) -> None:
    """Show a check all rows of the splits it wants, a batch at a time."""
    subject = check.subject
    for split, rows in (("train", subject.train), ("val", subject.held_out)):
        if split in check.splits:
            for batch in rows.stream(batch_rows):
                x = batch.rows[rows.site].float()
                codes = subject.unit.encode(x)
                check.update(Encoded(split, batch.row_index, x, codes, codes.to_dense() @ subject.unit.atoms))


def judge(check: Check) -> Any:
    """What a check finds on all rows."""
    show(check)
    return check.compute()
