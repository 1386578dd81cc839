"""Checkpoints: the last weights always have one, and each says enough of its run to be judged and resumed alone."""

import hashlib
import signal
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

from atoms import interruption
from atoms.errors import AtomsError
from atoms.training.checkpoint_file import partial_path, require_whole

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
        curves: Points of the step just taken. Lightning gives them to the logger after the checkpoint is saved, and a
            kill in between would leave a gap.
        rows: Rows seen after that step.
    """

    store: str
    identity: str
    data: dict[str, Any]
    run_id: str | None = None
    tracking_uri: str | None = None
    curves: dict[str, float] = field(default_factory=dict)
    rows: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return asdict(self)


class KeepLast(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which also saves what its interval would miss: the last weights, and a stop's.

    A fit that is asked to stop does so where the checkpoint just saved resumes to the bit: after an optimizer step or,
    where it ends an epoch, after the epoch's validation.
    """

    AGREE_EVERY = 8
    """Ranks learn of each other's signals after this many steps; asking costs a reduction."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise AtomsError(f"checkpoint: {' '.join(str(error).split())}") from error
        self._steps = 0
        self._stopping_at = ""
        self._waiting = False

    @property
    def newest(self) -> str:
        """Path of the checkpoint saved last, or nothing."""
        return self._last_checkpoint_saved

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot be kept."""
        super().setup(trainer, pl_module, stage)
        if self.save_on_exception:
            raise AtomsError(
                "checkpoint.save_on_exception is true, but amid a step there is nothing that could be resumed to the "
                "bit: set checkpoint.every_n_train_steps or checkpoint.train_time_interval instead"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sweep away what a kill left half written, and look out for signals from now on."""
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero and self.dirpath and "://" not in str(self.dirpath):
            for left in Path(self.dirpath).glob(partial_path(Path("*.ckpt")).name):
                left.unlink(missing_ok=True)
        self._steps, self._stopping_at = trainer.global_step, ""
        interruption.listen()
        interruption.defer(not cast("Any", trainer).fast_dev_run)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if a checkpoint was saved for it: by now the loggers have what the step before gave."""
        if self._stopping_at:
            self._stop()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if the interval says so, or if this fit is asked to stop; at an epoch's end, after its validation."""
        # A fit taken up after an epoch's last step does not come back for the validation.
        self._waiting = trainer.is_last_batch
        if not self._waiting:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        stepped, self._steps = trainer.global_step > self._steps, trainer.global_step
        if stepped and not trainer.is_last_batch and self._asked(trainer, self.AGREE_EVERY):
            self._save_now(trainer)
            self._stopping_at = self.newest

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if the interval says so, or if this fit is asked to stop."""
        if self._waiting:
            super().on_train_batch_end(trainer, pl_module, None, None, -1)
        super().on_train_epoch_end(trainer, pl_module)
        if self._stopping_at or self._asked(trainer, 1):
            self._save_now(trainer)
            self._stop()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what the final table will speak of."""
        interruption.defer(False)
        if not cast("Any", trainer).fast_dev_run:
            self._save_now(trainer)
        super().on_train_end(trainer, pl_module)
        if self._asked(trainer, 1):  # after the last look; what follows would not look again
            self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Nobody looks for signals any more."""
        interruption.defer(False)

    def _save_now(self, trainer: L.Trainer) -> None:
        if self._last_global_step_saved == trainer.global_step or self.save_top_k == 0:
            return
        candidates = self._monitor_candidates(trainer)
        if self.monitor is None:
            self._save_none_monitor_checkpoint(trainer, candidates)
        else:
            self._save_checkpoint(trainer, self._get_metric_interpolated_filepath_name(candidates, trainer))

    def _asked(self, trainer: L.Trainer, every: int) -> bool:
        asked = interruption.asked() is not None
        if trainer.world_size == 1:
            return asked
        return trainer.global_step % every == 0 and trainer.strategy.reduce_boolean_decision(asked, all=False)

    def _stop(self) -> None:
        # another rank's signal stops this one too, as a request of the machine's
        raise interruption.Interrupted(interruption.asked() or signal.SIGTERM, self.newest)


def read(path: str | Path) -> tuple[dict[str, Any], Record]:
    """Load a checkpoint without running code from it.

    Args:
        path: The ``.ckpt`` file.

    Returns:
        The checkpoint on the CPU, and its record.

    Raises:
        AtomsError: If there is no such file, it is not a checkpoint of atoms, or it is damaged.
    """
    if not str(path):
        raise AtomsError("ckpt_path is empty: name a checkpoint, or leave it out")
    if not Path(path).is_file():
        raise AtomsError(f"ckpt_path is {path}, which is not a file: give the .ckpt file that `atoms fit` named")
    # torch stores entries as they are; what is packed may unpack to more than any machine holds.
    if zipfile.is_zipfile(path) and (packed := _packed(path)):
        raise AtomsError(f"ckpt_path is {path}, whose entry {packed} is compressed, as no checkpoint of atoms is")
    require_whole(path)
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return content, Record(**content[KEY])
    except Exception as error:  # torch raises many kinds for a file that is not what it should be
        raise AtomsError(
            f"ckpt_path is {path}, which is not a checkpoint of atoms ({type(error).__name__}): "
            "give the .ckpt file that `atoms fit` named"
        ) from error


def _packed(path: str | Path) -> str | None:
    """The first entry of an archive that is not stored as it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            return next(
                (entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED), None
            )
    except (zipfile.BadZipFile, OSError, ValueError):
        return None  # torch says what is wrong with it


def newest(folders: Iterable[str | Path], fits: Callable[[dict[str, Any], Record], bool]) -> str | None:
    """Find the checkpoint that was written last, among those that fit.

    Args:
        folders: Where to look, in subfolders too.
        fits: Whether a checkpoint, given its content and its record, is of the run to be continued.

    Returns:
        Its path; None if there is none. Damaged ones are passed over, with a note.
    """
    found = {path for folder in folders for path in Path(folder).rglob("*.ckpt") if path.is_file()}
    for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True):
        try:
            if fits(*read(path)):
                return str(path)
        except AtomsError as error:
            print(f"note     passed over: {error}", file=sys.stderr, flush=True)
    return None


def digest(path: str | Path) -> str:
    """First 16 hexadecimal digits of the file's sha256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
