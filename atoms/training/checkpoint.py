"""Checkpoints: the last weights always have one, and each says enough of its run to be judged and resumed alone."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from atoms.errors import AtomsError

KEY = "atoms"


@dataclass(frozen=True)
class Record:
    """Kept in every checkpoint under ``"atoms"``; plain values only.

    Attributes:
        store: Directory of the store the run learnt from.
        identity: Identity hash of that store.
        data: Settings of the datamodule that fix which rows make up a batch.
        run_id: MLflow run, or None.
        tracking_uri: Where that run is kept, or None.
    """

    store: str
    identity: str
    data: dict[str, Any]
    run_id: str | None = None
    tracking_uri: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return asdict(self)


class KeepLast(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which also saves the weights a fit ends with where its interval would miss them."""

    @property
    def newest(self) -> str:
        """Path of the checkpoint saved last, or nothing."""
        return self._last_checkpoint_saved

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what the final table will speak of."""
        saved = self._last_global_step_saved == trainer.global_step
        if not saved and self.save_top_k != 0 and not cast("Any", trainer).fast_dev_run:
            candidates = self._monitor_candidates(trainer)
            if self.monitor is None:
                self._save_none_monitor_checkpoint(trainer, candidates)
            else:
                self._save_checkpoint(trainer, self._get_metric_interpolated_filepath_name(candidates, trainer))
        super().on_train_end(trainer, pl_module)


def read(path: str | Path) -> tuple[dict[str, Any], Record]:
    """Load a checkpoint without running code from it.

    Args:
        path: The ``.ckpt`` file.

    Returns:
        The checkpoint on the CPU, and its record.

    Raises:
        AtomsError: If there is no such file, or it is not a checkpoint of atoms.
    """
    if not Path(path).is_file():
        raise AtomsError(f"ckpt_path is {path}, which is not a file: give the .ckpt file that `atoms fit` named")
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return content, Record(**content[KEY])
    except Exception as error:  # torch raises many kinds for a file that is not what it should be
        raise AtomsError(
            f"ckpt_path is {path}, which is not a checkpoint of atoms ({type(error).__name__}): "
            "give the .ckpt file that `atoms fit` named"
        ) from error


def digest(path: str | Path) -> str:
    """First 16 hexadecimal digits of the file's sha256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
