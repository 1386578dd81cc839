"""What is said of a unit, and on which grounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """What may be said of a claim. Theorems give sufficient conditions: a miss refutes nothing."""

    GUARANTEED = "guaranteed"
    """The condition holds."""
    NOT_GUARANTEED = "not guaranteed"
    """The condition does not hold; the conclusion may."""
    UNATTAINABLE = "unattainable"
    """Not even a dictionary of least coherence, of this width and size, meets the condition at this sparsity."""
    REFUTED = "refuted"
    """There is a witness against it."""
    NOT_REFUTED = "not refuted"
    """Looked for a witness, found none; for measurements that can only refute."""
    VACUOUS = "vacuous"
    """A control with nothing to it earns the same; for joint claims alone."""
    NOT_APPLICABLE = "not applicable"
    """The claim does not speak of this unit, or could not be measured."""


@dataclass(frozen=True)
class Claim:
    """One claim and its verdict.

    Attributes:
        name: Short and stable, unique in its section: ``t3``.
        statement: What is claimed, in one sentence that needs nothing around it.
        verdict: What may be said of it.
        why: The reason in one line, with its numbers.
        source: Where the claim comes from, for example ``Towards Atoms, T3; Donoho and Elad 2003``.
        computed_on: What was looked at: ``39,361 held-out rows``, ``all 1,178,880 pairs of atoms``.
        value: The number held against `threshold`, None where there is no one number.
        threshold: What it must stay below or reach; `why` says which.
        inputs: Further numbers that enter.
        nulls: The same value of nulls and controls, by name.
    """

    name: str
    statement: str
    verdict: Verdict
    why: str
    source: str
    computed_on: str
    value: float | None = None
    threshold: float | None = None
    inputs: dict[str, float] = field(default_factory=dict)
    nulls: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """What one check found, in plain values only: a certificate is a list of these.

    Attributes:
        name: Name of the check.
        title: For people.
        numbers: Scalars by name; NaN where a number does not exist. Logged as ``check/<section>/<name>``.
        claims: Claims judged.
        tables: By name, columns of equal length (curves, histograms, tables); figures are drawn from them.
        notes: Warnings and what was left out, one sentence each.
    """

    name: str
    title: str
    numbers: dict[str, float] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    tables: dict[str, dict[str, list[float] | list[str]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
