"""Singular values of a random matrix: what a spectrum looks like that nobody shaped."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STEPS = 8192  # of the integral


def random_spectrum(rows: int, columns: int, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Singular values of a large matrix of independent entries, or of rows without a preferred direction.

    They are those of the limit, which at 384 columns is a per cent from any draw but for the smallest value of a
    nearly square matrix.

    Source: Marchenko and Pastur 1967.

    Args:
        rows: m.
        columns: n.
        shares: Which ones: the share of the ``min(m, n)`` singular values that are above, each in (0, 1).

    Returns:
        Singular values over their root mean square, one a share.
    """
    ratio = min(rows, columns) / max(rows, columns)
    # squares over their mean lie in (1 ± sqrt(ratio))²; as 1 + ratio - 2 sqrt(ratio) cos(t) their density is smooth
    t = (np.arange(_STEPS) + 0.5) * np.pi / _STEPS
    squares = 1 + ratio - 2 * np.sqrt(ratio) * np.cos(t)
    below = np.cumsum(np.sin(t) ** 2 / squares)
    below = (below - below[0] / 2) / below[-1]
    found: NDArray[np.float64] = np.sqrt(np.interp(1 - shares, below, squares))
    return found
