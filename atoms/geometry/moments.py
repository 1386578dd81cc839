"""First and second moments of activation rows: exact to merge, small to keep."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from atoms.errors import AtomsError

# Rows widened to float64 at a time, so that a large float16 batch never quadruples in memory.
_BLOCK = 16_384


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, sum and sum of outer products of activation rows.

    Moments of disjoint sets of rows add up: batches, shards and ranks are pooled with ``+``.

    Args:
        count: Number of rows.
        total: Sum of the rows, (H,) float64, in activation units.
        outer: Sum of ``x xᵀ`` over the rows, (H, H) float64, in squared activation units.

    Raises:
        ValueError: If the shapes disagree, a sum is not float64, or the count is negative.
    """

    count: int
    total: Tensor
    outer: Tensor

    def __post_init__(self) -> None:
        if self.total.ndim != 1 or self.outer.shape != (len(self.total), len(self.total)):
            raise ValueError(
                f"total is {tuple(self.total.shape)} and outer {tuple(self.outer.shape)}, not (H,) and (H, H)"
            )
        if self.total.dtype != torch.float64 or self.outer.dtype != torch.float64:
            raise ValueError(f"moments are float64 sums, not {self.total.dtype} and {self.outer.dtype}")
        if self.count < 0:
            raise ValueError(f"count is {self.count}, less than zero")

    @classmethod
    def zeros(cls, width: int) -> Moments:
        """Return the moments of no rows at all, the neutral element of ``+``.

        Args:
            width: Width H of the rows.
        """
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64))

    @classmethod
    @torch.no_grad()
    def from_rows(cls, rows: Tensor) -> Moments:
        """Return the moments of ``rows``, on the device they lie on.

        Args:
            rows: Activations (N, H) of any floating-point type; N may be 0.

        Raises:
            ValueError: If ``rows`` is not a floating-point matrix.
        """
        if rows.ndim != 2 or not rows.is_floating_point():
            raise ValueError(f"rows are {tuple(rows.shape)} of {rows.dtype}, not a floating-point (N, H)")
        width = rows.shape[1]
        total = torch.zeros(width, dtype=torch.float64, device=rows.device)
        outer = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
        for start in range(0, len(rows), _BLOCK):
            exact = rows[start : start + _BLOCK].to(torch.float64)
            total += exact.sum(0)
            outer.addmm_(exact.T, exact)
        return cls(len(rows), total, outer)

    def __add__(self, other: Moments) -> Moments:
        if self.width != other.width:
            raise ValueError(f"moments of width {self.width} and {other.width} cannot be pooled")
        return Moments(
            self.count + other.count,
            self.total + other.total.to(self.total.device),
            self.outer + other.outer.to(self.outer.device),
        )

    def about(self, point: Tensor) -> Moments:
        """Return the moments of the rows less a point.

        Args:
            point: (H,), in activation units.
        """
        point = point.to(self.total)
        crossed = torch.outer(self.total, point)
        outer = self.outer - crossed - crossed.T + self.count * torch.outer(point, point)
        return Moments(self.count, self.total - self.count * point, outer)

    @property
    def width(self) -> int:
        """Width H of the rows."""
        return len(self.total)

    @property
    def mean(self) -> Tensor:
        """Mean row, (H,) float64; NaN without rows."""
        return self.total / self.count

    @property
    def second_moment(self) -> Tensor:
        """``E[x xᵀ]`` about zero, (H, H) float64, exactly symmetric; NaN without rows."""
        return (self.outer + self.outer.T) / (2 * self.count) if self.count else self.outer / 0

    @property
    def covariance(self) -> Tensor:
        """``E[x xᵀ]`` about the mean (divided by N, not N - 1), (H, H) float64; NaN without rows."""
        return self.second_moment - torch.outer(self.mean, self.mean)

    def to_bytes(self) -> bytes:
        """The moments as a safetensors file."""
        return save(
            {"count": torch.tensor(self.count), "total": self.total.cpu(), "outer": self.outer.cpu().contiguous()}
        )

    @classmethod
    def from_bytes(cls, data: bytes, name: object = "") -> Moments:
        """Read what :meth:`to_bytes` gave.

        Args:
            data: The bytes of the file.
            name: What to call it in an error.

        Raises:
            AtomsError: If they are no moments.
        """
        try:
            tensors = load(data)
            return cls(int(tensors["count"]), tensors["total"], tensors["outer"])
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise AtomsError(f"moments file {name} cannot be read ({error}): delete it and harvest again") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the moments to a safetensors file that is either whole or absent.

        Args:
            path: File to write; its folder must exist.
        """
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                file.write(self.to_bytes())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Moments:
        """Read moments written by :meth:`save`.

        Args:
            path: File to read.

        Raises:
            AtomsError: If the file is missing or is not a moments file.
        """
        try:
            data = Path(path).read_bytes()
        except FileNotFoundError:
            raise AtomsError(f"moments file {path} does not exist: harvest the activations first") from None
        return cls.from_bytes(data, path)
