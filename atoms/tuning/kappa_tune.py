"""KappaTune as a Lightning callback: of a module's weights, only the chosen tensors are trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
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
    the trainer's precision must be a mixed one then. Nowhere may it be 16 bits throughout.

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

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose before a fit; nothing is chosen, checked or frozen before weights are only judged."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def freeze_before_training(self, pl_module: L.LightningModule) -> None:
        """Choose, or check the choice; then leave gradients to the chosen tensors alone.

        Raises:
            AtomsError: If nothing can be chosen, the choice was made from other weights, or what is chosen cannot be
                trained in float32.
        """
        try:
            part = pl_module.get_submodule(self.submodule)
        except AttributeError as error:
            raise AtomsError(
                f"submodule is {self.submodule!r}, which is no part of {type(pl_module).__name__}: name one"
            ) from error
        if self.budget is None:
            assert self.selection is not None
            self.selection.check(part)
        else:
            found = candidates_of(survey(weights_of(part), self.max_dim))
            self.selection = select(
                found, self.budget, self.order, self.seed, self.include, self.exclude, self.embeddings
            )
        chosen = {name: part.get_parameter(name) for name in self.selection.names}
        for name, parameter in chosen.items():
            _require_trainable(name, parameter, pl_module.trainer.precision)
        pl_module.requires_grad_(False)
        for parameter in chosen.values():
            parameter.requires_grad_(True)
            if parameter.element_size() < 4:
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
        if self.selection is None:
            return
        # Condition numbers differ in their last digits between machines; the weights they are of do not.
        theirs, ours = ({each.name: each.digest for each in chosen.chosen} for chosen in (stored, self.selection))
        if theirs != ours:
            different = theirs.keys() ^ ours.keys() or {name for name in theirs if theirs[name] != ours[name]}
            raise AtomsError(
                "the checkpoint trains tensors chosen from other weights or by other settings (first: "
                f"{min(different)}): begin with the model it began with, or without the checkpoint"
            )


def _require_trainable(name: str, parameter: Tensor, precision: str) -> None:
    kind = str(parameter.dtype).removeprefix("torch.")
    if not parameter.is_floating_point():
        raise AtomsError(f"{name} is quantised ({kind}), so it cannot be trained itself: put an adapter on it")
    if precision in ("16-true", "bf16-true"):
        raise AtomsError(
            f"trainer.precision is {precision}, which would hold {name} in 16 bits, where small steps are lost: set it "
            "to bf16-mixed or 32-true"
        )
    if parameter.element_size() < 4 and not precision.endswith("-mixed"):
        raise AtomsError(
            f"{name} is {kind} and trained in float32, which precision {precision} cannot mix: set trainer.precision "
            "to bf16-mixed, or load the model in float32"
        )
