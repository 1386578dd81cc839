"""How rows are cut for the disk: chunks inside shards inside blocks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

CHUNK_BYTES = 8 * 2**20  # reads beyond this stop reusing buffers and cost page faults
SHARD_BYTES = 128 * 2**20  # bigger shards cost the writer three times the CPU
SHUFFLE_CHUNKS = 32  # fewer random chunks per pool than this and batches stop looking iid
MIN_CHUNK_ROWS = 16

NORM_BYTES = 4  # float32
TOKEN_BYTES = (4, 8, 4)  # token_id int32, doc_id int64, position int32
_CRC_BYTES = 4
_INDEX_BYTES = 16  # offset and length of one chunk, uint64 each


@dataclass(frozen=True)
class Span:
    """A block of a split: the unit of shuffling at write time, of commit, of resume and of rank ownership.

    Args:
        split: name of the split.
        index: number of the block within its split.
        start: first row.
        stop: one past the last row.
    """

    split: str
    index: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True)
class Grid:
    """Rows per chunk, per shard and per block; each a multiple of the one before.

    Args:
        chunk_rows: rows of one chunk, the unit of reading and of checksums.
        shard_rows: rows of one file.
        block_rows: rows of one block, see :class:`Span`.
    """

    chunk_rows: int
    shard_rows: int
    block_rows: int

    def __post_init__(self) -> None:
        """Refuse grids whose parts do not nest."""
        if self.chunk_rows < 1 or self.shard_rows % self.chunk_rows or self.block_rows % self.shard_rows:
            raise ValueError(f"chunks must divide shards and shards must divide blocks, got {self}")
        if not self.chunk_rows <= self.shard_rows <= self.block_rows:
            raise ValueError(f"chunks must fit shards and shards must fit blocks, got {self}")

    @classmethod
    def choose(cls, row_bytes: Sequence[int], n_rows: Mapping[str, int], memory_bytes: int) -> Self:
        """Choose a grid that reads fast, shuffles well and fits the writer's memory.

        Chunks of the widest site are at most 8 MiB, and smaller in small stores, so that the largest split still has
        32 of them to shuffle, and where one of every site would not fit ``memory_bytes``. Shards are at most 128 MiB. A
        block is as many whole shards as ``memory_bytes`` holds.

        Args:
            row_bytes: bytes of one row, per site.
            n_rows: rows per split.
            memory_bytes: what a writer may hold of one block, all sites together.

        Returns:
            The grid. Sixteen rows of every site are the least a block can be, whatever ``memory_bytes`` says.
        """
        widest, total, largest = max(row_bytes), sum(row_bytes), max(n_rows.values(), default=0)
        chunk = MIN_CHUNK_ROWS
        while (
            2 * chunk * widest <= CHUNK_BYTES
            and 2 * chunk * total <= memory_bytes
            and SHUFFLE_CHUNKS * 2 * chunk <= largest
        ):
            chunk *= 2
        needed = max(1, -(-largest // chunk))
        shard = chunk * max(1, min(SHARD_BYTES // (chunk * widest), memory_bytes // (chunk * total), needed))
        block = shard * max(1, min(memory_bytes // (shard * total), -(-largest // shard)))
        return cls(chunk, shard, block)

    def spans(self, split: str, n_rows: int) -> Iterator[Span]:
        """Yield the blocks of a split; only the last may be shorter."""
        for index, start in enumerate(range(0, n_rows, self.block_rows)):
            yield Span(split, index, start, min(start + self.block_rows, n_rows))

    def n_chunks(self, n_rows: int) -> int:
        """Count the chunks of ``n_rows`` rows."""
        return -(-n_rows // self.chunk_rows)

    def shard_bytes(self, rows: int, row_bytes: int) -> int:
        """Exact size of the file of one shard that holds ``rows`` rows: chunks are padded to full size."""
        chunks = self.n_chunks(rows) * (self.chunk_rows * row_bytes + _CRC_BYTES)
        return chunks + self.shard_rows // self.chunk_rows * _INDEX_BYTES + _CRC_BYTES

    def array_bytes(self, n_rows: int, row_bytes: int) -> int:
        """Exact size of all shards of one array."""
        full, rest = divmod(n_rows, self.shard_rows)
        last = self.shard_bytes(rest, row_bytes) if rest else 0
        return full * self.shard_bytes(self.shard_rows, row_bytes) + last

    def store_bytes(self, row_bytes: Sequence[int], n_rows: Mapping[str, int]) -> int:
        """Exact size of all shards of a store: every site's rows and norms, and the tokens.

        Args:
            row_bytes: bytes of one row, per site.
            n_rows: rows per split.

        Returns:
            Bytes; the JSON metadata beside the shards (a few KiB) is not counted.
        """
        widths = (*row_bytes, *(NORM_BYTES for _ in row_bytes), *TOKEN_BYTES)
        return sum(self.array_bytes(n, width) for n in n_rows.values() for width in widths)
