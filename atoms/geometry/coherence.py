"""How far a dictionary is from orthogonal: all pairs, without the matrix of all pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from atoms.errors import AtomsError
from atoms.geometry.inner_product import AtomicInnerProduct, unit_rows

_ROWS = 8192  # atoms whitened at once


@dataclass(frozen=True, eq=False)
class Coherence:
    """Distribution of ``|cos|`` over the pairs of a dictionary's atoms.

    Atoms of zero norm have no direction and belong to no pair; :attr:`n_zero` counts them.

    Attributes:
        per_atom: Largest ``|cos|`` of each atom with any other, (A,) float64 on the CPU; 0 for an atom of zero norm.
        histogram: Number of pairs i < j by ``|cos|`` in equal bins of [0, 1], (bins,) int64 on the CPU.
        maximum: Largest ``|cos|`` over all pairs, exact; 0 without a pair.
        rms: Root mean square of cos over all pairs; 0 without a pair.
        n_zero: Number of atoms of zero norm.
        pair: Two atoms that have this `maximum`, the lower index first; None where it is 0.
        babel: Babel function ``mu_1(1), mu_1(2), …``: the largest sum of ``|cos|`` of an atom with so many others,
            (length,) float64 on the CPU, of the length that was asked for. ``mu_1(k) <= k mu``; ``mu_1(1) = mu``.
    """

    per_atom: Tensor
    histogram: Tensor
    maximum: float
    rms: float
    n_zero: int
    pair: tuple[int, int] | None
    babel: Tensor

    @property
    def upper_edges(self) -> Tensor:
        """An upper bound on the ``|cos|`` in each bin, (bins,) float64: its upper edge or the maximum, if smaller."""
        bins = len(self.histogram)
        return (torch.arange(1, bins + 1, dtype=torch.float64) / bins).clamp_max(self.maximum)

    def quantile(self, q: float) -> float:
        """Return a ``|cos|`` that at least a share ``q`` of the pairs do not exceed.

        Never below the true quantile, above it by less than one bin, and exact at ``q = 1``.

        Args:
            q: Share of pairs, in [0, 1].

        Raises:
            ValueError: If ``q`` is outside [0, 1].
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q is {q}, outside [0, 1]")
        below = self.histogram.cumsum(0)
        if q == 0 or below[-1] == 0:
            return 0.0
        reached = below.to(torch.float64) / below[-1]
        return self.upper_edges[torch.searchsorted(reached, q)].item()


def welch(width: int, atoms: int) -> float:
    """Return what no dictionary's largest ``|cos|`` is below, in any inner product; nor its root mean square.

    Source: Welch 1974.

    Args:
        width: Width H of the atoms.
        atoms: Number of atoms A, without those of zero norm.
    """
    return math.sqrt((atoms - width) / (width * (atoms - 1))) if atoms > width else 0.0


def welch_babel(k: int, width: int, atoms: int) -> float:
    """Return what no dictionary's ``mu_1(k)`` is below, in any inner product: ``min(k, sqrt(A - 1))`` times `welch`.

    Some atom's squared cosines sum to ``(A - 1) welch²`` at least, and ``k`` of ``A - 1`` numbers of at most 1 with
    that sum of squares add up to least where they are all alike, or where few hold it all.

    Source: Schnass and Vandergheynst 2007, for ``k <= sqrt(A - 1)``.

    Args:
        k: Number of other atoms, at least 0.
        width: Width H of the atoms.
        atoms: Number of atoms A, without those of zero norm.
    """
    return min(k, math.sqrt(max(atoms - 1, 0))) * welch(width, atoms)


@torch.no_grad()
def directions(atoms: Tensor, *, aip: AtomicInnerProduct | None, power: float = 1.0) -> Tensor:
    """Return atoms at unit length where the inner product is Euclid's, so that cosines are ``found @ found.T``.

    Args:
        atoms: Dictionary (A, H) in activation coordinates, of any scale, on any device.
        aip: Inner product ``S``; ``None`` for Euclid's.
        power: Measure in ``S^power`` instead.

    Returns:
        (A, H) float64 on the device of `atoms`; a row of zeros for an atom of zero norm.

    Raises:
        AtomsError: If an atom is not finite.
        ValueError: If `atoms` is not a matrix.
    """
    if atoms.ndim != 2:
        raise ValueError(f"atoms are {tuple(atoms.shape)}, not (A, H)")
    found = torch.empty(atoms.shape, dtype=torch.float64, device=atoms.device)
    for start in range(0, len(atoms), _ROWS):  # no second copy in float64
        block = atoms[start : start + _ROWS].to(torch.float64)
        if not block.isfinite().all():
            raise AtomsError("atoms hold NaN or infinity: the dictionary diverged, take an earlier checkpoint")
        found[start : start + _ROWS] = unit_rows(block if aip is None else aip.whiten(block, power))
    return found


