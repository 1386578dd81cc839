"""Singular values of a matrix: all of them to a known accuracy, or bounds where all would cost too much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from atoms.errors import AtomsError, first_line

_TALL = 1.5  # from this aspect on the smaller Gram matrix is cheaper than the matrix
_TRUSTED = 1e-6  # relative error of the smallest singular value up to which the Gram matrix is believed
_BLOCK = 2**24  # elements converted to float64 at once
_STEPS = 48  # of the bidiagonalisation behind bounds


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a matrix.

    Attributes:
        shape: Rows and columns.
        norm: Frobenius norm.
        highest: Largest singular value; where `values` is None, one that it is at least.
        lowest: Smallest of the ``min(shape)`` singular values, 0 if it cannot be told from 0 in float64; where `values`
            is None, one that it is at most, 0 only if it cannot be told from 0 itself.
        values: All ``min(shape)`` of them in descending order, float64; None where there are only bounds.
    """

    shape: tuple[int, int]
    norm: float
    highest: float
    lowest: float
    values: Tensor | None

    @property
    def condition(self) -> float:
        """Condition number; where `values` is None, one that it is at least."""
        return self.highest / self.lowest if self.lowest > 0 else float("inf")

    @property
    def rank(self) -> int | None:
        """Singular values that can be told from 0 in float64; None where there are only bounds."""
        return None if self.values is None else int((self.values > 0).sum())


def spectrum(matrix: Tensor, max_dim: int | None = None, seed: int = 0) -> Spectrum:
    """Singular values of a matrix, in float64 whatever its own precision.

    A tall or wide matrix is squared to its smaller Gram matrix, which costs a product, and believed where rounding
    cannot have moved the smallest singular value by more than a millionth; else it is reduced to its triangular factor.
    Either takes some of its rows at once, so that only a nearly square one is held in float64 as a whole.

    Args:
        matrix: (m, n), any floating dtype and device.
        max_dim: Largest ``min(m, n)`` to be decomposed; beyond it `bounds` are given. None for no limit.
        seed: Start of the bounds.

    Raises:
        AtomsError: If it is no matrix, empty, zero, or not finite, or its decomposition does not converge.
    """
    _require_matrix(matrix)
    if max_dim is not None and min(matrix.shape) > max_dim:
        return bounds(matrix, seed=seed)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    unit = _unit(tall)
    many = tall.shape[0] >= _TALL * tall.shape[1]
    values = _by_gram(tall, unit) if many else None
    if values is None:
        try:
            values = torch.linalg.svdvals(_triangular(tall, unit) if many else tall.double() / unit).cpu()
        except LinAlgError as error:
            raise AtomsError(f"its singular values were not found ({first_line(error)})") from error
    norm = values.square().sum().sqrt().item()
    values = torch.where(values > _floor(values), values, 0.0) * unit
    return Spectrum(_shape(matrix), norm * unit, values[0].item(), values[-1].item(), values)


def bounds(matrix: Tensor, steps: int = _STEPS, seed: int = 0) -> Spectrum:
    """A value that the largest singular value is at least, and one that the smallest is at most, from products alone.

    Golub-Kahan bidiagonalisation from a random start, orthogonalised in full, in float64. The singular values of the
    bidiagonal matrix that comes out lie between the extreme ones of the matrix (interlacing), so its condition number
    is one that the matrix's is at least. Nothing cheap bounds the smallest singular value from below.

    Source: Golub and Kahan 1965; theory.md C6a.

    Args:
        matrix: (m, n), any floating dtype and device.
        steps: Most pairs of products.
        seed: Of the start.

    Raises:
        AtomsError: If it is no matrix, empty, zero, or not finite.
    """
    _require_matrix(matrix)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    unit = _unit(tall)
    n = tall.shape[1]
    generator = torch.Generator().manual_seed(seed)
    right = [_normalised(torch.randn(n, generator=generator, dtype=torch.float64).to(matrix.device))]
    left: list[Tensor] = []
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(min(steps, n)):
        u = _orthogonal(_product(tall, right[-1], unit), left)
        diagonal.append(u.norm().item())
        if diagonal[-1] <= 1e-13 or step + 1 == min(steps, n):
            break
        left.append(u / u.norm())
        v = _orthogonal(_product(tall.mT, left[-1], unit), right)
        size = v.norm().item()
        if size <= 1e-13:  # the start reaches no further, and what it reached keeps between the extremes
            break
        beside.append(size)
        right.append(v / v.norm())
    bidiagonal = np.diag(diagonal) + np.diag(beside[: len(diagonal) - 1], 1)
    found = torch.from_numpy(scipy.linalg.svdvals(bidiagonal))
    found = torch.where(found > _floor(found), found, 0.0) * unit
    norm = sum((part.double() / unit).square_().sum().item() for part in _parts(tall)) ** 0.5
    return Spectrum(_shape(matrix), norm * unit, found[0].item(), found[-1].item(), None)


