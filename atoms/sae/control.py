"""What training steers by without gradients: the number of active atoms, and the atoms that have fallen silent.

Everything here is a sum over rows. A step packs its sums into one flat float64 tensor; ranks add theirs (one
all-reduce); `Control.update` takes the total. Two ranks with half a batch each thus do what one does with all of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atoms.sae.model import ThresholdSAE
from atoms.sae.objective import Objective
from atoms.sae.shard import Shard
from atoms.sae.threshold import window

FLOOR = 0.01
"""Least threshold, as a share of their mean, and least mean in standard deviations of a coordinate of z."""


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
    together. No sparsity weight needs choosing.

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
    """

    silent_rows: Tensor
    rows_seen: Tensor
    step_rows: Tensor
    mean_l0: Tensor
    residual: Tensor
    near: Tensor
    error_map: Tensor

    def __init__(self, sae: ThresholdSAE, objective: Objective, rows: int) -> None:
        super().__init__()
        self.objective = objective
        self.dead_after = objective.dead_after or max(1, min(10_000_000, rows // 20))
        self.num_spare = min(sae.num_atoms, max(32, sae.num_atoms // 16))
        device = sae.decoder.device
        self.register_buffer("silent_rows", torch.zeros(sae.num_atoms, dtype=torch.int64, device=device))
        self.register_buffer("rows_seen", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("step_rows", torch.zeros((), dtype=torch.float64, device=device))
        self.register_buffer("mean_l0", torch.zeros((), dtype=torch.float64, device=device))
        self.register_buffer("residual", torch.ones((), dtype=torch.float64, device=device))
        self.register_buffer("near", torch.zeros(sae.num_atoms, dtype=torch.float64, device=device))
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

    @torch.no_grad()
    def statistics(
        self, pre: Tensor, codes: Tensor, threshold: Tensor, energy: Tensor, shard: Shard | None = None
    ) -> Tensor:
        """Pack a step's sums over rows into one flat float64 tensor, (3 + 2A,).

        Args:
            pre: Pre-activations (B, A).
            codes: Codes (B, A).
            threshold: Thresholds (A,).
            energy: Mean energy of the rows' errors, 0-dim.
            shard: Whose atoms these are; the others' count as zero, and only the first shard counts the rows.
        """
        shard = shard or Shard()
        atoms = len(self.silent_rows)
        held = shard.atoms(atoms)
        active = codes > 0
        fired = active.sum(0)
        near = window(pre, threshold, self.objective.bandwidth).sum(0)
        rows = float(len(pre)) if shard.rank == 0 else 0.0
        head = torch.stack([energy.new_tensor(rows, dtype=torch.float64), fired.sum().double(), energy.double() * rows])
        elsewhere = (held.start, atoms - held.stop)
        return torch.cat([head, F.pad(fired.double(), elsewhere), F.pad(near.double(), elsewhere)])

    # ------------------------------------------------------------------------------------------ around the optimizer

    def update(self, stats: Tensor) -> None:
        """Take a step's statistics, summed over ranks."""
        rows, active, energy = stats[:3]
        fired, near = stats[3:].chunk(2)
        self.rows_seen += rows.long()
        self.silent_rows.copy_(torch.where(fired > 0, 0, self.silent_rows + rows.long()))
        self.step_rows.copy_(rows)
        self.mean_l0.copy_(active / rows)
        self.residual.copy_(energy / rows)
        self.near.copy_(near / rows)

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
        """Scale thresholds towards the target L0, let silent atoms fade in, bring decoder rows to unit length."""
        sae.normalise_()
        excess = torch.log(self.mean_l0 / self.objective.target_l0)
        factor = (self.objective.gain * excess).clamp(-0.1, 0.1).exp()
        fading = torch.where(
            self.silent_rows[sae.held] >= self.dead_after, 0.5 ** (self.step_rows / self.dead_after), 1
        )
        sae.threshold.mul_((factor * fading).float())
        # At zero neither the scaling nor a window proportional to the threshold could ever raise it again.
        mean = sae.shard.add(sae.threshold.sum()) / sae.num_atoms
        sae.threshold.clamp_(min=FLOOR * mean.clamp_min(FLOOR))
        sae.bias.mul_(fading.float())