@torch.no_grad()
def coherence(
    atoms: Tensor,
    *,
    aip: AtomicInnerProduct | None,
    power: float = 1.0,
    tile: int = 2048,
    bins: int = 65_536,
    babel: int = 0,
) -> Coherence:
    """Measure ``|cos|`` between all pairs of atoms.

    Works on tiles of the Gram matrix in float64: single precision would at most halve the time on a CPU and leave the
    maximum, on which theorems rest, uncertain. Beside the atoms themselves it needs their directions in float64 and
    O(tile² + A babel + bins) memory.

    Args:
        atoms: Dictionary (A, H) in activation coordinates, of any scale, on any device.
        aip: Inner product ``S`` the angles are measured in; ``None`` for Euclid's.
        power: Measure in ``S^power`` instead.
        tile: Atoms per side of a tile.
        bins: Resolution of the histogram; a power of two keeps the bin edges exact.
        babel: Length to which the Babel function is wanted.

    Raises:
        AtomsError: If an atom is not finite.
        ValueError: If ``atoms`` is not a matrix, ``tile`` or ``bins`` is not positive, or ``babel`` is negative.
    """
    if tile < 1 or bins < 1 or babel < 0:
        raise ValueError(f"tile {tile} and bins {bins} must be positive, babel {babel} not negative")
    unit = directions(atoms, aip=aip, power=power)
    alive = _compact_(unit)
    unit = unit[: len(alive)]

    highest = torch.zeros(len(alive), dtype=torch.float64, device=atoms.device)
    largest = torch.zeros(len(alive), babel, dtype=torch.float64, device=atoms.device)
    histogram = torch.zeros(bins, dtype=torch.int64, device=atoms.device)
    energy = torch.zeros((), dtype=torch.float64, device=atoms.device)
    maximum, pair = 0.0, None
    for i in range(0, len(alive), tile):
        for j in range(i, len(alive), tile):
            cosines = (unit[i : i + tile] @ unit[j : j + tile].T).abs_().clamp_max_(1)
            if i == j:
                cosines.fill_diagonal_(0)
                pairs = cosines[torch.ones_like(cosines, dtype=torch.bool).triu_(1)]
            else:
                pairs = cosines.view(-1)
                _merge_(highest[j : j + tile], largest[j : j + tile], cosines.T)
            tops = _merge_(highest[i : i + tile], largest[i : i + tile], cosines)
            if (top := tops.max().item()) > maximum:
                row = int(tops.argmax())
                found = int(alive[i + row]), int(alive[j + int(cosines[row].argmax())])
                maximum, pair = top, (min(found), max(found))
            energy += pairs @ pairs
            histogram += torch.bincount((pairs * bins).long().clamp_max_(bins - 1), minlength=bins)

    per_atom = torch.zeros(len(atoms), dtype=torch.float64)
    per_atom[alive.cpu()] = highest.cpu()
    pairs_in_all = len(alive) * (len(alive) - 1) // 2
    return Coherence(
        per_atom=per_atom,
        histogram=histogram.cpu(),
        maximum=maximum,
        rms=(energy.item() / max(1, pairs_in_all)) ** 0.5,
        n_zero=len(atoms) - len(alive),
        pair=pair,
        babel=largest.cumsum_(1).amax(0).cpu() if len(alive) else torch.zeros(babel, dtype=torch.float64),
    )


@torch.no_grad()
def largest_cosine(atoms: Tensor, *, aip: AtomicInnerProduct | None, power: float = 1.0, tile: int = 2048) -> float:
    """Return the largest ``|cos|`` over all pairs of atoms and nothing else: `Coherence.maximum` at half the cost.

    Args:
        atoms: As in `coherence`.
        aip: As in `coherence`.
        power: As in `coherence`.
        tile: As in `coherence`.

    Raises:
        AtomsError: As in `coherence`.
        ValueError: As in `coherence`.
    """
    unit = directions(atoms, aip=aip, power=power)
    found = torch.zeros((), dtype=torch.float64, device=atoms.device)
    for i in range(0, len(unit), tile):
        for j in range(i, len(unit), tile):
            cosines = (unit[i : i + tile] @ unit[j : j + tile].T).abs_()
            if i == j:
                cosines.fill_diagonal_(0)
            found = torch.maximum(found, cosines.max())
    return found.clamp_max_(1).item()


@torch.no_grad()
def rms_cosine(atoms: Tensor, *, aip: AtomicInnerProduct | None) -> float:
    """Return the root mean square of cos over all pairs of atoms, `Coherence.rms`, from one (H, H) matrix.

    The squared entries of a Gram matrix add up to those of the frame operator: O(A H²) instead of O(A² H).

    Args:
        atoms: As in `coherence`.
        aip: As in `coherence`.

    Raises:
        AtomsError: As in `coherence`.
        ValueError: As in `coherence`.
    """
    unit = directions(atoms, aip=aip)
    alive = int(unit.any(1).sum())
    energy = (unit.T @ unit).square().sum().item() - alive
    return math.sqrt(max(energy, 0.0) / max(1, alive * (alive - 1)))


def _compact_(unit: Tensor) -> Tensor:
    """Move rows that are not zero to the front, in place and in order; return where they were, (alive,) int64."""
    alive = unit.any(1).nonzero().squeeze(1)
    if len(alive) < len(unit):
        for start in range(0, len(alive), _ROWS):  # rows only move forward, so none is overwritten unread
            unit[start : start + _ROWS][: len(alive) - start] = unit[alive[start : start + _ROWS]]
    return alive


def _merge_(highest: Tensor, largest: Tensor, cosines: Tensor) -> Tensor:
    """Take the cosines (n, m) of n atoms with m others into their records; return each one's largest here, (n,)."""
    tops = cosines.amax(1)
    torch.maximum(highest, tops, out=highest)
    if kept := largest.shape[1]:
        seen = cosines.topk(min(kept, cosines.shape[1]), dim=1).values
        largest.copy_(torch.cat([largest, seen], 1).topk(kept, dim=1).values)
    return tops