def _require_matrix(matrix: Tensor) -> None:
    if matrix.ndim != 2:
        raise AtomsError(f"a tensor of shape {tuple(matrix.shape)} is no matrix: only matrices have singular values")
    if not matrix.is_floating_point() or matrix.element_size() < 2:
        raise AtomsError(
            f"a matrix of {str(matrix.dtype).removeprefix('torch.')} has no singular values: dequantise it"
        )
    if matrix.numel() == 0:
        raise AtomsError(f"a matrix of shape {tuple(matrix.shape)} is empty")
    if bad := sum(int((~part.isfinite()).sum()) for part in _parts(matrix)):
        raise AtomsError(f"{bad:,} of {matrix.numel():,} weights are not finite")
    if not bool((matrix != 0).any()):
        raise AtomsError("all weights are zero, so there is no condition number")


def _by_gram(tall: Tensor, unit: float) -> Tensor | None:
    """Singular values from the Gram matrix, descending on the CPU.

    None where rounding may have spoilt the smallest, or none were found.
    """
    n = tall.shape[1]
    gram = torch.zeros(n, n, dtype=torch.float64, device=tall.device)
    for part in _parts(tall):
        block = part.double() / unit
        gram.addmm_(block.mT, block)
    try:
        squares = torch.linalg.eigvalsh(gram).flip(0).cpu()
    except LinAlgError:
        return None
    error = 4 * n**0.5 * torch.finfo(torch.float64).eps * squares[0]  # of each square; measured: a tenth of it
    return squares.sqrt() if bool(squares[-1] * 2 * _TRUSTED > error) else None


def _triangular(tall: Tensor, unit: float) -> Tensor:
    """R of ``tall = Q R``: the same singular values, to float64's accuracy."""
    n = tall.shape[1]
    factor = torch.empty(0, n, dtype=torch.float64, device=tall.device)
    # Fewer rows than the factor has would cost as much each time and save no memory to speak of.
    for part in _parts(tall, least=n):
        factor = torch.cat([factor, part.double() / unit])
        factor = torch.linalg.qr(factor, mode="r").R
    return factor


def _parts(matrix: Tensor, least: int = 1) -> Sequence[Tensor]:
    """Its rows in parts that can be converted at once, of no fewer rows than ``least``."""
    return torch.split(matrix, max(least, _BLOCK // matrix.shape[1]))


def _unit(matrix: Tensor) -> float:
    """The power of two below the largest element: division by it is exact, and squares stay in range."""
    low, high = matrix.aminmax()  # no copy, which abs would make
    _, exponent = np.frexp(max(-low.item(), high.item()))
    return float(np.ldexp(1.0, max(int(exponent) - 1, -1000)))  # its reciprocal stays in range, too


def _floor(values: Tensor) -> float:
    """What cannot be told from 0."""
    return len(values) * torch.finfo(torch.float64).eps * values[0].item()


def _product(matrix: Tensor, vector: Tensor, unit: float) -> Tensor:
    """``matrix @ vector / unit`` in float64."""
    scaled = vector / unit  # first, so that no sum of products leaves the range
    return torch.cat([part.double().mv(scaled) for part in _parts(matrix)])


def _orthogonal(vector: Tensor, to: list[Tensor]) -> Tensor:
    if not to:
        return vector
    basis = torch.stack(to)
    for _ in range(2):  # twice is enough (Kahan)
        vector = vector - (basis @ vector) @ basis
    return vector


def _normalised(vector: Tensor) -> Tensor:
    return vector.div(vector.norm())


def _shape(matrix: Tensor) -> tuple[int, int]:
    return matrix.shape[0], matrix.shape[1]
