"""Solving for the coefficients of rows again, on the atoms each row already has."""

from __future__ import annotations

import torch
from scipy.optimize import nnls
from torch import Tensor

from atoms.sae import SparseCodes

_BYTES = 2**26  # of sub-dictionaries held at once
_SINGULAR = 1e-7  # smallest pivot of a Gram matrix of unit vectors that is still trusted
_EXCHANGES = 100  # of block pivoting before a row is left to the reference


def refit(vectors: Tensor, directions: Tensor, codes: SparseCodes, *, keep_signs: bool = False) -> Tensor:
    """Return what least squares on the support of each row rebuilds.

    Thresholded pre-activations find supports; their amplitudes carry the coherence of the atoms on the support, which
    least squares takes out. With `keep_signs` no coefficient may change its sign, which for codes that are not
    negative is non-negative least squares.

    Args:
        vectors: What is decomposed, in whitened coordinates and without the centre, (B, H) float64.
        directions: Atoms there at unit length, (A, H) float64; rows of zeros are never used.
        codes: Codes of the B rows; only which entries there are and their signs matter.
        keep_signs: Hold every coefficient to the sign it has.

    Returns:
        (B, H) float64, in whitened coordinates.
    """
    result = torch.zeros_like(vectors)
    if not len(codes.indices):
        return result
    counts = codes.l0
    block = max(1, _BYTES // (8 * directions.shape[1] * int(counts.max())))
    place = torch.arange(int(counts.max()), device=vectors.device)
    for start in range(0, len(vectors), block):
        rows = slice(start, start + block)
        present = place < counts[rows, None]
        entry = (codes.offsets[:-1][rows, None] + place).clamp_max(len(codes.indices) - 1)
        chosen = directions[codes.indices[entry].long()] * present[:, :, None]
        present = chosen.any(2)  # an atom of zero norm is none
        if keep_signs:
            chosen = chosen * codes.values[entry].sign()[:, :, None]
        gram = chosen @ chosen.mT
        target = (chosen @ vectors[rows, :, None]).squeeze(2)
        found = _nonnegative(gram, target, present) if keep_signs else _solve(gram, target, present)
        result[rows] = (found[:, None] @ chosen).squeeze(1)
    return result


def _solve(gram: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """Solve ``gram x = target`` on the places present, (B, K); zero elsewhere, least norm where that is singular."""
    both = present[:, :, None] & present[:, None]
    gram = torch.where(both, gram, 0) + torch.diag_embed((~present).to(gram.dtype))
    target = torch.where(present, target, 0)
    factor, info = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal(dim1=1, dim2=2).amin(1)
    found = torch.cholesky_solve(target[:, :, None], factor).squeeze(2)
    singular = (info != 0) | ~(pivots > _SINGULAR)
    if bool(singular.any()):
        values, vectors = torch.linalg.eigh(gram[singular])
        floor = values[:, -1:] * gram.shape[1] * torch.finfo(gram.dtype).eps
        inverse = torch.where(values > floor, values, torch.inf).reciprocal()
        projected = vectors.mT @ target[singular][:, :, None]
        found[singular] = (vectors @ (inverse[:, :, None] * projected)).squeeze(2)
    return torch.where(present, found, 0)


def _nonnegative(gram: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """Minimise ``x gram x / 2 - target x`` over ``x >= 0`` on the places present, (B, K).

    Block principal pivoting: all coefficients that are negative leave, all whose gradient is negative enter; where that
    cycles, one at a time. Rows it does not settle, for a singular Gram matrix, go to Lawson and Hanson's method.

    Source: Kim and Park 2011, Fast nonnegative matrix factorization; Portugal, Júdice and Vicente 1994.
    """
    scale = torch.finfo(gram.dtype).eps * 100 * target.abs().amax(1, keepdim=True)
    free = present.clone()
    found = _solve(gram, target, free)
    fewest = torch.full_like(free[:, 0], gram.shape[1] + 1, dtype=torch.int64)
    patience = torch.full_like(fewest, 3)
    for _ in range(_EXCHANGES):
        gradient = (gram @ found[:, :, None]).squeeze(2) - target
        wrong = torch.where(free, found < -scale, (gradient < -scale) & present)
        number = wrong.sum(1)
        active = number > 0
        if not bool(active.any()):
            return found.clamp_min(0)
        better = number < fewest
        fewest = torch.where(better, number, fewest)
        patience = torch.where(better, 3, patience - 1)
        last = wrong & (wrong.flip(1).cumsum(1).flip(1) == 1)  # the one with the largest index
        free ^= torch.where((patience >= 0)[:, None], wrong, last)
        found[active] = _solve(gram[active], target[active], free[active])
    for row in active.nonzero().squeeze(1).tolist():
        values, vectors = torch.linalg.eigh(gram[row])
        root = values.clamp_min(0).sqrt()
        floor = root.amax() * len(root) * torch.finfo(gram.dtype).eps
        right = torch.where(root > floor, (vectors.T @ target[row]) / root, 0)
        solution = nnls((root[:, None] * vectors.T).cpu().numpy(), right.cpu().numpy())[0]
        found[row] = torch.where(present[row], torch.from_numpy(solution).to(found), 0)
    return found.clamp_min(0)
