"""Stores of rows that are drawn instead of harvested."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from atoms.activations.document_groups import GROUPS_FILE, DocumentGroups
from atoms.activations.grid import Grid, Span
from atoms.activations.location import Where
from atoms.activations.lock import StoreLock
from atoms.activations.moments_writer import MomentsWriter
from atoms.activations.spec import STORAGE, StoreSpec
from atoms.activations.writer import StoreWriter
from atoms.progress import Meter

BLOCK_BYTES = 64 * 2**20


class SyntheticRows(Protocol):
    """Rows of some sites that are a pure function of settings, block by block.

    Attributes:
        seed: Seed of the rows.
    """

    seed: int

    @property
    def identity(self) -> dict[str, Any]:
        """What the rows depend on, plain values."""

    def widths(self) -> dict[str, int]:
        """Width of every site."""

    def split_rows(self) -> dict[str, int]:
        """Rows of every split."""

    def blocks(self, span: Span) -> dict[str, Tensor]:
        """Rows of one block, (rows, H) per site; a function of the settings and the block alone."""


def store_spec(rows: SyntheticRows, dtype: str = "float32") -> StoreSpec:
    """What the store of such rows is."""
    widths, splits = rows.widths(), rows.split_rows()
    row_bytes = [width * STORAGE[dtype][0].itemsize for width in widths.values()]
    grid = Grid.choose(row_bytes, splits, BLOCK_BYTES)
    return StoreSpec(widths, dtype, splits, grid, rows.seed, rows.identity)


def write_rows(
    rows: SyntheticRows, path: Where, label: str, files: Mapping[str, bytes] | None = None, dtype: str = "float32"
) -> None:
    """Write the store of such rows, going on where an earlier try ended. One process does it alone.

    Every row is a document of its own, without a token.

    Args:
        rows: The rows.
        path: Where to.
        label: What the progress bar calls it.
        files: Small files that belong to the store, by name.
        dtype: Type in which rows are stored.

    Raises:
        AtomsError: If another process is writing it, or the disk refuses.
    """
    with StoreLock(path):
        store = store_spec(rows, dtype)
        writer = StoreWriter.open(path, store)
        pending = writer.pending
        moments = MomentsWriter(writer, store.spans, rank=0, world_size=1, device=torch.device("cpu"))
        with Meter(label, sum(span.rows for span in pending), "rows") as meter:
            for span in pending:
                none = np.full(span.rows, -1, np.int64)
                writer.write_block(
                    span,
                    rows.blocks(span),
                    token_id=none.astype(np.int32),
                    doc_id=np.arange(span.start, span.stop),
                    position=none.astype(np.int32),
                )
                moments.after(span)
                meter.advance(span.rows)
        moments.finish()
        moments.pool()
        for name, content in {GROUPS_FILE: DocumentGroups.alone().to_bytes(), **(files or {})}.items():
            writer.write_file(name, content)
        moments.sweep()
        writer.finalise()
