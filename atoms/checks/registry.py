"""The checks, in the order a certificate is read."""

from atoms.checks.check import Check

CHECKS: tuple[type[Check], ...] = ()
