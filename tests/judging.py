"""What checks judge: small units of every kind, and all rows of a store shown to a check."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.planted import SITE
from atoms.activations.site_rows import SiteRows
from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Section
from atoms.checks.settings import CheckSettings
from atoms.geometry import AtomicInnerProduct
from atoms.sae import SparseCodes
from atoms.units import Unit
from atoms.units.pursuit import orthogonal_matching_pursuit


class Given(Unit):
    """A unit of given atoms whose codes are whatever a function of the centred rows says, (B, H) to (B, A)."""

    def __init__(
        self, atoms: Tensor, codes: Callable[[Tensor], Tensor], centre: Tensor | None = None, name: str = "given"
    ) -> None:
        self.name, self.atoms, self.codes = name, atoms.float(), codes
        self.centre = torch.zeros(atoms.shape[1]) if centre is None else centre.float()

    def encode(self, rows: Tensor) -> SparseCodes:
        return SparseCodes.from_dense(self.codes(rows - self.centre))


class Projections(Given):
    """Codes are the projections on the atoms that exceed a floor."""

    def __init__(self, atoms: Tensor, floor: float, centre: Tensor | None = None, name: str = "projections") -> None:
        super().__init__(atoms, self._above, centre, name)
        self.floor = floor

    def _above(self, rows: Tensor) -> Tensor:
        pre = rows @ self.atoms.T
        return pre * (pre > self.floor)


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


def dense(width: int) -> Given:
    """The rows' own coordinates: as many atoms as dimensions, all of them in use."""
    return Given(torch.eye(width), lambda rows: rows, name="dense")


def dead(width: int, atoms: int = 5) -> Given:
    """No atom ever fires."""
    return Given(torch.eye(width)[:1].repeat(atoms, 1), lambda rows: torch.zeros(len(rows), atoms))


def subject_of(
    unit: Unit, data: ActivationDataModule, site: str = SITE, others: tuple[Unit, ...] = (), **settings: Any
) -> Subject:
    train, held_out = (SiteRows(data, site, split) for split in ("train", "val"))
    for each in (unit, *others):
        each.fit(train)
    return Subject(unit, train, held_out, CheckSettings(**{"batch_rows": 256, **settings}), torch.device("cpu"), others)


def show(check: Check, splits: Collection[str] = ("val", "train"), rank: int = 0, world_size: int = 1) -> None:
    """Show a check this rank's batches of the splits it wants, as a certificate does."""
    subject, settings = check.subject, check.subject.settings
    limits = settings.counts(len(subject.held_out), len(subject.train))
    for split, rows in (("val", subject.held_out), ("train", subject.train)):
        if split in check.splits and split in splits:
            stream = rows.stream(settings.batch_rows, rank=rank, world_size=world_size, limit=limits[split])
            for batch in stream:
                x = batch.rows[rows.site].float()
                codes = subject.unit.encode(x)
                check.update(Encoded(split, batch.row_index, x, codes, subject.unit.decode(codes)))


def find(check: Check, splits: Collection[str] = ("val", "train"), rank: int = 0, world_size: int = 1) -> Any:
    """What a check finds on all rows."""
    show(check, splits, rank, world_size)
    return check.compute()


def judge(check: Check, splits: Collection[str] = ("val", "train")) -> tuple[Any, Section]:
    """What a check finds on all rows, and its section."""
    found = find(check, splits)
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
