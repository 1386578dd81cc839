"""Whether rows are combinations of the unit's atoms, on documents nothing was learnt from and on those it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from atoms.activations.site_rows import SiteRows
from atoms.checks.bootstrap import Interval, interval, resampled_sums
from atoms.checks.bootstrap import Sums as ResampledSums
from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Claim, Section, Verdict
from atoms.checks.refit import refit
from atoms.checks.row_table import RowTable
from atoms.checks.sampling import judged_places, spread
from atoms.checks.sums import Sums
from atoms.sae import SparseCodes

EXACT = 1e-6
"""Relative squared error of a row that counts as none: float32 codes and atoms leave about 1e-12."""
MEMORISED = 0.05
"""Loss of R² from training to held-out documents at which a unit does not generalise."""
_MOST_ATOMS = 256  # of a row whose coefficients are solved for: the cost goes with the third power
_ERROR_EDGES = np.concatenate([[0.0], np.logspace(-6, 1, 71)])
_SOURCE = "Towards Atoms (arXiv 2509.20784), representability"


@dataclass(frozen=True, eq=False)
class Fidelity:
    """How well one split is rebuilt.

    Attributes:
        rows: Rows looked at.
        groups: Groups of documents they are of.
        scores: R² by name; NaN where it does not exist.
        intervals: Of the scores that were resampled.
        largest_error: Largest squared error of a row, relative to its squared distance from the mean training row.
        exact: Share of rows whose relative squared error is at most `EXACT`.
        solved: Rows whose coefficients were solved for again.
        unsolved: Rows of that sample with too many atoms to do so.
        errors: Number of rows by relative squared error, the last for all beyond.
        resampled: Centred R² of every resampling of groups, of all rows first.
    """

    rows: int
    groups: int
    scores: dict[str, float]
    intervals: dict[str, Interval]
    largest_error: float
    exact: float
    solved: int
    unsolved: int
    errors: list[float]
    resampled: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Representation:
    """What was found.

    Attributes:
        held_out: On held-out rows.
        train: On training rows; None if none were looked at.
        gap: Training minus held-out R², by score: ``r2`` and ``r2_aip``.
    """

    held_out: Fidelity
    train: Fidelity | None
    gap: dict[str, Interval]


class Representability(Check):
    """R² in four readings on held-out and on training rows, with intervals over groups of documents."""

    name: ClassVar[str] = "representability"
    title: ClassVar[str] = "Representability"
    splits: ClassVar[frozenset[str]] = frozenset({"val", "train"})

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        device, width = subject.device, subject.width
        self.directions = subject.directions.double()
        self.metric = subject.geometry.map().to(device)
        self.unmetric = subject.geometry.unmap().to(device)
        self.mean = subject.train.moments.mean.to(device)
        self.centre = subject.unit.centre.to(device, torch.float64)
        self.tables = {split: RowTable() for split in sorted(self.splits)}
        self.solved = {split: RowTable() for split in sorted(self.splits)}
        self.sample = {
            split: spread(judged_places(subject, split), subject.settings.refit_rows) for split in self.tables
        }
        zero = torch.zeros(width, dtype=torch.float64)
        self.totals = Sums(val=zero, train=zero.clone()).to(device)

    def update(self, batch: Encoded) -> None:  # noqa: D102  # inherited
        rows = batch.rows.double()
        error = rows - batch.reconstruction.double()
        shifted = rows - self.mean
        self.totals.update(**{batch.split: shifted.sum(0)})
        whitened = rows @ self.metric
        self.tables[batch.split].add(
            batch.index,
            error=_energy(error),
            spread=_energy(shifted),
            total=_energy(rows),
            error_aip=_energy(error @ self.metric),
            spread_aip=_energy(whitened - self.mean @ self.metric),
            total_aip=_energy(whitened),
        )
        chosen = torch.isin(batch.index.cpu(), self.sample[batch.split]).to(rows.device)
        if bool(chosen.any()):
            self._solve(batch, whitened, chosen)

    def _solve(self, batch: Encoded, whitened: Tensor, chosen: Tensor) -> None:
        """Rebuild the rows of the sample from coefficients that are best in S on the atoms each has."""
        chosen &= batch.codes.l0 <= _MOST_ATOMS
        vectors = (whitened - self.centre @ self.metric)[chosen]
        codes = _rows_of(batch.codes, chosen)
        columns: dict[str, Tensor] = {}
        for name, keep_signs in (("ls", False), ("nnls", True)):
            error = vectors - refit(vectors, self.directions, codes, keep_signs=keep_signs)
            columns |= {f"{name}_aip": _energy(error), name: _energy(error @ self.unmetric)}
        self.solved[batch.split].add(batch.index[chosen], **columns)

    def compute(self) -> Representation:  # noqa: D102
        totals = self.totals.pooled()
        found = {
            split: self._fidelity(rows, split, totals[split])
            for split, rows in (("val", self.subject.held_out), ("train", self.subject.train))
        }
        held_out, train = found["val"], found["train"]
        gap = {}
        if train.rows and held_out.rows:
            groups = min(train.groups, held_out.groups)
            gap = {
                name: interval(train.resampled[name] - held_out.resampled[name], groups) for name in ("r2", "r2_aip")
            }
        return Representation(held_out, train if train.rows else None, gap)

    def _fidelity(self, rows: SiteRows, split: str, total: Tensor) -> Fidelity:
        table, solved = self.tables[split].gather(), self.solved[split].gather()
        if not table:
            table = {name: torch.zeros(0, dtype=torch.float64) for name in ("index", *_COLUMNS)}
        index = table.pop("index").long()
        count = len(index)
        # the mean of these rows lies off the training mean, about which the columns are taken
        offset = total / max(count, 1)
        metric = self.metric.cpu()
        offsets = {"": offset.square().sum(), "_aip": (offset @ metric).square().sum()}
        groups = torch.from_numpy(rows.groups())[index]
        settings = self.subject.settings
        sums = resampled_sums(table, groups, resamples=settings.bootstrap, seed=settings.seed + (split == "train"))
        resampled = {f"r2{space}": _centred(sums, "error", space, offsets[space]) for space in ("", "_aip")}
        scores = {name: values[0].item() for name, values in resampled.items()}
        for space in ("", "_aip"):
            error, around, energy = (table[f"{name}{space}"] for name in ("error", "spread", "total"))
            scores |= {
                f"r2{space}_uncentred": _ratio(error.sum(), energy.sum()),
                f"r2{space}_row_median": _median(1 - error / around),
                f"r2{space}_uncentred_row_median": _median(1 - error / energy),
                f"mean_r2{space}_uncentred": _ratio(around.sum(), energy.sum()),
            }
        scores |= self._refitted(table, index, solved, offsets)
        relative = torch.where(table["error"] == 0, 0, table["error"] / table["spread"])
        number = len(np.unique(groups))
        return Fidelity(
            rows=count,
            groups=number,
            scores=scores,
            intervals={name: interval(values, number) for name, values in resampled.items()},
            largest_error=relative.max().item() if count else float("nan"),
            exact=(relative <= EXACT).double().mean().item() if count else float("nan"),
            solved=len(solved.get("index", ())),
            unsolved=int(torch.isin(index, self.sample[split]).sum()) - len(solved.get("index", ())),
            errors=_histogram(relative),
            resampled=resampled,
        )

    @staticmethod
    def _refitted(
        table: Mapping[str, Tensor], index: Tensor, solved: Mapping[str, Tensor], offsets: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """R² on the sample, as the unit gave its codes and with coefficients solved for."""
        kinds = {"sample": "error", "refit": "ls", "nnls": "nnls"}
        what = ("", "_uncentred", "_row_median")
        if not solved or not len(solved["index"]):
            names = [f"r2{space}{of}_{kind}" for space in ("", "_aip") for of in what for kind in kinds]
            return dict.fromkeys(names, float("nan"))
        place = torch.searchsorted(index, solved["index"])
        rows = {name: column[place] for name, column in table.items()} | dict(solved)
        sums = {name: column.sum() for name, column in rows.items()}
        sums |= {"rows": torch.tensor(float(len(place)), dtype=torch.float64)}
        scores: dict[str, float] = {}
        for space in ("", "_aip"):
            for kind, error in kinds.items():
                scores |= {
                    f"r2{space}_{kind}": _centred(sums, error, space, offsets[space]).item(),
                    f"r2{space}_uncentred_{kind}": _ratio(sums[f"{error}{space}"], sums[f"total{space}"]),
                    f"r2{space}_row_median_{kind}": _median(1 - rows[f"{error}{space}"] / rows[f"spread{space}"]),
                }
        return scores

    def report(self, found: Mapping[str, Any]) -> Section:  # noqa: D102
        own: Representation = found[self.name]
        held_out, train = own.held_out, own.train
        numbers = dict(held_out.scores)
        for name, bounds in held_out.intervals.items():
            numbers |= {f"{name}_low": bounds.low, f"{name}_high": bounds.high}
        numbers |= {
            "rows": float(held_out.rows),
            "groups": float(held_out.groups),
            "largest_error": held_out.largest_error,
            "exact_rows": held_out.exact,
        }
        if train is not None:
            numbers |= {f"{name}_train": value for name, value in train.scores.items()}
            numbers |= {"rows_train": float(train.rows), "groups_train": float(train.groups)}
        for name, bounds in own.gap.items():
            key = name.replace("r2", "gap")
            numbers |= {key: bounds.value, f"{key}_low": bounds.low, f"{key}_high": bounds.high}
        return Section(
            name=self.name,
            title=self.title,
            numbers=numbers,
            claims=(self._exact(held_out), self._generalises(own)),
            tables=self._tables(held_out, train),
            notes=tuple(self._notes(held_out, train)),
        )

    def _exact(self, held_out: Fidelity) -> Claim:
        r2 = held_out.intervals["r2"]
        holds = held_out.largest_error <= EXACT
        return Claim(
            name="representability",
            statement="Every held-out row is the centre plus a combination of atoms, with the codes the unit gives it.",
            verdict=_verdict(held_out.rows, Verdict.GUARANTEED if holds else Verdict.NOT_GUARANTEED),
            why=(
                f"the largest squared error of a row is {held_out.largest_error:.3g} of its squared distance from the "
                f"mean, exact would be at most {EXACT:g}; {held_out.exact:.1%} of rows are exact; "
                f"R² {r2.value:.4f} ({r2.low:.4f} to {r2.high:.4f})"
            ),
            source=_SOURCE,
            computed_on=f"{held_out.rows:,} held-out rows",
            value=held_out.largest_error,
            threshold=EXACT,
            inputs={"r2": r2.value, "r2_low": r2.low, "r2_high": r2.high, "exact_rows": held_out.exact},
        )

    def _generalises(self, own: Representation) -> Claim:
        gap = own.gap.get("r2")
        verdict, why = Verdict.NOT_APPLICABLE, "there is no R² of both training and held-out rows"
        inputs: dict[str, float] = {}
        if gap is not None and own.train is not None and not math.isnan(gap.value):
            verdict = Verdict.REFUTED if gap.value > MEMORISED else Verdict.NOT_REFUTED
            trained, held_out = own.train.scores["r2"], own.held_out.scores["r2"]
            why = (
                f"R² {trained:.4f} on training rows, {held_out:.4f} on held-out ones: a gap of {gap.value:.4f} "
                f"({gap.low:.4f} to {gap.high:.4f}); more than {MEMORISED:g} refutes"
            )
            inputs = {"r2_train": trained, "r2": held_out, "gap_low": gap.low, "gap_high": gap.high}
        return Claim(
            name="memorisation",
            statement="Fidelity generalises to held-out documents.",
            verdict=_verdict(own.held_out.rows, verdict),
            why=why,
            source="held-out fidelity against that on as many training rows",
            computed_on=f"{own.train.rows if own.train else 0:,} training and {own.held_out.rows:,} held-out rows",
            value=None if gap is None else gap.value,
            threshold=MEMORISED,
            inputs=inputs,
        )

    @staticmethod
    def _tables(held_out: Fidelity, train: Fidelity | None) -> dict[str, dict[str, list[float] | list[str]]]:
        nothing = [float("nan")] * len(held_out.scores)
        counts = len(held_out.errors)
        edges: list[float] = [*_ERROR_EDGES[1:].tolist(), float("inf")]
        return {
            "fidelity": {
                "score": list(held_out.scores),
                "held_out": list(held_out.scores.values()),
                "train": list(train.scores.values()) if train else nothing,
            },
            "row_errors": {
                "error_at_most": edges,
                "held_out_rows": held_out.errors,
                "train_rows": train.errors if train else [float("nan")] * counts,
            },
        }

    def _notes(self, held_out: Fidelity, train: Fidelity | None) -> list[str]:
        notes = []
        for rows in (self.subject.held_out, self.subject.train):
            left_out = rows.data.store.n_rows(rows.split) - len(rows)
            if left_out:
                notes.append(
                    f"{left_out:,} of {left_out + len(rows):,} {_CALLED[rows.split]} rows are left out of everything "
                    f"here, being longer than data.max_norm={rows.data.max_norm} times the median, or not finite."
                )
        if held_out.groups < 20:
            notes.append(
                f"The held-out rows are of {held_out.groups} groups of documents: intervals from so few are too narrow."
            )
        if note := self.subject.held_out.groups_note:
            notes.append(note)
        if held_out.solved < held_out.rows or (train and train.solved < train.rows):
            beside = train.solved if train else 0
            notes.append(
                f"Coefficients were solved for again on {held_out.solved:,} held-out and {beside:,} training rows, "
                "evenly spread; the numbers called sample, refit and nnls are of those rows."
            )
        unsolved = held_out.unsolved + (train.unsolved if train else 0)
        if unsolved:
            notes.append(f"{unsolved:,} of these rows have more than {_MOST_ATOMS} atoms and were not solved for.")
        if train is None:
            notes.append("No training rows were looked at, so nothing is known of memorisation (checks.train_rows).")
        return notes


_COLUMNS = tuple(f"{name}{space}" for space in ("", "_aip") for name in ("error", "spread", "total"))
_CALLED = {"val": "held-out", "train": "training"}


def _energy(vectors: Tensor) -> Tensor:
    return vectors.square().sum(1)


def _rows_of(codes: SparseCodes, chosen: Tensor) -> SparseCodes:
    """The codes of some rows, (B,) bool."""
    entries = chosen[codes.rows]
    offsets = torch.cat([codes.offsets[:1], codes.l0[chosen].cumsum(0)])
    return SparseCodes(offsets, codes.indices[entries], codes.values[entries], codes.width)


def _centred(sums: ResampledSums, error: str, space: str, offset: Tensor) -> Tensor:
    """R² about the mean of all rows, whose squared distance from the training mean is `offset`."""
    return 1 - sums[f"{error}{space}"] / (sums[f"spread{space}"] - sums["rows"] * offset)


def _ratio(error: Tensor, energy: Tensor) -> float:
    return (1 - error / energy).item()


def _median(values: Tensor) -> float:
    return float(np.median(values.numpy())) if len(values) else float("nan")


def _histogram(values: Tensor) -> list[float]:
    bins = np.searchsorted(_ERROR_EDGES[1:], values.numpy())
    return [float(count) for count in np.bincount(bins, minlength=len(_ERROR_EDGES))]


def _verdict(rows: int, verdict: Verdict) -> Verdict:
    return verdict if rows else Verdict.NOT_APPLICABLE
