"""Codes by row, without the zeros."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SparseCodes:
    """Codes of B rows over A atoms in compressed-row form.

    Attributes:
        offsets: (B + 1,) int64; row i owns entries `offsets[i]:offsets[i + 1]`.
        indices: (entries,) int32, the atoms, ascending within a row.
        values: (entries,) float32, the coefficients.
        width: A, the number of atoms.
    """

    offsets: Tensor
    indices: Tensor
    values: Tensor
    width: int

    @classmethod
    def from_dense(cls, codes: Tensor) -> SparseCodes:
        """Keep the non-zero entries of codes (B, A)."""
        rows, indices = codes.nonzero(as_tuple=True)
        offsets = torch.zeros(len(codes) + 1, dtype=torch.int64, device=codes.device)
        torch.cumsum(torch.bincount(rows, minlength=len(codes)), 0, out=offsets[1:])
        return cls(offsets, indices.to(torch.int32), codes[rows, indices].float(), codes.shape[1])

    @classmethod
    def from_support(cls, support: Tensor, coefficients: Tensor, width: int) -> SparseCodes:
        """Codes of rows whose atoms are listed.

        Args:
            support: Atoms of each row, (B, k) int64 in any order; -1 for none.
            coefficients: Theirs, (B, k); zeros are left out.
            width: A.
        """
        atoms, order = support.sort(dim=1)
        values = coefficients.gather(1, order).float()
        kept = (atoms >= 0) & (values != 0)
        offsets = torch.zeros(len(support) + 1, dtype=torch.int64, device=support.device)
        torch.cumsum(kept.sum(1), 0, out=offsets[1:])
        return cls(offsets, atoms[kept].to(torch.int32), values[kept], width)

    @classmethod
    def concatenate(cls, parts: list[SparseCodes]) -> SparseCodes:
        """Stack the rows of several pieces over the same atoms."""
        shifts = torch.tensor([0, *(len(part.indices) for part in parts[:-1])]).cumsum(0)
        tails = [part.offsets[1:] + int(shift) for part, shift in zip(parts, shifts, strict=True)]
        return cls(
            torch.cat([parts[0].offsets[:1], *tails]),
            torch.cat([part.indices for part in parts]),
            torch.cat([part.values for part in parts]),
            parts[0].width,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def l0(self) -> Tensor:
        """Active atoms per row, (B,) int64."""
        return self.offsets.diff()

    @property
    def rows(self) -> Tensor:
        """The row of every entry, (entries,) int64."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.offsets.device), self.l0)

    def to_dense(self) -> Tensor:
        """Codes (B, A), float32."""
        dense = self.values.new_zeros(len(self), self.width)
        dense[self.rows, self.indices.long()] = self.values
        return dense
