"""The row plan: where every row will live, before any forward."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from atoms.activations.grid import Grid, Span
from atoms.activations.permutation import permutation
from atoms.activations.sequences import Ints, Sequences, cumulate
from atoms.errors import AtomsError

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Block:
    """One block: which sequences to run, which of their rows to keep, and in which slot each row lands.

    A sequence is forwarded whole, even where it straddles the block's border, and its rows ``first[i]:stop[i]`` belong
    to this block. They are at ``places(i)`` of the sequence and go to ``slots_of(i)``.

    Args:
        span: the rows of the split that the block covers.
        sequences: all sequences of the split.
        begin: index in them of the block's first sequence.
        first: (S,) int64 first row of each sequence that falls into the block.
        stop: (S,) int64 one past the last row that falls into the block.
        slots: (rows,) int64 slot of every row, rows in the order of the sequences; a permutation.
    """

    span: Span
    sequences: Sequences
    begin: int
    first: Ints
    stop: Ints
    slots: Ints

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self.first)

    @cached_property
    def length(self) -> Ints:
        """(S,) int64 tokens of each sequence, special ones included."""
        return self.sequences.lengths(self.begin, self.begin + len(self))

    def sequence(self, i: int) -> NDArray[np.int32]:
        """Return all tokens of sequence ``i`` as the model reads them, those of a neighbouring block included."""
        return self.sequences.ids(self.begin + i)

    def places(self, i: int) -> Ints:
        """Return the places in ``sequence(i)`` of the tokens whose rows belong to this block."""
        return self.sequences.places(self.begin + i)[self.first[i] : self.stop[i]]

    def slots_of(self, i: int) -> Ints:
        """Return the slots of the rows at ``places(i)``."""
        return self.slots[self._offsets[i] : self._offsets[i + 1]]

    @property
    def token_id(self) -> NDArray[np.int32]:
        """(rows,) int32 token of every row, in the order of the slots."""
        return self._scatter(np.concatenate([self.sequence(i)[self.places(i)] for i in range(len(self))]))

    @property
    def doc_id(self) -> Ints:
        """(rows,) int64 document of every row, in the order of the slots."""
        bounds = self.sequences.bounds[self.begin : self.begin + len(self) + 1]
        if bounds[-1] - bounds[0] == len(self):  # no sequence is of several documents
            return self._scatter(np.repeat(self.sequences.doc[bounds[:-1]], self.stop - self.first))
        docs = [self.sequences.docs(self.begin + i)[self.places(i)] for i in range(len(self))]
        return self._scatter(np.concatenate(docs))

    @property
    def position(self) -> NDArray[np.int32]:
        """(rows,) int32 place of every row in its sequence, in the order of the slots.

        The first token that may have a row has place 0: the one behind the special tokens in front, or the first of
        these if they leave rows.
        """
        places = np.concatenate([self.places(i) for i in range(len(self))])
        return self._scatter((places - self.sequences.frame.origin).astype(np.int32))

    @cached_property
    def _offsets(self) -> Ints:
        return cumulate(self.stop - self.first)

    def _scatter(self, rows: NDArray[Scalar]) -> NDArray[Scalar]:
        out = np.empty_like(rows)
        out[self.slots] = rows
        return out


class RowPlan:
    """Where every row of every split will live, known exactly from the tokens alone.

    The rows of a split are those of its sequences, one after the other, cut into the grid's blocks. Inside a block rows
    are shuffled by a permutation that depends on ``(seed, split, block)``: the shuffle window of writing.

    Memory is O(sequences); what is O(rows) exists for one block at a time.

    Args:
        splits: the sequences of every split.
        grid: how rows are cut, see :meth:`Grid.choose`.
        seed: seed of the shuffle windows.

    Raises:
        AtomsError: there is not one row.
        ValueError: a document is in two splits.
    """

    def __init__(self, splits: Mapping[str, Sequences], *, grid: Grid, seed: int) -> None:
        self.splits = splits
        self.grid = grid
        self.seed = seed
        dealt = np.concatenate([np.empty(0, np.int64), *(np.unique(sequences.doc) for sequences in splits.values())])
        if len(np.unique(dealt)) != len(dealt):
            raise ValueError("a document is dealt twice, so splits overlap")
        if not any(self.n_rows.values()):
            raise AtomsError("data.harvest.corpus: no document has a token to keep; check the corpus and its filters")

    @cached_property
    def n_rows(self) -> dict[str, int]:
        """Rows per split."""
        return {split: sequences.rows for split, sequences in self.splits.items()}

    @property
    def spans(self) -> list[Span]:
        """All blocks, without their contents."""
        return [span for split, rows in self.n_rows.items() for span in self.grid.spans(split, rows)]

    @property
    def n_forward_tokens(self) -> int:
        """Tokens that will be forwarded: every sequence once, and again for each border it straddles."""
        total = 0
        for span in self.spans:
            sequences = self.splits[span.split]
            total += int(sequences.lengths(*sequences.covering(span.start, span.stop)).sum())
        return total

    def disk_bytes(self, row_bytes: Sequence[int]) -> int:
        """Exact disk of a store of this plan, ``row_bytes`` per site (see :meth:`Grid.store_bytes`)."""
        return self.grid.store_bytes(row_bytes, self.n_rows)

    def block(self, span: Span) -> Block:
        """Build one block."""
        sequences = self.splits[span.split]
        lo, hi = sequences.covering(span.start, span.stop)
        before = sequences.offsets[lo:hi]
        return Block(
            span=span,
            sequences=sequences,
            begin=lo,
            first=np.maximum(span.start - before, 0),
            stop=np.minimum(span.stop, sequences.offsets[lo + 1 : hi + 1]) - before,
            slots=permutation(span.rows, self.seed, "rows", span.split, span.index),
        )

    def __iter__(self) -> Iterator[Block]:
        """Yield every block, one at a time."""
        return (self.block(span) for span in self.spans)
