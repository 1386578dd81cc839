"""How far a dictionary is from orthogonal: all pairs, without the matrix of all pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atoms.errors import AtomsError
from atoms.geometry.inner_product import AtomicInnerProduct, unit_rows


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
    """

    per_atom: Tensor
    histogram: Tensor
    maximum: float
    rms: float
    n_zero: int

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


@torch.no_grad()
def coherence(atoms: Tensor, *, aip: AtomicInnerProduct | None, tile: int = 2048, bins: int = 65_536) -> Coherence:
    """Measure ``|cos|`` between all pairs of atoms.

    Works on tiles of the Gram matrix in float64: single precision would at most halve the time on a CPU and leave the
    maximum, on which theorems rest, uncertain. Beside the atoms themselves it needs O(tile² + A + bins) memory.

    Args:
        atoms: Dictionary (A, H) in activation coordinates, of any scale, on any device.
        aip: Inner product the angles are measured in; ``None`` for Euclid's.
        tile: Atoms per side of a tile.
        bins: Resolution of the histogram; a power of two keeps the bin edges exact.

    Raises:
        AtomsError: If an atom is not finite.
        ValueError: If ``atoms`` is not a matrix, or ``tile`` or ``bins`` is not positive.
    """
    if atoms.ndim != 2:
        raise ValueError(f"atoms are {tuple(atoms.shape)}, not (A, H)")
    if tile < 1 or bins < 1:
        raise ValueError(f"tile {tile} and bins {bins} must be positive")
    if not atoms.isfinite().all():
        raise AtomsError("atoms hold NaN or infinity: the dictionary diverged, take an earlier checkpoint")
    directions = atoms.to(torch.float64)
    directions = unit_rows(directions if aip is None else aip.whiten(directions))
    alive = directions.any(1).nonzero().squeeze(1)
    directions = directions[alive]

    highest = torch.zeros(len(alive), dtype=torch.float64, device=atoms.device)
    histogram = torch.zeros(bins, dtype=torch.int64, device=atoms.device)
    energy = torch.zeros((), dtype=torch.float64, device=atoms.device)
    for i in range(0, len(alive), tile):
        rows = directions[i : i + tile]
        for j in range(i, len(alive), tile):
            cosines = (rows @ directions[j : j + tile].T).abs_().clamp_max_(1)
            if i == j:
                cosines.fill_diagonal_(0)
                pairs = cosines[torch.ones_like(cosines, dtype=torch.bool).triu_(1)]
            else:
                pairs = cosines.view(-1)
                columns = highest[j : j + tile]
                torch.maximum(columns, cosines.amax(0), out=columns)
            peaks = highest[i : i + tile]
            torch.maximum(peaks, cosines.amax(1), out=peaks)
            energy += pairs @ pairs
            histogram += torch.bincount((pairs * bins).long().clamp_max_(bins - 1), minlength=bins)

    per_atom = torch.zeros(len(atoms), dtype=torch.float64)
    per_atom[alive.cpu()] = highest.cpu()
    pairs_in_all = len(alive) * (len(alive) - 1) // 2
    return Coherence(
        per_atom=per_atom,
        histogram=histogram.cpu(),
        maximum=per_atom.max().item() if len(atoms) else 0.0,
        rms=(energy.item() / max(1, pairs_in_all)) ** 0.5,
        n_zero=len(atoms) - len(alive),
    )
