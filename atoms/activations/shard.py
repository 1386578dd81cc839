"""One shard of a zarr v3 array as bytes: chunks with their checksums in order, then the index.

Byte for byte what zarr writes for ``sharding_indexed`` over little-endian bytes with crc32c, index at the end. Chunk
``i`` lies at ``i`` times the size of a chunk, so that the index is known before it is read.
"""

from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from atoms.activations.grid import Grid

CRC_BYTES = 4


def encode(rows: NDArray[Any], grid: Grid, hole: float) -> NDArray[np.uint8]:
    """Lay out the rows of one shard.

    Args:
        rows: (n, …) at most ``grid.shard_rows`` rows in the array's little-endian dtype.
        grid: How rows are cut.
        hole: Value of the rows that pad the last chunk.

    Returns:
        The bytes of the file.
    """
    row_bytes = rows.dtype.itemsize * int(np.prod(rows.shape[1:], dtype=np.int64))
    out = np.empty(grid.shard_bytes(len(rows), row_bytes), np.uint8)
    body = grid.chunk_rows * row_bytes
    for number in range(grid.n_chunks(len(rows))):
        start = number * (body + CRC_BYTES)
        part = rows[number * grid.chunk_rows : (number + 1) * grid.chunk_rows]
        values = out[start : start + body].view(rows.dtype).reshape(-1, *rows.shape[1:])
        values[: len(part)] = part
        values[len(part) :] = hole
        out[start + body : start + body + CRC_BYTES] = checksum(out[start : start + body])
    end = index(len(rows), row_bytes, grid)
    out[-len(end) :] = end
    return out


def index(n_rows: int, row_bytes: int, grid: Grid) -> NDArray[np.uint8]:
    """Return the last bytes of a shard of ``n_rows`` rows: offset and size of every chunk, and a checksum."""
    stride = grid.chunk_rows * row_bytes + CRC_BYTES
    places = np.full((grid.shard_rows // grid.chunk_rows, 2), 2**64 - 1, "<u8")  # absent
    there = grid.n_chunks(n_rows)
    places[:there] = np.stack([stride * np.arange(there), np.full(there, stride)], axis=1)
    body = places.reshape(-1).view(np.uint8)
    return np.concatenate([body, checksum(body)])


def checksum(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """crc32c of the bytes as the four bytes that follow them."""
    return np.frombuffer(google_crc32c.value(data).to_bytes(CRC_BYTES, "little"), np.uint8)


def checksums(data: NDArray[np.uint8], n_rows: int, row_bytes: int, grid: Grid) -> NDArray[np.uint8]:
    """Return the checksums a shard of ``n_rows`` rows holds, (chunks, 4) bytes.

    They say what a shard is where a crc32c of the whole file cannot: bytes followed by their own crc32c all have the
    same one.
    """
    stride = grid.chunk_rows * row_bytes + CRC_BYTES
    return data[: grid.n_chunks(n_rows) * stride].reshape(-1, stride)[:, -CRC_BYTES:]
