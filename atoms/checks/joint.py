"""The one claim that decides: on the same held-out row, small error, few atoms, and a code that is provably unique.

Each part alone is earned by something worthless: fidelity by any complete basis, sparsity by a code of nothing,
separability by a whitening basis. So the claim is made of all three on the same row, and it is void where a control
with nothing to it earns it as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atoms.checks.bootstrap import Interval, bootstrap_interval
from atoms.checks.check import Check, Subject
from atoms.checks.claim import Claim, Section, Verdict
from atoms.checks.matched_null import MatchedNull, fidelity_matched_null
from atoms.checks.recovery_margins import CERTIFIED, recovery_margins
from atoms.checks.row_certificates import RowCertificates
from atoms.errors import AtomsError
from atoms.geometry.inner_product import unit_rows

BASIS_ROWS = 4096
SAME_K_ROWS = 512


@dataclass(frozen=True, eq=False)
class JointFindings:
    """What the decisive claim rests on beside the row certificates.

    Attributes:
        basis_errors: Relative squared errors of sampled held-out rows, each rebuilt from its k best directions of the
            whitening basis, at column k, (rows, H + 1) float64.
    """

    basis_errors: Tensor

    def basis_f(self, eta: float, k: int) -> float:
        """Share of rows that the whitening basis rebuilds within ``eta`` from ``k`` directions.

        Its directions are orthogonal in S, so every code of it is certified: this is its F.
        """
        return float((self.basis_errors[:, min(k, self.basis_errors.shape[1] - 1)] <= eta).double().mean())

    def least_k(self, eta: float, share: float) -> float:
        """Fewest of its directions per row at which a share of the rows is within ``eta``."""
        reached = (self.basis_errors <= eta).double().mean(0) >= share
        return float(reached.int().argmax()) if bool(reached.any()) else math.nan


class JointClaim(Check):
    """F(η, K) of the unit beside its controls, and what follows."""

    name = "joint"
    title = "What may be claimed"
    splits = frozenset()

    def compute(self) -> JointFindings:
        """Rebuild held-out rows from the whitening basis."""
        rows = self.subject.held_out.sample(BASIS_ROWS, limit=self.subject.settings.rows)[
            self.subject.held_out.site
        ].double()
        geometry = self.subject.geometry
        energy = ((rows - geometry.mean) @ geometry.eigenvectors).square()
        total = energy.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        explained = energy.sort(1, descending=True).values.cumsum(1) / total
        return JointFindings(torch.cat([torch.ones_like(total), 1 - explained], 1))

    def report(self, found: Mapping[str, Any]) -> Section:
        """Hold F against its controls."""
        if "rows" not in found:
            raise AtomsError("the joint claim rests on the row certificates, which could not be made")
        matched = None
        if "representability" in found:
            matched = fidelity_matched_null(self.subject, found["representability"].held_out.scores["r2"])
        return _Judgement(self.subject, found["rows"], found["joint"], matched).section()


@dataclass(frozen=True, eq=False)
class _Judgement:
    """The unit's F beside what its controls earn."""

    subject: Subject
    rows: RowCertificates
    joint: JointFindings
    matched: MatchedNull | None

    def _interval(self, eta: float, k: int) -> Interval:
        """F of the unit, with an interval over groups of documents."""
        return bootstrap_interval(
            {"held": self.rows.joint(eta, k)},
            self.subject.held_out.groups()[self.rows.index.numpy()],
            lambda sums: sums["held"] / sums["rows"],
            resamples=self.subject.settings.bootstrap,
            seed=self.subject.settings.seed,
        )

    def section(self) -> Section:
        """Numbers, the claim and its verdict."""
        eta, least, k = self.subject.settings.eta, self.subject.settings.share, self.rows.max_k
        f = self._interval(eta, k)
        basis = self.joint.basis_f(eta, k)
        numbers = {
            "f": f.value,
            "f_low": f.low,
            "f_high": f.high,
            "eta": eta,
            "k": float(k),
            "share": least,
            "f_basis": basis,
            "certified": float(self.rows.certified.double().mean()),
            "certified_same_k": _same_k(self.subject, self.rows),
            "k_half": _least_k(self.rows.joint(eta, self.subject.width), self.rows.used, least),
            "k_half_basis": self.joint.least_k(eta, least),
        }
        nulls = {"whitening basis": basis}
        notes = []
        if self.matched is None:
            notes.append("The random dictionary of the same fidelity needs representability, which was not measured.")
        else:
            nulls["random, same fidelity"] = self.matched.f if self.matched.reached else 0.0
            numbers |= {
                "f_matched": self.matched.f if self.matched.reached else math.nan,
                "k_matched": float(self.matched.k) if self.matched.reached else math.nan,
                "r2_matched": self.matched.r2,
            }
            if not self.matched.reached:
                notes.append(
                    f"{self.subject.num_atoms:,} random directions cannot reach the unit's R²: with {self.matched.k} "
                    f"atoms a row they have {self.matched.r2:.3f}."
                )
        verdict, why = verdict_of(f, least, nulls)
        claim = Claim(
            name="atoms",
            statement=(
                f"At least {max(f.low, least) if f.low == f.low else least:.0%} of held-out rows are rebuilt with a "
                f"relative squared error of at most {eta:g} by at most {k} atoms, in a code that is provably the only "
                "one of least l1 norm."
            ),
            verdict=verdict,
            why=why,
            source="Towards Atoms: representability, sparsity and uniqueness on the same row; Fuchs 2004",
            computed_on=f"{len(self.rows):,} held-out rows",
            value=f.value,
            threshold=least,
            inputs={"eta": eta, "k": float(k), "f_low": f.low, "f_high": f.high},
            nulls=nulls,
        )
        return Section(JointClaim.name, JointClaim.title, numbers, (claim,), notes=tuple(notes))


