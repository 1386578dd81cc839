"""The row plan: where every row will live, before any forward."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from atoms.activations.grid import Grid, Span
from atoms.activations.permutation import permutation
from atoms.errors import AtomsError

Ints = NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Block:
    """One block: which sequences to run, which of their tokens to keep, and in which slot each row lands.

    Sequence ``i`` is ``documents[doc[i]][start[i] : start[i] + length[i]]``. It is forwarded whole, even where it
    straddles the block's border, and its tokens ``first[i]:stop[i]`` belong to this block. Their rows go to
    ``slots_of(i)``.

    Args:
        span: the rows of the split that the block covers.
        doc: (S,) int64 index of each sequence's document.
        start: (S,) int64 first token of the sequence in its document.
        length: (S,) int64 tokens of the sequence, special tokens not counted.
        first: (S,) int64 first token of the sequence that falls into the block.
        stop: (S,) int64 one past the last token that falls into the block.
        slots: (rows,) int64 slot of every row, rows in the order of the sequences; a permutation.
        documents: the tokens, shared with the plan.
    """

    span: Span
    doc: Ints
    start: Ints
    length: Ints
    first: Ints
    stop: Ints
    slots: Ints
    documents: Sequence[NDArray[np.int32]]

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self.doc)

    def sequence(self, i: int) -> NDArray[np.int32]:
        """Return all tokens of sequence ``i``, those of a neighbouring block included."""
        start = int(self.start[i])
        return self.documents[int(self.doc[i])][start : start + int(self.length[i])]

    def slots_of(self, i: int) -> Ints:
        """Return the slots of tokens ``first[i]:stop[i]`` of sequence ``i``."""
        return self.slots[self._offsets[i] : self._offsets[i + 1]]

    @property
    def token_id(self) -> NDArray[np.int32]:
        """(rows,) int32 token of every row, in the order of the slots."""
        kept = [self.sequence(i)[self.first[i] : self.stop[i]] for i in range(len(self))]
        return self._scatter(np.concatenate(kept).astype(np.int32, copy=False))

    @property
    def doc_id(self) -> NDArray[np.int64]:
        """(rows,) int64 document of every row, in the order of the slots."""
        return self._scatter(np.repeat(self.doc, self.stop - self.first))

    @property
    def position(self) -> NDArray[np.int32]:
        """(rows,) int32 place of every row in its sequence, in the order of the slots."""
        counts = self.stop - self.first
        place = np.arange(self.span.rows) + np.repeat(self.first - self._offsets[:-1], counts)
        return self._scatter(place.astype(np.int32))

    @cached_property
    def _offsets(self) -> Ints:
        return _cumulate(self.stop - self.first)

    def _scatter(self, rows: NDArray[Scalar]) -> NDArray[Scalar]:
        out = np.empty_like(rows)
        out[self.slots] = rows
        return out


class RowPlan:
    """Where every row of every split will live, known exactly from the tokens alone.

    Documents are cut into sequences of at most ``context`` tokens. The rows of a split are its sequences' tokens, one
    after the other, cut into the grid's blocks. Inside a block rows are shuffled by a permutation that depends on
    ``(seed, split, block)``: the shuffle window of writing. No row is dropped.

    Memory is O(sequences); what is O(rows) exists for one block at a time.

    Args:
        documents: tokens of every document, int32, without special tokens.
        splits: per split the indices of its documents, already in shuffled order.
        context: most tokens of one sequence.
        grid: how rows are cut, see :meth:`Grid.choose`; :meth:`count` gives the rows it needs.
        seed: seed of the shuffle windows.

    Raises:
        AtomsError: there is not one token, or no room for one.
        ValueError: a document is in two splits.
    """

    def __init__(
        self,
        documents: Sequence[NDArray[np.int32]],
        splits: Mapping[str, Sequence[int] | Ints],
        *,
        context: int,
        grid: Grid,
        seed: int,
    ) -> None:
        if context < 1:
            raise AtomsError(f"data.harvest.context={context}: a sequence needs at least one token; use 1 or more")
        self.documents = documents
        self.context = context
        self.grid = grid
        self.seed = seed
        lengths = np.fromiter((len(document) for document in documents), np.int64, len(documents))
        order = {split: np.asarray(docs, np.int64) for split, docs in splits.items()}
        dealt = np.concatenate([np.empty(0, np.int64), *order.values()])
        if len(np.unique(dealt)) != len(dealt):
            raise ValueError("a document is dealt twice, so splits overlap")
        self._sequences = {split: _cut(docs, lengths[docs], context) for split, docs in order.items()}
        if not any(self.n_rows.values()):
            raise AtomsError("data.harvest.corpus: no document has a token to keep; check the corpus and its filters")

    @staticmethod
    def count(documents: Sequence[NDArray[np.int32]], splits: Mapping[str, Sequence[int] | Ints]) -> dict[str, int]:
        """Count the rows of every split."""
        return {split: sum(len(documents[i]) for i in docs) for split, docs in splits.items()}

    @cached_property
    def n_rows(self) -> dict[str, int]:
        """Rows per split."""
        return {split: int(sequences.offsets[-1]) for split, sequences in self._sequences.items()}

    @property
    def spans(self) -> list[Span]:
        """All blocks, without their contents."""
        return [span for split, rows in self.n_rows.items() for span in self.grid.spans(split, rows)]

    @property
    def n_forward_tokens(self) -> int:
        """Tokens that will be forwarded: every row once, and a second time in sequences that straddle a border."""
        total = 0
        for span in self.spans:
            sequences = self._sequences[span.split]
            lo, hi = sequences.covering(span)
            total += int(sequences.offsets[hi] - sequences.offsets[lo])
        return total

    def disk_bytes(self, row_bytes: Sequence[int]) -> int:
        """Exact disk of a store of this plan, ``row_bytes`` per site (see :meth:`Grid.store_bytes`)."""
        return self.grid.store_bytes(row_bytes, self.n_rows)

    def block(self, span: Span) -> Block:
        """Build one block."""
        sequences = self._sequences[span.split]
        lo, hi = sequences.covering(span)
        before = sequences.offsets[lo:hi]
        length = np.diff(sequences.offsets[lo : hi + 1])
        return Block(
            span=span,
            doc=sequences.doc[lo:hi],
            start=sequences.start[lo:hi],
            length=length,
            first=np.maximum(span.start - before, 0),
            stop=np.minimum(span.stop - before, length),
            slots=permutation(span.rows, self.seed, "rows", span.split, span.index),
            documents=self.documents,
        )

    def __iter__(self) -> Iterator[Block]:
        """Yield every block, one at a time."""
        return (self.block(span) for span in self.spans)


@dataclass(frozen=True)
class _Sequences:
    """The sequences of a split; rows of sequence ``i`` are ``offsets[i]:offsets[i + 1]``."""

    doc: Ints
    start: Ints
    offsets: Ints

    def covering(self, span: Span) -> tuple[int, int]:
        """Return the range of sequences with a row in the span."""
        lo = np.searchsorted(self.offsets, span.start, side="right") - 1
        hi = np.searchsorted(self.offsets, span.stop, side="left")
        return int(lo), int(hi)


def _cut(docs: Ints, lengths: Ints, context: int) -> _Sequences:
    pieces = -(-lengths // context)
    doc = np.repeat(docs, pieces)
    ordinal = np.arange(len(doc)) - np.repeat(_cumulate(pieces)[:-1], pieces)
    start = ordinal * context
    length = np.minimum(np.repeat(lengths, pieces) - start, context)
    return _Sequences(doc, start, _cumulate(length))


def _cumulate(counts: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
