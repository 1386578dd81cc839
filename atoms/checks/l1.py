"""Whether least l1 norm finds the codes: what theorems promise, and what solving the problems shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from atoms.checks.basis_pursuit import basis_pursuit
from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Claim, Section, Verdict
from atoms.checks.judged_code import judged_codes
from atoms.checks.predicates import cai_zhang, candes, tropp_coherence
from atoms.checks.recovery_margins import CERTIFIED, recovery_margins
from atoms.checks.row_table import RowTable
from atoms.checks.sampling import judged_places, spread
from atoms.checks.separability import Separability
from atoms.checks.sparsity_levels import LEVELS, SparsityLevels, sparsity_levels, unknown_sparsity
from atoms.errors import AtomsError
from atoms.geometry import welch
from atoms.progress import Meter
from atoms.units.pursuit import orthogonal_matching_pursuit

_RECOVERED = 1e-6
"""Largest error of a coefficient, as a share of the row's largest one, at which a code counts as recovered."""
_PRESENT = 1e-9
"""Coefficients below this share of the row's largest one are rounding."""
_SOLVED = 1e-8
"""Duality gap, as a share of the optimum, at which a problem counts as solved."""
_BLOCK = 32  # rows solved at once
_SHOWN = ("index", "used", "certified", "recovered", "bpdn_k", "bpdn_overlap", "l1_ratio", "omp_overlap", "omp_error")


@dataclass(frozen=True)
class Predicate:
    """A condition on K and mu under which basis pursuit recovers every code of K atoms.

    Attributes:
        holds: Whether it holds at K and mu.
        factor: It reads ``(2K - 1) mu < factor``.
        source: Where it comes from.
    """

    holds: Callable[[int, float], bool]
    factor: float
    source: str


PREDICATES = {
    "tropp": Predicate(tropp_coherence, 1.0, "Towards Atoms (arXiv 2509.20784), T4; Tropp 2004"),
    "candes": Predicate(candes, math.sqrt(2) - 1, "Towards Atoms (arXiv 2509.20784), T4; Candès 2008"),
    "cai": Predicate(cai_zhang, math.sqrt(0.5), "Towards Atoms (arXiv 2509.20784), T4; Cai and Zhang 2014"),
}


@dataclass(frozen=True, eq=False)
class Solved:
    """What came of solving, one line per row solved, in ascending order of rows, on the CPU.

    Distances are in S, and coefficients are of atoms of unit S-norm.

    Attributes:
        index: Place of the row in its split, (N,) int64.
        used: Atoms of the unit's code, at least 1, (N,) int64.
        certified: Whether the Fuchs certificate that fits `one_sided` holds, (N,) bool.
        recovered: Whether basis pursuit returns the code from the exact sum of its atoms, (N,) bool.
        bp_gap: Its duality gap as a share of its optimum, (N,) float64.
        bpdn_gap: That of BPDN on the row itself, with the unit's residual as radius.
        bpdn_k: Atoms of its solution, (N,) int64.
        bpdn_overlap: Atoms in both supports as a share of those in either, (N,) float64.
        l1_ratio: Its l1 norm as a share of that of the unit's code.
        omp_overlap: As `bpdn_overlap`, of orthogonal matching pursuit with as many atoms.
        omp_error: Its squared residual as a share of the unit's.
        omp_error_refit: The same, where the unit's atoms are given their best coefficients too; NaN where they are
            dependent.
        witness: Whether either found another support of as few atoms at the unit's error or below, (N,) bool.
        one_sided: Whether all was solved without negative coefficients, as no code of the unit has one.
    """

    index: Tensor
    used: Tensor
    certified: Tensor
    recovered: Tensor
    bp_gap: Tensor
    bpdn_gap: Tensor
    bpdn_k: Tensor
    bpdn_overlap: Tensor
    l1_ratio: Tensor
    omp_overlap: Tensor
    omp_error: Tensor
    omp_error_refit: Tensor
    witness: Tensor
    one_sided: bool

    def __len__(self) -> int:
        return len(self.index)

    @property
    def solved(self) -> Tensor:
        """Rows whose exact problem is solved for sure, (N,) bool."""
        return self.bp_gap <= _SOLVED


