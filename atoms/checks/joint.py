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
from atoms.checks.random_controls import ISOTROPIC, RandomControl, random_controls
from atoms.checks.recovery_margins import CERTIFIED, recovery_margins
from atoms.checks.row_certificates import RowCertificates
from atoms.errors import AtomsError
from atoms.geometry.inner_product import unit_rows

BASIS_ROWS = 4096
SAME_K_ROWS = 512
NEAR = 0.02
"""A control that comes this near has earned as much: two random dictionaries differ by that."""


@dataclass(frozen=True, eq=False)
class JointFindings:
    """What the decisive claim rests on beside the row certificates.

    Attributes:
        basis_errors: Relative squared errors of sampled held-out rows, each rebuilt about the mean from its k best
            principal axes, at column k, (rows, H + 1) float64: for the axes of the second moment, which are orthogonal
            in S, and for those of the covariance.
    """

    basis_errors: tuple[Tensor, ...]

    def basis_f(self, eta: float, k: int) -> float:
        """Share of rows that the better of the bases rebuilds within ``eta`` from ``k`` axes.

        Every code on directions that are orthogonal in S is certified: this is the F of a complete basis. For the axes
        of the covariance, which are nearly so, it is an upper bound.
        """
        return max(
            float((errors[:, min(k, errors.shape[1] - 1)] <= eta).double().mean()) for errors in self.basis_errors
        )

    def least_k(self, eta: float, share: float) -> float:
        """Fewest axes per row at which a share of the rows is within ``eta``."""
        found = []
        for errors in self.basis_errors:
            reached = (errors <= eta).double().mean(0) >= share
            if bool(reached.any()):
                found.append(float(reached.int().argmax()))
        return min(found, default=math.nan)


class JointClaim(Check):
    """F(η, K) of the unit beside its controls, and what follows."""

    name = "joint"
    title = "What may be claimed"
    splits = frozenset()

    def compute(self) -> JointFindings:
        """Rebuild held-out rows from principal axes."""
        subject = self.subject
        rows = subject.held_out.sample(BASIS_ROWS, limit=subject.settings.rows)[subject.held_out.site].double()
        axes = subject.geometry.eigenvectors, torch.linalg.eigh(subject.train.moments.covariance.cpu())[1]
        return JointFindings(tuple(_errors(rows - subject.geometry.mean, basis) for basis in axes))

    def report(self, found: Mapping[str, Any]) -> Section:
        """Hold F against its controls."""
        if "rows" not in found:
            raise AtomsError("the joint claim rests on the row certificates, which could not be made")
        rows: RowCertificates = found["rows"]
        return _Judgement(self.subject, rows, found["joint"], random_controls(self.subject, rows)).section()


@dataclass(frozen=True, eq=False)
class _Judgement:
    """The unit's F beside what its controls earn."""

    subject: Subject
    rows: RowCertificates
    joint: JointFindings
    random: Mapping[str, RandomControl]

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
        null_rows = next(iter(self.random.values())).rows
        nulls = {"principal axes": basis} | {name: control.f for name, control in self.random.items()}
        matched = self.random[ISOTROPIC]
        numbers |= {
            "f_two_sided": self.rows.joint_two_sided(eta, k).double().mean().item(),
            "f_random": matched.f,
            "f_random_rows": max(control.f for name, control in self.random.items() if name != ISOTROPIC),
            "k_matched": math.nan if matched.k is None else float(matched.k),
            "r2_matched": matched.r2,
        }
        notes = []
        if matched.k is None:
            notes.append(
                f"{self.subject.num_atoms:,} random directions do not reach the unit's R²: with at most "
                f"{matched.steps[-1]} atoms a row they have {matched.r2:.3f}."
            )
        if self.rows.one_sided:
            notes.append(
                "No code of the unit has a negative coefficient, so uniqueness is asked among such codes, of the unit "
                f"and of random directions alike; among codes of both signs F is {numbers['f_two_sided']:.3f}."
            )
        counts = dict.fromkeys(nulls, null_rows) | {"principal axes": len(self.joint.basis_errors[0])}
        ends = {name: upper_end(null, counts[name]) for name, null in nulls.items()}
        verdict, why = verdict_of(f, least, nulls, ends)
        claim = Claim(
            name="atoms",
            statement=(
                f"At least {least:.0%} of held-out rows are rebuilt with a relative squared error of at most {eta:g} "
                f"by at most {k} atoms, in a code that is provably the only one of least l1 norm of what it rebuilds"
                f"{', among codes without negative coefficients' if self.rows.one_sided else ''}; and no control comes "
                "as far."
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


def verdict_of(f: Interval, least: float, nulls: Mapping[str, float], ends: Mapping[str, float]) -> tuple[Verdict, str]:
    """Judge the share of rows that hold, against the least that is asked and against what controls earn.

    Args:
        f: The unit's share, with its interval.
        least: The least share that makes a claim.
        nulls: Shares of controls under the same predicate, by name.
        ends: Upper ends of their intervals.

    Returns:
        ``guaranteed`` where the lower end of the unit's interval reaches the least and leaves every control's upper end
        `NEAR` below; ``vacuous`` where a control comes as far; else ``not guaranteed``. And the reason.
    """
    low = f.value if math.isnan(f.low) else f.low
    beside = ", ".join(f"{name} {null:.3f}" for name, null in nulls.items())
    if low < least:
        return Verdict.NOT_GUARANTEED, f"F = {f.value:.3f} from {low:.3f}, below {least:g} ({beside})"
    if equals := [name for name, end in ends.items() if end + NEAR > low]:
        return Verdict.VACUOUS, f"F = {f.value:.3f} from {low:.3f}, which {equals[0]} may earn too ({beside})"
    return Verdict.GUARANTEED, f"F = {f.value:.3f} from {low:.3f}; controls stay below ({beside})"


def upper_end(share: float, rows: int) -> float:
    """Upper end of Wilson's 95 % interval of a share of so many rows."""
    z = 1.96
    spread = z * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return (share + z**2 / (2 * rows) + spread) / (1 + z**2 / rows)


def _errors(centred: Tensor, basis: Tensor) -> Tensor:
    """Relative squared errors of rows (N, H) rebuilt from their 0, 1, 2, … best of orthonormal axes, (N, H + 1)."""
    energy = (centred @ basis).square()
    total = energy.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    explained = energy.sort(1, descending=True).values.cumsum(1) / total
    return torch.cat([torch.ones_like(total), 1 - explained], 1)


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
