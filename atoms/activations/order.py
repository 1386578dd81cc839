"""The global order of training: which row is in which batch, as a pure function of its settings.

An epoch puts the split's chunks in random order and lays their rows end to end. ``Q`` batches' worth of consecutive
rows make a pool; a pool's rows are dealt in consecutive spans to ``V`` lanes and shuffled inside each lane. A global
batch takes the next ``B / V`` rows of every lane, lanes in order. A rank owns a run of neighbouring lanes, hence of
neighbouring rows, and reads no chunk that only others need. Nothing here depends on how many ranks there are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from atoms.activations.permutation import permutation
from atoms.errors import AtomsError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """The settings that fix the order of every epoch.

    Args:
        seed: seed of the run's data.
        batch_size: rows of a global batch, ``B``.
        lanes: ``V``; a power of two keeps every usual number of ranks possible.
        pool_batches: global batches per pool, ``Q``.
    """

    seed: int
    batch_size: int
    lanes: int
    pool_batches: int

    def __post_init__(self) -> None:
        """Refuse what cannot be dealt evenly."""
        if self.batch_size < 1 or self.lanes < 1 or self.batch_size % self.lanes:
            raise AtomsError(
                f"data.batch_size={self.batch_size}: not a multiple of data.lanes={self.lanes}; "
                "make it one, or use fewer lanes"
            )
        if self.pool_batches < 1:
            raise ValueError(f"a pool needs at least one batch, got {self.pool_batches}")

    @property
    def lane_rows(self) -> int:
        """Rows a lane gives to a global batch."""
        return self.batch_size // self.lanes

    def n_batches(self, n_rows: int) -> int:
        """Global batches per epoch; fewer rows than one batch are left over.

        Raises:
            AtomsError: there is not one whole batch.
        """
        if n_rows < self.batch_size:
            raise AtomsError(
                f"data.batch_size={self.batch_size}: fewer rows than a batch ({n_rows}); use a smaller batch or "
                "harvest more rows"
            )
        return n_rows // self.batch_size

    def lanes_of(self, rank: int, world_size: int) -> range:
        """Return the lanes a rank owns.

        Raises:
            AtomsError: the lanes cannot be shared evenly.
        """
        if self.lanes % world_size:
            raise AtomsError(
                f"data.lanes={self.lanes}: cannot be shared evenly by {world_size} ranks; use a multiple of "
                f"{world_size}"
            )
        share = self.lanes // world_size
        return range(rank * share, (rank + 1) * share)


@dataclass(frozen=True)
class Piece:
    """A run of rows of one chunk and where they go.

    Args:
        chunk: number of the chunk.
        start: first row, counted among the chunk's valid rows.
        stop: one past the last row.
        slots: (stop - start,) places in the pool of the lanes asked for, batch after batch.
    """

    chunk: int
    start: int
    stop: int
    slots: Ints


@dataclass(frozen=True)
class EpochPlan:
    """One epoch in full. Use :func:`epoch_plan`.

    Args:
        order: the settings.
        epoch: number of the epoch.
        chunks: (C,) chunks in the order of the epoch.
        offsets: (C + 1,) valid rows before each of them.
    """

    order: Order
    epoch: int
    chunks: Ints
    offsets: Ints

    @cached_property
    def n_batches(self) -> int:
        """Global batches of the epoch."""
        return self.order.n_batches(int(self.offsets[-1]))

    @property
    def n_pools(self) -> int:
        """Pools of the epoch."""
        return -(-self.n_batches // self.order.pool_batches)

    def batches(self, pool: int) -> range:
        """Return the global batches of a pool."""
        first = pool * self.order.pool_batches
        return range(first, min(first + self.order.pool_batches, self.n_batches))

    def pieces(self, pool: int, lanes: range) -> Iterator[Piece]:
        """Yield what must be read to fill some neighbouring lanes of a pool, one chunk at a time.

        In the filled pool, global batch ``j`` of the pool is rows ``j·w:(j + 1)·w`` with ``w = len(lanes)·B/V``.
        """
        batches = self.batches(pool)
        per_lane = len(batches) * self.order.lane_rows
        slots = np.concatenate([self._lane_slots(pool, lane, lanes, per_lane) for lane in lanes])
        start = batches.start * self.order.batch_size + lanes.start * per_lane
        stop = start + len(slots)
        at = int(np.searchsorted(self.offsets, start, side="right")) - 1
        while at < len(self.chunks) and self.offsets[at] < stop:
            before, after = int(self.offsets[at]), int(self.offsets[at + 1])
            lo, hi = max(start, before), min(stop, after)
            if lo < hi:  # a chunk may hold no valid row
                yield Piece(int(self.chunks[at]), lo - before, hi - before, slots[lo - start : hi - start])
            at += 1

    def _lane_slots(self, pool: int, lane: int, lanes: range, per_lane: int) -> Ints:
        """Return the place in the pool of every row of a lane."""
        place = permutation(per_lane, self.order.seed, "lane", self.epoch, pool, lane)
        batch, within = np.divmod(place, self.order.lane_rows)
        return (batch * len(lanes) + (lane - lanes.start)) * self.order.lane_rows + within


def epoch_plan(order: Order, epoch: int, chunk_rows: Sequence[int] | Ints) -> EpochPlan:
    """Lay out one epoch.

    Args:
        order: the settings.
        epoch: number of the epoch.
        chunk_rows: valid rows of every chunk, chunks in the order of the store.

    Returns:
        The plan of the epoch.
    """
    chunks = permutation(len(chunk_rows), order.seed, "chunks", epoch)
    rows = np.asarray(chunk_rows, np.int64)[chunks]
    return EpochPlan(order, epoch, chunks, np.concatenate([np.zeros(1, np.int64), np.cumsum(rows)]))
