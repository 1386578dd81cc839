"""What training steers by without gradients: the number of active atoms, and the atoms that have fallen silent.

Everything here is a sum over rows. A step packs its sums into one flat float64 tensor; ranks add theirs (one
all-reduce); `Control.update` takes the total. Two ranks with half a batch each thus do what one does with all of it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from atoms.sae.activation import batch_cutoff
from atoms.sae.model import ThresholdSAE
from atoms.sae.objective import Objective
from atoms.sae.shard import Shard
from atoms.sae.threshold import window

FLOOR = 0.01
"""Least threshold, as a share of their mean, and least mean in standard deviations of a coordinate of z."""
CUTOFF_STEPS = 20
"""Steps over which the cutoff of ``batch_topk`` is averaged."""


class Control(nn.Module):
    """The state of one SAE's training that no gradient moves.

    Around every optimizer step:

        out = eager_step(sae, control, x)
        out.loss.backward()
        control.update(all_reduced_sum(out.stats))
        control.project_gradients_(sae)
        optimizer.step()
        control.after_step_(sae)

    **L0.** All thresholds are multiplied by ``(L0 / target)^gain`` after each step: an integral controller in the
    logarithm, indifferent to scale. What is left for the gradient is how thresholds differ: before the step their
    gradient is charged the price of an active atom, the one at which it would neither raise nor lower all thresholds
    together. No sparsity weight needs choosing. Other activations leave less to do:

    - ``relu``: the weight of the penalty on codes is steered in the same way. Since the SAE must first learn what a
      weight asks of it, the penalty also carries the last step's ``L0 / target`` as a factor, without which it swings.
    - ``topk``: nothing.
    - ``batch_topk``: the cutoff follows from each batch (`cutoff`); thresholds become the running mean of it.

    **Silent atoms.** `silent_rows` counts rows since an atom last fired. `eager_step` lets the longest silent ones
    explain residuals; their thresholds and biases, which no gradient may reach, halve every `dead_after` further rows,
    until they fire.

    **Shards.** What is known of atoms is known of all of them everywhere: 16 bytes an atom, against some 32·H for its
    weights and their optimizer state. The sum over processes of the flat tensor is then the only thing to be reduced,
    whether they share rows or atoms.

    Args:
        sae: The SAE it steers.
        objective: The settings.
        rows: Rows that training will see in all, over every epoch and rank.
        group: All processes of the training, whether they share rows or atoms; None where there is only one.
    """

    silent_rows: Tensor
    rows_seen: Tensor
    step_rows: Tensor
    mean_l0: Tensor
    residual: Tensor
    near: Tensor
    error_map: Tensor
    penalty: Tensor
    batch_cutoff: Tensor

    def __init__(
        self, sae: ThresholdSAE, objective: Objective, rows: int, group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__()
        self.objective, self.group = objective, group
        self.dead_after = objective.dead_after or max(1, min(10_000_000, rows // 20))
        self.num_spare = min(sae.num_atoms, max(32, sae.num_atoms // 16))
        device = sae.decoder.device
        self.register_buffer("silent_rows", torch.zeros(sae.num_atoms, dtype=torch.int64, device=device))
        self.register_buffer("rows_seen", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("step_rows", torch.zeros((), dtype=torch.float64, device=device))
        self.register_buffer("mean_l0", torch.zeros((), dtype=torch.float64, device=device))
        self.register_buffer("residual", torch.ones((), dtype=torch.float64, device=device))
        self.register_buffer("near", torch.zeros(sae.num_atoms, dtype=torch.float64, device=device))
        if sae.activation == "relu":
            self.register_buffer("penalty", torch.full((), 0.5, dtype=torch.float64, device=device))
        if sae.activation == "batch_topk":
            self.register_buffer("batch_cutoff", torch.zeros((), dtype=torch.float64, device=device))
        error_map = sae.error_map(objective.error_power).to(device, torch.float32)
        self.register_buffer("error_map", error_map, persistent=False)

    # ------------------------------------------------------------------------------------------ read by the step

    def energy(self, error: Tensor) -> Tensor:
        """Mean over rows of the squared length of errors in z (B, H), as a share of the data's variance."""
        with torch.autocast(error.device.type, enabled=False):
            return (error @ self.error_map).square().sum() / len(error)

    def spare(self, sae: ThresholdSAE) -> tuple[Tensor, Tensor, Tensor]:
        """The longest silent atoms.

        Returns:
            Their indices among the atoms held here; 1 for each that counts as silent, else 0; and how many do, over
            all shards. A shard names only its own that do, which waits for the device.
        """
        rows, index = self.silent_rows.topk(self.num_spare)
        silent = rows >= self.dead_after
        count = silent.sum()
        if sae.shard.size > 1:
            held = sae.held
            index = index[silent & (index >= held.start) & (index < held.stop)] - held.start
            silent = torch.ones_like(index, dtype=torch.bool)
        return index, silent.float(), count

    def shrinkage(self, sae: ThresholdSAE, codes: Tensor) -> Tensor:
        """The penalty on the codes of ``relu``: the mean over rows of their sum, in z, times a weight.

        Decoder rows have unit length, so that the sum is an L1 norm that no scaling escapes. `penalty` is what it takes
        off a code whose atom stands alone in its row, in root mean squares of a coordinate of z; exactly so where
        ``error_power`` is ``power``.
        """
        lately = (self.mean_l0 / self.objective.target_l0).clamp(0.1, 10)
        weight = (2 / sae.width * self.penalty * lately).to(codes.dtype)
        return weight * sae.shard.add(codes.sum()) / len(codes)

    def cutoff(self, sae: ThresholdSAE, pre: Tensor) -> Tensor:
        """What the largest pre-activations of all processes' rows must reach for there to be `target_l0` per row."""
        rows = len(pre) if sae.shard.rank == 0 else 0
        return batch_cutoff(pre, self.objective.target_l0, rows, self.group)

    @torch.no_grad()
    def statistics(
        self,
        pre: Tensor,
        codes: Tensor,
        threshold: Tensor | None,
        energy: Tensor,
        shard: Shard | None = None,
        cutoff: Tensor | None = None,
    ) -> Tensor:
        """Pack a step's sums over rows into one flat float64 tensor, (3 + 2A,), one longer with a cutoff.

        Args:
            pre: Pre-activations (B, A).
            codes: Codes (B, A).
            threshold: Thresholds (A,) that are learnt; None where none are.
            energy: Mean energy of the rows' errors, 0-dim.
            shard: Whose atoms these are; the others' count as zero, and only the first shard counts the rows.
            cutoff: What the codes of this batch had to reach, 0-dim; None where that was the thresholds.
        """
        shard = shard or Shard()
        atoms = len(self.silent_rows)
        held = shard.atoms(atoms)
        active = codes > 0
        fired = active.sum(0)
        near = torch.zeros_like(fired)
        if threshold is not None:
            near = window(pre, threshold, self.objective.bandwidth).sum(0)
        rows = float(len(pre)) if shard.rank == 0 else 0.0
        head = torch.stack([energy.new_tensor(rows, dtype=torch.float64), fired.sum().double(), energy.double() * rows])
        elsewhere = (held.start, atoms - held.stop)
        tail = [] if cutoff is None else [cutoff.double().view(1) * rows]
        return torch.cat([head, F.pad(fired.double(), elsewhere), F.pad(near.double(), elsewhere), *tail])

    # ------------------------------------------------------------------------------------------ around the optimizer

    def update(self, stats: Tensor) -> None:
        """Take a step's statistics, summed over ranks."""
        rows, active, energy = stats[:3]
        fired, near = stats[3 : 3 + 2 * len(self.silent_rows)].chunk(2)
        self.rows_seen += rows.long()
        self.silent_rows.copy_(torch.where(fired > 0, 0, self.silent_rows + rows.long()))
        self.step_rows.copy_(rows)
        self.mean_l0.copy_(active / rows)
        self.residual.copy_(energy / rows)
        self.near.copy_(near / rows)
        if len(stats) > 3 + 2 * len(fired):
            self.batch_cutoff.copy_(stats[-1] / rows)

    @torch.no_grad()
    def project_gradients_(self, sae: ThresholdSAE) -> None:
        """Charge thresholds the price of an active atom, and keep decoder gradients on the sphere.

        Raising threshold i by a fraction ``s`` of itself loses ``s · near_i / bandwidth`` active atoms per row. The
        price is the reconstruction lost per active atom when all thresholds rise by the same fraction.
        """
        sae.project_gradients_()
        if sae.threshold.grad is not None:
            worse = sae.shard.add((sae.threshold.grad * sae.threshold).sum())
            fewer = self.near.float() / self.objective.bandwidth
            price = worse / fewer.sum().clamp_min(torch.finfo(torch.float32).tiny)
            sae.threshold.grad.sub_(price * torch.where(sae.threshold > 0, fewer[sae.held] / sae.threshold, 0))

    @torch.no_grad()
    def after_step_(self, sae: ThresholdSAE) -> None:
        """Steer towards the target L0, let silent atoms fade in, bring decoder rows to unit length."""
        sae.normalise_()
        excess = torch.log(self.mean_l0 / self.objective.target_l0)
        factor = (self.objective.gain * excess).clamp(-0.1, 0.1).exp()
        fading = torch.where(
            self.silent_rows[sae.held] >= self.dead_after, 0.5 ** (self.step_rows / self.dead_after), 1
        )
        sae.bias.mul_(fading.float())
        if sae.activation == "threshold":
            sae.threshold.mul_((factor * fading).float())
            # At zero neither the scaling nor a window proportional to the threshold could ever raise it again.
            mean = sae.shard.add(sae.threshold.sum()) / sae.num_atoms
            sae.threshold.clamp_(min=FLOOR * mean.clamp_min(FLOOR))
        elif sae.activation == "relu":
            self.penalty.mul_(factor)
        elif sae.activation == "batch_topk":
            share = (self.step_rows / self.rows_seen).clamp_min(1 / CUTOFF_STEPS)
            sae.threshold.add_((share * (self.batch_cutoff - sae.threshold)).to(sae.threshold.dtype))
