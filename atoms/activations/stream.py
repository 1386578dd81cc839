"""Batches from a store: shuffled for training, in stored order for everything else."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoms.activations.order import EpochPlan, Order, epoch_plan
from atoms.activations.store import ActivationStore
from atoms.errors import AtomsError

__all__ = ["EpochPlan", "Order", "OrderedBatch", "OrderedStream", "TrainStream", "epoch_plan"]

Mask = NDArray[np.bool_]


class TrainStream:
    """Shuffled batches of a split, for ever reproducible.

    The order (see :class:`~atoms.activations.order.Order`) depends on the seed, the epoch, the global batch's number,
    ``batch_size``, ``lanes`` and ``pool_bytes``, and not on the number of ranks: another world size trains on the same
    rows in every global batch. A thread reads chunks and scatters their rows to their slots in one of two pools while
    the other is consumed.

    Every iteration is one epoch, or what is left of it after :meth:`seek` or :meth:`load_state_dict`; the next
    iteration is the next epoch, also if this one was broken off. It ends the one before it, if that still runs.

    Batches are views of a pool. **The last two handed out stay valid; keep one for longer only as a copy.**

    Args:
        store: the rows.
        split: which split.
        sites: which sites; all if None.
        batch_size: rows of a global batch, all ranks together.
        lanes: a multiple of the number of ranks that divides the batch.
        seed: seed of the order.
        rank: this process.
        world_size: number of processes.
        pool_bytes: memory of both pools, all ranks together: the more, the better the shuffle. All ranks together,
            because the order must not depend on their number.
        valid: (N,) bool, rows to use; all if None.
        pin_memory: page-locked pools, for asynchronous copies to a CUDA device on the current stream.

    Raises:
        AtomsError: the batch, the lanes and the ranks do not fit each other or the rows.
    """

    def __init__(
        self,
        store: ActivationStore,
        split: str = "train",
        sites: Sequence[str] | None = None,
        *,
        batch_size: int,
        lanes: int = 8,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pool_bytes: int = 2**30,
        valid: Mask | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.store = store
        self.split = split
        self.sites = list(store.sites if sites is None else sites)
        self.pin_memory = pin_memory
        row_bytes = sum(store.width(site) for site in self.sites) * store.spec.storage_dtype.itemsize
        pool_batches = max(1, pool_bytes // 2 // (batch_size * row_bytes)) if batch_size > 0 else 1
        self.order = Order(seed, batch_size, lanes, pool_batches)
        self._lanes = self.order.lanes_of(rank, world_size)
        self._rows = _RowMask(store, split, valid)
        self._n_batches = self.order.n_batches(self._rows.total)
        self._start = self._position = (0, 0)
        self._given = 0  # batches handed out over the life of the stream
        self._pools: list[_Pool] = []
        self._scratch: dict[str, NDArray[Any]] = {}  # one chunk per site, only the reader thread touches it
        self._held: deque[_Pool] = deque()  # pools with a batch that may still be in use, oldest first
        self._reader: _Reader | None = None

    def __len__(self) -> int:
        """Global batches per epoch, the same on all ranks."""
        return self._n_batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield ``{site: (B / world_size, H)}`` in the store's dtype; reading starts with the first batch."""
        # a generator on purpose: seek() counts until the first batch is asked for, and dropping it ends the thread
        epoch, first = self._start
        plan = epoch_plan(self.order, epoch, self._rows.per_chunk)
        width = len(self._lanes) * self.order.lane_rows
        reader = self._open(plan, first // self.order.pool_batches)
        try:
            for batch in range(first, len(self)):
                self._release(reader)
                index = batch % self.order.pool_batches
                if batch == first or index == 0:
                    pool = reader.take()
                    self._held.append(pool)
                self._position, self._start = (epoch, batch + 1), (epoch + 1, 0)
                self._given += 1
                pool.last_given = self._given
                yield {site: pool.rows[site][index * width : (index + 1) * width] for site in self.sites}
                if self._reader is not reader:
                    raise RuntimeError("this iteration was ended: the stream was closed or iterated anew")
        finally:
            reader.close()
            if self._reader is reader:
                self._reader = None

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be epoch ``epoch`` from its start."""
        self.seek(epoch, 0)

    def seek(self, epoch: int, batch: int) -> None:
        """Let the next iteration start at global batch ``batch`` of an epoch; the end of one is the start of the next.

        Raises:
            ValueError: there is no such batch.
        """
        if epoch < 0 or not 0 <= batch <= len(self):
            raise ValueError(f"no batch {batch} of {len(self)} in epoch {epoch}")
        self._position = (epoch, batch)
        self._start = (epoch + 1, 0) if batch == len(self) else (epoch, batch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch handed out, and what fixes the order.

        That batch is the last one trained on when a loop asks for a batch only after it has trained on the one before,
        as Lightning does with loaders that have a length. A loop that fetches ahead must :meth:`seek` instead.
        """
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch, "order": self._signature()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, bit for bit, after the batch at which the state was taken.

        Raises:
            AtomsError: the state belongs to another order, so its position means nothing here.
        """
        if changed := [
            f"{key} was {state['order'].get(key)}, is {value}"
            for key, value in self._signature().items()
            if state["order"].get(key) != value
        ]:
            raise AtomsError(
                f"data: the checkpoint was made with another order of rows ({'; '.join(changed)}); "
                "resume with the settings it was made with, or start a new run"
            )
        self.seek(state["epoch"], state["batch"])

    def close(self) -> None:
        """End the reader thread and free the pools; batches handed out stay valid."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._pools.clear()
        self._held.clear()
        self._scratch.clear()

    def _signature(self) -> dict[str, Any]:
        return {
            "seed": self.order.seed,
            "batch_size": self.order.batch_size,
            "lanes": self.order.lanes,
            "pool_batches": self.order.pool_batches,
            "rows": self._rows.total,
            "chunk_rows": self.store.grid.chunk_rows,
        }

    def _open(self, plan: EpochPlan, first_pool: int) -> "_Reader":
        if self._reader is not None:
            self._reader.close()
        if not self._pools:
            longest = min(self.order.pool_batches, len(self))
            rows = longest * len(self._lanes) * self.order.lane_rows
            widths = {site: self.store.width(site) for site in self.sites}
            self._pools = [_Pool(rows, widths, self.store.dtype, self.pin_memory) for _ in range(2)]
            self._scratch = {site: _chunk_buffer(self.store, site) for site in self.sites}
        self._reader = _Reader(lambda pool, rows: self._fill(plan, pool, rows), range(first_pool, plan.n_pools))
        for pool in self._pools:
            if pool not in self._held:
                self._reader.free(pool)
        return self._reader

    def _release(self, reader: "_Reader") -> None:
        """Give back pools of which no batch is among the last two, the one about to be handed out included."""
        while self._held and self._held[0].last_given < self._given:
            pool = self._held.popleft()
            if self.pin_memory:
                pool.mark_copied()
            reader.free(pool)

    def _fill(self, plan: EpochPlan, number: int, pool: "_Pool") -> Generator[None, None, None]:
        """Fill a pool, pausing after every chunk."""
        pieces = list(plan.pieces(number, self._lanes))
        wanted = [(site, piece.chunk) for piece in pieces for site in self.sites]
        with closing(self.store.read_chunks(self.split, wanted, self._scratch)) as chunks:
            for piece in pieces:
                chosen = self._rows.select(piece.chunk, piece.start, piece.stop)
                for site in self.sites:
                    pool.bits[site][piece.slots] = next(chunks)[chosen]
                yield


class OrderedBatch(NamedTuple):
    """Rows in stored order.

    Args:
        rows: ``{site: (b, H)}`` in the store's dtype; ``b`` differs by at most one between ranks and may be 0.
        row_index: (b,) int64 place of each row in the split.
    """

    rows: dict[str, Tensor]
    row_index: Tensor


class OrderedStream:
    """A split in stored order, for validation, test and prediction.

    Rows come in global batches of ``batch_size``, the last one shorter; every rank gets its share of each, so that all
    ranks see equally many batches and every row comes exactly once. Memory is one batch and one chunk per site.

    With ``whole_batches`` ranks take turns instead: a batch holds the same rows however many ranks there are, for what
    must not change by a bit with their number; ranks then see numbers of batches that differ by at most one.

    Args:
        store: the rows.
        split: which split.
        sites: which sites; all if None.
        batch_size: rows of a global batch, all ranks together.
        rank: this process.
        world_size: number of processes.
        valid: (N,) bool, rows to use; all if None.
        limit_rows: use only so many rows, the first ones; all if None.
        whole_batches: deal whole batches to ranks, not a share of each.
    """

    def __init__(
        self,
        store: ActivationStore,
        split: str,
        sites: Sequence[str] | None = None,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        valid: Mask | None = None,
        limit_rows: int | None = None,
        whole_batches: bool = False,
    ) -> None:
        if batch_size < 1:
            raise AtomsError(f"data.batch_size={batch_size}: a batch needs at least one row; use 1 or more")
        self.store = store
        self.split = split
        self.sites = list(store.sites if sites is None else sites)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self._rows = _RowMask(store, split, valid)
        self.n_rows = self._rows.total if limit_rows is None else min(self._rows.total, limit_rows)
        self._whole_batches = whole_batches

    def __len__(self) -> int:
        """Batches of this rank: all global ones, the same on all ranks, or the whole ones dealt to it."""
        return len(list(self._own()))

    def _own(self) -> Iterator[tuple[int, int]]:
        """This rank's part of every batch it has a part in."""
        for number, start in enumerate(range(0, self.n_rows, self.batch_size)):
            size = min(self.batch_size, self.n_rows - start)
            if not self._whole_batches:
                yield start + size * self.rank // self.world_size, start + size * (self.rank + 1) // self.world_size
            elif number % self.world_size == self.rank:
                yield start, start + size

    def __iter__(self) -> Iterator[OrderedBatch]:
        """Yield this rank's rows of every batch it has a part in."""
        buffers = {site: _chunk_buffer(self.store, site) for site in self.sites}
        chunk_rows: dict[str, NDArray[Any]] = {}
        held = -1  # the chunk in the buffers: neighbouring batches share it
        for lo, hi in self._own():
            rows = {site: torch.empty(hi - lo, self.store.width(site), dtype=self.store.dtype) for site in self.sites}
            row_index = torch.empty(hi - lo, dtype=torch.int64)
            filled = 0
            for chunk, first, last in self._rows.pieces(lo, hi):
                if chunk != held:
                    for site in self.sites:
                        chunk_rows[site] = self.store.read_chunk(self.split, site, chunk, buffers[site])
                    held = chunk
                part = slice(filled, filled + last - first)
                chosen = self._rows.select(chunk, first, last)
                for site in self.sites:
                    rows[site][part] = self.store.to_torch(chunk_rows[site][chosen])
                row_index[part] = torch.from_numpy(self._rows.places(chunk, first, last))
                filled = part.stop
            yield OrderedBatch(rows, row_index)


class _RowMask:
    """The valid rows of a split, counted along its chunks."""

    def __init__(self, store: ActivationStore, split: str, valid: Mask | None) -> None:
        self.chunks = store.chunks(split)
        if valid is not None and (valid.shape != (store.n_rows(split),) or valid.dtype != np.bool_):
            raise ValueError(f"valid must be ({store.n_rows(split)},) bool, got {valid.shape} {valid.dtype}")
        self._valid = valid
        counts = [len(rows) if valid is None else valid[rows.start : rows.stop].sum() for rows in self.chunks]
        self.per_chunk = np.asarray(counts, np.int64)
        self._offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.per_chunk)])
        self.total = int(self._offsets[-1])

    def select(self, chunk: int, start: int, stop: int) -> slice | NDArray[np.int64]:
        """Return which rows of a chunk are its valid rows ``start:stop``."""
        if self._valid is None:
            return slice(start, stop)
        rows = self.chunks[chunk]
        return np.flatnonzero(self._valid[rows.start : rows.stop])[start:stop]

    def places(self, chunk: int, start: int, stop: int) -> NDArray[np.int64]:
        """Return where in the split a chunk's valid rows ``start:stop`` lie."""
        rows = self.chunks[chunk]
        return np.arange(rows.start, rows.stop)[self.select(chunk, start, stop)]

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield chunks and their ranges of valid rows that cover valid rows ``start:stop`` of the split."""
        chunk = int(np.searchsorted(self._offsets, start, side="right")) - 1
        while start < stop:
            before, after = int(self._offsets[chunk]), int(self._offsets[chunk + 1])
            last = min(stop, after)
            if start < last:
                yield chunk, start - before, last - before
                start = last
            chunk += 1


class _Pool:
    """Rows of several batches, batch after batch, in one buffer per site."""

    def __init__(self, n_rows: int, widths: dict[str, int], dtype: torch.dtype, pin_memory: bool) -> None:
        self.rows = {
            site: torch.empty(n_rows, width, dtype=dtype, pin_memory=pin_memory) for site, width in widths.items()
        }
        self.bits = {site: _bits(rows) for site, rows in self.rows.items()}
        self.last_given = 0
        self._copied: torch.cuda.Event | None = None

    def mark_copied(self) -> None:
        """Note that copies of this pool's rows to the device were issued on the current stream."""
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()

    def wait_until_copied(self) -> None:
        """Wait for the copies noted: the host may be many batches ahead of the device."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None


class _Reader:
    """The thread that fills pools.

    Args:
        fill: fills the pool of a number, yielding now and then.
        numbers: which pools, in order.
    """

    def __init__(self, fill: Callable[[int, _Pool], Generator[None, None, None]], numbers: range) -> None:
        self._fill = fill
        self._numbers = numbers
        self._empty: SimpleQueue[_Pool | None] = SimpleQueue()
        self._full: SimpleQueue[_Pool | BaseException] = SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="activation-reader", daemon=True)
        self._thread.start()

    def free(self, pool: _Pool) -> None:
        """Hand over a pool to fill."""
        self._empty.put(pool)

    def take(self) -> _Pool:
        """Wait for the next pool; what went wrong in the thread is raised here."""
        pool = self._full.get()
        if isinstance(pool, BaseException):
            raise pool
        return pool

    def close(self) -> None:
        """End the thread, at the latest after the chunk it is reading."""
        self._stop.set()
        self._empty.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            for number in self._numbers:
                pool = self._empty.get()
                if pool is None:
                    return
                pool.wait_until_copied()
                with closing(self._fill(number, pool)) as filling:
                    for _ in filling:
                        if self._stop.is_set():
                            return
                self._full.put(pool)
        except BaseException as error:  # it belongs to the consumer
            self._full.put(error)


def _bits(rows: Tensor) -> NDArray[Any]:
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()


def _chunk_buffer(store: ActivationStore, site: str) -> NDArray[Any]:
    return np.empty((store.grid.chunk_rows, store.width(site)), store.spec.storage_dtype)
