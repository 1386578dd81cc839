"""Whether the metric everything is judged in can bear it: its condition, its ridge, its sample, its two definitions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Claim, Section, Verdict
from atoms.checks.folds import Folds, joined
from atoms.checks.predicates import donoho_elad, gershgorin_rip
from atoms.checks.row_table import RowTable
from atoms.checks.sampling import spread
from atoms.checks.sparsity_levels import at_levels
from atoms.checks.sums import Sums
from atoms.conditioning import effective_rank
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, coherence
from atoms.metrics import q_star

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Ridges tried, as multiples of the median eigenvalue."""
_ATOMS = 4096  # whose pairs are looked at under every metric
_WIDE = 1024  # widths beyond which a decomposition a fold takes too long
_FOLDS = 8
_PAIRED = 128  # rows of a batch whose codes are held against each other
_POINTS = 200  # of the spectrum's curve


class Reading(NamedTuple):
    """A dictionary under one metric.

    Attributes:
        mu: Largest ``|cos|`` of two atoms.
        q: q* over pairs of atoms; NaN without a row.
        condition: Condition number of the metric.
        effective_rank: Exponential of the entropy of its eigenvalues' shares.
    """

    mu: float
    q: float
    condition: float
    effective_rank: float


@dataclass(frozen=True, eq=False)
class Health:
    """What was found.

    Attributes:
        strip: The dictionary under each of `RIDGES`.
        sparsities: Numbers of atoms a row at which theorems are held against the strip, by name.
        flips: Conditions that hold under one ridge of the strip and not under another, by theorem and sparsity.
        halves: The dictionary under the metric of either half of the training documents; fewer where that has none.
        halves_angle: Angle in degrees between ``S^(1/2)`` of the halves.
        errors: Standard errors of the readings over folds of documents; None where there are too few.
        folds: Number of folds.
        atoms_angle: Angle in degrees between ``S^(1/2)`` and ``(Σ dᵀd)^(-1/2)``.
        atoms_distance: Distance of ``Σ dᵀd`` from a multiple of the identity in whitened coordinates, in [0, 1).
        weighted_distance: The same with every atom weighted by the second moment of its coefficient.
        isotropy: Participation ratio of ``E[δᵀδ]`` over the number of atoms; 1 for isotropic coefficients.
        diagonal_isotropy: Exponential of the entropy of its diagonal, over the number of atoms.
        mean_share: ``‖E δ‖² / E‖δ‖²``; 0 for centred coefficients.
        fold_rows: Training rows the folds are of.
        atoms_used: Atoms whose pairs were looked at.
    """

    strip: list[Reading]
    sparsities: dict[str, int]
    flips: list[str]
    halves: list[Reading]
    halves_angle: float
    errors: Reading | None
    folds: int
    atoms_angle: float
    atoms_distance: float
    weighted_distance: float
    isotropy: float
    diagonal_isotropy: float
    mean_share: float
    fold_rows: int
    atoms_used: int


