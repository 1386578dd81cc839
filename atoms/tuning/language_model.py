"""A causal language model that is trained on blocks of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from atoms.tuning.text import IGNORED, Blocks


class CausalLM(L.LightningModule):
    """Next-token prediction with AdamW, a linear warm-up and a constant learning rate after it.

    The rate stays constant so that a curve's points mean the same however long the run: losses are compared where they
    are equal, and not only at the end.

    Args:
        model: A transformers model with a causal head, or one that PEFT wrapped.
        lr: Learning rate.
        warmup: Steps until it is reached.
    """

    def __init__(self, model: nn.Module, lr: float, warmup: int = 0) -> None:
        super().__init__()
        self.model = model
        self.lr, self.warmup = lr, warmup

    def losses(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Sum of the loss and number of targets of a batch, in nats.

        Args:
            ids: (B, context) int64.
            labels: (B, context) int64.

        Returns:
            (2,) float32, differentiable in the first.
        """
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits[:, :-1]
        targets = labels[:, 1:]
        flat = logits.reshape(-1, logits.shape[-1]).float()
        total = nn.functional.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORED, reduction="sum")
        return torch.stack([total, (targets != IGNORED).sum().float()])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of a batch."""
        total, count = self.losses(*batch).unbind()
        return total / count

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW without decay over what is trained; decay would move frozen and trained weights apart by itself."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (self.warmup + 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Order(torch.utils.data.Sampler[list[int]]):
    """Batches of blocks in an order fixed by a seed; a rank takes its part of every batch."""

    def __init__(self, blocks: int, batch_size: int, steps: int, seed: int, rank: int, world: int) -> None:
        self.blocks, self.batch_size, self.steps, self.seed = blocks, batch_size, steps, seed
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed)
        waiting: list[int] = []
        for _ in range(self.steps):
            while len(waiting) < self.batch_size:
                waiting += torch.randperm(self.blocks, generator=generator).tolist()
            batch, waiting = waiting[: self.batch_size], waiting[self.batch_size :]
            yield batch[self.rank :: self.world]


def batches(blocks: Blocks, batch_size: int, steps: int, seed: int, rank: int = 0, world: int = 1) -> DataLoader[Any]:
    """Batches to train on: the same blocks in every batch for any number of ranks.

    Args:
        blocks: What to learn.
        batch_size: Blocks of a batch, over all ranks.
        steps: Number of batches; blocks come again in another order once all have come.
        seed: Of the order.
        rank: This process.
        world: Number of processes.

    Returns:
        A loader of (ids, labels), (B / world, context) each.
    """
    order = _Order(len(blocks), batch_size, steps, seed, rank, world)
    return DataLoader(torch.utils.data.TensorDataset(blocks.ids, blocks.labels), batch_sampler=order)
