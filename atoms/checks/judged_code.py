"""What is judged of a row's code: its live atoms, the strongest of them where it is dense."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atoms.checks.check import Subject
from atoms.sae import SparseCodes


@dataclass(frozen=True, eq=False)
class JudgedCodes:
    """Codes of B rows as lists of equal length, on atoms of unit S-norm.

    Attributes:
        support: Atoms, strongest first, (B, K) int64.
        coefficients: Their coefficients times ``‖d‖_S``, (B, K) float64; 0 where a row has fewer atoms.
        k: Live atoms of the unit's own code, (B,) int64.
        used: Atoms that are judged, (B,) int64.
        cut: Rows whose code is dense and was cut to its `Subject.max_k` strongest atoms, (B,) bool.
        left_out: Rows of too many atoms to be judged, of which none are listed, (B,) bool.
        codes: The unit's codes with what was cut removed and nothing else.
    """

    support: Tensor
    coefficients: Tensor
    k: Tensor
    used: Tensor
    cut: Tensor
    left_out: Tensor
    codes: SparseCodes


def judged_codes(codes: SparseCodes, subject: Subject) -> JudgedCodes:
    """Prepare codes for theorems.

    Coefficients that are zero and atoms of zero norm are no part of a code. A code is *dense* when it has more than
    H/2 atoms: with more, no overcomplete dictionary can make codes unique. The ``max_k`` coefficients of a dense code
    that are largest as ``|coefficient| · ‖d‖_S`` are judged in its place; where ``max_k`` is not known it is left out.
    Codes that are not dense are judged as they are, but left out beyond ``settings.certified_k`` (or ``max_k``, if
    larger) atoms.

    Args:
        codes: As the unit gave them.
        subject: Whose they are.
    """
    row = codes.rows
    scaled = codes.values.to(torch.float64) * subject.norms[codes.indices.long()]
    alive = scaled != 0
    k = torch.bincount(row[alive], minlength=len(codes))

    dense = k > subject.width // 2
    most = max(subject.settings.certified_k, subject.max_k or 0)
    cut = dense if subject.max_k is not None else torch.zeros_like(dense)
    left_out = (dense & ~cut) | (~dense & (k > most))
    used = torch.where(cut, subject.max_k or 0, k).minimum(k).masked_fill(left_out, 0)

    by_strength = scaled.abs().argsort(descending=True, stable=True)
    order = by_strength[row[by_strength].argsort(stable=True)]
    rank = torch.arange(len(order), device=order.device) - codes.offsets[row[order]]
    chosen = rank < used[row[order]]
    places, ranks, rows = order[chosen], rank[chosen], row[order][chosen]
    longest = int(used.max()) if len(used) else 0
    support = torch.zeros(len(codes), longest, dtype=torch.int64, device=row.device)
    coefficients = scaled.new_zeros(len(codes), longest)
    support[rows, ranks] = codes.indices.long()[places]
    coefficients[rows, ranks] = scaled[places]

    kept = ~cut[row]
    kept[places] = True
    offsets = torch.zeros_like(codes.offsets)
    torch.cumsum(torch.bincount(row[kept], minlength=len(codes)), 0, out=offsets[1:])
    remaining = SparseCodes(offsets, codes.indices[kept], codes.values[kept], codes.width)
    return JudgedCodes(support, coefficients, k, used, cut, left_out, remaining)