class MetricHealth(Check):
    """Condition, ridge and sampling error of the AIP, and how far data and definition disagree on it."""

    name: ClassVar[str] = "metric"
    title: ClassVar[str] = "Metric health"
    splits: ClassVar[frozenset[str]] = frozenset({"val", "train"})

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.folds = Folds(subject, _FOLDS if subject.width <= _WIDE else 2)
        self.l0 = RowTable()
        self.pairs = RowTable()
        zero = torch.zeros(subject.num_atoms, dtype=torch.float64)
        self.codes = Sums(first=zero, second=zero.clone()).to(subject.device)

    def update(self, batch: Encoded) -> None:  # noqa: D102  # inherited
        if batch.split == "train":
            self.folds.update(batch)
            return
        codes = batch.codes
        self.l0.add(batch.index, l0=codes.l0)
        atom = codes.indices.long()
        values = codes.values.double() * self.subject.norms[atom]
        weights = {"first": values, "second": values.square()}
        self.codes.update(**{name: torch.bincount(atom, w, minlength=codes.width) for name, w in weights.items()})
        few = min(_PAIRED, len(codes))
        entries = int(codes.offsets[few])
        dense = values.new_zeros(few, codes.width)
        dense[codes.rows[:entries], atom[:entries]] = values[:entries]
        products = (dense @ dense.T).fill_diagonal_(0).square().sum()
        count = torch.full((1,), few * (few - 1))
        self.pairs.add(batch.index[:1], squares=products[None].cpu(), pairs=count)

    def compute(self) -> Health:  # noqa: D102
        subject, geometry = self.subject, self.subject.geometry
        folds, sums = self.folds.pooled(), self.codes.pooled()
        l0 = self.l0.gather().get("l0", torch.zeros(0, dtype=torch.int64))
        atoms = subject.unit.atoms.to(subject.device)
        chosen = spread(atoms, _ATOMS)
        histogram = torch.bincount(l0, minlength=1)

        def read(metric: AtomicInnerProduct) -> Reading:
            found = coherence(chosen, aip=metric)
            q = q_star(found, histogram).q if len(l0) else math.nan
            return Reading(found.maximum, q, metric.condition, effective_rank(metric.eigenvalues))

        strip = [read(geometry.with_ridge(ridge)) for ridge in RIDGES]
        sparsities = at_levels(l0) if bool(l0.any()) else {}
        middle = len(folds) // 2
        halves = [metric for part in (folds[:middle], folds[middle:]) if (metric := _metric(part))]
        left_out = [_metric(folds[:fold] + folds[fold + 1 :]) for fold in range(len(folds))] if len(folds) > 2 else []
        whole = [metric for metric in left_out if metric is not None]
        frame = geometry.whiten(atoms.double())
        weights = sums["second"].sqrt().to(frame.device)[:, None] / subject.norms.where(subject.norms > 0, 1)[:, None]
        return Health(
            strip=strip,
            sparsities=sparsities,
            flips=_flips(strip, sparsities),
            halves=[read(metric) for metric in halves],
            halves_angle=_angle(*(metric.map() for metric in halves)) if len(halves) == 2 else math.nan,
            errors=_jackknife([read(metric) for metric in whole]) if whole and len(whole) == len(folds) else None,
            folds=len(folds),
            atoms_angle=_against_atoms(geometry, atoms),
            atoms_distance=frame_distance(frame),
            weighted_distance=frame_distance(frame * weights),
            fold_rows=sum(fold.count for fold in folds),
            atoms_used=len(chosen),
            **self._code_moments(sums, len(l0)),
        )

    def _code_moments(self, sums: Mapping[str, Tensor], rows: int) -> dict[str, float]:
        """How far codes are from the isotropy under which data and definition would agree."""
        pairs = self.pairs.gather()
        trace = sums["second"].sum().item()
        if not rows or trace == 0:
            return dict.fromkeys(("isotropy", "diagonal_isotropy", "mean_share"), math.nan)
        atoms = len(sums["second"])
        count = pairs["pairs"].sum().item()
        # the squared product of two rows' codes has the expectation ‖E[δᵀδ]‖²
        square = pairs["squares"].sum().item() / count if count else math.nan
        return {
            "isotropy": (trace / rows) ** 2 / square / atoms if square else math.nan,
            "diagonal_isotropy": effective_rank(sums["second"]) / atoms,
            "mean_share": (sums["first"] / rows).square().sum().item() / (trace / rows),
        }

    def report(self, found: Mapping[str, Any]) -> Section:  # noqa: D102
        own: Health = found[self.name]
        geometry = self.subject.geometry
        mu, q = [[getattr(reading, name) for reading in own.strip] for name in ("mu", "q")]
        numbers = {
            "condition": geometry.condition,
            "rank": float(geometry.rank),
            "effective_rank": effective_rank(geometry.eigenvalues),
            "ridge_share": geometry.ridge_share,
            "mean_norm": geometry.norm(self.subject.train.moments.mean).item(),
            "strip_mu_low": min(mu),
            "strip_mu_high": max(mu),
            "strip_q_low": min(q),
            "strip_q_high": max(q),
            "ridge_dependent": float(len(own.flips)),
            "halves_angle": own.halves_angle,
            "halves_mu_change": _change(own.halves, "mu"),
            "halves_q_change": _change(own.halves, "q"),
            "atoms_angle": own.atoms_angle,
            "atoms_distance": own.atoms_distance,
            "weighted_distance": own.weighted_distance,
            "code_isotropy": own.isotropy,
            "code_diagonal_isotropy": own.diagonal_isotropy,
            "code_mean_share": own.mean_share,
        }
        errors = own.errors._asdict() if own.errors else dict.fromkeys(Reading._fields, math.nan)
        numbers |= {f"{name}_error": value for name, value in errors.items()}
        return Section(
            name=self.name,
            title=self.title,
            numbers=numbers,
            claims=(self._claim(own),),
            tables=self._tables(own),
            notes=tuple(self._notes(own)),
        )

    def _claim(self, own: Health) -> Claim:
        mu = [reading.mu for reading in own.strip]
        looked_at = len(own.sparsities) * len(_CONDITIONS)
        verdict = Verdict.REFUTED if own.flips else Verdict.NOT_REFUTED
        return Claim(
            name="ridge",
            statement="Which coherence conditions of theorems hold does not depend on the ridge.",
            verdict=verdict if looked_at else Verdict.NOT_APPLICABLE,
            why=(
                f"over ridges from {RIDGES[0]:g} to {RIDGES[-1]:g} of the median eigenvalue the largest |cos| goes "
                f"from {min(mu):.4f} to {max(mu):.4f}; ridge-dependent: {', '.join(own.flips) or 'none'}"
                if looked_at
                else "no held-out row has an atom"
            ),
            source="sensitivity of the AIP's estimate",
            computed_on=f"pairs of {own.atoms_used:,} atoms, {looked_at} conditions",
            value=float(len(own.flips)) if looked_at else None,
            threshold=0.0,
            inputs={f"k_{name}": float(k) for name, k in own.sparsities.items()},
        )

    def _tables(self, own: Health) -> dict[str, dict[str, list[float] | list[str]]]:
        geometry = self.subject.geometry
        eigenvalues = geometry.eigenvalues.flip(0)
        place = torch.from_numpy(np.unique(np.geomspace(1, len(eigenvalues), _POINTS).round().astype(np.int64)) - 1)
        readings = {f"ridge {ridge:g}": reading for ridge, reading in zip(RIDGES, own.strip, strict=True)}
        readings |= {f"half {number + 1}": reading for number, reading in enumerate(own.halves)}
        strip: dict[str, list[float] | list[str]] = {
            "ridge": list(RIDGES),
            "ridge_share": [geometry.with_ridge(ridge).ridge_share for ridge in RIDGES],
            **{name: [getattr(reading, name) for reading in own.strip] for name in ("condition", "mu", "q")},
        }
        for theorem, holds in _CONDITIONS.items():
            for name, k in own.sparsities.items():
                strip[f"{theorem}_{name}"] = [float(holds(k, reading.mu)) for reading in own.strip]
        return {
            "strip": strip,
            "metrics": {
                "metric": list(readings),
                **{name: [getattr(reading, name) for reading in readings.values()] for name in Reading._fields},
            },
            "spectrum": {
                "rank": (place + 1).double().tolist(),
                "eigenvalue_share": (eigenvalues[place] / eigenvalues.sum()).tolist(),
                "whitened_variance": (eigenvalues / (eigenvalues + geometry.ridge_value))[place].tolist(),
            },
        }

    def _notes(self, own: Health) -> list[str]:
        subject, geometry = self.subject, self.subject.geometry
        notes = []
        if geometry.rank < subject.width:
            notes.append(
                f"The second moment has rank {geometry.rank:,} of {subject.width:,}: in the directions that are "
                "missing lengths are set by the ridge alone."
            )
        if geometry.ridge_share > 0.1:
            notes.append(f"The ridge decides {geometry.ridge_share:.0%} of the metric, averaged over directions.")
        if subject.train.moments.count < 10 * subject.width:
            notes.append(
                f"The metric of width {subject.width:,} is estimated from only {subject.train.moments.count:,} rows."
            )
        if own.flips:
            notes.append(f"Ridge-dependent, hence not to be claimed: {', '.join(own.flips)}.")
        notes.append(
            f"Halves and standard errors: {own.fold_rows:,} training rows in {own.folds} folds by groups of documents."
        )
        if own.atoms_used < subject.num_atoms:
            notes.append(f"Coherence under other metrics is that of {own.atoms_used:,} atoms, evenly spread.")
        return notes


