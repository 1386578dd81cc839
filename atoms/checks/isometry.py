"""Whether few atoms are far from dependent: what coherence promises of any, and what is measured on some."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Claim, Section, Verdict
from atoms.checks.predicates import babel_rip, gershgorin_rip
from atoms.checks.recovery_margins import DEPENDENT
from atoms.checks.sampling import spread
from atoms.checks.separability import Separability
from atoms.checks.sparsity_levels import LEVELS, SparsityLevels, sparsity_levels, unknown_sparsity
from atoms.checks.support_sample import SupportSample
from atoms.errors import AtomsError
from atoms.geometry import welch_babel

_WORK = 1e10  # cubes of support sizes, summed: a few seconds on one core
_SOURCE = "Towards Atoms (arXiv 2509.20784), T2; Gershgorin; Tropp 2004"


@dataclass(frozen=True, eq=False)
class Extremes:
    """Extreme eigenvalues of Gram matrices of unit atoms, ``D_T D_Tᵀ``, and how even all of them are.

    Attributes:
        k: Atoms of each support, (supports,) int64.
        lowest: Least eigenvalue, (supports,) float64; 0 where there are more atoms than dimensions.
        highest: Largest one, (supports,) float64.
        effective_rank: Exponential of the entropy of all of them as shares of their sum (Roy and Vetterli 2007),
            (supports,) float64; k for orthogonal atoms.
        rows: Row, or two rows, of which the support is, (supports, 1 or 2) int64; empty in the second dimension for
            random supports.
    """

    k: Tensor
    lowest: Tensor
    highest: Tensor
    effective_rank: Tensor
    rows: Tensor

    @property
    def delta(self) -> Tensor:
        """How far each support is from an isometry, (supports,) float64; their largest is no more than ``delta_K``."""
        return torch.maximum(self.highest - 1, 1 - self.lowest)

    @property
    def singular(self) -> Tensor:
        """Which supports are linearly dependent, (supports,) bool."""
        return self.lowest < DEPENDENT

    @property
    def condition(self) -> Tensor:
        """Condition number of each Gram matrix, (supports,) float64; NaN for a singular one, which sorts last."""
        return torch.where(self.singular, math.nan, self.highest / self.lowest)


@dataclass(frozen=True, eq=False)
class Isometry:
    """Measured isometry.

    Attributes:
        observed: On supports that rows use.
        unions: On what two rows use together.
        random: On random supports of the sizes of the observed ones.
        sampled: Rows whose supports were gathered; fewer are looked at where supports are large.
    """

    observed: Extremes
    unions: Extremes
    random: Extremes
    sampled: int


class IsometryCheck(Check):
    """Restricted isometry: bounds from coherence, and extreme eigenvalues on a sample of supports."""

    name: ClassVar[str] = "isometry"
    title: ClassVar[str] = "Restricted isometry"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._sample = SupportSample(subject, 8 * subject.settings.solved_rows)

    def update(self, batch: Encoded) -> None:
        """Note the supports of sampled rows."""
        self._sample.add(batch)

    def compute(self) -> Isometry:
        """Measure.

        Raises:
            AtomsError: If no row of the sample uses an atom.
        """
        supports = self._sample.gather()
        if not supports:
            raise AtomsError(
                f"unit {self.subject.unit.name}: none of the sampled held-out rows uses an atom, so there is no "
                "support to measure; look at its thresholds"
            )
        directions, settings = self.subject.directions, self.subject.settings
        draw = np.random.default_rng([settings.seed, 3])
        alive = directions.any(1).nonzero().squeeze(1).cpu()
        rows = torch.tensor(list(supports))
        order = torch.from_numpy(draw.permutation(len(rows)))
        partner = torch.empty_like(order)
        partner[order] = order.roll(1)  # one cycle through all rows, so that none is its own partner

        sets = list(supports.values())
        random = [alive[torch.from_numpy(draw.choice(len(alive), len(s), replace=False, shuffle=False))] for s in sets]
        pairs = [(i, int(j)) for i, j in enumerate(partner) if i != j]
        unions = [torch.unique(torch.cat([sets[i], sets[j]])) for i, j in pairs]
        couples = torch.tensor([[int(rows[i]), int(rows[j])] for i, j in pairs], dtype=torch.int64).view(-1, 2)
        none = torch.empty(len(rows), 0, dtype=torch.int64)
        return Isometry(
            observed=extremes(directions, sets, rows.unsqueeze(1), settings.memory_mib),
            unions=extremes(directions, unions, couples, settings.memory_mib),
            random=extremes(directions, random, none, settings.memory_mib),
            sampled=len(rows),
        )

    def report(self, found: Mapping[str, Any]) -> Section:
        """The section; claims from coherence need the result of ``separability``."""
        own: Isometry = found[self.name]
        separability: Separability | None = found.get("separability")
        levels = sparsity_levels(self.subject, found)
        claims = [] if separability is None else [isometry_claim(separability, levels, level) for level in LEVELS]
        claims += [
            _measured("observed", "The atoms that a held-out row uses are linearly independent", own.observed),
            _measured("unions", "The atoms that two held-out rows use are linearly independent", own.unions),
            _measured("random", "Random atoms, as many as rows use, are linearly independent", own.random),
        ]
        notes = ["Measured constants are lower bounds: other supports of the same size may be worse."]
        for name, what in (("observed", own.observed), ("unions", own.unions)):
            if len(what.k) < own.sampled - (name == "unions" and own.sampled == 1):
                notes.append(
                    f"Supports are large: {len(what.k):,} of {own.sampled:,} sampled ones were solved ({name})."
                )
        if separability is None:
            notes.append("Bounds from coherence are missing with the check separability.")
        return Section(
            self.name, self.title, _numbers(own, separability), tuple(claims), _tables(own, separability), tuple(notes)
        )


def isometry_claim(separability: Separability, levels: SparsityLevels, level: str) -> Claim:
    """Whether any K atoms are linearly independent, by coherence in some metric or by the Babel function in S."""
    name, what = f"t2_{level}", "Any K atoms are linearly independent"
    computed_on = f"all pairs of {separability.alive:,} atoms"
    if level not in levels.at:
        return unknown_sparsity(name, what, _SOURCE, computed_on)
    k = levels.at[level]
    mu, babel = separability.best_maximum, separability.babel
    sums = {"S": (k - 1) * separability.maximum, f"p = {separability.best_power:g}": (k - 1) * mu}
    if 1 < k <= len(babel) + 1:
        sums["Babel"] = babel[k - 2].item()
    least = welch_babel(k - 1, separability.width, separability.alive)
    why = ", ".join(f"{total:.3f} ({where})" for where, total in sums.items()) + "; less than 1 is needed"
    if gershgorin_rip(k, mu) or (k <= len(babel) + 1 and babel_rip(k, babel)):
        verdict = Verdict.GUARANTEED
    elif least >= 1 or k > separability.width:
        verdict, why = Verdict.UNATTAINABLE, f"{why}; no dictionary of this size has less than {least:.3f}"
    else:
        verdict = Verdict.NOT_GUARANTEED
    return Claim(
        name=name,
        statement=f"{what}, K = {k} ({levels.source[level]}).",
        verdict=verdict,
        why=f"an atom's |cos| with K - 1 others adds up to at most {why}",
        source=_SOURCE,
        computed_on=computed_on,
        value=min(sums.values()),
        threshold=1.0,
        inputs={"k": k, "mu": separability.maximum, "mu_best": mu, "least": least},
        nulls={"random": (k - 1) * separability.random},
    )


def extremes(directions: Tensor, supports: Sequence[Tensor], rows: Tensor, memory_mib: int) -> Extremes:
    """Eigenvalues of the Gram matrices of supports; of evenly many of them where all would take too long.

    Args:
        directions: Unit atoms (A, H) float64.
        supports: Atoms of each, int64, at least one.
        rows: What to call each, (supports, names) int64.
        memory_mib: Memory to stay within.
    """
    width = directions.shape[1]
    sizes = torch.tensor([len(support) for support in supports], dtype=torch.int64)
    work = sizes.clamp_max(width).double().pow(3).sum().item()
    count = len(supports) if work <= _WORK else max(1, int(len(supports) * _WORK / work))
    chosen = spread(torch.arange(len(supports)), count)
    sizes, rows = sizes[chosen], rows[chosen]
    lowest, highest, rank = torch.zeros(3, count, dtype=torch.float64)
    order = sizes.argsort()
    for lines in (order[sizes[order] <= width], order[sizes[order] > width]):
        if not len(lines):
            continue
        # Sorted by size, blocks are padded little; the last one's size holds for all.
        each = int(sizes[lines[-1]]) * 3 * width * 8
        for block in torch.split(lines, max(1, min(256, memory_mib * 2**20 // (2 * each)))):
            seen = _extremes(directions, [supports[int(chosen[line])] for line in block])
            lowest[block], highest[block], rank[block] = (values.cpu() for values in seen)
    return Extremes(sizes, lowest, highest, rank, rows)


def _extremes(directions: Tensor, supports: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Least and largest eigenvalue and effective rank of the Gram matrix of each support, (supports,) float64 each.

    Either no support holds more atoms than dimensions, or all do.
    """
    padded = torch.nn.utils.rnn.pad_sequence(supports, batch_first=True, padding_value=-1).to(directions.device)
    chosen = directions[padded.clamp_min(0)] * (padded >= 0).unsqueeze(2)
    if len(supports[0]) > directions.shape[1]:  # the other product has the same eigenvalues but for zeros
        values = torch.linalg.eigvalsh(chosen.mT @ chosen).clamp_min(0)
        rank = torch.special.entr(values / values.sum(1, keepdim=True)).sum(1).exp()
        return torch.zeros_like(rank), values[:, -1], rank
    gram = chosen @ chosen.mT
    # Padding adds eigenvalues of one; the mean eigenvalue is one, so the extremes stay.
    gram.diagonal(dim1=1, dim2=2).masked_fill_(padded < 0, 1.0)
    values = torch.linalg.eigvalsh(gram).clamp_min(0)
    padding = (padded < 0).sum(1)
    total = values.sum(1) - padding
    # Each eigenvalue of padding adds the entropy of a share of one over the total.
    entropy = torch.special.entr(values / total[:, None]).sum(1) - padding * torch.special.entr(1 / total)
    return values[:, 0], values[:, -1], entropy.exp()


