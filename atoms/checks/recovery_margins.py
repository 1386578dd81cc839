"""How far the code of a row is from being ambiguous: recovery conditions on its own support."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SINGULAR = 1e-9
"""Smallest eigenvalue of a support's Gram matrix at which its atoms are too near to dependent to be trusted.

Atoms are float32 and the metric may stretch their rounding: two that are the same to float32 come out near 1e-12.
"""
DEPENDENT = 1e-12
"""Smallest eigenvalue at which they are: between the two a row has no certificate, but is no witness either."""
CERTIFIED = 1 - 1e-6
"""A margin below this certifies. Not 1 itself: rounding must not certify a row against a duplicate of its atom."""
_CLIMBS = 3  # sign patterns tried beside the row's own before Tropp's margin is worked out over all of them
_CACHED_MIB = 8  # blocks that stay in the caches of a CPU; 128 MiB took half as long again


@dataclass(frozen=True, eq=False)
class Margins:
    """Recovery margins of rows: one below `CERTIFIED` is a certificate, infinity where the atoms are dependent.

    Attributes:
        fuchs: ``max |d_j · v|`` over the atoms j off the support, (B,) float64.
        one_sided: ``max(0, d_j · v)`` over them for rows without negative coefficients, infinity for others, (B,).
        erc: ``max ‖G_T⁻¹ D_T d_jᵀ‖₁`` over them, (B,), never below `fuchs`. Where a lower bound of it is 1 or more
            already, that bound stands in its place.
        singular: Whether the Gram matrix of the support is singular, (B,) bool.
        smallest: Its smallest eigenvalue where it is singular, else NaN, (B,) float64.
    """

    fuchs: Tensor
    one_sided: Tensor
    erc: Tensor
    singular: Tensor
    smallest: Tensor


@torch.no_grad()
def recovery_margins(directions: Tensor, support: Tensor, coefficients: Tensor, *, memory_mib: int = 512) -> Margins:
    """Work out the Fuchs and Tropp margins of sparse codes.

    For a code with support T and signs s over unit atoms, ``v = s G_T⁻¹ D_T`` is a dual certificate: where
    ``|d_j · v| < 1`` for every atom j off T and ``G_T = D_T D_Tᵀ`` is regular, the code is the only one of least l1
    norm that gives its row; among codes without negative coefficients ``d_j · v < 1`` is enough. Tropp's exact recovery
    condition says so of every sign pattern on T.

    Source: Fuchs, On sparse representations in arbitrary redundant bases (2004); Tropp, Greed is good (2004).

    Args:
        directions: Atoms of unit length in the coordinates of the metric, (A, H) float64; rows of zeros are dead.
        support: Atoms of each row, (B, K) int64, no atom twice in a row.
        coefficients: Coefficients in the same places, (B, K); those that are zero are no part of the support.
        memory_mib: Memory that may be taken beside the arguments; only where it fits are all A atoms held against
            all others at once.

    Returns:
        One of each per row. The empty support has margins of zero.
    """
    support, signs, sizes = _packed(support, coefficients)
    fuchs = directions.new_zeros(len(support))
    one_sided, erc, smallest = fuchs.clone(), fuchs.clone(), torch.full_like(fuchs, torch.nan)
    overfull = sizes > directions.shape[1]  # more atoms than dimensions are dependent without looking
    smallest[overfull] = 0.0

    order = sizes.argsort(stable=True)
    order = order[(sizes[order] > 0) & ~overfull[order]]
    longest = int(sizes[order[-1]]) if len(order) else 0
    row_entries = longest * directions.shape[1] + 4 * longest**2 + 2 * len(directions)
    for rows in _blocks(order, row_entries, memory_mib):
        where, sign = _trimmed(support, signs, sizes, rows)
        atoms = directions[where] * (sign != 0)[..., None]
        inverse, smallest[rows] = _inverse(atoms @ atoms.mT, sign)
        dual = (inverse @ sign[..., None]).mT @ atoms
        off = (dual.squeeze(1) @ directions.T).scatter_(1, where, 0.0)
        one_sided[rows] = off.amax(1).clamp_min_(0)
        fuchs[rows], rival = off.abs_().max(1)
        erc[rows] = _climb(directions, where, atoms, inverse, rival, fuchs[rows])
    one_sided[(signs < 0).any(1)] = torch.inf
    singular = ~smallest.isnan()

    open_ = order[(erc[order] < 1) & ~singular[order]]
    for rows in _gram_blocks(open_, sizes, len(directions), memory_mib // 2):
        _work_out_erc(erc, directions, support, signs, sizes, rows, memory_mib // 2)
    for margin in (fuchs, one_sided, erc):
        margin[singular] = torch.inf
    return Margins(fuchs, one_sided, erc, singular, smallest)


def _packed(support: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Support with its signs and sizes, padding last: its sign is 0 and its atom the row's first, which it may mask."""
    inside = coefficients != 0
    sizes = inside.sum(1)
    order = (~inside).to(torch.int8).argsort(dim=1, stable=True)[:, : int(sizes.max()) if len(sizes) else 0]
    support, signs = support.gather(1, order), coefficients.sign().to(torch.float64).gather(1, order)
    return torch.where(signs == 0, support[:, :1], support), signs, sizes


