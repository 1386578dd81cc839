"""Whether a sparse code is the only one of its row: the theorem's condition, and q* beside its null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from torch import Tensor

from atoms.checks.check import Check
from atoms.checks.claim import Claim, Section, Verdict
from atoms.checks.predicates import babel_uniqueness, donoho_elad, tropp_babel
from atoms.checks.separability import Separability
from atoms.checks.sparsity_levels import LEVELS, SparsityLevels, sparsity_levels, unknown_sparsity
from atoms.errors import AtomsError
from atoms.geometry import welch_babel
from atoms.metrics import QStar, Reading, q_star, q_star_null, quantile_curve

READINGS: tuple[Reading, ...] = get_args(Reading)

_WHITENED = 1e-6  # a basis whose largest |cos| is below this is one that whitens
_SOURCE = "Towards Atoms (arXiv 2509.20784), T3; Donoho and Elad 2003; Gribonval and Nielsen 2003; Tropp 2004"


class UniquenessCheck(Check):
    """Uniqueness of sparse representations. All of it follows from the results of other checks, in `report`."""

    name: ClassVar[str] = "uniqueness"
    title: ClassVar[str] = "Uniqueness"
    splits: ClassVar[frozenset[str]] = frozenset()

    def compute(self) -> None:
        """Nothing of its own."""

    def report(self, found: Mapping[str, Any]) -> Section:
        """The section.

        Args:
            found: Must hold the result of ``separability``; q* also needs that of ``rows``.

        Raises:
            AtomsError: If ``separability`` is missing.
        """
        if "separability" not in found:
            raise AtomsError("uniqueness needs the check separability: take it out of settings.skip")
        separability: Separability = found["separability"]
        levels = sparsity_levels(self.subject, found)
        numbers = largest_k(separability)
        tables: dict[str, dict[str, list[float] | list[str]]] = {}
        notes = []
        if levels.histogram is None:
            notes.append("q* is missing: it needs K of the held-out rows, which the check rows counts.")
        else:
            stars, nulls = stability(separability, levels.histogram)
            for reading in READINGS:
                numbers |= {
                    f"q_{reading}": stars[reading].q,
                    f"q_{reading}_null": nulls[reading].q,
                    f"q_{reading}_excess": stars[reading].q - nulls[reading].q,
                }
                q, mu, k = quantile_curve(separability.aip, levels.histogram, reading)
                tables[f"q_{reading}"] = {
                    "q": q.tolist(),
                    "mu": mu.tolist(),
                    "k": k.tolist(),
                    "limit": (1 / (2 * k - 1)).tolist(),
                }
            at = stars["pairs"]
            notes.append(
                f"q* (pairs) = {at.q:.3f} at mu_q = {at.mu:.4f}, K_q = {at.k}; random directions at the same K have "
                f"{nulls['pairs'].q:.3f}. Read as pairs it guarantees nothing; the theorem speaks of the maximum."
            )
        flags = degeneracy(separability, levels, self.subject.width)
        numbers |= {f"flag_{name}": float(flag is not None) for name, flag in flags.items()}
        notes += [flag for flag in flags.values() if flag is not None]
        claims = tuple(uniqueness_claim(separability, levels, level) for level in LEVELS)
        return Section(self.name, self.title, numbers, claims, tables, tuple(notes))


def stability(separability: Separability, histogram: Tensor) -> tuple[dict[Reading, QStar], dict[Reading, QStar]]:
    """q* in every reading, and the null's: random directions at the same histogram of K."""
    return (
        {reading: q_star(separability.aip, histogram, reading) for reading in READINGS},
        {reading: q_star_null(separability.width, separability.alive, histogram, reading) for reading in READINGS},
    )


