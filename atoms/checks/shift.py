"""Angles between rows, and between atoms, in the metrics that a claim about them could have chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Claim, Section, Verdict
from atoms.checks.folds import Folds
from atoms.checks.sampling import spread
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments
from atoms.geometry.inner_product import unit_rows

_MOST = 2048  # rows, or atoms, whose pairs are looked at
_QUANTILES = {"q001": 0.001, "q01": 0.01, "q99": 0.99, "q999": 0.999}
_BINS = 180  # of one degree each
WAYS = {
    "euclid": "Euclid",
    "centred": "Euclid, centred",
    "own": "AIP of these very vectors",
    "aip": "AIP of the training documents",
    "half": "AIP of half of the training documents",
    "shuffled": "its eigenvalues dealt to other eigenvectors",
    "random": "its eigenvalues on random directions",
    "mahalanobis": "Mahalanobis, centred",
}
"""Every metric the angles are measured in, in the order of the figure."""


@dataclass(frozen=True, eq=False)
class Angles:
    """Angles between all pairs of some vectors.

    Attributes:
        mean: Mean angle in degrees.
        spread: Standard deviation in degrees.
        quantiles: By name, in degrees.
        mean_cosine: Mean cosine.
        ratio: ``E⟨u, v⟩ / E‖u‖²`` over pairs and vectors: the cosine before norms are divided out pair by pair.
        histogram: Number of pairs by whole degrees, (180,) int64.
    """

    mean: float
    spread: float
    quantiles: dict[str, float]
    mean_cosine: float
    ratio: float
    histogram: Tensor


def angles(vectors: Tensor) -> Angles | None:
    """Measure the angles between all pairs of vectors; those of zero norm have none and are left out.

    For ``S`` the inverse second moment of the very vectors, ``ratio`` is at most one over their width, whatever they
    are, since ``E⟨u, v⟩_S`` over pairs is at most ``m S m ≤ 1`` (m their mean) and ``E‖u‖²_S`` is the width. The mean
    *cosine* need not be small then: where norms are uneven it is not.

    Args:
        vectors: (n, H) float64, in coordinates in which the metric is Euclid's; memory is O(n²).

    Returns:
        None with fewer than two vectors of positive norm.
    """
    vectors = vectors[vectors.any(1)]
    count = len(vectors)
    if count < 2:
        return None
    square = vectors.square().sum()
    ratio = (vectors.sum(0).square().sum() - square) / (count - 1) / square
    directions = unit_rows(vectors)
    upper = torch.ones(count, count, dtype=torch.bool, device=vectors.device).triu_(1)
    cosines = (directions @ directions.T).clamp_(-1, 1)[upper]
    degrees = np.sort(torch.rad2deg(torch.arccos(cosines)).cpu().numpy())
    return Angles(
        mean=float(degrees.mean()),
        spread=float(degrees.std()),
        quantiles={name: float(degrees[int(q * len(degrees))]) for name, q in _QUANTILES.items()},
        mean_cosine=cosines.mean().item(),
        ratio=ratio.item(),
        histogram=torch.from_numpy(np.histogram(degrees, _BINS, (0, 180))[0]),
    )


def automatic_ratio(moments: Moments, geometry: AtomicInnerProduct) -> tuple[float, float]:
    """What no data could avoid: ``E⟨u, v⟩_S / E‖u‖²_S`` of the rows ``S`` was made from, and its bound.

    Args:
        moments: Of those rows.
        geometry: S, from the second moment.

    Returns:
        The ratio, and ``1 / Σ λ/(λ + rho)``, which is one over the width where the ridge does not matter.
    """
    size = geometry.width * (1 - geometry.ridge_share)
    mean = geometry.norm(moments.mean).square().item()
    return (moments.count * mean - size) / max(moments.count - 1, 1) / size, 1 / size


@dataclass(frozen=True, eq=False)
class Shifts:
    """What was found.

    Attributes:
        rows: Angles between held-out rows, by way; None where there are not two of them.
        atoms: Angles between atoms, by way.
        rows_used: Held-out rows whose pairs were looked at.
        atoms_used: Atoms whose pairs were looked at.
        half_rows: Training rows in the half of the documents.
        train_ratio: Ratio on the training rows, exact, which is bounded whatever they are.
        bound: That bound.
    """

    rows: dict[str, Angles | None]
    atoms: dict[str, Angles | None]
    rows_used: int
    atoms_used: int
    half_rows: int
    train_ratio: float
    bound: float


class Shift(Check):
    """Angles between rows and between atoms in eight metrics, saying which of it no data could have avoided."""

    name: ClassVar[str] = "shift"
    title: ClassVar[str] = "Representation shift"
    splits: ClassVar[frozenset[str]] = frozenset({"train"})

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.folds = Folds(subject, 2)

    def update(self, batch: Encoded) -> None:  # noqa: D102  # inherited
        self.folds.update(batch)

    def compute(self) -> Shifts:  # noqa: D102
        subject = self.subject
        half = self.folds.pooled()[0]
        rows = subject.held_out.sample(_MOST)[subject.held_out.site].to(subject.device, torch.float64)
        atoms = spread(subject.unit.atoms, _MOST).to(subject.device, torch.float64)
        train_ratio, bound = automatic_ratio(subject.train.moments, subject.geometry)
        return Shifts(
            rows=self._measure(rows, _attempt(lambda: AtomicInnerProduct.from_moments(Moments.from_rows(rows))), half),
            atoms=self._measure(atoms, _attempt(lambda: AtomicInnerProduct.from_atoms(atoms, ridge=1e-3)), half, True),
            rows_used=len(rows),
            atoms_used=len(atoms),
            half_rows=half.count,
            train_ratio=train_ratio,
            bound=bound,
        )

    def _measure(
        self, vectors: Tensor, own: AtomicInnerProduct | None, half: Moments, displacements: bool = False
    ) -> dict[str, Angles | None]:
        """Angles in every way; what already is a displacement has no data mean to be taken out of it."""
        geometry, moments = self.subject.geometry, self.subject.train.moments
        mean = vectors.mean(0) if displacements else moments.mean.to(vectors.device)
        covariance = _attempt(lambda: AtomicInnerProduct.from_moments(moments, kind="covariance"))
        shuffled, random = controls(geometry, self.subject.settings.seed)

        def whitened(aip: AtomicInnerProduct | None, x: Tensor) -> Angles | None:
            return None if aip is None else angles(aip.whiten(x))

        return {
            "euclid": angles(vectors),
            "centred": angles(vectors - mean),
            "own": whitened(own, vectors),
            "aip": whitened(geometry, vectors),
            "half": whitened(_attempt(lambda: AtomicInnerProduct.from_moments(half)), vectors),
            "shuffled": whitened(shuffled, vectors),
            "random": whitened(random, vectors),
            "mahalanobis": whitened(covariance, vectors if displacements else vectors - mean),
        }

    def report(self, found: Mapping[str, Any]) -> Section:  # noqa: D102
        own: Shifts = found[self.name]
        numbers: dict[str, float] = {}
        for prefix, measured in (("", own.rows), ("atoms_", own.atoms)):
            for way, result in measured.items():
                if result is not None:
                    numbers |= {f"{prefix}{way}_angle": result.mean, f"{prefix}{way}_spread": result.spread}
                    numbers |= {} if prefix else {f"{way}_ratio": result.ratio}
        numbers |= {"train_ratio": own.train_ratio, "ratio_bound": own.bound, "rows": float(own.rows_used)}
        return Section(
            name=self.name,
            title=self.title,
            numbers=numbers,
            claims=(_claim(own),),
            tables={
                "rows": _table(own.rows),
                "atoms": _table(own.atoms),
                "row_angles": _histogram(own.rows),
                "atom_angles": _histogram(own.atoms),
            },
            notes=tuple(self._notes(own)),
        )

    def _notes(self, own: Shifts) -> list[str]:
        notes = [
            f"Automatic: on the {self.subject.train.moments.count:,} rows an AIP is made from, the ratio of "
            f"expectations cannot exceed {own.bound:.3g} whatever they are; it is {own.train_ratio:.3g}. A mean angle "
            "of 90 degrees in the AIP is therefore no finding; its spread and its tails are, and that S made from some "
            "documents does the same to others."
        ]
        if own.rows_used < len(self.subject.held_out):
            notes.append(f"Pairs are those of {own.rows_used:,} held-out rows, evenly spread.")
        if own.atoms_used < self.subject.num_atoms:
            notes.append(
                f"Pairs of atoms are those of {own.atoms_used:,} of {self.subject.num_atoms:,}, evenly spread."
            )
        notes.append(f"Half of the training documents: {own.half_rows:,} rows.")
        return notes


def controls(geometry: AtomicInnerProduct, seed: int) -> tuple[AtomicInnerProduct, AtomicInnerProduct]:
    """Metrics of the same spectrum that know nothing of the data's directions.

    Args:
        geometry: S.
        seed: Seed of what is drawn.

    Returns:
        One with S's eigenvectors in another order, one with random ones.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(geometry.width, generator=generator)
    drawn = torch.randn(geometry.width, geometry.width, generator=generator, dtype=torch.float64)
    basis, triangle = torch.linalg.qr(drawn)
    shuffled, random = (
        replace(geometry, eigenvectors=vectors.contiguous())
        for vectors in (geometry.eigenvectors[:, order], basis * triangle.diagonal().sign())
    )
    return shuffled, random


