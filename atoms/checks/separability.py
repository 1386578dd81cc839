"""How nearly orthogonal atoms are: every pair, in Euclid's inner product, in S, and along the path between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from atoms.checks.check import Check
from atoms.checks.claim import Claim, Section, Verdict
from atoms.checks.sparsity_levels import LEVELS, SparsityLevels, sparsity_levels, unknown_sparsity
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Coherence, coherence, largest_cosine, rms_cosine, welch, welch_babel
from atoms.metrics import q_star_null

NEAR_DUPLICATE = 0.9
"""Atoms at this ``|cos|`` or more say nearly the same."""

_BABEL = 64, 256  # length of the Babel function where no K is aimed at, and the most there is
_PATH = 16_384  # atoms above which the metric path is walked in fewer steps
_ROUNDING = 1e-12
_BINS = 256  # of a table


@dataclass(frozen=True, eq=False)
class Separability:
    """How the atoms of a unit lie to each other.

    Attributes:
        aip: In ``S``, with the Babel function.
        euclid: In Euclid's inner product.
        encoder: In ``S^p`` where the unit's encoder works there; None for a unit without such a ``p``.
        power: This ``p``.
        powers: Places on the metric path that were looked at, ascending, (powers,) float64.
        maxima: Largest ``|cos|`` there, (powers,) float64.
        best_power: The place of the least of them.
        best_maximum: The largest ``|cos|`` there.
        width: Width H of the atoms.
        welch: What no dictionary of this width and size is below.
        random: Median of the largest ``|cos|`` of as many directions, random and isotropic in whitened coordinates.
        own_rms: Root mean square of cos in the dictionary's own ``(DDᵀ)^-1``; NaN where atoms do not span the space.
        own_leverage: Sum of ``‖d‖²`` there; NaN likewise.
    """

    aip: Coherence
    euclid: Coherence
    encoder: Coherence | None
    power: float | None
    powers: Tensor
    maxima: Tensor
    best_power: float
    best_maximum: float
    width: int
    welch: float
    random: float
    own_rms: float
    own_leverage: float

    @property
    def maximum(self) -> float:
        """mu, the largest ``|cos|`` in ``S``, exact."""
        return self.aip.maximum

    @property
    def babel(self) -> Tensor:
        """``mu_1(1), mu_1(2), …`` in ``S``, (length,) float64."""
        return self.aip.babel

    @property
    def alive(self) -> int:
        """Atoms that have a direction."""
        return len(self.aip.per_atom) - self.aip.n_zero


class SeparabilityCheck(Check):
    """Separability: ``|cos_S|`` of every pair of atoms, exactly."""

    name: ClassVar[str] = "separability"
    title: ClassVar[str] = "Separability"
    splits: ClassVar[frozenset[str]] = frozenset()

    def compute(self) -> Separability:
        """Measure all pairs.

        Raises:
            AtomsError: If atoms are not finite, or fewer than two have a direction.
        """
        subject = self.subject
        atoms, geometry = subject.unit.atoms.to(subject.device), subject.geometry
        alive = int(atoms.any(1).sum())
        if alive < 2:
            raise AtomsError(
                f"unit {subject.unit.name} has {alive} atoms of non-zero norm of {len(atoms)}: "
                "there is no pair to measure; take a checkpoint whose atoms are not all dead"
            )
        length = min(subject.max_k or _BABEL[0], _BABEL[1], alive - 1)
        aip = coherence(atoms, aip=geometry, babel=length)
        euclid = coherence(atoms, aip=None)
        power: float | None = getattr(subject.unit, "power", None)
        known = {0.0: euclid, 1.0: aip}
        if power is not None and power not in known:
            known[power] = coherence(atoms, aip=geometry, power=power)
        steps = 9 if len(atoms) <= _PATH else 3
        path = {p: found.maximum for p, found in known.items()}
        for p in np.linspace(0, 1, steps).tolist():
            if p not in path:
                path[p] = largest_cosine(atoms, aip=geometry, power=p)
        best = min(sorted(path), key=path.__getitem__)
        own_rms, own_leverage = _own(atoms)
        return Separability(
            aip=aip,
            euclid=euclid,
            encoder=None if power is None else known[power],
            power=power,
            powers=torch.tensor(sorted(path), dtype=torch.float64),
            maxima=torch.tensor([path[p] for p in sorted(path)], dtype=torch.float64),
            best_power=best,
            best_maximum=path[best],
            width=subject.width,
            welch=welch(subject.width, alive),
            random=q_star_null(subject.width, alive, torch.tensor([0, 1]), "max").mu,
            own_rms=own_rms,
            own_leverage=own_leverage,
        )

    def report(self, found: Mapping[str, Any]) -> Section:
        """The section; `found` must hold this check's own result."""
        own: Separability = found[self.name]
        levels = sparsity_levels(self.subject, found)
        return Section(
            self.name,
            self.title,
            numbers=_numbers(own),
            claims=tuple(epsilon_claim(own, levels, level) for level in LEVELS),
            tables=_tables(own),
            notes=_notes(own),
        )


