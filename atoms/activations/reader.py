"""Reading one array chunk by chunk, with checksums, at little more than the cost of a copy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray

from atoms.activations.files import read_json

_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}
_ABSENT = np.uint64(2**64 - 1)


class DamagedChunkError(Exception):
    """A chunk whose bytes are not those that were written.

    Args:
        file: the shard, relative to the array.
        chunk: number of the chunk in the array.
        reason: what is wrong, a clause.
    """

    def __init__(self, file: str, chunk: int, reason: str) -> None:
        super().__init__(f"{file}, chunk {chunk}: {reason}")
        self.file = file
        self.chunk = chunk
        self.reason = reason


class ChunkReader:
    """One sharded zarr v3 array, cut along its rows only.

    Arrays as this package writes them (uncompressed, crc32c, little-endian) are read straight from the shard; any
    other chain of codecs goes through zarr. Safe to share between threads and to inherit by a fork: nothing stays
    open between calls.

    Args:
        path: the array's directory.
        verify: ``first`` checks a chunk's checksum the first time it is read, ``always`` every time.
    """

    def __init__(self, path: Path, verify: str = "first") -> None:
        self.path = path
        self._metadata = read_json(path / "zarr.json")
        self.shape: tuple[int, ...] = tuple(self._metadata["shape"])
        self._shard_rows: int = self._metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        self.chunk_rows, self._direct = self._inspect()
        self.dtype: np.dtype[Any] = np.dtype(self._metadata["data_type"]).newbyteorder("<")
        self._always = verify == "always"
        self._verified: set[int] = set()
        self._indices: dict[int, NDArray[np.uint64]] = {}
        self._array: Any = None  # opened on first use, and only where zarr must decode

    def __len__(self) -> int:
        """Count the chunks."""
        return -(-self.shape[0] // self.chunk_rows)

    def rows(self, chunk: int) -> range:
        """Return the rows of a chunk."""
        return range(chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.shape[0]))

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
            out = np.empty((self.chunk_rows, *self.shape[1:]), self.dtype)
        if out.shape != (self.chunk_rows, *self.shape[1:]) or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(f"out must be contiguous {self.dtype} of {(self.chunk_rows, *self.shape[1:])}")
        rows = self.rows(chunk)
        if self._direct:
            self._read_direct(chunk, out)
        else:
            self._read_zarr(chunk, out)
        return out[: len(rows)]

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

    def _inspect(self) -> tuple[int, bool]:
        """Return rows per chunk, and whether the bytes of a chunk are simply its values and a checksum."""
        codecs = self._metadata["codecs"]
        encoding = self._metadata["chunk_key_encoding"]
        sharding = codecs[0]["configuration"] if codecs[0]["name"] == "sharding_indexed" else None
        grid = (
            self._metadata["chunk_grid"]["configuration"]["chunk_shape"]
            if sharding is None
            else sharding["chunk_shape"]
        )
        if tuple(grid[1:]) != self.shape[1:]:
            raise ValueError(f"{self.path}: cut along its columns; only rows may be cut")
        direct = (
            sharding is not None
            and len(codecs) == 1
            and sharding["codecs"] == [_LITTLE, _CRC]
            and sharding["index_codecs"] == [_LITTLE, _CRC]
            and sharding["index_location"] == "end"
            and encoding == {"name": "default", "configuration": {"separator": "/"}}
        )
        return int(grid[0]), direct

    def _file(self, shard: int) -> str:
        return "/".join(["c", str(shard), *("0" for _ in self.shape[1:])])

    def _read_direct(self, chunk: int, out: NDArray[Any]) -> None:
        per_shard = self._shard_rows // self.chunk_rows
        shard, place = divmod(chunk, per_shard)
        name = self._file(shard)
        try:
            file = (self.path / name).open("rb", buffering=0)
        except FileNotFoundError:
            raise DamagedChunkError(name, chunk, "the file is missing") from None
        with file:
            if shard not in self._indices:
                self._indices[shard] = self._read_index(file, name, chunk, per_shard)
            offset, size = (int(word) for word in self._indices[shard][place])
            if offset == _ABSENT:
                raise DamagedChunkError(name, chunk, "it was never written")
            buffer = out.reshape(-1).view(np.uint8)  # an array: crc32c refuses memoryviews of writable memory
            if size != len(buffer) + 4:
                raise DamagedChunkError(name, chunk, f"expected {len(buffer) + 4} bytes, the index says {size}")
            file.seek(offset)
            checksum = bytearray(4)
            if not (_fill(file, buffer.data) and _fill(file, memoryview(checksum))):
                raise DamagedChunkError(name, chunk, "the file is cut short")
        if self._always or chunk not in self._verified:
            if google_crc32c.value(buffer) != int.from_bytes(checksum, "little"):
                raise DamagedChunkError(name, chunk, "wrong checksum")
            self._verified.add(chunk)

    def _read_index(self, file: BinaryIO, name: str, chunk: int, per_shard: int) -> NDArray[np.uint64]:
        content = bytearray(16 * per_shard + 4)
        size = file.seek(0, 2)
        file.seek(max(0, size - len(content)))
        if not _fill(file, memoryview(content)):
            raise DamagedChunkError(name, chunk, "the file is cut short")
        body, checksum = content[:-4], content[-4:]
        if google_crc32c.value(bytes(body)) != int.from_bytes(checksum, "little"):
            raise DamagedChunkError(name, chunk, "the shard's index has a wrong checksum")
        return np.frombuffer(body, "<u8").reshape(per_shard, 2)

    def _read_zarr(self, chunk: int, out: NDArray[Any]) -> None:
        rows = self.rows(chunk)
        name = self._file(chunk * self.chunk_rows // self._shard_rows)
        if not (self.path / name).exists():  # zarr would read fill values
            raise DamagedChunkError(name, chunk, "the file is missing")
        if self._array is None:
            self._array = zarr.open_array(self.path, mode="r")
        try:
            out[: len(rows)] = self._array[rows.start : rows.stop]
        except (ValueError, RuntimeError) as error:
            raise DamagedChunkError(name, chunk, str(error)) from error


def _fill(file: BinaryIO, buffer: memoryview) -> bool:
    """Fill the buffer; False at the end of the file. One read may return less than asked."""
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])  # type: ignore[attr-defined]
        if not count:
            return False
        done += count
    return True
