"""Claims of several certificates in one table."""

from __future__ import annotations

from collections.abc import Sequence

from atoms.checks.certificate import Certificate
from atoms.checks.claim import Claim, Verdict
from atoms.checks.sparsity_levels import LEVELS

SHORT = {
    Verdict.GUARANTEED: "guar.",
    Verdict.NOT_GUARANTEED: "not guar.",
    Verdict.UNATTAINABLE: "unatt.",
    Verdict.REFUTED: "refuted",
    Verdict.NOT_REFUTED: "not ref.",
    Verdict.VACUOUS: "vacuous",
    Verdict.NOT_APPLICABLE: "n/a",
}
"""Verdicts where there is little room."""


def side_by_side(certificates: Sequence[Certificate]) -> dict[str, list[Claim | None]]:
    """Line up the claims of certificates.

    A claim that is asked at several numbers of atoms per row is one line where each certificate answers it alike at
    all of them, and else one for each.

    Args:
        certificates: Any.

    Returns:
        By ``section.claim``, without the level where lines are merged, the claim of each certificate, or None.
    """
    claims = [certificate.claims() for certificate in certificates]
    families: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for own in claims for name in own):
        stem, _, level = name.rpartition("_")
        families.setdefault(stem if level in LEVELS else name, []).append(name)
    lines: dict[str, list[Claim | None]] = {}
    for stem, names in families.items():
        alike = all(len({own[name].verdict for name in names if name in own}) < 2 for own in claims)
        for line, members in [(stem, names)] if alike else [(name, [name]) for name in names]:
            lines[line] = [next((own[name] for name in members if name in own), None) for own in claims]
    return lines