def uniqueness_claim(separability: Separability, levels: SparsityLevels, level: str) -> Claim:
    """Whether no vector is two different combinations of at most K atoms.

    Uniqueness knows no metric, so it is enough that the condition holds in one: in ``S``, in the encoder's ``S^p``, or
    where on the path between them the largest ``|cos|`` is least; or that the Babel function in ``S`` meets its own.
    """
    name, what = f"t3_{level}", "No vector is a combination of at most K atoms in two ways"
    computed_on = f"all pairs of {separability.alive:,} atoms"
    if level not in levels.at:
        return unknown_sparsity(name, what, _SOURCE, computed_on)
    k = levels.at[level]
    mu, babel = separability.best_maximum, separability.babel
    threshold = 1 / (2 * k - 1)
    forms = {
        "mu in S": (donoho_elad(k, separability.maximum), separability.maximum),
        f"mu at p = {separability.best_power:g}": (donoho_elad(k, mu), mu),
    }
    if separability.encoder is not None:
        at_encoder = separability.encoder.maximum
        forms[f"mu at the encoder's p = {separability.power:g}"] = (donoho_elad(k, at_encoder), at_encoder)
    why = ", ".join(f"{value:.4f} ({where})" for where, (_, value) in forms.items()) + f" against {threshold:.4f}"
    holding = [where for where, (holds, _) in forms.items() if holds]
    if k <= len(babel):
        total = babel[k - 1].item() + (babel[k - 2].item() if k > 1 else 0.0)
        why += f"; mu_1(K) + mu_1(K - 1) = {total:.3f} against 1"
        holding += ["Babel"] if tropp_babel(k, babel) else []
    if 2 * k - 1 <= len(babel):
        why += f", mu_1(2K - 1) = {babel[2 * k - 2]:.3f} against 1"
        holding += ["Babel of 2K"] if babel_uniqueness(k, babel) else []
    least = welch_babel(2 * k - 1, separability.width, separability.alive)
    if holding:
        verdict, why = Verdict.GUARANTEED, f"{why}; met by {', '.join(holding)}"
    elif least >= 1 or (2 * k > separability.width and separability.alive > separability.width):
        verdict = Verdict.UNATTAINABLE
        why += f"; no dictionary of this size meets it beyond K = {attainable_k(separability)}"
    else:
        verdict = Verdict.NOT_GUARANTEED
    return Claim(
        name=name,
        statement=f"{what}, K = {k} ({levels.source[level]}).",
        verdict=verdict,
        why=why,
        source=_SOURCE,
        computed_on=computed_on,
        value=min(value for _, value in forms.values()),
        threshold=threshold,
        inputs={"k": k, "mu": separability.maximum, "mu_best": mu, "welch": separability.welch},
        nulls={"random": separability.random},
    )


def largest_k(separability: Separability) -> dict[str, float]:
    """The most atoms at which representations are provably unique, by each form of the condition; 0 for none.

    ``k_babel`` and ``k_spark`` are no more than the length of the Babel function allows. ``k_welch`` is the most for
    any dictionary of this width and size; NaN where there is no such limit.
    """
    babel = separability.babel
    known = range(1, len(babel) + 1)
    return {
        "k_mu": _largest(separability.maximum, separability.alive),
        "k_best": _largest(separability.best_maximum, separability.alive),
        "k_encoder": math.nan
        if separability.encoder is None
        else _largest(separability.encoder.maximum, separability.alive),
        "k_babel": max((k for k in known if tropp_babel(k, babel)), default=0),
        "k_spark": max((k for k in known if 2 * k - 1 <= len(babel) and babel_uniqueness(k, babel)), default=0),
        "k_random": _largest(separability.random, separability.alive),
        "k_welch": attainable_k(separability),
    }


def attainable_k(separability: Separability) -> float:
    """The most atoms at which some dictionary of this width and size might meet the condition; NaN without a limit."""
    if separability.alive <= separability.width:
        return math.nan
    return max(
        (
            k
            for k in range(1, separability.width // 2 + 1)
            if welch_babel(2 * k - 1, separability.width, separability.alive) < 1
        ),
        default=0,
    )


def degeneracy(separability: Separability, levels: SparsityLevels, width: int) -> dict[str, str | None]:
    """Reasons for which all of this may hold and mean nothing, by name; None for one that is not there."""
    single = basis = None
    if levels.at.get("q95") == 1:
        single = "Nearly every row uses one atom: unique at once, and so it is for one atom per row of pure noise."
    if separability.alive <= width:
        basis = f"With {separability.alive:,} atoms in {width} dimensions nothing is overcomplete" + (
            ", and the atoms whiten S: any basis that does is separable and unique, whatever it holds."
            if separability.maximum < _WHITENED
            else ": codes are unique wherever the atoms are independent."
        )
    return {"single": single, "basis": basis}


def _largest(mu: float, atoms: int) -> int:
    if mu <= 0:
        return atoms
    k = max(0, min(atoms, math.floor((1 + 1 / mu) / 2)))
    return k if k == 0 or donoho_elad(k, mu) else k - 1