def _trimmed(support: Tensor, signs: Tensor, sizes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Support and signs of rows, as wide as the longest of them."""
    k = int(sizes[rows].max())
    return support[rows, :k], signs[rows, :k]


def _inverse(gram: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses of Gram matrices (B, K, K) that hold zeros in the padding, and NaN or the least eigenvalue, (B,).

    A matrix that is singular comes back as the identity, with its least eigenvalue.
    """
    regular = gram + torch.diag_embed((signs == 0).to(gram.dtype))
    factor, failed = torch.linalg.cholesky_ex(regular)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    inverse = torch.cholesky_inverse(torch.where((failed > 0)[:, None, None], eye, factor))
    # 1 / ‖inverse‖ is a lower bound of the least eigenvalue, so that few have to be decomposed.
    suspect = ((failed > 0) | (torch.linalg.matrix_norm(inverse) > 1 / SINGULAR)).nonzero().squeeze(1)
    least = torch.full_like(gram[:, 0, 0], torch.nan)
    for row in suspect.tolist():
        value = torch.linalg.eigvalsh(regular[row])[0]
        if not value > SINGULAR:
            least[row] = value
            inverse[row] = eye
    return inverse, least


def _climb(directions: Tensor, where: Tensor, atoms: Tensor, inverse: Tensor, rival: Tensor, bound: Tensor) -> Tensor:
    """Raise a lower bound of Tropp's margin, (B,), until it decides, or for so many steps.

    The margin is the largest Fuchs margin of any sign pattern. The pattern that is worst for the strongest rival so far
    has a margin at least as large, and so on; one step costs a product with the atoms, all patterns K of them.
    """
    bound = bound.clone()
    for _ in range(_CLIMBS):
        open_ = (bound < 1).nonzero().squeeze(1)
        if not len(open_):
            break
        own, off = atoms[open_], where[open_]
        share = inverse[open_] @ (own @ directions[rival[open_], :, None])
        dual = (inverse[open_] @ share.sign()).mT @ own
        bound[open_], rival[open_] = (dual.squeeze(1) @ directions.T).abs_().scatter_(1, off, 0.0).max(1)
    return bound


def _work_out_erc(
    erc: Tensor, directions: Tensor, support: Tensor, signs: Tensor, sizes: Tensor, rows: Tensor, memory_mib: int
) -> None:
    """Fill in Tropp's margin of rows, whose atoms' products with all others are held at once."""
    present = torch.zeros(len(directions), dtype=torch.bool, device=directions.device)
    present[support[rows]] = True
    atoms = present.nonzero().squeeze(1)
    place = torch.zeros(len(directions), dtype=torch.int64, device=directions.device)
    place[atoms] = torch.arange(len(atoms), device=directions.device)
    products = directions[atoms] @ directions.T
    longest = int(sizes[rows].max())
    for some in _blocks(rows, 2 * longest * len(directions), memory_mib):
        where, sign = _trimmed(support, signs, sizes, some)
        inside = (sign != 0).to(directions.dtype)
        gathered = products[place[where]]
        gram = gathered.gather(2, where[:, None].expand(-1, where.shape[1], -1)) * inside[:, None] * inside[..., None]
        inverse, _ = _inverse(gram, sign)
        totals = torch.bmm(inverse * inside[:, None], gathered).abs_().sum(1)
        erc[some] = totals.scatter_(1, where, 0.0).amax(1)


def _gram_blocks(rows: Tensor, sizes: Tensor, num_atoms: int, memory_mib: int) -> Iterator[Tensor]:
    """Rows in blocks whose atoms' products with all others fit the memory."""
    fitting = max(1, (memory_mib << 20) // (8 * num_atoms))
    if fitting >= num_atoms:
        if len(rows):
            yield rows
        return
    block = (sizes[rows].cumsum(0) - 1) // fitting
    counts = torch.bincount(block)
    yield from torch.split(rows, counts[counts > 0].tolist())


def _blocks(rows: Tensor, entries: int, memory_mib: int) -> tuple[Tensor, ...]:
    """Rows in blocks, with so many float64 per row."""
    if rows.device.type == "cpu":
        memory_mib = min(memory_mib, _CACHED_MIB)
    fitting = max(1, (memory_mib << 20) // (8 * max(1, entries)))
    return torch.split(rows, fitting) if len(rows) else ()
