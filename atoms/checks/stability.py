"""Whether another seed finds the same atoms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Claim, Section, Verdict
from atoms.checks.seen import Seen, on_a_row
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Matching, match
from atoms.geometry.inner_product import unit_rows
from atoms.units import Unit

SHARED = 0.7
"""Matched atoms this close are called the same (Paulo and Belrose, arXiv 2501.16615)."""
CLOSE = 0.9
"""Customary for recovering planted dictionaries."""
QUANTILES = (0.1, 0.5, 0.9)
# Two trainings agree to six digits on no atom; two copies of one do on all.
_SAME = 1 - 1e-6
_FROM_DATA = 0.05
# Partners of the same number are a Poisson variable of mean 1 where numbers mean nothing: 10 come once in 9 million.
_SAME_PLACE = 10


@dataclass(frozen=True, eq=False)
class Agreement:
    """The atoms of one dictionary matched with those of another.

    Attributes:
        name: The other's.
        matching: Living atoms of the subject against living atoms of the other.
        weights: How often each of the subject's living atoms fires, as shares of all their firing, (A,) float64.
        same_place: Partners that have the same number in both dictionaries; about 1 where numbers mean nothing.
        from_rows: Share of the other's living atoms that are training rows; NaN where too few rows were seen to tell.
        dead: Atoms of the other left out.
    """

    name: str
    matching: Matching
    weights: Tensor
    same_place: int = 0
    from_rows: float = float("nan")
    dead: int = 0

    @cached_property
    def absolute(self) -> Tensor:
        """``|cos|`` of each of the subject's living atoms with its partner, 0 without one, (A,) float64."""
        return self.matching.cosine.abs()

    def numbers(self) -> dict[str, float]:
        """Scalars, unweighted and, with the prefix ``weighted_``, each atom counted by how often it fires."""
        paired = self.matching.partner >= 0
        found = {
            "best": self.matching.nearest.mean().item(),
            "unpaired": 1 - paired.double().mean().item(),
            "negative": (self.matching.cosine[paired] < 0).double().mean().item(),
            "identical": (self.absolute >= _SAME).double().mean().item(),
        }
        even = torch.full_like(self.weights, 1 / len(self.weights))
        for prefix, weights in (("", even), ("weighted_", self.weights)):
            found[prefix + "mean"] = (self.absolute @ weights).item()
            for q in QUANTILES:
                found[f"{prefix}q{round(100 * q)}"] = weighted_quantile(self.absolute, weights, q)
            for least in (SHARED, CLOSE):
                found[f"{prefix}above_{round(100 * least)}"] = ((self.absolute >= least).double() @ weights).item()
        return found


@dataclass(frozen=True, eq=False)
class StabilityResult:
    """What other seeds say of the subject's atoms.

    Attributes:
        atoms: Numbers of the subject's living atoms, (A,) int64.
        firing: Share of held-out rows each fires on, (A,) float64.
        agreements: With every other seed.
        random: With random directions, isotropic in whitened space, as many as each other seed has living atoms.
        shuffled: With the subject's own coordinates, dealt anew among its atoms.
        from_rows: Share of the subject's living atoms that are training rows; NaN where too few rows were seen to tell.
        dead: Atoms of the subject left out.
    """

    atoms: Tensor
    firing: Tensor
    agreements: tuple[Agreement, ...]
    random: tuple[Agreement, ...]
    shuffled: Agreement
    from_rows: float
    dead: int


