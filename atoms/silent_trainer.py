"""A trainer that runs loops and leaves nothing behind."""

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar

from atoms.errors import AtomsError, printable


def silent_trainer(place: dict[str, Any], callbacks: Sequence[L.Callback] = (), **settings: Any) -> L.Trainer:
    """A trainer without logger, checkpoints and summary, and without a bar unless one is among its callbacks.

    Args:
        place: Where to run: accelerator, devices, strategy, num_nodes, precision.
        callbacks: What happens on the way.
        settings: What else the trainer is told.

    Raises:
        AtomsError: If there is no such place.
    """
    try:
        return L.Trainer(
            **place,
            **settings,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=any(isinstance(each, ProgressBar) for each in callbacks),
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise AtomsError(f"trainer: {printable(str(error))}") from error
