"""The coefficients of one row, solved again on the support it has."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize

_Floats = NDArray[np.float64]


def refit(atoms: _Floats, codes: _Floats, row: _Floats) -> dict[str, float]:
    """Solve a row's coefficients again on its support, by least squares and by non-negative least squares.

    Args:
        atoms: Unit atoms of the support, whitened, (K, H) float64.
        codes: The unit's coefficients on them, (K,) float64.
        row: The real row, whitened and without its centre, (H,) float64.

    Returns:
        ``synthetic_ls`` and ``synthetic_nnls``: relative error of the amplitudes where the row is ``codes @ atoms``.
        ``real_ls`` and ``real_nnls``: how far the unit's amplitudes are from the refitted ones, relative to these.
        ``error_unit``, ``error_ls`` and ``error_nnls``: squared error of the real row as a share of its square.
    """
    numbers = {}
    square = max(float(row @ row), np.finfo(np.float64).tiny)
    residual = row - codes @ atoms
    numbers["error_unit"] = float(residual @ residual) / square
    basis, triangle = np.linalg.qr(atoms.T)
    for name, solve in (("ls", _least_squares), ("nnls", _non_negative)):
        exact, real = solve(triangle, triangle @ codes), solve(triangle, row @ basis)
        numbers[f"synthetic_{name}"] = _relative(exact, codes)
        numbers[f"real_{name}"] = _relative(codes, real)
        residual = row - real @ atoms
        numbers[f"error_{name}"] = float(residual @ residual) / square
    return numbers


def _least_squares(matrix: _Floats, target: _Floats) -> _Floats:
    return np.asarray(linalg.lstsq(matrix, target)[0], dtype=np.float64)


def _non_negative(matrix: _Floats, target: _Floats) -> _Floats:
    return np.asarray(optimize.nnls(matrix, target)[0], dtype=np.float64)


def _relative(found: _Floats, truth: _Floats) -> float:
    error, size = float(np.linalg.norm(found - truth)), float(np.linalg.norm(truth))
    if size == 0:  # as non-negative amplitudes are where all that is asked for is negative
        return math.inf if error else 0.0
    return error / size
