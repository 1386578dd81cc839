"""The pictures of a certificate, drawn from its tables alone."""

from __future__ import annotations

from matplotlib.figure import Figure

from atoms.checks.certificate import Certificate


def draw(certificate: Certificate) -> dict[str, Figure]:
    """All figures of a certificate, by name."""
    return {}
