"""Reading one array chunk by chunk, with checksums, at little more than the cost of a copy."""

from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from atoms.activations.cache import ChunkCache
from atoms.activations.grid import CHUNK_BYTES, Grid
from atoms.activations.location import Location
from atoms.activations.shard import CRC_BYTES, index
from atoms.activations.spec import ArraySpec, shard_path

WHOLE_BYTES = CHUNK_BYTES  # shards up to this size are fetched whole from afar: one round trip instead of many


class DamagedChunkError(Exception):
    """A chunk whose bytes are not those that were written.

    Args:
        file: the shard, relative to the store.
        chunk: number of the chunk in the array.
        reason: what is wrong, a clause.
    """

    def __init__(self, file: str, chunk: int, reason: str) -> None:
        super().__init__(f"{file}, chunk {chunk}: {reason}")
        self.file = file
        self.chunk = chunk
        self.reason = reason


class ChunkReader:
    """One array of a store. Every chunk lies where its number says, and is checked by its own checksum.

    A shard's index is checked when the shard is first touched: another writer may have put the chunks in another order.
    The array's metadata is never asked: the store's spec says all of it. Safe to share between threads and to inherit
    by a fork: nothing stays open between calls.

    Args:
        root: the store.
        array: which of its arrays.
        grid: how its rows are cut.
        verify: ``first`` checks a chunk's checksum the first time it is read, ``always`` every time. What comes from
            afar or out of a cache is always checked.
        cache: keeps what was fetched from afar.
        content: digest of the store's content, under which the cache keeps it.
    """

    def __init__(
        self,
        root: Location,
        array: ArraySpec,
        grid: Grid,
        verify: str = "first",
        cache: ChunkCache | None = None,
        content: str = "",
    ) -> None:
        self.root, self.array, self.grid = root, array, grid
        self.shape, self.dtype = array.shape, array.dtype.newbyteorder("<")
        self.chunk_rows = grid.chunk_rows
        self._row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        self._stride = self.chunk_rows * self._row_bytes + CRC_BYTES
        self._always = verify == "always" or root.remote
        self._verified: set[int] = set()
        self._indexed: set[int] = set()
        self._cache, self._content = cache, content
        self._held: tuple[str, bytes] = ("", b"")  # the small shard fetched last, where no cache keeps it

    def __len__(self) -> int:
        """Count the chunks."""
        return self.grid.n_chunks(self.shape[0])

    def rows(self, chunk: int) -> range:
        """Return the rows of a chunk."""
        return range(chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.shape[0]))

    def buffer(self) -> NDArray[Any]:
        """Return memory for one chunk."""
        return np.empty((self.chunk_rows, *self.shape[1:]), self.dtype)

    def read(self, chunk: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read one chunk.

        Args:
            chunk: number of the chunk.
            out: contiguous buffer of ``(chunk_rows, …)`` to read into; a fresh one if None.

        Returns:
            The chunk's rows, a view of the buffer.

        Raises:
            DamagedChunkError: the chunk is absent, cut short, or its checksum is wrong.
        """
        if not 0 <= chunk < len(self):
            raise IndexError(f"chunk {chunk} of {len(self)}")
        if out is None:
            out = self.buffer()
        if out.shape != (self.chunk_rows, *self.shape[1:]) or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(f"out must be contiguous {self.dtype} of {(self.chunk_rows, *self.shape[1:])}")
        body = out.reshape(-1).view(np.uint8)  # an array: crc32c refuses memoryviews of writable memory
        found = np.empty(CRC_BYTES, np.uint8)
        if self._cache and self._from_cache(chunk, body, found) and self._fits(body, found):
            return out[: len(self.rows(chunk))]
        shard, place = divmod(chunk, self.grid.shard_rows // self.chunk_rows)
        name = shard_path(self.array.path, shard)
        try:
            load = self._fetch if self.root.remote else self._read_local
            whole = load(name, shard, place, body, found)
        except FileNotFoundError:
            raise DamagedChunkError(name, chunk, "the file is missing") from None
        if not whole:
            raise DamagedChunkError(name, chunk, "the file is cut short")
        if self._always or chunk not in self._verified:
            if not self._fits(body, found):
                self._held = ("", b"")
                raise DamagedChunkError(name, chunk, "wrong checksum")
            self._verified.add(chunk)
        return out[: len(self.rows(chunk))]

    def slices(self, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        """Yield the chunks that cover rows ``start:stop``, each with the part of it that is wanted."""
        if stop <= start:
            return
        for chunk in range(start // self.chunk_rows, -(-stop // self.chunk_rows)):
            rows = self.rows(chunk)
            yield chunk, slice(max(start - rows.start, 0), min(stop, rows.stop) - rows.start)

    def read_rows(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows ``start:stop`` into fresh memory."""
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        filled = 0
        for chunk, part in self.slices(start, stop):
            rows = self.read(chunk)[part]
            out[filled : filled + len(rows)] = rows
            filled += len(rows)
        return out

    @staticmethod
    def _fits(body: NDArray[np.uint8], found: NDArray[np.uint8]) -> bool:
        return bool(google_crc32c.value(body) == int.from_bytes(found.tobytes(), "little"))

    def _read_local(self, name: str, shard: int, place: int, body: NDArray[Any], found: NDArray[Any]) -> bool:
        self._check_index(name, shard, place)
        return (self.root / name).read_into(place * self._stride, body.data, found.data)

    def _fetch(self, name: str, shard: int, place: int, body: NDArray[Any], found: NDArray[Any]) -> bool:
        """Fetch a chunk, or the whole of a small shard, and let the cache keep it."""
        size = self._shard_bytes(shard)
        if size > WHOLE_BYTES:
            self._check_index(name, shard, place)
            if not (self.root / name).read_into(place * self._stride, body.data, found.data):
                return False
            if self._cache and self._fits(body, found):
                self._cache.keep(f"{self._content} {name} {place}", b"".join((body.data, found.data)))
            return True
        held, content = self._held
        if held != name:
            data = bytearray(size)
            if not (self.root / name).read_into(0, memoryview(data)):
                return False
            if data[-len(self._index(shard)) :] != self._index(shard).tobytes():
                raise DamagedChunkError(name, self._chunk(shard, place), "the shard's index is wrong")
            content = bytes(data)
            self._held = (name, content)
            if self._cache:
                self._cache.keep(f"{self._content} {name}", content)
        start = place * self._stride
        body[:] = np.frombuffer(content, np.uint8, len(body), start)
        found[:] = np.frombuffer(content, np.uint8, CRC_BYTES, start + len(body))
        return True

    def _check_index(self, name: str, shard: int, place: int) -> None:
        if shard in self._indexed:
            return
        expected = self._index(shard)
        found = np.empty_like(expected)
        if not (self.root / name).read_into(self._shard_bytes(shard) - len(expected), found.data):
            raise DamagedChunkError(name, self._chunk(shard, place), "the file is cut short")
        if not np.array_equal(found, expected):
            raise DamagedChunkError(name, self._chunk(shard, place), "the shard's index is wrong")
        self._indexed.add(shard)

    def _index(self, shard: int) -> NDArray[np.uint8]:
        return index(self._shard_rows(shard), self._row_bytes, self.grid)

    def _chunk(self, shard: int, place: int) -> int:
        return shard * (self.grid.shard_rows // self.chunk_rows) + place

    def _from_cache(self, chunk: int, body: NDArray[Any], found: NDArray[Any]) -> bool:
        assert self._cache is not None
        shard, place = divmod(chunk, self.grid.shard_rows // self.chunk_rows)
        name = shard_path(self.array.path, shard)
        if self._shard_bytes(shard) > WHOLE_BYTES:
            return self._cache.read_into(f"{self._content} {name} {place}", 0, body.data, found.data)
        return self._cache.read_into(f"{self._content} {name}", place * self._stride, body.data, found.data)

    def _shard_rows(self, shard: int) -> int:
        return min(self.grid.shard_rows, self.shape[0] - shard * self.grid.shard_rows)

    def _shard_bytes(self, shard: int) -> int:
        return self.grid.shard_bytes(self._shard_rows(shard), self._row_bytes)
