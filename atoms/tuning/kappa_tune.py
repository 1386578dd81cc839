"""KappaTune as a Lightning callback: of a module's weights, only the chosen tensors are trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor
from torch.optim import Optimizer

from atoms.conditioning.selection import Budget, Order, Selection, candidates_of, select
from atoms.conditioning.survey import MAX_DIM, survey
from atoms.conditioning.weights import weights_of
from atoms.errors import AtomsError


class KappaTune(BaseFinetuning):
    """Trains the tensors of lowest condition number and freezes all else, biases and norms included.

    Tensors are chosen when a fit begins, from the weights the module has then, or taken from a choice made before,
    which is held to these weights by digest. The choice is stored in checkpoints; a fit that goes on from one is
    refused where the module it begins with would not have led to that choice.

    Chosen tensors of 16 bits are held in float32, because steps below half a unit in their last place would be lost;
    the trainer's precision must be a mixed one then.

    The optimizer must be given only parameters that require gradients, which are known when Lightning asks for it.

    Source: arXiv 2506.16289 (theory.md C3), C6a for ``relative``.

    Args:
        count: Tensors to train. Exactly one of ``count``, ``fraction``, ``parameters`` and ``selection`` is set.
        fraction: Share of the candidates to train.
        parameters: Parameters to train at most.
        selection: A choice made before, or the file it was written to.
        order: ``kappa``: lowest first; controls are ``reversed``, ``random`` and ``relative`` to the shape's null.
        include: Patterns of names, one of which must fit.
        exclude: Patterns of names, none of which may fit.
        embeddings: Whether embeddings and output embedding are candidates.
        max_dim: Matrices whose smaller dimension exceeds this are no candidates.
        seed: Of a random order.
        submodule: Path of the part of the module whose weights are meant and named, such as ``model``; all of it if
            empty.
    """

    def __init__(
        self,
        count: int | None = None,
        fraction: float | None = None,
        parameters: int | None = None,
        selection: Selection | str | Path | None = None,
        order: Order = "kappa",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        embeddings: bool = False,
        max_dim: int | None = MAX_DIM,
        seed: int = 0,
        submodule: str = "",
    ) -> None:
        super().__init__()
        budgeted = any(value is not None for value in (count, fraction, parameters))
        if selection is not None and budgeted:
            raise AtomsError("selection is set beside a budget: the choice is made already, leave the budget out")
        self.budget = None if selection is not None else Budget(count, fraction, parameters)
        self.selection = selection if isinstance(selection, Selection | None) else Selection.load(selection)
        self.order, self.include, self.exclude = order, tuple(include), tuple(exclude)
        self.embeddings, self.max_dim, self.seed, self.submodule = embeddings, max_dim, seed, submodule

    def freeze_before_training(self, pl_module: L.LightningModule) -> None:
        """Choose, or check the choice; then leave gradients to the chosen tensors alone.

        Raises:
            AtomsError: If nothing can be chosen, or the choice was made from other weights.
        """
        part = pl_module.get_submodule(self.submodule)
        if self.budget is None:
            assert self.selection is not None
            self.selection.check(part)
        else:
            found = candidates_of(survey(weights_of(part), self.max_dim))
            self.selection = select(
                found, self.budget, self.order, self.seed, self.include, self.exclude, self.embeddings
            )
        pl_module.requires_grad_(False)
        for name in self.selection.names:
            parameter = part.get_parameter(name).requires_grad_(True)
            if parameter.dtype != torch.float32:
                _require_mixed(name, parameter, pl_module.trainer.precision)
                parameter.data = parameter.data.float()

    def finetune_function(self, pl_module: L.LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Nothing is unfrozen later."""

    def state_dict(self) -> dict[str, Any]:
        """The choice, beside what Lightning keeps of the optimizer."""
        chosen = None if self.selection is None else self.selection.to_json()
        return {**super().state_dict(), "selection": chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the checkpoint's choice with the one made from this module's weights.

        Raises:
            AtomsError: If they differ.
        """
        super().load_state_dict(state_dict)
        stored = Selection.from_json(state_dict["selection"], "the checkpoint's choice of tensors")
        if self.selection is not None and stored.chosen != self.selection.chosen:
            theirs = {each.name: each for each in stored.chosen}
            ours = {each.name: each for each in self.selection.chosen}
            name = next(iter(sorted(theirs.keys() ^ ours.keys())), None)
            if name is None:
                name = next(name for name, each in theirs.items() if ours[name] != each)
            raise AtomsError(
                f"the checkpoint trains tensors chosen from other weights or by other settings (first: {name}): begin "
                "with the model it began with, or without the checkpoint"
            )


def _require_mixed(name: str, parameter: Tensor, precision: str) -> None:
    if not precision.endswith("-mixed"):
        raise AtomsError(
            f"{name} is {str(parameter.dtype).removeprefix('torch.')} and trained in float32, which precision "
            f"{precision} cannot mix: set trainer.precision to bf16-mixed, or load the model in float32"
        )
