"""What a certificate must say for a command to succeed."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from atoms.checks.certificate import Certificate
from atoms.checks.claim import Verdict
from atoms.errors import AtomsError

_FORM = re.compile(r"\s*([a-z0-9_]+)[./]([a-z0-9_]+)\s*(?:(>=|<=|=|>|<)\s*(.+?))?\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Requirement:
    """One requirement: a verdict of a claim, or a bound on a number.

    Attributes:
        section: Name of the section.
        name: Name of the claim or number in it.
        relation: ``=`` for a verdict; ``>=``, ``<=``, ``>`` or ``<`` for a number.
        wanted: The verdict or the bound.
    """

    section: str
    name: str
    relation: str
    wanted: Verdict | float

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Read ``joint.atoms``, ``uniqueness.t3_max=guaranteed`` or ``rows.f>=0.5``; a bare claim must be guaranteed.

        Raises:
            AtomsError: If it is none of these.
        """
        form = _FORM.fullmatch(text)
        if form is None:
            raise AtomsError(f"require is {text!r}: write section.claim, section.claim=verdict or section.number>=0.5")
        section, name, relation, wanted = form.groups()
        if relation is None:
            return cls(section, name, "=", Verdict.GUARANTEED)
        try:
            if relation == "=":
                return cls(section, name, relation, Verdict(wanted.replace("_", " ")))
            bound = float(wanted)
        except ValueError:
            known = ", ".join(Verdict) if relation == "=" else "a number"
            raise AtomsError(f"require is {text!r}: {wanted!r} is not {known}") from None
        if math.isnan(bound):
            raise AtomsError(f"require is {text!r}: give a number that can be compared with")
        return cls(section, name, relation, bound)

    def __str__(self) -> str:
        return f"{self.section}.{self.name}{self.relation}{self.wanted}"


def unmet(certificate: Certificate, requirements: Sequence[Requirement]) -> list[str]:
    """One line for each requirement a certificate does not meet. What could not be measured is not met.

    Raises:
        AtomsError: If a certificate never has such a claim or number.
    """
    lines = []
    for requirement in requirements:
        found = _found(certificate, requirement)
        if found is None or not _holds(found, requirement):
            said = "was not measured" if found is None else f"is {found:.4g}" if isinstance(found, float) else found
            lines.append(f"{certificate.unit.name}: {requirement}: {said}")
    return lines


def _holds(found: Verdict | float, requirement: Requirement) -> bool:
    if isinstance(found, Verdict) or isinstance(requirement.wanted, Verdict):
        return found == requirement.wanted
    return _COMPARE[requirement.relation](found, requirement.wanted)


def _found(certificate: Certificate, requirement: Requirement) -> Verdict | float | None:
    section, name = requirement.section, requirement.name
    if section in certificate.failed or section in certificate.settings.get("skip", ()):
        return None
    by_verdict = requirement.relation == "="
    held = {item.name: item for item in certificate.sections}
    known = [
        f"{item.name}.{key}"
        for item in certificate.sections
        for key in ([claim.name for claim in item.claims] if by_verdict else item.numbers)
    ]
    if f"{section}.{name}" not in known:
        near = difflib.get_close_matches(f"{section}.{name}", known, 3, 0.3)
        kind = "claim" if by_verdict else "number"
        raise AtomsError(f"require names {section}.{name}, no {kind} of a certificate: near are {', '.join(near)}")
    if by_verdict:
        return next(claim.verdict for claim in held[section].claims if claim.name == name)
    value = held[section].numbers[name]
    return value if math.isfinite(value) else None
