"""One training step in plain PyTorch: the reference that every faster back end must agree with."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from atoms.sae.activation import activate
from atoms.sae.control import Control
from atoms.sae.model import ThresholdSAE
from atoms.sae.threshold import threshold_activation


class StepOutput(NamedTuple):
    """What a training step hands back.

    Attributes:
        loss: What to differentiate; a mean over the rows of the batch.
        parts: Detached 0-dim tensors: `reconstruction`, `revival` and `l0`, the last of the atoms held here; for
            ``relu`` also `shrinkage`.
        stats: Sums over rows for `Control.update`, flat float64; add those of all ranks first.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    stats: Tensor


def eager_step(sae: ThresholdSAE, control: Control, x: Tensor) -> StepOutput:
    """Loss and statistics of one batch.

    Args:
        sae: The SAE.
        control: Its control; read, not changed.
        x: Activations (B, H), float32, in their own unit.
    """
    z = sae.standardise(x)
    pre = sae.pre_activations(z)
    learnt = cutoff = None
    if sae.activation == "threshold":
        learnt = sae.threshold.detach()
        codes = threshold_activation(pre, sae.threshold, control.objective.bandwidth)
    elif sae.activation == "batch_topk":
        cutoff = control.cutoff(sae, pre.detach())
        codes = activate(pre, cutoff)
    else:
        codes = sae.activate(pre)
    error = z - sae.reconstruct(codes)
    reconstruction = control.energy(error)
    revival = _revival(sae, control, z, error.detach())
    stats = control.statistics(pre.detach(), codes.detach(), learnt, reconstruction.detach(), sae.shard, cutoff)
    parts = {"reconstruction": reconstruction.detach(), "revival": revival.detach(), "l0": stats[1] / len(x)}
    loss = reconstruction + control.objective.revival * revival
    if sae.activation == "relu":
        shrinkage = control.shrinkage(sae, codes)
        loss, parts["shrinkage"] = loss + shrinkage, shrinkage.detach()
    return StepOutput(loss, parts, stats)


def _revival(sae: ThresholdSAE, control: Control, z: Tensor, error: Tensor) -> Tensor:
    """How much of the error the silent atoms leave, as a share of the last step's error.

    Every row picks its own few among the longest silent atoms. The shapes never depend on how many are silent, so
    nothing waits for the device; a shard, which must wait to know its own, then does nothing where none are.
    """
    index, silent, count = control.spare(sae)
    if sae.shard.size > 1 and not count:
        return error.new_zeros(())
    pre = F.linear(z, sae.encoder_rows()[index]).float() + sae.bias[index]
    few = max(1, control.num_spare // 2)
    values = pre.relu() * silent
    codes = values * (values >= sae.shard.kth_largest(values, few))
    left = control.energy(error - sae.shard.add((codes @ sae.decoder[index]).float()))
    share = (count / few).clamp(max=1)
    return left / control.residual.float() * share
