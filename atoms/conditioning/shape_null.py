"""What a random matrix of the same shape has: the condition number first of all tells rectangles from squares.

The singular values of a matrix of independent Gaussians are those of a bidiagonal matrix of independent χ variables
(Golub-Kahan by Householder reflections). So draws are exact in law and cost O(n) for the two extremes and O(n²) for
all, where the matrix itself would cost O(m n²).

Source: Silverstein 1985; Dumitriu and Edelman 2002; theory.md C6a.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from atoms.conditioning.measures import effective_rank, entropy_loss

_DRAWS = 99
_VALUES = 2048  # singular values behind the means of measures of all of them


@dataclass(frozen=True)
class ShapeNull:
    """Measures of Gaussian matrices of one shape.

    Attributes:
        kappa: Median condition number.
        kappa_low: 5 % of draws are at most this.
        kappa_high: 5 % of draws are at least this.
        effective_rank: Mean effective rank.
        entropy_loss: Mean entropy loss, in nats.
    """

    kappa: float
    kappa_low: float
    kappa_high: float
    effective_rank: float
    entropy_loss: float


def shape_null(rows: int, columns: int, seed: int = 0) -> ShapeNull:
    """Measures of Gaussian matrices of a shape; the same for its transpose, and for the same seed always.

    Args:
        rows: m.
        columns: n.
        seed: Of the draws.
    """
    return _drawn(max(rows, columns), min(rows, columns), seed)


def draw_null(m: int, n: int, seed: int) -> ShapeNull:
    """What `shape_null` says, drawn anew.

    Args:
        m: The larger side.
        n: The smaller one.
        seed: Of the draws.
    """
    rng = np.random.default_rng([seed, m, n])
    kappas = np.sort([_extremes(*_bidiagonal(m, n, rng)) for _ in range(_DRAWS)])
    # Means over all singular values grow with the shape and hardly fluctuate: those of a large shape are those of a
    # small one of the same aspect, many times over (a thousandth off at most).
    few = min(n, _VALUES)
    times = n / few
    spectra = [torch.from_numpy(_all(*_bidiagonal(round(m / times), few, rng))) for _ in range(-(-_VALUES // n))]
    return ShapeNull(
        kappa=float(kappas[_DRAWS // 2]),
        kappa_low=float(kappas[_DRAWS // 20]),
        kappa_high=float(kappas[-1 - _DRAWS // 20]),
        effective_rank=times * float(np.mean([effective_rank(values) for values in spectra])),
        entropy_loss=times * float(np.mean([entropy_loss(values) for values in spectra])),
    )


_drawn = cache(draw_null)


def _bidiagonal(m: int, n: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Diagonal (n,) and superdiagonal (n - 1,) of a bidiagonal matrix with a Gaussian one's singular values."""
    return np.sqrt(rng.chisquare(np.arange(m, m - n, -1))), np.sqrt(rng.chisquare(np.arange(n - 1, 0, -1)))


def _extremes(diagonal: NDArray[np.float64], beside: NDArray[np.float64]) -> float:
    """Condition number: bisection for the two eigenvalues that matter of the symmetric matrix ``[[0, Bᵀ], [B, 0]]``."""
    n = len(diagonal)
    if n == 1:
        return 1.0
    off = _interleaved(diagonal, beside)
    low, high = (
        scipy.linalg.eigvalsh_tridiagonal(np.zeros(2 * n), off, select="i", select_range=(place, place))[0]
        for place in (n, 2 * n - 1)
    )
    return float(high / low)


def _all(diagonal: NDArray[np.float64], beside: NDArray[np.float64]) -> NDArray[np.float64]:
    n = len(diagonal)
    if n == 1:
        return diagonal
    values = scipy.linalg.eigvalsh_tridiagonal(np.zeros(2 * n), _interleaved(diagonal, beside), lapack_driver="sterf")
    return np.maximum(values[n:][::-1], np.finfo(np.float64).tiny)


def _interleaved(diagonal: NDArray[np.float64], beside: NDArray[np.float64]) -> NDArray[np.float64]:
    """Off-diagonal of ``[[0, Bᵀ], [B, 0]]`` once its rows are shuffled into a tridiagonal matrix."""
    off = np.empty(2 * len(diagonal) - 1)
    off[0::2], off[1::2] = diagonal, beside
    return off
