"""Sparse codes on given directions: orthogonal matching pursuit, and least squares on the atoms a row meets best."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 64  # rows worked on at once: their k chosen directions each are the memory that counts
_ZERO = 1e-20  # share of a row's energy below which nothing is left but rounding
_UNRELATED = 1e-6  # correlation that float32 cannot tell from none
_DEPENDENT = 1e-13  # squared sine at which a direction lies in the span of others


class Pursuit(NamedTuple):
    """Sparse codes of rows, atom by atom in the order of their choice.

    Attributes:
        support: Atoms chosen, (B, k) int64 in order of selection; -1 after a row has stopped.
        coefficients: Their coefficients after the last step, (B, k) float64; 0 where there is no atom.
        residual_energy: Squared norm of the residual after each step, (B, k) float64, never rising; after a row has
            stopped, what it stopped with.
    """

    support: Tensor
    coefficients: Tensor
    residual_energy: Tensor


@torch.no_grad()
def orthogonal_matching_pursuit(rows: Tensor, directions: Tensor, k: int, *, nonnegative: bool = False) -> Pursuit:
    """Code rows greedily: take the direction most correlated with the residual, solve least squares again, repeat.

    A row stops early when nothing of it is left, or when no direction is correlated with what is left. Correlations are
    computed in float32 of the residual at unit length, all else in float64 by Cholesky updates, so two directions whose
    correlations differ by less than 1e-6 may be taken in either order. There is no Gram matrix of all directions:
    beside its arguments it needs some 64 (k H + A) numbers.

    Source: Pati, Rezaiifar and Krishnaprasad 1993; with ``nonnegative``, Bruckstein, Elad and Zibulevsky 2008.

    Args:
        rows: Rows (B, H) float64.
        directions: Directions of unit length (A, H) float64, on the same device; rows of zeros are never chosen.
        k: Most directions per row, from 1 to min(A, H).
        nonnegative: Take only directions of positive correlation, and solve with no coefficient below zero. An atom
            once chosen stays in the support even where its coefficient falls to zero.

    Raises:
        ValueError: If shapes or types disagree or ``k`` is out of range.
    """
    _check(rows, directions, k)
    single = directions.float()

    def best(residual: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
        length = residual.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        correlation = (residual / length).float() @ single.T
        if not nonnegative:
            correlation.abs_()
        correlation.scatter_(1, support, -1.0)
        value, atom = correlation.max(1)
        return atom, value > _UNRELATED

    found = []
    for chunk in torch.split(rows, _CHUNK):
        fit = _LeastSquares(chunk, directions, k, nonnegative=nonnegative)
        for step in range(k):
            atom, worthwhile = best(fit.residual, fit.support[:, :step].clamp_min(0))
            alive = worthwhile & (fit.energy > _ZERO * fit.total)
            if not alive.any():
                fit.finish(step)
                break
            fit.add(step, torch.where(alive, atom, -1))
        found.append(fit.result())
    return Pursuit(*(torch.cat(parts) for parts in zip(*found, strict=True)))


@torch.no_grad()
def top_k_least_squares(rows: Tensor, directions: Tensor, k: int) -> Pursuit:
    """Code rows by least squares on the k directions they are most correlated with, all chosen at once.

    A direction that depends on those chosen before it is left out, so that a row may get fewer than k.

    Args:
        rows: Rows (B, H) float64.
        directions: Directions of unit length (A, H) float64, on the same device.
        k: Directions per row, from 1 to min(A, H).

    Returns:
        Codes; the support is in order of falling correlation.

    Raises:
        ValueError: If shapes or types disagree or ``k`` is out of range.
    """
    _check(rows, directions, k)
    found = []
    for chunk in torch.split(rows, _CHUNK):
        value, atoms = (chunk @ directions.T).abs().topk(k, dim=1)
        fit = _LeastSquares(chunk, directions, k, nonnegative=False)
        for step in range(k):
            fit.add(step, torch.where(value[:, step] > 0, atoms[:, step], -1))
        found.append(fit.result())
    return Pursuit(*(torch.cat(parts) for parts in zip(*found, strict=True)))


@torch.no_grad()
def nonnegative_least_squares(gram: Tensor, projections: Tensor) -> Tensor:
    """Solve ``min ‖x - a C‖², a ≥ 0`` for many small problems at once.

    Directions that depend on each other share what they hold in any way that solves the problem.

    Source: Lawson and Hanson 1974, all problems of a batch side by side.

    Args:
        gram: ``C Cᵀ`` of each problem, (B, k, k) float64. Columns of zeros get 0.
        projections: ``C x`` of each, (B, k) float64.

    Returns:
        The coefficients, (B, k) float64, none below zero.
    """
    size = gram.shape[1]
    solution = torch.zeros_like(projections)
    passive = torch.zeros_like(projections, dtype=torch.bool)
    usable = gram.diagonal(dim1=1, dim2=2) > 0
    tolerance = 1e-12 * projections.abs().amax(1, keepdim=True)
    identity = torch.eye(size, dtype=gram.dtype, device=gram.device)
    for _ in range(3 * size):
        gradient = projections - (gram @ solution.unsqueeze(2)).squeeze(2)
        gradient = gradient.masked_fill(passive | ~usable, -torch.inf)
        value, entering = gradient.max(1)
        open_ = (value > tolerance.squeeze(1)).nonzero().squeeze(1)
        if not len(open_):
            break
        passive[open_, entering[open_]] = True
        while len(open_):
            kept = passive[open_]
            both = kept.unsqueeze(1) & kept.unsqueeze(2)
            trial = torch.linalg.solve(
                torch.where(both, gram[open_], identity), torch.where(kept, projections[open_], 0.0)
            )
            falling = kept & (trial <= 0)
            now = solution[open_]
            room = torch.where(falling, now / (now - trial).clamp_min(torch.finfo(gram.dtype).tiny), torch.inf)
            share = room.amin(1, keepdim=True).clamp_max(1.0)
            moved = now + share * (trial - now)
            leaving = falling & (room <= share)
            solution[open_] = moved.masked_fill(leaving, 0.0)
            passive[open_] = kept & ~leaving
            open_ = open_[leaving.any(1)]
    return solution


class _LeastSquares:
    """Least squares of rows on supports that grow by one direction at a time."""

    def __init__(self, rows: Tensor, directions: Tensor, k: int, *, nonnegative: bool) -> None:
        count, width = rows.shape
        self.rows, self.directions, self.nonnegative = rows, directions, nonnegative
        self.total = rows.square().sum(1)
        self.residual, self.energy = rows.clone(), self.total.clone()
        self.support = torch.full((count, k), -1, dtype=torch.int64, device=rows.device)
        self.coefficients = rows.new_zeros(count, k)
        self.energies = rows.new_zeros(count, k)
        self._chosen = rows.new_zeros(count, k, width)
        self._gram = rows.new_zeros(count, k, k)
        self._projections = rows.new_zeros(count, k)
        self._inverse = rows.new_zeros(count, k, k)  # of the lower Cholesky factor of the Gram matrix

    def add(self, step: int, atoms: Tensor) -> None:
        """Add one direction to each row (-1 for none) and solve again."""
        new = torch.where((atoms >= 0).unsqueeze(1), self.directions[atoms.clamp_min(0)], 0.0)
        size = step + 1
        self._chosen[:, step] = new
        chosen = self._chosen[:, :size]
        products = (chosen @ new.unsqueeze(2)).squeeze(2)
        inverse = self._inverse[:, :size, :size]
        lower = (inverse @ products.unsqueeze(2)).squeeze(2)  # its last entry is 0: that row is not yet there
        pivot = products[:, step] - lower.square().sum(1)
        alive = pivot > _DEPENDENT
        scale = torch.where(alive, pivot, torch.inf).rsqrt().unsqueeze(1)
        inverse[:, step] = -scale * (lower.unsqueeze(1) @ inverse).squeeze(1)
        inverse[:, step, step] = scale.squeeze(1)
        self.support[:, step] = torch.where(alive, atoms, -1)
        self._projections[:, step] = torch.where(alive, (new * self.rows).sum(1), 0.0)

        projections = self._projections[:, :size].unsqueeze(2)
        coefficients = (inverse.mT @ (inverse @ projections)).squeeze(2)
        if self.nonnegative:
            products = torch.where(alive.unsqueeze(1), products, 0.0)
            self._gram[:, step, :size] = products
            self._gram[:, :size, step] = products
            negative = (coefficients < 0).any(1)
            if negative.any():
                coefficients[negative] = nonnegative_least_squares(
                    self._gram[negative, :size, :size], self._projections[negative, :size]
                )
        self.coefficients[:, :size] = coefficients
        self.residual = self.rows - (coefficients.unsqueeze(1) @ chosen).squeeze(1)
        # Where nothing but rounding is left, an exact solution may yet err by a little more than one before it.
        self.energy = torch.minimum(self.energy, self.residual.square().sum(1))
        self.energies[:, step] = self.energy

    def finish(self, step: int) -> None:
        """Stop all rows before this step."""
        self.energies[:, step:] = self.energy.unsqueeze(1)

    def result(self) -> Pursuit:
        return Pursuit(self.support, self.coefficients, self.energies)


def _check(rows: Tensor, directions: Tensor, k: int) -> None:
    if rows.ndim != 2 or directions.ndim != 2 or rows.shape[1] != directions.shape[1]:
        raise ValueError(f"rows {tuple(rows.shape)} and directions {tuple(directions.shape)} are not (B, H) and (A, H)")
    if rows.dtype != torch.float64 or directions.dtype != torch.float64:
        raise ValueError(f"rows and directions are {rows.dtype} and {directions.dtype}, not float64")
    if not 1 <= k <= min(directions.shape):
        raise ValueError(f"k is {k}, not from 1 to min(A, H) = {min(directions.shape)}")