_CONDITIONS: dict[str, Callable[[int, float], bool]] = {"t2": gershgorin_rip, "t3": donoho_elad}


def frame_distance(atoms: Tensor) -> float:
    """Relative distance of ``Σ dᵀd`` from the multiple of the identity next to it, in [0, 1); 0 for a tight frame.

    Of atoms in whitened coordinates it says how far the inner product from data is from the one the definition takes
    from the atoms, whatever invertible map is applied to rows and atoms alike.

    Args:
        atoms: (A, H) float64; NaN where all are zero.
    """
    frame = atoms.T @ atoms
    size = frame.square().sum()
    return (1 - frame.trace().square() / (len(frame) * size)).clamp_min(0).sqrt().item()


def _against_atoms(geometry: AtomicInnerProduct, atoms: Tensor) -> float:
    try:
        defined = AtomicInnerProduct.from_atoms(atoms, ridge=1e-3)
    except AtomsError:  # atoms that are all zero have none
        return math.nan
    return _angle(geometry.map(), defined.map())


def _angle(a: Tensor, b: Tensor) -> float:
    """Angle between two matrices as vectors, in degrees: 0 where they differ in scale alone."""
    return math.degrees(math.acos(min(1.0, ((a * b).sum() / (a.norm() * b.norm())).item())))


def _metric(parts: list[Any]) -> AtomicInnerProduct | None:
    try:
        return AtomicInnerProduct.from_moments(joined(parts))
    except AtomsError:  # too few documents for a fold to have rows
        return None


def _jackknife(readings: list[Reading]) -> Reading:
    """Standard errors from readings that leave out a fold each.

    Source: Tukey 1958; Efron and Tibshirani 1993, chapter 11.
    """
    values = torch.tensor(readings, dtype=torch.float64)
    deviations = values - values.mean(0)
    return Reading(*(((len(values) - 1) / len(values) * deviations.square().sum(0)).sqrt().tolist()))


def _flips(strip: list[Reading], sparsities: Mapping[str, int]) -> list[str]:
    return [
        f"{theorem.upper()} at K = {k:,} ({name})"
        for theorem, holds in _CONDITIONS.items()
        for name, k in sparsities.items()
        if len({holds(k, reading.mu) for reading in strip}) > 1
    ]


def _change(halves: list[Reading], name: str) -> float:
    if len(halves) < 2:
        return math.nan
    first, second = (getattr(half, name) for half in halves)
    return abs(float(first) - float(second))
