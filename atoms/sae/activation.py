"""From pre-activations to codes: which of them are kept.

Four activations are one rule, ``code = pre · 1[pre ≥ θ]``, and differ in where ``θ`` comes from. For ``threshold`` it
is learnt, one per atom. For ``relu`` it is zero, and a penalty on the codes keeps them few (Cunningham et al., arXiv
2309.08600). For ``topk`` it is zero too, and of what is left a row keeps its k largest (arXiv 2406.04093). For
``batch_topk`` it is one number for all atoms: in training the one that leaves a batch its k largest per row on average,
afterwards a running mean of these (arXiv 2412.06410).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from atoms.sae.shard import Shard, kth_largest_by_bits

Activation = Literal["threshold", "relu", "topk", "batch_topk"]


def activate(pre: Tensor, threshold: Tensor, k: int | None = None, shard: Shard | None = None) -> Tensor:
    """Codes (B, A) of pre-activations (B, A).

    Args:
        pre: Pre-activations.
        threshold: Thresholds (A,), not negative, or one for all.
        k: Most atoms of a row, its largest; None for as many as reach their thresholds.
        shard: Whose atoms these are, where a row's largest are sought among those of all processes.
    """
    keep = pre >= threshold
    if k is not None:
        keep &= _largest(pre, k, shard or Shard())
    return pre * keep


@torch.no_grad()
def _largest(pre: Tensor, k: int, shard: Shard) -> Tensor:
    """Mask (B, n) of every row's k largest positive numbers over all shards, never more than k; zeros do not matter."""
    if shard.size == 1:
        chosen = pre.topk(k, dim=1, sorted=False).indices
        return torch.zeros_like(pre, dtype=torch.bool).scatter_(1, chosen, True)
    values = pre.relu()
    cut = shard.kth_largest(values, k)
    above, equal = values > cut, values == cut
    # Of equals at the cut, those of lower index have what room is left.
    room = k - shard.add(above.sum(1, keepdim=True))
    equals = equal.new_zeros(len(pre), shard.size, dtype=torch.int64)
    equals[:, shard.rank] = equal.sum(1)
    before = shard.add(equals)[:, : shard.rank].sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= room - before))


@torch.no_grad()
def batch_cutoff(pre: Tensor, per_row: float, rows: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """The number, 0-dim, that leaves ``round(per_row · rows)`` positive pre-activations of the whole batch.

    It is exact, and the same however rows and atoms are dealt to processes: counts alone cross the group, never
    pre-activations, and nothing waits for the device.

    Args:
        pre: This process's pre-activations (B, n).
        per_row: Mean number of atoms per row to keep.
        rows: Rows this process answers for; processes that share atoms see the same rows, which must count once.
        group: All processes of the training; None where there is only one.

    Returns:
        The k-th largest of all positive numbers; 0 where there are fewer than k.
    """

    def total(count: Tensor) -> Tensor:
        if group is not None:
            dist.all_reduce(count, group=group)
        return count

    k = (per_row * total(torch.full((), rows, dtype=torch.float64, device=pre.device))).round().clamp_min(1)
    return kth_largest_by_bits(pre.relu(), k, lambda above: total(above.count_nonzero()))
