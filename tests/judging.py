"""What the checks of rows judge: small units, and every row of a store shown to a check."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.site_rows import SiteRows
from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Section
from atoms.checks.settings import CheckSettings
from atoms.sae import SparseCodes
from atoms.units import Unit


class Given(Unit):
    """A unit of given atoms whose codes are whatever a function of the centred rows says, (B, H) to (B, A)."""

    def __init__(self, atoms: Tensor, codes: Callable[[Tensor], Tensor], centre: Tensor | None = None) -> None:
        self.name, self.atoms, self.codes = "given", atoms.float(), codes
        self.centre = torch.zeros(atoms.shape[1]) if centre is None else centre.float()

    def encode(self, rows: Tensor) -> SparseCodes:
        return SparseCodes.from_dense(self.codes(rows - self.centre))


def projections(atoms: Tensor, floor: float, centre: Tensor | None = None) -> Given:
    """Codes are the projections on the atoms that exceed a floor."""
    directions = atoms.float()

    def codes(rows: Tensor) -> Tensor:
        pre = rows @ directions.T
        return pre * (pre > floor)

    return Given(atoms, codes, centre)


def dead(width: int, atoms: int = 5) -> Given:
    """No atom ever fires."""
    return Given(torch.eye(width)[:1].repeat(atoms, 1), lambda rows: torch.zeros(len(rows), atoms))


def subject_of(unit: Unit, data: ActivationDataModule, site: str = "planted", **settings: Any) -> Subject:
    train, held_out = (SiteRows(data, site, split) for split in ("train", "val"))
    unit.fit(train)
    return Subject(unit, train, held_out, CheckSettings(**{"batch_rows": 256, **settings}), torch.device("cpu"))


def show(check: Check, splits: Collection[str] = ("val", "train"), rank: int = 0, world_size: int = 1) -> None:
    """Show a check this rank's batches of the splits it wants: held-out rows, and as many training rows."""
    subject, settings = check.subject, check.subject.settings
    held_out = min(len(subject.held_out), settings.rows or len(subject.held_out))
    limits = {"val": held_out, "train": held_out if settings.train_rows is None else settings.train_rows}
    for split, rows in (("val", subject.held_out), ("train", subject.train)):
        if split in check.splits and split in splits:
            stream = rows.stream(settings.batch_rows, rank=rank, world_size=world_size, limit=limits[split])
            for batch in stream:
                x = batch.rows[rows.site].float()
                codes = subject.unit.encode(x)
                decoded = codes.to_dense() @ subject.unit.atoms + subject.unit.centre
                check.update(Encoded(split, batch.row_index, x, codes, decoded))


def judge(check: Check, splits: Collection[str] = ("val", "train")) -> tuple[Any, Section]:
    """What a check finds on all rows, and its section."""
    show(check, splits)
    found = check.compute()
    section = check.report({check.name: found})
    assert_plain(section)
    return found, section


def assert_plain(section: Section) -> None:
    """A section holds plain values alone, and its tables are tables."""
    assert all(type(value) is float for value in section.numbers.values()), section.numbers
    for claim in section.claims:
        assert claim.value is None or type(claim.value) is float
        assert all(type(value) is float for value in (*claim.inputs.values(), *claim.nulls.values()))
        assert "\n" not in claim.why
    for table in section.tables.values():
        assert len({len(column) for column in table.values()}) == 1
        assert all(type(value) in (float, str) for column in table.values() for value in column)
    assert all(type(note) is str and note.endswith(".") for note in section.notes)