def _measured(name: str, what: str, found: Extremes) -> Claim:
    singular = found.singular.nonzero().squeeze(1)
    lowest = found.lowest.min().item() if len(found.k) else float("nan")
    if not len(found.k):
        verdict, why = Verdict.NOT_APPLICABLE, "there is no such support among the sampled rows"
    elif len(singular):
        verdict = Verdict.REFUTED
        first = int(singular[0])
        rows = " and ".join(map(str, found.rows[first].tolist()))
        where = f"row{'s' if ' and ' in rows else ''} {rows}: " if rows else ""
        why = f"{where}{found.k[first]} atoms are dependent; {len(singular):,} of {len(found.k):,} such supports are"
    else:
        verdict, why = Verdict.NOT_REFUTED, f"the least eigenvalue of a Gram matrix is {lowest:.3g}"
    return Claim(
        name=name,
        statement=f"{what}.",
        verdict=verdict,
        why=why,
        source="the definition of restricted isometry, on a sample",
        computed_on=f"{len(found.k):,} supports",
        value=lowest,
        threshold=DEPENDENT,
        inputs={"singular": len(singular)},
    )


def _numbers(own: Isometry, separability: Separability | None) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, found in (("observed", own.observed), ("unions", own.unions), ("random", own.random)):
        some = len(found.k) > 0
        condition = found.condition.sort().values
        numbers |= {
            f"delta_{name}": found.delta.max().item() if some else math.nan,
            f"delta_{name}_q50": at_share(found.delta.sort().values, 0.5),
            f"kappa_{name}_q50": at_share(condition, 0.5),
            f"kappa_{name}_q95": at_share(condition, 0.95),
            f"kappa_{name}_max": at_share(condition, 1.0),
            f"singular_{name}": int(found.singular.sum()),
            f"supports_{name}": len(found.k),
        }
    if separability is not None:
        k = int(at_share(own.observed.k.sort().values.double(), 0.5))
        numbers["delta_bound_q50"] = (k - 1) * separability.maximum
        numbers["kappa_bound_q50"] = condition_bound(k, separability.maximum)
    return numbers


