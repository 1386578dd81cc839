"""The part of a dictionary that one process holds, and what the parts must tell each other.

A dictionary too wide for one device is dealt to the processes of a group, a run of neighbouring atoms to each, with
everything that belongs to an atom: its encoder and decoder row, bias, threshold, gradients and optimizer state. All of
them see the same rows. Codes and gradients are then local; only a sum over atoms crosses the group, above all the
reconstruction ``(B, H)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, partial: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = partial.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        # Every process computes the one loss of all of them from the same total; its gradient is not to be added.
        return grad, None


def kth_largest_by_bits(values: Tensor, k: int | Tensor, count: Callable[[Tensor], Tensor]) -> Tensor:
    """The k-th largest of numbers that lie on several processes, which tell each other counts only.

    The bits of numbers that are not negative, read as integers, are ordered as the numbers are; the answer's bits are
    found one after the other, the highest first.

    Args:
        values: Numbers that are not negative.
        k: At least 1.
        count: From a mask of ``values`` to how many are true over all processes, integers of any shape that goes with
            that of ``values``.

    Returns:
        A tensor of the shape of the counts; 0 where there are fewer than k numbers.
    """
    bits = values.view(torch.int64 if values.dtype == torch.float64 else torch.int32)
    found = bits.new_zeros(())
    for bit in reversed(range(torch.iinfo(bits.dtype).bits - 1)):
        trial = found | (1 << bit)
        found = torch.where(count(bits >= trial) >= k, trial, found)
    return found.view(values.dtype)


@dataclass(frozen=True)
class Shard:
    """Which atoms a process holds; the default is all of them, and then every method is local.

    Args:
        rank: Place of this process in the group.
        size: T, the number of processes that share the dictionary.
        group: The processes; None where there is only one.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def atoms(self, total: int) -> slice:
        """The atoms of ``total`` held here, a run of neighbours; runs differ in length by at most one."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def add(self, partial: Tensor) -> Tensor:
        """The sum of all processes' tensors of one shape; a gradient passes through to each of them."""
        if self.group is None or self.size == 1:
            return partial
        total: Tensor = _Add.apply(partial, self.group)  # type: ignore[no-untyped-call]
        return total

    @torch.no_grad()
    def kth_largest(self, values: Tensor, k: int) -> Tensor:
        """Each row's k-th largest number, (B, 1), over the columns of all processes; 0 where there are fewer.

        Args:
            values: Numbers (B, n) that are not negative; n may differ between processes.
            k: At least 1; where there is only one process, at most n.
        """
        if self.size == 1:
            return values.topk(k, dim=1).values[:, -1:]
        # B counts cross the group for every bit, where the numbers themselves could be as large as the reconstruction.
        return kth_largest_by_bits(values, k, lambda above: self.add(above.sum(1, keepdim=True)))

    @torch.no_grad()
    def gather(self, own: Tensor, total: int) -> Tensor | None:
        """Put the parts of a tensor together on the CPU; every process calls it, the first gets the answer.

        A device holds one part of another process at a time, never the whole.

        Args:
            own: The part held here, (atoms held here, ...).
            total: A, the number of atoms.
        """
        if self.group is None or self.size == 1:
            return own.detach().cpu()
        parts = []
        for rank in range(self.size):
            held = Shard(rank, self.size).atoms(total)
            part = own.detach() if rank == self.rank else own.new_empty((held.stop - held.start, *own.shape[1:]))
            dist.broadcast(part, group=self.group, group_src=rank)
            if self.rank == 0:
                parts.append(part.cpu())
        return torch.cat(parts) if parts else None