def verdict_of(f: Interval, least: float, nulls: Mapping[str, float]) -> tuple[Verdict, str]:
    """Judge the share of rows that hold, against the least that is asked and against what controls earn.

    Args:
        f: The unit's share, with its interval.
        least: The least share that makes a claim.
        nulls: Shares of controls under the same predicate, by name.

    Returns:
        ``guaranteed`` where the unit reaches the least and leaves every control below its interval; ``vacuous`` where
        one of them comes as far; else ``not guaranteed``. And the reason.
    """
    low = f.value if math.isnan(f.low) else f.low
    beside = ", ".join(f"{name} {null:.3f}" for name, null in nulls.items())
    if f.value < least:
        return Verdict.NOT_GUARANTEED, f"F = {f.value:.3f}, below {least:g} ({beside})"
    if equals := [name for name, null in nulls.items() if null >= low]:
        return Verdict.VACUOUS, f"F = {f.value:.3f} from {low:.3f}, which {equals[0]} earns too ({beside})"
    return Verdict.GUARANTEED, f"F = {f.value:.3f} from {low:.3f}; controls stay below ({beside})"


def _least_k(held: Tensor, used: Tensor, share: float) -> float:
    """Fewest atoms per row at which a share of all rows hold, NaN if they never do."""
    sizes = used[held].sort().values
    needed = math.ceil(share * len(held))
    return float(sizes[needed - 1]) if 0 < needed <= len(sizes) else math.nan


def _same_k(subject: Subject, rows: RowCertificates) -> float:
    generator = torch.Generator().manual_seed(subject.settings.seed)
    count = min(SAME_K_ROWS, len(rows.k))
    sizes = rows.k[torch.randperm(len(rows.k), generator=generator)[:count]].clamp_max(rows.max_k)
    widest = int(sizes.max()) if count else 0
    if widest == 0:
        return float("nan")
    directions = unit_rows(torch.randn(subject.num_atoms, subject.width, generator=generator, dtype=torch.float64))
    keys = torch.rand(count, subject.num_atoms, generator=generator)
    support = keys.topk(min(widest, subject.num_atoms), 1).indices
    signs = torch.ones(support.shape, dtype=torch.float64)
    if not rows.one_sided:
        signs = torch.randint(2, support.shape, generator=generator, dtype=torch.float64) * 2 - 1
    coefficients = signs * (torch.arange(support.shape[1]) < sizes[:, None])
    margins = recovery_margins(directions, support, coefficients, memory_mib=subject.settings.memory_mib)
    margin = margins.one_sided if rows.one_sided else margins.fuchs
    return float((margin < CERTIFIED).double().mean())