class L1Check(Check):
    """Recovery of codes by their l1 norm: the named conditions, and problems solved on a sample of rows."""

    name: ClassVar[str] = "l1"
    title: ClassVar[str] = "l1 recovery"
    splits: ClassVar[frozenset[str]] = frozenset({"val"})

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._chosen = spread(judged_places(subject, "val"), subject.settings.solved_rows)
        self._sample: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._negative = False

    def update(self, batch: Encoded) -> None:
        """Keep the rows of the sample."""
        self._negative |= bool((batch.codes.values < 0).any())
        lines = torch.isin(batch.index.cpu(), self._chosen).nonzero().squeeze(1).to(batch.rows.device)
        judged = judged_codes(batch.codes, self.subject)
        lines = lines[judged.used[lines] > 0]
        if not len(lines):
            return
        target = self.subject.geometry.whiten((batch.rows - self.subject.unit.centre)[lines].double())
        index = batch.index.to(lines.device)[lines]
        self._sample.append((index, target, judged.support[lines], judged.coefficients[lines]))

    def compute(self) -> Solved:
        """Solve; ranks solve the rows they saw.

        Raises:
            AtomsError: If no row of the sample has a code to solve for.
        """
        one_sided = not any(_from_all_ranks(self._negative))
        table = RowTable()
        first = not (dist.is_available() and dist.is_initialized() and dist.get_rank())
        total = sum(len(part[0]) for part in self._sample)
        with Meter("l1 recovery", total, unit="rows", enabled=first) as meter:
            for block in _blocks(self._sample):
                index, target, support, coefficients = block
                table.add(index, **solve(self.subject, target, support, coefficients, one_sided))
                meter.advance(len(index))
        columns = table.gather()
        if not columns:
            raise AtomsError(
                f"none of the {len(self._chosen)} rows of the sample has a code of few enough atoms: there is no l1 "
                "problem to solve"
            )
        for name in ("certified", "recovered", "witness"):
            columns[name] = columns[name].bool()
        return Solved(**columns, one_sided=one_sided)

    def report(self, found: Mapping[str, Any]) -> Section:
        """The section."""
        solved: Solved = found[self.name]
        certified = solved.certified & solved.solved
        numbers = {
            "rows": float(len(solved)),
            "bp_recovered": _mean(solved.recovered),
            "bp_certified": _mean(solved.certified),
            "bp_recovered_certified": _mean(solved.recovered[certified]),
            "bp_solved": _mean(solved.solved),
            "bp_gap": solved.bp_gap.max().item(),
            "bpdn_gap": solved.bpdn_gap.max().item(),
            "bpdn_same_support": _mean(solved.bpdn_overlap == 1),
            "bpdn_overlap": _mean(solved.bpdn_overlap),
            "bpdn_k_median": solved.bpdn_k.median().item(),
            "k_median": solved.used.median().item(),
            "l1_ratio": solved.l1_ratio.median().item(),
            "omp_same_support": _mean(solved.omp_overlap == 1),
            "omp_overlap": _mean(solved.omp_overlap),
            "omp_error": solved.omp_error.median().item(),
            "omp_error_refit": solved.omp_error_refit.nanmedian().item(),
            "witness": _mean(solved.witness),
        }
        notes = [
            "Solved without negative coefficients, as the unit's codes have none."
            if solved.one_sided
            else "Solved with coefficients of both signs."
        ]
        if missed := int((certified & ~solved.recovered).sum()):
            notes.append(f"{missed} certified rows were not recovered: which contradicts the theorem: a bug.")
        if unsolved := int((~solved.solved).sum()):
            notes.append(f"{unsolved} exact problems have a duality gap above {_SOLVED:g}: nothing follows from those.")
        levels = sparsity_levels(self.subject, found)
        claims = [coherence_claim(name, self.subject, found, levels, level) for name in PREDICATES for level in LEVELS]
        tables: dict[str, dict[str, list[float] | list[str]]] = {
            "solved": {name: getattr(solved, name).to(torch.float64).tolist() for name in _SHOWN}
        }
        return Section(self.name, self.title, numbers, (*claims, uniqueness_witness(solved)), tables, tuple(notes))


