"""Whether learned atoms are the planted ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from atoms.geometry import match

# Two unit vectors this close are called the same direction, as is customary for planted dictionaries.
RECOVERED_COSINE = 0.9


class Recovery(NamedTuple):
    """Agreement of a learned with a planted dictionary under the best one-to-one matching.

    Attributes:
        matched: ``|cos|`` of each planted atom with its partner, (T,) float64 on the CPU; 0 without a partner.
        mcc: Mean of ``matched``, the mean correlation coefficient.
        recovered: Share of planted atoms with ``|cos|`` of at least 0.9.
    """

    matched: Tensor
    mcc: float
    recovered: float


@torch.no_grad()
def planted_recovery(learned: Tensor, planted: Tensor) -> Recovery:
    """Match planted atoms one to one with learned atoms so that the sum of ``|cos|`` is largest.

    Angles are Euclid's; whiten both dictionaries first to match in an inner product. With two trained dictionaries
    the same number is their stability across seeds. Needs O(T·A) memory.

    Args:
        learned: Learned atoms (A, H) of any scale; atoms of zero norm match nothing.
        planted: Planted atoms (T, H) of any scale, T ≥ 1.

    Raises:
        ValueError: If the shapes disagree or nothing was planted.
    """
    if learned.ndim != 2 or planted.ndim != 2 or learned.shape[1] != planted.shape[1] or not len(planted):
        raise ValueError(f"learned is {tuple(learned.shape)} and planted {tuple(planted.shape)}, not (A, H) and (T, H)")
    matched = match(_directions(planted), _directions(learned)).cosine.abs()
    return Recovery(matched, matched.mean().item(), (matched >= RECOVERED_COSINE).to(torch.float64).mean().item())


def _directions(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.to(torch.float64), dim=1, eps=torch.finfo(torch.float64).tiny)
