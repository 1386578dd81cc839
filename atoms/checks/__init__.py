"""Whether a unit's directions deserve to be called atoms: claims, nulls, controls, and the certificate they make."""

from atoms.checks.certificate import Certificate
from atoms.checks.certify import certify
from atoms.checks.claim import Claim, Section, Verdict
from atoms.checks.settings import CheckSettings

__all__ = ["Certificate", "CheckSettings", "Claim", "Section", "Verdict", "certify"]
