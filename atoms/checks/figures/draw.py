"""Which figures there are, and all of them drawn of one certificate."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from atoms.checks.certificate import Certificate
from atoms.checks.figures import dictionary, geometry, rows, single_atoms
from atoms.checks.figures.source import NothingToShow, Source

FIGURES: dict[str, Callable[[Source], Figure]] = {
    "certified": rows.certified,
    "representability": rows.representability,
    "sparsity": rows.sparsity,
    "separability": dictionary.separability,
    "isometry": dictionary.isometry,
    "conditioning": geometry.conditioning,
    "uniqueness": dictionary.uniqueness,
    "identifiability": dictionary.identifiability,
    "stability": single_atoms.stability,
    "use": single_atoms.use,
    "information": single_atoms.information,
    "shift": geometry.shift,
    "metric": geometry.metric,
}
"""What draws each figure, by name."""


def draw(certificate: Certificate) -> dict[str, Figure]:
    """Draw all figures that a certificate has something for.

    Args:
        certificate: Fresh or loaded.

    Returns:
        Figures by name. One whose check failed, was left out or found nothing is not there.
    """
    source, figures = Source(certificate), {}
    for name, make in FIGURES.items():
        try:
            figures[name] = make(source)
        except NothingToShow:
            continue
    return figures
