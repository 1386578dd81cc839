"""Sparse codes of every row, written to a Zarr group in parts."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import zarr

from atoms.sae import SparseCodes

ROWS_PER_PART = 65_536


class CodesWriter(L.Callback):
    """Collects the codes of a split and writes them a part at a time.

    The group ``<output>/<split>/<member>`` holds ``part-<rank>-<number>`` groups, each with ``offsets (n + 1,)``
    int64, ``indices`` int32 and ``values`` float32 (row i has atoms ``indices[offsets[i]:offsets[i + 1]]``) and
    ``rows (n,)`` int64, the rows' places in the store's split. Its attribute ``complete`` is set last.

    Args:
        output: The Zarr group to write to.
        split: Split that is read.
        about: What is noted beside the codes: checkpoint, store.
    """

    def __init__(self, output: Path, split: str, about: dict[str, Any]) -> None:
        self.output, self.split, self.about = output, split, about
        self._pending: dict[str, list[tuple[torch.Tensor, SparseCodes]]] = {}
        self._parts = 0

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect a batch; write a part when enough rows are together."""
        for name, codes in outputs.items():
            self._pending.setdefault(name, []).append((batch.row_index.cpu(), codes))
        if sum(len(rows) for rows, _ in next(iter(self._pending.values()))) >= ROWS_PER_PART:
            self._flush(trainer.global_rank)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the rest and mark the groups complete."""
        module: Any = pl_module
        self._flush(trainer.global_rank)
        trainer.strategy.barrier("codes written")
        if trainer.is_global_zero:
            for name, config in module.configs.items():
                group = zarr.open_group(self.output, mode="a").require_group(self.split).require_group(name)
                sae = module.member(name).sae
                group.attrs.update({**self.about, "site": config.site, "atoms": sae.num_atoms, "complete": True})

    def _flush(self, rank: int) -> None:
        for name, batches in self._pending.items():
            rows = torch.cat([rows for rows, _ in batches]).numpy()
            if not len(rows):
                continue
            codes = SparseCodes.concatenate([codes for _, codes in batches])
            path = self.output / self.split / name / f"part-{rank:03d}-{self._parts:06d}"
            part = zarr.create_group(path, overwrite=True)
            for key, values in (
                ("rows", rows),
                ("offsets", codes.offsets.cpu().numpy()),
                ("indices", codes.indices.cpu().numpy().astype(np.int32)),
                ("values", codes.values.float().cpu().numpy()),
            ):
                part.create_array(key, data=values, chunks=(min(max(len(values), 1), 2**20),), compressors=None)
        self._pending = {}
        self._parts += 1