@torch.no_grad()
def solve(
    subject: Subject, target: Tensor, support: Tensor, coefficients: Tensor, one_sided: bool
) -> dict[str, Tensor]:
    """Solve the l1 problems of some rows, and pursue them greedily.

    Args:
        subject: Whose rows they are.
        target: Rows without the unit's centre, whitened, (B, H) float64.
        support: Their atoms, (B, K) int64.
        coefficients: On atoms of unit S-norm, (B, K) float64; 0 where a row has fewer.
        one_sided: Allow no negative coefficient.

    Returns:
        The columns of `Solved`.
    """
    directions, memory_mib = subject.directions, subject.settings.memory_mib // 4
    code = target.new_zeros(len(target), len(directions)).scatter_add_(1, support, coefficients)
    on, used = code != 0, (code != 0).sum(1)
    exact = code @ directions
    margins = recovery_margins(directions, support, coefficients, memory_mib=memory_mib)
    certified = (margins.one_sided if one_sided else margins.fuchs) < CERTIFIED

    pursued = basis_pursuit(exact, directions, non_negative=one_sided)
    scale = code.abs().amax(1)
    recovered = (pursued.codes - code).abs().amax(1) <= _RECOVERED * scale

    radius = (target - exact).norm(dim=1)
    denoised = basis_pursuit(target, directions, radius, non_negative=one_sided)
    present = denoised.codes.abs() > _PRESENT * denoised.codes.abs().amax(1, keepdim=True)
    bpdn_overlap = _overlap(present, on)

    most = min(int(used.max()), *directions.shape)
    greedy = orthogonal_matching_pursuit(target, directions, most, nonnegative=one_sided)
    last = used.clamp_max(most) - 1
    taken = (torch.arange(most, device=last.device) <= last[:, None]) & (greedy.support >= 0)
    chosen = torch.zeros_like(on)
    chosen[taken.nonzero()[:, 0], greedy.support[taken]] = True
    energy = greedy.residual_energy.gather(1, last[:, None]).squeeze(1)
    omp_overlap = _overlap(chosen, on)

    as_good = energy <= radius.square() * (1 + 1e-9)
    as_sparse = denoised.feasible & (present.sum(1) <= used)
    return {
        "used": used,
        "certified": certified,
        "recovered": recovered,
        "bp_gap": pursued.gap,
        "bpdn_gap": denoised.gap,
        "bpdn_k": present.sum(1),
        "bpdn_overlap": bpdn_overlap,
        "l1_ratio": denoised.primal / code.abs().sum(1),
        "omp_overlap": omp_overlap,
        "omp_error": energy / radius.square(),
        "omp_error_refit": energy / _refit_energy(target, directions, support, coefficients),
        "witness": (as_good & (omp_overlap < 1)) | (as_sparse & (bpdn_overlap < 1)),
    }


