"""Progress of a fit: rows per second, time left, and the held-out scores of every epoch."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from atoms.memory import peak_memory
from atoms.progress import Meter


class FitProgress(ProgressBar):
    """A `Meter` over the rows of the whole fit, and one line per validation.

    Args:
        name: What the bar is called.
    """

    def __init__(self, name: str = "fit") -> None:
        super().__init__()
        self._name = name
        self._meter: Meter | None = None
        self._enabled = True

    def disable(self) -> None:
        """Draw nothing; Lightning calls this on other ranks."""
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting."""
        module: Any = pl_module
        self._rows = module.data.batch_size
        steps = module.total_steps * trainer.accumulate_grad_batches
        rows = (steps - trainer.fit_loop.total_batch_idx - 1) * self._rows
        self._meter = Meter(self._name, rows, "rows", self._enabled, note=lambda: peak_memory(pl_module.device))
        self._meter.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch."""
        if self._meter:
            self._meter.advance(self._rows)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One line per member."""
        module: Any = pl_module
        if self._meter is None or trainer.sanity_checking:
            return
        for name in module.configs:
            label = module.label("val", name)
            scores = {key: float(trainer.callback_metrics[f"{label}/{key}"]) for key in ("r2", "r2_aip", "l0", "dead")}
            who = "" if label == "val" else f"{name}: "
            self._meter.say(
                f"epoch {trainer.current_epoch + 1}  {who}held-out R² {scores['r2']:.3f}  AIP {scores['r2_aip']:.3f}  "
                f"L0 {scores['l0']:.1f}  dead {scores['dead']:.1%}"
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the bar."""
        if self._meter:
            self._meter.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        if self._meter:
            self._meter.stop()
