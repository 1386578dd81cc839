"""Judging a unit: one pass over held-out rows, one over training rows, and what every check makes of them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from threadpoolctl import threadpool_limits

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.location import Where
from atoms.activations.site_rows import SiteRows
from atoms.activations.stream import OrderedBatch, OrderedStream
from atoms.checks.certificate import Certificate, RowsRecord, UnitRecord
from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.registry import CHECKS
from atoms.checks.sentence import sentence
from atoms.checks.settings import CheckSettings
from atoms.errors import AtomsError, printable
from atoms.progress import Meter
from atoms.silent_trainer import silent_trainer
from atoms.threads import one_thread
from atoms.units import Unit

SPLITS = ("val", "train")
SMALL = 1 << 22
"""Numbers of a dictionary below which one thread judges faster than two (1.7 times at 1,536 atoms of width 384)."""
T = TypeVar("T")


def certify(
    unit: Unit,
    store: Where | ActivationDataModule,
    *,
    site: str | None = None,
    settings: CheckSettings | None = None,
    others: Sequence[Unit] = (),
    trainer: dict[str, Any] | None = None,
) -> Certificate:
    """Judge a unit on the held-out documents of a store.

    Geometry, and what the unit learns, come from the training documents; everything claimed is measured on others.
    Called in every process of a group, it shares the rows out and returns the same certificate in each.

    Args:
        unit: The candidate. It is moved to the device it is judged on.
        store: Path or URL of the store, or a datamodule, which also says which rows are left out.
        site: Where the unit explains any site it is shown, and the store holds several: which.
        settings: How to judge.
        others: The same unit from other seeds, for stability across seeds.
        trainer: Where to run, as Lightning's Trainer takes it: accelerator, devices, strategy, num_nodes.

    Returns:
        The certificate. Checks that could not be done stand in `Certificate.failed`.

    Raises:
        AtomsError: If the rows or the unit cannot be used at all.
    """
    settings = settings or CheckSettings()
    data = store if isinstance(store, ActivationDataModule) else ActivationDataModule(store=store)  # type: ignore[arg-type]
    data.setup("validate")
    known = [check.name for check in CHECKS]
    if unknown := sorted(set(settings.skip) - set(known)):
        raise AtomsError(f"checks.skip names {', '.join(unknown)}: the checks are {', '.join(known)}")
    train = SiteRows(data, _site(unit, data, site), "train")
    held_out = SiteRows(data, train.site, "val")
    speaks = rank_zero_only.rank in (0, None)  # type: ignore[attr-defined]
    for each in (unit, *others):
        each.fit(train)
    examination = _Examination(unit, train, held_out, settings, others, speaks)
    settings_of_trainer = {"accelerator": "auto", "devices": "auto", "strategy": "auto", **(trainer or {})}
    with _fitting_threads(unit.atoms.numel()):
        _trainer(settings_of_trainer).validate(examination, verbose=False)
        return examination.finish()


@contextmanager
def _fitting_threads(size: int) -> Iterator[None]:
    """One thread for small dictionaries: thousands of small products wait for each other more than they share.

    So do scikit-learn's: beside one busy process, its fits took four times as long on two threads as on one.
    """
    if size >= SMALL:
        yield
        return
    with one_thread(), threadpool_limits(1):
        yield


def _site(unit: Unit, data: ActivationDataModule, site: str | None) -> str:
    sites = data.store.sites
    found = unit.site or site or (sites[0] if len(sites) == 1 else None)
    if found is None:
        raise AtomsError(f"site is not set and the store holds {len(sites)}: name one of {', '.join(sites)}")
    if unit.site is not None and site is not None and unit.site != site:
        raise AtomsError(f"site is {site}, but unit {unit.name} is of {unit.site}: leave site out")
    return found


def _trainer(settings: dict[str, Any]) -> L.Trainer:
    if torch.backends.mps.is_available() and settings["accelerator"] in ("auto", "gpu", "mps"):
        # Apple's devices have no float64, in which theorems are checked.
        settings = {
            **settings,
            "accelerator": "cpu",
            "devices": 1 if settings["devices"] == "auto" else settings["devices"],
        }
    return silent_trainer(settings)


@dataclass
class _Slot:
    """One check, how it went and how long it took."""

    kind: type[Check]
    check: Check | None = None
    failure: str | None = None
    seconds: float = 0.0

    def attempt(self, action: Callable[[], T]) -> T | None:
        """Do something unless the check has failed before; note its failure instead of raising."""
        if self.failure is not None:
            return None
        started = time.perf_counter()
        try:
            return action()
        except AtomsError as error:
            self.failure = str(error)
            return None
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, MemoryError) as error:
            # A fault of ours must not cost what the other checks found; the trace stays for the report of it.
            self.failure = f"{printable(str(error)) or 'no more is said'} ({type(error).__name__}; please report it)"
            traceback.print_exc()
            return None
        finally:
            self.seconds += time.perf_counter() - started


class _Examination(L.LightningModule):
    """Takes every batch to every check."""

    def __init__(
        self,
        unit: Unit,
        train: SiteRows,
        held_out: SiteRows,
        settings: CheckSettings,
        others: Sequence[Unit],
        speaks: bool,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # few rows make one batch: one rank has it
        self.unit, self.others = unit, others
        self.rows = {"val": held_out, "train": train}
        self.settings, self.speaks = settings, speaks
        self.slots: list[_Slot] = []
        self.counts = settings.counts(len(held_out), len(train))

    def setup(self, stage: str) -> None:
        """Build the checks where the rows will be."""
        device = self.trainer.strategy.root_device
        for unit in (self.unit, *self.others):
            unit.to(device)
        subject = Subject(self.unit, self.rows["train"], self.rows["val"], self.settings, device, tuple(self.others))
        for kind in CHECKS:
            if kind.name not in self.settings.skip:
                slot = _Slot(kind)
                slot.check = slot.attempt(partial(kind, subject))
                self.slots.append(slot)
        self.meter = Meter(f"judge {self.unit.name}", sum(self.counts.values()), "rows", self.speaks)
        self.meter.start()

    def val_dataloader(self) -> list[OrderedStream]:
        """Held-out rows, then training rows; ranks take turns with whole batches."""
        reads = [self.unit.reads] if self.unit.reads else []
        return [
            self.rows[split].stream(
                self.settings.batch_rows,
                [site for site in reads if site],
                rank=self.trainer.global_rank,
                world_size=self.trainer.world_size,
                limit=self.counts[split],
            )
            for split in SPLITS
        ]

    def validation_step(self, batch: OrderedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Encode once, look many times."""
        split = SPLITS[dataloader_idx]
        slots = [slot for slot in self.slots if split in slot.kind.splits and slot.check and not slot.failure]
        if slots:
            rows = batch.rows[self.rows[split].site].float()
            codes = self.unit.encode(batch.rows[self.unit.reads or self.rows[split].site].float())
            encoded = Encoded(split, batch.row_index, rows, codes, self.unit.decode(codes))
            for slot in slots:
                assert slot.check is not None
                slot.attempt(partial(slot.check.update, encoded))
        self.meter.advance(len(batch.row_index) * self.trainer.world_size)

    def finish(self) -> Certificate:
        """Put the findings together; every rank must call it."""
        self.meter.stop()
        self._agree()
        found: dict[str, Any] = {}
        for slot in self.slots:
            if slot.check is not None and slot.failure is None:
                self._say(slot)
                result = slot.attempt(slot.check.compute)
                if slot.failure is None:
                    found[slot.kind.name] = result
        reports = [slot.attempt(partial(slot.check.report, found)) for slot in self.slots if slot.check is not None]
        sections = [section for section in reports if section is not None]
        train, held_out = self.rows["train"], self.rows["val"]
        return Certificate(
            unit=_record(self.unit, held_out),
            rows=RowsRecord(
                store=str(held_out.data.path),
                identity=held_out.data.store.identity_hash,
                held_out=self.counts["val"],
                train=self.counts["train"],
                train_total=len(train),
                geometry=train.geometry.digest,
            ),
            sentence=sentence(sections, elsewhere=self._learnt_elsewhere()),
            sections=tuple(sections),
            settings=asdict(self.settings),
            failed={slot.kind.name: slot.failure for slot in self.slots if slot.failure is not None},
            versions={name: importlib.metadata.version(name) for name in ("atoms", "torch", "numpy", "scipy")},
            seconds={slot.kind.name: round(slot.seconds, 3) for slot in self.slots},
        )

    def _learnt_elsewhere(self) -> bool:
        """Whether the unit says it learnt from another store: its training documents may be held out here."""
        learnt = self.unit.source.get("store")
        return learnt is not None and learnt != self.rows["val"].data.store.identity_hash

    def _agree(self) -> None:
        """What failed on one rank has failed on all, or they would wait for each other."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return
        failures: list[list[str | None]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(failures, [slot.failure for slot in self.slots])
        for slot, said in zip(self.slots, zip(*failures, strict=True), strict=True):
            slot.failure = next((failure for failure in said if failure is not None), None)

    def _say(self, slot: _Slot) -> None:
        if self.speaks and slot.failure is None and sys.stderr.isatty():
            print(f"check    {slot.kind.title}", file=sys.stderr, flush=True)


def _record(unit: Unit, rows: SiteRows) -> UnitRecord:
    content = hashlib.sha256()
    for tensor in (unit.atoms, unit.centre):
        content.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return UnitRecord(
        name=unit.name,
        kind=type(unit).__name__,
        site=rows.site,
        width=rows.width,
        atoms=len(unit.atoms),
        digest=content.hexdigest(),
        source=dict(unit.source),
    )