class Stability(Check):
    """Matches the unit's atoms with those of other seeds by ``|cos_S|``, beside dictionaries that learnt nothing.

    Every other unit encodes the held-out rows, too, so that atoms which are dead in it find no partner by chance.

    Args:
        subject: What is judged; its `others` are at the same site and may have any number of atoms.

    Raises:
        AtomsError: If one of the others is of another site.
    """

    name: ClassVar[str] = "stability"
    title: ClassVar[str] = "Stability across seeds"
    splits: ClassVar[frozenset[str]] = frozenset({"val", "train"})

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.others = subject.others
        for other in self.others:
            if other.site != subject.unit.site:
                raise AtomsError(
                    f"unit {other.name} is of site {other.site}, {subject.unit.name} of {subject.unit.site}: "
                    "stability compares seeds at one site"
                )
            other.to(subject.device)
        self._units = (subject.unit, *self.others)
        whiten = subject.geometry.whiten
        self._directions = [
            subject.directions,
            *(unit_rows(whiten(other.atoms.to(subject.device).double())) for other in self.others),
        ]
        self._seen = [Seen(len(unit.atoms)).to(subject.device) for unit in self._units]
        self._mean = whiten(subject.train.moments.mean.to(subject.device)).float()

    def update(self, batch: Encoded) -> None:
        """Note which atoms fire on held-out rows, and which are training rows."""
        if not self.others:
            return
        if batch.split == "val":
            for unit, seen in zip(self._units, self._seen, strict=True):
                if unit is self.subject.unit:
                    fired = batch.codes.indices
                elif unit.reads == self.subject.unit.site:
                    fired = unit.encode(batch.rows).indices
                else:  # it encodes rows of another site, which are not here
                    fired = unit.atoms.any(1).nonzero().squeeze(1)
                seen.update(len(batch.rows), fired)
        else:
            rows = self.subject.geometry.whiten(batch.rows)
            for unit, directions, seen in zip(self._units, self._directions, self._seen, strict=True):
                centre = self.subject.geometry.whiten(unit.centre.to(rows.device).float())
                hit = on_a_row(directions.float(), rows, (torch.zeros_like(centre), self._mean, centre))
                seen.look(len(rows), hit)

    def compute(self) -> StabilityResult:
        """Match the subject with every other seed and with what learnt nothing."""
        subject = self.subject
        if not self.others:
            raise AtomsError(
                f"seeds is empty: one seed of {subject.unit.name} says nothing of stability; name checkpoints or saved "
                "dictionaries of other seeds with --seeds, or judge a fit with members that differ in their seed alone"
            )
        seen = [counts.pooled() for counts in self._seen]
        living = [
            ((counts.firing > 0) & directions.any(1)).nonzero().squeeze(1)
            for counts, directions in zip(seen, self._directions, strict=True)
        ]
        for unit, alive in zip(self._units, living, strict=True):
            if not len(alive):
                raise AtomsError(
                    f"none of the {len(unit.atoms)} atoms of unit {unit.name} fires on a held-out row: "
                    "there is nothing to match; train it longer, or raise its target L0"
                )
        own, firing = self._directions[0][living[0]], seen[0].firing[living[0]].cpu().double()
        weights = firing / firing.sum()
        memory = subject.settings.memory_mib * 2**20
        from_rows = [counts.from_rows(alive, len(subject.train)) for counts, alive in zip(seen, living, strict=True)]

        agreements = []
        for unit, directions, alive, share in zip(
            self.others, self._directions[1:], living[1:], from_rows[1:], strict=True
        ):
            matching = match(own, directions[alive], memory)
            paired = matching.partner >= 0
            places = alive.cpu()[matching.partner[paired]]
            agreements.append(
                Agreement(
                    name=unit.name,
                    matching=matching,
                    weights=weights,
                    same_place=int((living[0].cpu()[paired] == places).sum()),
                    from_rows=share,
                    dead=len(unit.atoms) - len(alive),
                )
            )
        generator = torch.Generator().manual_seed(subject.settings.seed)
        random = {
            size: Agreement("random", match(own, random_directions(size, own, generator), memory), weights)
            for size in sorted({len(alive) for alive in living[1:]})
        }
        shuffled = match(own, shuffled_directions(own, subject.geometry, generator), memory)
        return StabilityResult(
            atoms=living[0].cpu(),
            firing=firing / seen[0].rows,
            agreements=tuple(agreements),
            random=tuple(random[len(alive)] for alive in living[1:]),
            shuffled=Agreement("shuffled", shuffled, weights),
            from_rows=from_rows[0],
            dead=subject.num_atoms - len(living[0]),
        )

    def report(self, found: Mapping[str, Any]) -> Section:
        """The section; scalars are means over the other seeds."""
        result: StabilityResult = found[self.name]
        each = [agreement.numbers() for agreement in result.agreements]
        random = [agreement.numbers() for agreement in result.random]
        shuffled = result.shuffled.numbers()
        numbers = {name: _mean([row[name] for row in each]) for name in each[0]}
        numbers |= {
            "min_mean": min(row["mean"] for row in each),
            "min_weighted_mean": min(row["weighted_mean"] for row in each),
            "seeds": float(len(each) + 1),
            "living": float(len(result.atoms)),
            "dead": float(result.dead),
            "dead_others": _mean([float(agreement.dead) for agreement in result.agreements]),
            "same_place": _mean([float(agreement.same_place) for agreement in result.agreements]),
            "from_rows": result.from_rows,
        }
        for name in ("mean", "weighted_mean", "best", f"above_{round(100 * SHARED)}"):
            numbers[f"random_{name}"] = _mean([row[name] for row in random])
            numbers[f"shuffled_{name}"] = shuffled[name]
        warnings = self._shared_beginnings(result, each)
        return Section(
            name=self.name,
            title=self.title,
            numbers=numbers,
            claims=(self._claim(numbers, warnings, each),),
            tables={
                "seeds": {
                    "other": [agreement.name for agreement in (*result.agreements, *result.random, result.shuffled)],
                    **{name: [row[name] for row in (*each, *random, shuffled)] for name in each[0]},
                },
                "atoms": {
                    "atom": result.atoms.double().tolist(),
                    "firing_rate": result.firing.tolist(),
                    "cos": torch.stack([agreement.absolute for agreement in result.agreements]).mean(0).tolist(),
                    "random_cos": torch.stack([agreement.absolute for agreement in result.random]).mean(0).tolist(),
                },
            },
            notes=(*warnings, *self._remarks(result)),
        )

    def _claim(self, numbers: dict[str, float], warnings: Sequence[str], each: list[dict[str, float]]) -> Claim:
        value, least = numbers["weighted_mean"], numbers["min_weighted_mean"]
        nulls = {name: numbers[f"{name}_weighted_mean"] for name in ("random", "shuffled")}
        if warnings:
            verdict, why = Verdict.NOT_APPLICABLE, "the seeds agree for another reason than learning: " + warnings[0]
        elif max(nulls.values()) >= SHARED:
            verdict = Verdict.NOT_APPLICABLE
            why = f"with so many atoms in {self.subject.width} dimensions chance agrees to {max(nulls.values()):.3f}"
        else:
            verdict = Verdict.REFUTED if least < SHARED else Verdict.NOT_REFUTED
            which = "the other seed" if len(each) == 1 else f"the least alike of {len(each)} other seeds"
            why = f"{which} agrees to {least:.3f}, chance to {max(nulls.values()):.3f}"
        return Claim(
            name="seed_stability",
            statement=(
                "Trained again from another seed, the unit finds the same atoms: matched one to one and counted by how "
                f"often they fire, they agree to |cos_S| ≥ {SHARED} on average."
            ),
            verdict=verdict,
            why=why,
            source="Paulo and Belrose 2025 (arXiv 2501.16615); matching: Kuhn 1955",
            computed_on=(
                f"{round(numbers['living']):,} living atoms against {len(each)} other "
                f"{'seed' if len(each) == 1 else 'seeds'}"
            ),
            value=value,
            threshold=SHARED,
            inputs={"min": least, "unweighted": numbers["mean"], "shared": numbers[f"above_{round(100 * SHARED)}"]},
            nulls=nulls,
        )

    def _shared_beginnings(self, result: StabilityResult, each: list[dict[str, float]]) -> list[str]:
        """What other than learning makes seeds agree."""
        found = []
        for unit, agreement, row in zip(self.others, result.agreements, each, strict=True):
            if row["identical"] > 0.5:
                found.append(
                    f"{row['identical']:.0%} of the atoms are those of {unit.name} to six digits: they are one unit, "
                    "or come of a method without chance."
                )
            elif _seed(unit) is not None and _seed(unit) == _seed(self.subject.unit):
                found.append(f"{self.subject.unit.name} and {unit.name} began from the same seed, {_seed(unit)}.")
            elif agreement.same_place >= _SAME_PLACE:
                found.append(
                    f"{agreement.same_place:,} atoms have the same number as their partners in {unit.name}, where "
                    "chance has one: both began from the same directions (the same seed, one run, rows in the same "
                    "order), or are sorted alike."
                )
            ours = self.subject.unit.initialised_from_data or result.from_rows >= _FROM_DATA
            theirs = unit.initialised_from_data or agreement.from_rows >= _FROM_DATA
            if ours and theirs:
                found.append(
                    f"the atoms of {self.subject.unit.name} and of {unit.name} began as training rows, which agree "
                    "before anything is learnt."
                )
        return found

    def _remarks(self, result: StabilityResult) -> list[str]:
        remarks = []
        dead = result.dead, sum(agreement.dead for agreement in result.agreements)
        if any(dead):
            remarks.append(
                f"{dead[0]:,} atoms of {self.subject.unit.name} and {dead[1]:,} of the other seeds fire on no held-out "
                "row and are left out."
            )
        if not all(agreement.matching.optimal for agreement in result.agreements):
            remarks.append(
                f"The best matching does not fit memory_mib={self.subject.settings.memory_mib}: atoms are matched "
                "where each is the other's nearest, the rest counts 0; the best matching lies between mean and best."
            )
        remarks += [
            f"{unit.name} encodes rows of {unit.reads}, which are not read here: only its atoms of zero norm are left "
            "out."
            for unit in self.others
            if unit.reads != self.subject.unit.site
        ]
        return remarks