def epsilon_claim(own: Separability, levels: SparsityLevels, level: str) -> Claim:
    """Whether no two atoms are closer than ``epsilon = 1 / (2K - 1)``, with K at a level of the unit's sparsity."""
    name, what = f"epsilon_{level}", "No two atoms are closer than |cos_S| = 1/(2K - 1)"
    source = "Towards Atoms (arXiv 2509.20784), definition of atoms; Welch 1974"
    computed_on = f"all {own.alive * (own.alive - 1) // 2:,} pairs of {own.alive:,} atoms"
    if level not in levels.at:
        return unknown_sparsity(name, what, source, computed_on)
    k = levels.at[level]
    epsilon = 1 / (2 * k - 1)
    why = f"mu = {own.maximum:.4f}{_pair(own.aip)} against epsilon = {epsilon:.4f}"
    if own.maximum <= epsilon + _ROUNDING:
        verdict = Verdict.GUARANTEED
    elif own.welch > epsilon + _ROUNDING:
        verdict, why = Verdict.UNATTAINABLE, f"{why}; Welch's bound is {own.welch:.4f}"
    else:
        verdict = Verdict.REFUTED
    return Claim(
        name=name,
        statement=f"{what}, K = {k} ({levels.source[level]}).",
        verdict=verdict,
        why=why,
        source=source,
        computed_on=computed_on,
        value=own.maximum,
        threshold=epsilon,
        inputs={"k": k, "welch": own.welch},
        nulls={"random": own.random},
    )


def _own(atoms: Tensor) -> tuple[float, float]:
    """Root mean square of cos, and sum of leverages, in ``(DDᵀ)^-1``."""
    try:
        geometry = AtomicInnerProduct.from_atoms(atoms)
    except AtomsError:  # they do not span the space
        return math.nan, math.nan
    leverage = sum(geometry.norm(block).square().sum().item() for block in torch.split(atoms, 8192))
    return rms_cosine(atoms, aip=geometry), leverage


def _pair(found: Coherence) -> str:
    return "" if found.pair is None else f" (atoms {found.pair[0]} and {found.pair[1]})"


def _numbers(own: Separability) -> dict[str, float]:
    alive = own.aip.per_atom.sort().values[own.aip.n_zero :]
    spread = alive.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    below_one = int((own.babel < 1).sum())
    return {
        "mu": own.maximum,
        "mu_euclid": own.euclid.maximum,
        "mu_encoder": math.nan if own.encoder is None else own.encoder.maximum,
        "mu_best": own.best_maximum,
        "best_power": own.best_power,
        "mu_random": own.random,
        "welch": own.welch,
        "rms": own.aip.rms,
        "rms_euclid": own.euclid.rms,
        "rms_own": own.own_rms,
        "leverage_own": own.own_leverage,
        **{f"pairs_q{name}": own.aip.quantile(q) for name, q in (("50", 0.5), ("95", 0.95), ("99", 0.99))},
        "pairs_error": 1 / len(own.aip.histogram),
        **{f"atoms_q{name}": value for name, value in zip(("05", "50", "95"), spread, strict=True)},
        "babel_1": below_one,
        "babel_length": len(own.babel),
        "near_duplicates": int((own.aip.per_atom > NEAR_DUPLICATE).sum()),
        "near_duplicates_euclid": int((own.euclid.per_atom > NEAR_DUPLICATE).sum()),
        "zero_norm": own.aip.n_zero,
    }


def _tables(own: Separability) -> dict[str, dict[str, list[float] | list[str]]]:
    metrics = {"euclid": own.euclid, "aip": own.aip}
    if own.encoder is not None:
        metrics["encoder"] = own.encoder
    edges = np.linspace(0, 1, _BINS + 1)
    pairs: dict[str, list[float] | list[str]] = {"upper_edge": edges[1:].tolist()}
    atoms: dict[str, list[float] | list[str]] = {"upper_edge": edges[1:].tolist()}
    for name, found in metrics.items():
        pairs[name] = found.histogram.view(_BINS, -1).sum(1).double().div(found.histogram.sum()).tolist()
        alive = found.per_atom.sort().values[found.n_zero :].numpy()
        atoms[name] = (np.histogram(alive, edges)[0] / len(alive)).tolist()
    closest: dict[str, list[float] | list[str]] = {
        "metric": list(metrics),
        "first": [-1.0 if found.pair is None else float(found.pair[0]) for found in metrics.values()],
        "second": [-1.0 if found.pair is None else float(found.pair[1]) for found in metrics.values()],
        "cos": [found.maximum for found in metrics.values()],
    }
    k = torch.arange(1, len(own.babel) + 1, dtype=torch.float64)
    return {
        "pairs": pairs,
        "atoms": atoms,
        "closest": closest,
        "babel": {
            "k": k.tolist(),
            "mu_1": own.babel.tolist(),
            "k_mu": (k * own.maximum).tolist(),
            "least": [welch_babel(k, own.width, own.alive) for k in range(1, len(own.babel) + 1)],
        },
        "path": {"power": own.powers.tolist(), "mu": own.maxima.tolist()},
    }


def _notes(own: Separability) -> tuple[str, ...]:
    notes = [
        f"Maxima are exact; quantiles over pairs are too large by less than {1 / len(own.aip.histogram):.1e}.",
        f"The Babel function is known up to {len(own.babel)} atoms, the metric path at {len(own.powers)} places.",
    ]
    if not math.isnan(own.own_rms):
        notes.append(
            f"In the dictionary's own (DDᵀ)^-1 leverages sum to {own.own_leverage:.6g} (H = {own.width}) and the root "
            f"mean square of cos is {own.own_rms:.4f} (Welch: {own.welch:.4f}): so it is for any dictionary, no "
            "evidence."
        )
    else:
        notes.append("The atoms do not span the space: there is no (DDᵀ)^-1 to compare S with.")
    if own.aip.n_zero:
        notes.append(f"{own.aip.n_zero:,} atoms of zero norm have no direction and belong to no pair.")
    return tuple(notes)
