"""What a run learns and forgets on the way, measured at steps that all runs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch

from atoms.tuning.language_model import CausalLM
from atoms.tuning.text import Blocks

LOSSES = ("train", "val", "test", "general")
"""Mean loss in nats a token: on a fixed sample of the training text, on held-out task text to choose by and to report,
and on general text."""


@dataclass
class Curve:
    """Losses of one run.

    Attributes:
        steps: Steps taken at each point, ascending from 0.
        tokens: Tokens seen at each point.
        losses: Loss at each point, by the names of `LOSSES`.
    """

    steps: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"steps": self.steps, "tokens": self.tokens, "losses": self.losses}

    def forgetting(self) -> list[float]:
        """What general text costs more than it did at the start, nats a token, at each point; empty if not measured."""
        general = self.losses.get("general", [])
        return [value - general[0] for value in general]


class Recorder(L.Callback):
    """Measures losses before the first step and at given steps.

    Args:
        blocks: What to measure on, by name.
        at: Steps at which to measure; 0 is before the first.
        batch_size: Blocks at once, over all ranks.
        tokens_per_step: Tokens of a step over all ranks.
        said: Called with its tokens after each step.
    """

    def __init__(
        self,
        blocks: Mapping[str, Blocks],
        at: list[int],
        batch_size: int,
        tokens_per_step: int,
        said: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.blocks, self.at, self.batch_size = dict(blocks), set(at), batch_size
        self.tokens_per_step, self.said = tokens_per_step, said
        self.curve = Curve(losses={name: [] for name in blocks})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure what the run begins with."""
        self._measure(trainer, pl_module, 0)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **named: Any) -> None:
        """Measure where a point is due."""
        self.said(self.tokens_per_step)
        if trainer.global_step in self.at:
            self._measure(trainer, pl_module, trainer.global_step)

    def _measure(self, trainer: L.Trainer, module: L.LightningModule, step: int) -> None:
        assert isinstance(module, CausalLM)
        self.curve.steps.append(step)
        self.curve.tokens.append(step * self.tokens_per_step)
        with trainer.strategy.precision_plugin.val_step_context():
            for name, blocks in self.blocks.items():
                self.curve.losses[name].append(mean_loss(module, blocks, self.batch_size, trainer))


@torch.no_grad()
def mean_loss(module: CausalLM, blocks: Blocks, batch_size: int, trainer: L.Trainer | None = None) -> float:
    """Mean loss over all targets of blocks, in nats a token, the same for any number of ranks up to rounding.

    Args:
        module: The model; it is left in the mode it was in.
        blocks: What to measure on.
        batch_size: Blocks at once, over all ranks.
        trainer: Whose ranks share the work; None for a single process.
    """
    rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
    training = module.training
    module.eval()
    sums = torch.zeros(2, dtype=torch.float64)  # of many batches, and here since Apple's devices have no float64
    ids, labels = blocks.ids[rank::world], blocks.labels[rank::world]
    size = max(1, batch_size // world)
    for at in range(0, len(ids), size):
        sums += module.losses(ids[at : at + size].to(module.device), labels[at : at + size].to(module.device)).cpu()
    module.train(training)
    if trainer and world > 1:
        sums = trainer.strategy.reduce(sums.to(module.device), reduce_op="sum")
    return float(sums[0] / sums[1])