def random_directions(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Unit vectors (count, H) without a preferred direction, float64, on the device of `like` (A, H)."""
    drawn = torch.randn(count, like.shape[1], dtype=torch.float64, generator=generator)
    return unit_rows(drawn.to(like.device))


def shuffled_directions(directions: Tensor, geometry: AtomicInnerProduct, generator: torch.Generator) -> Tensor:
    """Deal every coordinate, along the principal axes of the data, anew among the directions.

    What is left is how strongly a dictionary turns to each principal axis; what is gone is every single atom.

    Args:
        directions: Unit vectors (A, H) float64 in whitened coordinates.
        geometry: Whose axes.
        generator: What to draw from.

    Returns:
        Unit vectors (A, H) float64.
    """
    axes = geometry.eigenvectors.to(directions.device)
    order = torch.rand(directions.shape, generator=generator, dtype=torch.float64).argsort(0)
    return unit_rows((directions @ axes).gather(0, order.to(directions.device)) @ axes.T)


def weighted_quantile(values: Tensor, weights: Tensor, q: float) -> float:
    """Smallest value that values of at least a share ``q`` of the weight do not exceed.

    Args:
        values: (N,) float64, N ≥ 1.
        weights: (N,) float64, not negative, with a sum of 1.
        q: In [0, 1].
    """
    ordered, order = values.sort()
    reached = weights[order].cumsum(0)
    # sums of shares fall short of 1 by rounding
    return ordered[torch.searchsorted(reached, q * (1 - 1e-12)).clamp_max(len(values) - 1)].item()


def _seed(unit: Unit) -> int | None:
    """Seed of what a unit began from, where it has one and knows it."""
    return getattr(unit, "seed", None)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