def _claim(own: Shifts) -> Claim:
    euclid, aip = own.rows["euclid"], own.rows["aip"]
    verdict, why, value = Verdict.NOT_APPLICABLE, "there are not two held-out rows", None
    nulls: dict[str, float] = {}
    if euclid is not None and aip is not None:
        nulls = {way: result.mean for way, result in own.rows.items() if result is not None and way != "aip"}
        closer = abs(aip.mean - 90) < abs(euclid.mean - 90)
        verdict, value = Verdict.NOT_REFUTED if closer else Verdict.REFUTED, aip.mean
        why = (
            f"mean angle {euclid.mean:.1f} degrees in Euclid's metric, {aip.mean:.1f} in the AIP; taking the mean out "
            f"alone gives {nulls.get('centred', float('nan')):.1f}; standard deviations {euclid.spread:.1f} and "
            f"{aip.spread:.1f} degrees"
        )
    return Claim(
        name="shift",
        statement="Angles between rows of other documents are closer to 90 degrees on average in the AIP than in "
        "Euclid's metric.",
        verdict=verdict,
        why=why,
        source="Towards Atoms (arXiv 2509.20784), representation shift",
        computed_on=f"all pairs of {own.rows_used:,} held-out rows",
        value=value,
        threshold=90.0,
        nulls=nulls,
    )


def _table(measured: Mapping[str, Angles | None]) -> dict[str, list[float] | list[str]]:
    present = {way: result for way, result in measured.items() if result is not None}
    return {
        "metric": [WAYS[way] for way in present],
        "mean_angle": [result.mean for result in present.values()],
        "spread": [result.spread for result in present.values()],
        **{name: [result.quantiles[name] for result in present.values()] for name in _QUANTILES},
        "mean_cosine": [result.mean_cosine for result in present.values()],
        "ratio": [result.ratio for result in present.values()],
    }


def _histogram(measured: Mapping[str, Angles | None]) -> dict[str, list[float] | list[str]]:
    columns: dict[str, list[float] | list[str]] = {"degrees_at_most": [float(degree + 1) for degree in range(_BINS)]}
    columns |= {way: result.histogram.double().tolist() for way, result in measured.items() if result is not None}
    return columns


def _attempt(make: Any) -> AtomicInnerProduct | None:
    """A metric, or None where there is not enough to make it of."""
    try:
        metric: AtomicInnerProduct = make()
    except AtomsError:
        return None
    return metric
