"""How many atoms rows need, how evenly atoms are used, and which of them remember a single row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from atoms.activations.site_rows import SiteRows
from atoms.checks.bootstrap import Interval, interval, resampled_sums
from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Claim, Section, Verdict
from atoms.checks.row_table import RowTable
from atoms.metrics import SparsityCounts, SparsityProfile
from atoms.metrics.sparsity import row_fingerprints
from atoms.progress import Meter

_QUANTILES = {"k_q05": 0.05, "k_q25": 0.25, "k_median": 0.5, "k_q75": 0.75, "k_q95": 0.95, "k_q99": 0.99}
_SHARES = (0.5, 0.9, 0.99)
_RATES_PER_DECADE = 4
_RANKS = 200  # points of the curve of firing rates


@dataclass(frozen=True, eq=False)
class Usage:
    """How one split uses the atoms.

    Attributes:
        l0: Atoms of every row, (rows,) int64.
        l0_histogram: Number of rows by number of atoms, (A + 1,) int64.
        firing_counts: Number of rows each atom fires on, (A,) int64.
        singleton: Atoms that fire on one distinct row only, however often it is repeated, (A,) bool.
        fingerprints: 64-bit fingerprint of every row, (rows,) int64; equal rows have equal ones.
        mean: Mean number of atoms of a row, with its interval over groups of documents.
    """

    l0: Tensor
    l0_histogram: Tensor
    firing_counts: Tensor
    singleton: Tensor
    fingerprints: Tensor
    mean: Interval

    @property
    def rows(self) -> int:
        """Rows looked at."""
        return len(self.l0)

    @property
    def dead(self) -> Tensor:
        """Atoms that fire on no row, (A,) bool."""
        return self.firing_counts == 0


@dataclass(frozen=True, eq=False)
class Sparseness:
    """What was found.

    Attributes:
        held_out: On held-out rows.
        train: On the training rows looked at, of which there may be none.
        max_k: Most atoms a row may have in the claim.
        never: Atoms that fire on none of all training rows, those beyond the ones looked at included, (A,) bool.
    """

    held_out: Usage
    train: Usage
    max_k: int | None
    never: Tensor


class Sparsity(Check):
    """Atoms per row and rows per atom, from sparse codes alone."""

    name: ClassVar[str] = "sparsity"
    title: ClassVar[str] = "Sparsity"
    splits: ClassVar[frozenset[str]] = frozenset({"val", "train"})

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.tables = {split: RowTable() for split in sorted(self.splits)}
        self.profiles = {split: SparsityProfile(subject.num_atoms).to(subject.device) for split in self.tables}

    def update(self, batch: Encoded) -> None:  # noqa: D102  # inherited
        self.profiles[batch.split].update(batch.codes, batch.rows)
        self.tables[batch.split].add(batch.index, l0=batch.codes.l0, fingerprint=row_fingerprints(batch.rows))

    def compute(self) -> Sparseness:  # noqa: D102
        held_out = self._usage(self.subject.held_out, "val")
        train = self._usage(self.subject.train, "train")
        max_k = self.subject.max_k
        if max_k is None and held_out.rows:
            max_k = 2 * int(held_out.l0.median())
        return Sparseness(held_out, train, max_k, self._never(train.dead))

    def _never(self, dead: Tensor) -> Tensor:
        """Of atoms that are dead on the training rows looked at, those that are dead on all others too."""
        subject, rows = self.subject, self.subject.train
        seen = subject.settings.counts(len(subject.held_out), len(rows))["train"]
        if not dead.any() or seen >= len(rows):
            return dead
        last, reads = int(rows.places[seen - 1]), subject.unit.reads or rows.site
        together = dist.is_available() and dist.is_initialized()
        place = {"rank": dist.get_rank(), "world_size": dist.get_world_size()} if together else {}
        never = dead.clone()
        with Meter("dead atoms", len(rows) - seen, "rows", not place.get("rank")) as meter:
            for batch in rows.stream(subject.settings.batch_rows, [reads], **place):
                new = int((batch.row_index > last).sum())
                if new and never.any():
                    fired = subject.unit.encode(batch.rows[reads].float().to(subject.device)).indices
                    never[fired.long().cpu()] = False
                meter.advance(new * place.get("world_size", 1))
        ranks = [never]
        if together:
            ranks = [never] * dist.get_world_size()
            dist.all_gather_object(ranks, never)
        return torch.stack(ranks).all(0)

    def _usage(self, rows: SiteRows, split: str) -> Usage:
        counts: SparsityCounts = self.profiles[split].pooled()
        table = self.tables[split].gather()
        none = torch.zeros(0, dtype=torch.int64)
        index, l0 = table.get("index", none), table.get("l0", none)
        groups = torch.from_numpy(rows.groups())[index]
        settings = self.subject.settings
        sums = resampled_sums({"l0": l0}, groups, resamples=settings.bootstrap, seed=settings.seed)
        fired = counts.firing_counts > 0
        return Usage(
            l0=l0,
            l0_histogram=counts.l0_histogram.cpu(),
            firing_counts=counts.firing_counts.cpu(),
            singleton=(fired & (counts.lowest == counts.highest)).cpu(),
            fingerprints=table.get("fingerprint", none),
            mean=interval(sums["l0"] / sums["rows"], len(np.unique(groups))),
        )

    def report(self, found: Mapping[str, Any]) -> Section:  # noqa: D102
        own: Sparseness = found[self.name]
        held_out, train = own.held_out, own.train
        numbers = self._numbers(held_out)
        numbers |= {f"{name}_train": value for name, value in self._numbers(train).items()}
        both = held_out.dead & train.dead
        known = torch.isin(held_out.fingerprints, train.fingerprints)
        numbers |= {
            "dead_on_both": _share(both),
            "dead_in_training": _share(own.never),
            "seen_in_training": known.double().mean().item() if held_out.rows else float("nan"),
            "max_k": float("nan") if own.max_k is None else float(own.max_k),
        }
        return Section(
            name=self.name,
            title=self.title,
            numbers=numbers,
            claims=(self._claim(own),),
            tables=self._tables(own),
            notes=tuple(self._notes(own, both, int(known.sum()))),
        )

    @staticmethod
    def _numbers(usage: Usage) -> dict[str, float]:
        nan = float("nan")
        if not usage.rows:
            names = ["rows", "l0", "l0_low", "l0_high", *_QUANTILES, "k_max", "dead", "singleton", "duplicates"]
            names += [*(f"atoms_for_{share * 100:g}" for share in _SHARES), "firing_max"]
            return {**dict.fromkeys(names, nan), "rows": 0.0}
        k = usage.l0.numpy()
        fired = usage.firing_counts.sum().item() > 0
        shared = usage.firing_counts.sort(descending=True).values.double().cumsum(0)
        numbers = {
            "rows": float(usage.rows),
            "l0": usage.mean.value,
            "l0_low": usage.mean.low,
            "l0_high": usage.mean.high,
            **{name: float(np.quantile(k, q, method="inverted_cdf")) for name, q in _QUANTILES.items()},
            "k_max": float(k.max()),
            "dead": _share(usage.dead),
            "singleton": _share(usage.singleton),
            "duplicates": 1 - len(np.unique(usage.fingerprints)) / usage.rows,
            "firing_max": usage.firing_counts.max().item() / usage.rows,
        }
        for share in _SHARES:
            needed = int(torch.searchsorted(shared, share * shared[-1])) + 1
            numbers[f"atoms_for_{share * 100:g}"] = float(needed) if fired else nan
        return numbers

    @staticmethod
    def _claim(own: Sparseness) -> Claim:
        usage, limit = own.held_out, own.max_k
        verdict, why = Verdict.NOT_APPLICABLE, "no held-out row was looked at"
        value = threshold = None
        inputs: dict[str, float] = {}
        if usage.rows and limit is not None:
            value, threshold = float(usage.l0.max()), float(limit)
            within = (usage.l0 <= limit).double().mean().item()
            verdict = Verdict.GUARANTEED if value <= threshold else Verdict.REFUTED
            why = f"{within:.1%} of rows have at most {limit:,} atoms, the most on one row is {int(value):,}"
            inputs = {"within": within, "l0": usage.mean.value}
        return Claim(
            name="sparsity",
            statement=f"The unit rebuilds every held-out row from at most K = {limit} atoms.",
            verdict=verdict,
            why=why,
            source="Towards Atoms (arXiv 2509.20784), sparsity",
            computed_on=f"{usage.rows:,} held-out rows",
            value=value,
            threshold=threshold,
            inputs=inputs,
        )

    @staticmethod
    def _tables(own: Sparseness) -> dict[str, dict[str, list[float] | list[str]]]:
        held_out, train = own.held_out.l0_histogram, own.train.l0_histogram
        rows = (held_out + train).nonzero().squeeze(1)
        rates = [
            usage.firing_counts.sort(descending=True).values.double() / max(usage.rows, 1)
            for usage in (own.held_out, own.train)
        ]
        atoms = len(rates[0])
        ranks = np.unique(np.geomspace(1, max(atoms, 1), _RANKS).round().astype(np.int64)) - 1
        edges = np.logspace(-8, 0, 8 * _RATES_PER_DECADE + 1)

        def by_rate(rate: Tensor) -> list[float]:
            alive = np.histogram(rate[rate > 0].clamp_min(edges[0]).numpy(), edges)[0]
            return [float((rate == 0).sum()), *alive.astype(float).tolist()]

        return {
            "k_histogram": {
                "k": rows.double().tolist(),
                "held_out_rows": held_out[rows].double().tolist(),
                "train_rows": train[rows].double().tolist(),
            },
            "firing_by_rank": {
                "rank": (ranks + 1).astype(float).tolist(),
                "held_out_rate": rates[0][ranks].tolist(),
                "train_rate": rates[1][ranks].tolist(),
            },
            "firing_rates": {
                "rate_at_most": [0.0, *edges[1:].tolist()],
                "held_out_atoms": by_rate(rates[0]),
                "train_atoms": by_rate(rates[1]),
            },
        }

    def _notes(self, own: Sparseness, both: Tensor, known: int) -> list[str]:
        held_out, train, width = own.held_out, own.train, self.subject.width
        notes = []
        if bool(both.all()):
            notes.append("All atoms are dead: no atom fires on any row looked at, so the unit says the centre of all.")
        if held_out.rows and held_out.l0.min() == 0 and not both.all():
            notes.append(f"{int((held_out.l0 == 0).sum()):,} held-out rows have no atom at all.")
        if own.max_k is not None and own.max_k >= width:
            notes.append(f"K = {own.max_k:,} is no restriction: any {width:,} independent atoms rebuild every row.")
        if known:
            notes.append(
                f"{known:,} of {held_out.rows:,} held-out rows are equal to one of the training rows looked at: "
                "scores on them show memory."
            )
        if train.rows:
            notes.append(
                f"Singleton atoms of training are those of {train.rows:,} training rows; {int(own.never.sum()):,} "
                f"atoms fire on none of all {len(self.subject.train):,}."
            )
        return notes


def _share(atoms: Tensor) -> float:
    return atoms.double().mean().item() if len(atoms) else float("nan")
