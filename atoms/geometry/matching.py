"""Which atom of one dictionary is which of another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# A pair of the cost matrix: float32 on its device and beside the solver, float64 in the solver, there perhaps turned.
_BYTES_PER_PAIR = 24


class Matching(NamedTuple):
    """Partners of the atoms of a first dictionary among those of a second, one to one.

    Attributes:
        partner: Place of each atom's partner, (A,) int64 on the CPU; -1 for none.
        cosine: Cosine with it, sign and all, (A,) float64 on the CPU; 0 without a partner.
        nearest: Largest ``|cos|`` with any atom of the second, whoever else that one is near to, (A,) float64 on the
            CPU.
        optimal: Whether no other matching has a larger sum of ``|cos|``.
    """

    partner: Tensor
    cosine: Tensor
    nearest: Tensor
    optimal: bool


@torch.no_grad()
def match(first: Tensor, second: Tensor, memory: int | None = None) -> Matching:
    """Match unit vectors one to one by ``|cos|``.

    Where all pairs fit the memory, the matching is the one with the largest sum of ``|cos|`` (Hungarian method).
    Beyond, two atoms are partners where each is the other's nearest, found in blocks. These pairs are some matching,
    too, and nearest neighbours without the bond of one to one are no worse than any, so that
    ``Σ|cos| of mutual pairs ≤ Σ|cos| of the best matching ≤ Σ nearest``.

    Pairs are compared in float32; what is returned of those chosen is computed in float64.

    Source: H. W. Kuhn, The Hungarian method for the assignment problem, 1955.

    Args:
        first: Unit vectors (A, H) float64, on any device; vectors of zeros are at right angles to all.
        second: Unit vectors (A', H) float64, on the same device.
        memory: Most bytes to take; None for as many as the best matching needs.
    """
    if not len(first) or not len(second):
        nothing = torch.zeros(len(first), dtype=torch.float64)
        return Matching(torch.full((len(first),), -1), nothing, nothing.clone(), optimal=True)
    lower, upper = first.float(), second.float()
    optimal = memory is None or len(first) * len(second) * _BYTES_PER_PAIR <= memory
    if optimal:
        cosines = (lower @ upper.T).abs_()
        nearest = cosines.argmax(1)
        partner = torch.full((len(first),), -1)
        costs = cosines.neg_().cpu().numpy()
        rows, columns = linear_sum_assignment(costs)
        partner[torch.from_numpy(rows)] = torch.from_numpy(columns)
    else:
        assert memory is not None
        nearest, back = _nearest(lower, upper, max(1, memory // (_BYTES_PER_PAIR * len(second))))
        mutual = back[nearest] == torch.arange(len(first), device=first.device)
        partner = nearest.where(mutual, -1).cpu()
    chosen = partner.to(first.device)
    cosine = ((first * second[chosen]).sum(1) * (chosen >= 0)).clamp(-1, 1)
    return Matching(
        partner=partner,
        cosine=cosine.cpu(),
        nearest=(first * second[nearest]).sum(1).abs().clamp_max(1).cpu(),
        optimal=optimal,
    )


def _nearest(first: Tensor, second: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Nearest of the second to each of the first, and the other way round, from `block` of the first at a time."""
    there = torch.empty(len(first), dtype=torch.int64, device=first.device)
    back = torch.zeros(len(second), dtype=torch.int64, device=first.device)
    highest = torch.full((len(second),), -1.0, device=first.device)
    for start in range(0, len(first), block):
        cosines = (first[start : start + block] @ second.T).abs_()
        there[start : start + block] = cosines.argmax(1)
        peaks, places = cosines.max(0)
        higher = peaks > highest
        highest = peaks.where(higher, highest)
        back = (places + start).where(higher, back)
    return there, back