def coherence_claim(name: str, subject: Subject, found: Mapping[str, Any], levels: SparsityLevels, level: str) -> Claim:
    """One of the named conditions, at the sparsity of some share of the rows."""
    predicate = PREDICATES[name]
    statement = "Basis pursuit recovers every code of at most K atoms from the row they give"
    computed_on = f"all pairs of {subject.num_atoms:,} atoms"
    claim = f"{name}_{level}"
    if level not in levels.at:
        return unknown_sparsity(claim, statement, predicate.source, computed_on)
    k = levels.at[level]
    threshold = predicate.factor / (2 * k - 1)
    statement = f"{statement}, K = {k} ({levels.source[level]})."
    if "separability" not in found:
        why = "the largest |cos| is not known: the check separability was left out or could not be made"
        return Claim(claim, statement, Verdict.NOT_APPLICABLE, why, predicate.source, computed_on)
    separability: Separability = found["separability"]
    mu = separability.maximum
    floor = welch(separability.width, separability.alive) if separability.alive > 1 else 0.0
    why = f"mu = {mu:.4f} against {predicate.factor:.4g} / (2K - 1) = {threshold:.4f}"
    if predicate.holds(k, mu):
        verdict = Verdict.GUARANTEED
    elif not predicate.holds(k, floor):
        verdict = Verdict.UNATTAINABLE
        why += f"; no dictionary of this size is below {floor:.4f} (Welch)"
    else:
        verdict = Verdict.NOT_GUARANTEED
    return Claim(
        name=claim,
        statement=statement,
        verdict=verdict,
        why=why,
        source=predicate.source,
        computed_on=computed_on,
        value=mu,
        threshold=threshold,
        inputs={"k": k, "mu": mu, "welch": floor},
    )


def uniqueness_witness(solved: Solved) -> Claim:
    """Whether the rows solved have another code as sparse and as close as the unit's."""
    share = _mean(solved.witness)
    why = f"{int(solved.witness.sum())} of {len(solved)} rows have one"
    if solved.witness.any():
        why += f", row {int(solved.index[solved.witness.nonzero()[0]])} for instance"
    return Claim(
        name="only_code",
        statement="No other atoms, as few as those of the unit's code, rebuild a row as closely in S.",
        verdict=Verdict.REFUTED if share > 0 else Verdict.NOT_REFUTED,
        why=f"{why} (found by BPDN or orthogonal matching pursuit)",
        source="Towards Atoms (arXiv 2509.20784), T3, on real rows",
        computed_on=f"{len(solved)} held-out rows",
        value=share,
        threshold=0.0,
    )


def _refit_energy(target: Tensor, directions: Tensor, support: Tensor, coefficients: Tensor) -> Tensor:
    """What least squares on the atoms of codes leaves of rows, squared, (B,); NaN where the atoms are dependent."""
    inside = (coefficients != 0).to(directions.dtype)
    atoms = directions[support] * inside[..., None]
    factor, failed = torch.linalg.cholesky_ex(atoms @ atoms.mT + torch.diag_embed(1 - inside))
    sound = torch.where((failed == 0)[:, None, None], factor, torch.eye(support.shape[1]).to(factor))
    basis = torch.linalg.solve_triangular(sound, atoms, upper=False)
    left = target - ((basis @ target[..., None]).mT @ basis).squeeze(1)
    return torch.where(failed == 0, left.square().sum(1), torch.nan)


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """Atoms in both of two supports (B, A) as a share of those in either; 1 where both are empty."""
    either = (first | second).sum(1)
    return torch.where(either > 0, (first & second).sum(1) / either.clamp_min(1).double(), 1.0)


def _blocks(sample: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """Rows of all parts in blocks, sparse ones first: their paths end early."""
    if not sample:
        return []
    longest = max(part[2].shape[1] for part in sample)

    def padded(part: Tensor) -> Tensor:
        return torch.nn.functional.pad(part, (0, longest - part.shape[1]))

    joined = [torch.cat([part[i] for part in sample]) for i in (0, 1)]
    joined += [torch.cat([padded(part[i]) for part in sample]) for i in (2, 3)]
    order = (joined[3] != 0).sum(1).argsort(stable=True)
    return [tuple(part[some] for part in joined) for some in torch.split(order, _BLOCK)]


def _from_all_ranks(value: bool) -> list[bool]:
    values = [value]
    if dist.is_available() and dist.is_initialized():
        values = [value] * dist.get_world_size()
        dist.all_gather_object(values, value)
    return values


def _mean(values: Tensor) -> float:
    """NaN of nothing."""
    return values.to(torch.float64).mean().item()