def condition_bound(k: int, mu: float) -> float:
    """Condition number that the Gram matrix of k atoms cannot exceed; NaN where coherence promises none.

    Args:
        k: Atoms.
        mu: Largest ``|cos|``.
    """
    spread = (k - 1) * mu
    return (1 + spread) / (1 - spread) if spread < 1 else math.nan


def at_share(ascending: Tensor, q: float) -> float:
    """The least value that a share of the values do not exceed; NaN where there are none.

    Args:
        ascending: Values in order, (n,).
        q: Share, in (0, 1].
    """
    return ascending[math.ceil(q * len(ascending)) - 1].item() if len(ascending) else math.nan


def _tables(own: Isometry, separability: Separability | None) -> dict[str, dict[str, list[float] | list[str]]]:
    tables: dict[str, dict[str, list[float] | list[str]]] = {}
    for name, found in (("observed", own.observed), ("unions", own.unions), ("random", own.random)):
        tables[name] = {
            "k": found.k.double().tolist(),
            "lowest": found.lowest.tolist(),
            "highest": found.highest.tolist(),
            "effective_rank": found.effective_rank.tolist(),
        }
        if separability is not None:
            tables[name]["kappa_bound"] = [condition_bound(int(k), separability.maximum) for k in found.k]
    return tables
