"""Sums over rows, from all ranks."""

from __future__ import annotations

from torch import Tensor
from torchmetrics import Metric


class Sums(Metric):
    """Tensors that batches are added to and ranks are summed over: float64 or int64, of any size.

    Args:
        zeros: By name, the sum of nothing.

    Example:
        >>> import torch
        >>> sums = Sums(total=torch.zeros(2, dtype=torch.float64))
        >>> sums.update(total=torch.tensor([1.0, 2.0]))
        >>> sums.pooled()["total"]
        tensor([1., 2.], dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(self, **zeros: Tensor) -> None:
        super().__init__()
        self.names = tuple(zeros)
        for name, zero in zeros.items():
            self.add_state(name, zero, dist_reduce_fx="sum")

    def update(self, **values: Tensor) -> None:
        """Add to the sums named."""
        for name, value in values.items():
            before = getattr(self, name)
            setattr(self, name, before + value.to(before.dtype))

    def add(self, place: int, **values: Tensor) -> None:
        """Add to one entry, along the first dimension, of the sums named."""
        for name, value in values.items():
            getattr(self, name)[place] += value

    def compute(self) -> dict[str, Tensor]:
        """Return the sums."""
        return self._states()

    def pooled(self) -> dict[str, Tensor]:
        """Return the sums of all ranks, on the CPU; every rank must call it, with batches or without."""
        with self.sync_context():
            return {name: value.cpu() for name, value in self._states().items()}

    def _states(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in self.names}
