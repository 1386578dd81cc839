"""How documents are cut into the sequences a model reads, and which of a sequence's tokens leave a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from atoms.errors import AtomsError

Ints = NDArray[np.int64]
Tokens = NDArray[np.int32]
Cut = Literal["pieces", "windows", "packed"]
"""Ways to cut, see :meth:`Sequences.cut`."""


@dataclass(frozen=True)
class Frame:
    """The special tokens of a sequence, and which of them leave rows.

    Args:
        prefix: ids in front of every sequence.
        suffix: ids behind every sequence.
        separator: ids between two documents of a packed sequence.
        rows: which of them leave a row: none, those in front (``bos``), or all.
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    separator: tuple[int, ...] = ()
    rows: Literal["drop", "bos", "all"] = "drop"

    @property
    def origin(self) -> int:
        """Place in the sequence from which positions are counted: the first token that may have a row."""
        return len(self.prefix) if self.rows == "drop" else 0

    @cached_property
    def arrays(self) -> tuple[Tokens, Tokens, Tokens]:
        """Prefix, suffix and separator as arrays."""
        prefix, suffix, separator = (np.array(ids, np.int32) for ids in (self.prefix, self.suffix, self.separator))
        return prefix, suffix, separator

    def lengths(self, pieces: Ints) -> Ints:
        """Special tokens of sequences of so many pieces."""
        return len(self.prefix) + len(self.suffix) + (pieces - 1) * len(self.separator)

    def row_counts(self, pieces: Ints) -> Ints:
        """Rows that the special tokens of sequences of so many pieces leave."""
        if self.rows == "all":
            return self.lengths(pieces)
        return np.full_like(pieces, len(self.prefix) if self.rows == "bos" else 0)


@dataclass(frozen=True)
class Sequences:
    """The sequences of a split, in the order of their rows.

    A sequence is its frame's prefix, pieces of documents with the separator between them, and the suffix. Piece ``g``
    is ``documents[doc[g]][start[g] : start[g] + length[g]]``; pieces ``bounds[i]:bounds[i + 1]`` make sequence ``i``,
    whose rows are ``offsets[i]:offsets[i + 1]``. Every sequence has a row. Memory is O(pieces).

    Args:
        documents: tokens of every document, int32, without the frame's.
        keep: per document which of its tokens leave a row, bool; None if all do.
        frame: the special tokens.
        doc: (G,) int64 index of each piece's document.
        start: (G,) int64 first token of the piece in its document.
        length: (G,) int64 tokens of the piece.
        bounds: (S + 1,) int64 first piece of each sequence.
        offsets: (S + 1,) int64 first row of each sequence.
    """

    documents: Sequence[Tokens]
    keep: Sequence[NDArray[np.bool_]] | None
    frame: Frame
    doc: Ints
    start: Ints
    length: Ints
    bounds: Ints
    offsets: Ints

    @classmethod
    def cut(
        cls,
        documents: Sequence[Tokens],
        docs: Sequence[int] | Ints,
        *,
        context: int,
        keep: Sequence[NDArray[np.bool_]] | None = None,
        how: Cut = "pieces",
        frame: Frame | None = None,
    ) -> Self:
        """Cut some documents into sequences of at most ``context`` tokens; the prefix and suffix are not counted.

        ``pieces`` cuts every document on its own, from its beginning. ``windows`` takes one sequence of each document,
        for documents with one token to keep: the first ``context`` tokens if that token is among them, otherwise those
        that end with it. ``packed`` lays the documents end to end, the separator (counted) between them, and begins a
        new sequence when one is full. Sequences in which nothing is to be kept are left out.

        Args:
            documents: tokens of every document.
            docs: indices of the documents to cut, in order.
            context: most tokens of one sequence.
            keep: per document which tokens leave a row; None if all do.
            how: how to cut.
            frame: the special tokens; None for a model without.

        Raises:
            AtomsError: there is no room for a token.
            ValueError: a document is named twice.
        """
        if context < 1:
            raise AtomsError(f"data.harvest.context={context}: a sequence needs at least one token; use 1 or more")
        frame = frame or Frame()
        order = np.asarray(docs, np.int64)
        if len(np.unique(order)) != len(order):
            raise ValueError("a document is dealt twice")
        lengths = np.fromiter((len(documents[i]) for i in order), np.int64, len(order))
        if how == "windows":
            assert keep is not None, "windows are cut around the token to keep"
            doc, start, length, bounds = _windows(order, lengths, context, keep)
        elif how == "packed":
            doc, start, length, bounds = _packed(order, lengths, context, len(frame.separator))
        else:
            doc, start, length, bounds = _pieces(order, lengths, context)
        counts = length
        if keep is not None:
            places = zip(doc.tolist(), start.tolist(), (start + length).tolist(), strict=True)
            counts = np.fromiter((np.count_nonzero(keep[d][a:b]) for d, a, b in places), np.int64, len(doc))
            doc, start, length, bounds, counts = _without_empty(doc, start, length, bounds, counts)
        rows = np.add.reduceat(counts, bounds[:-1]) if len(bounds) > 1 else counts
        return cls(
            documents, keep, frame, doc, start, length, bounds, cumulate(rows + frame.row_counts(np.diff(bounds)))
        )

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self.bounds) - 1

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.offsets[-1])

    def covering(self, first: int, stop: int) -> tuple[int, int]:
        """Return the range of sequences with a row in ``first:stop``."""
        lo = np.searchsorted(self.offsets, first, side="right") - 1
        hi = np.searchsorted(self.offsets, stop, side="left")
        return int(lo), int(hi)

    def lengths(self, lo: int, hi: int) -> Ints:
        """Tokens of sequences ``lo:hi``, special ones included."""
        before = cumulate(self.length[self.bounds[lo] : self.bounds[hi]])
        bounds = self.bounds[lo : hi + 1]
        text: Ints = np.diff(before[bounds - bounds[0]])
        return text + self.frame.lengths(np.diff(bounds))

    def ids(self, i: int) -> Tokens:
        """Return all tokens of sequence ``i``, as the model reads them."""
        prefix, suffix, separator = self.frame.arrays
        parts: list[Tokens] = []
        for g in range(int(self.bounds[i]), int(self.bounds[i + 1])):
            parts.append(separator if parts else prefix)
            parts.append(self.documents[int(self.doc[g])][self._slice(g)])
        return np.concatenate([*parts, suffix])

    def places(self, i: int) -> Ints:
        """Return the places in ``ids(i)`` of the tokens that leave a row, in order."""
        frame = self.frame
        first, stop = int(self.bounds[i]), int(self.bounds[i + 1])
        if self.keep is None and stop == first + 1:  # the usual case, which is a range
            end = len(frame.prefix) + int(self.length[first])
            return np.arange(frame.origin, end + len(frame.suffix) if frame.rows == "all" else end)
        front, between = frame.rows != "drop", frame.rows == "all"
        parts: list[NDArray[np.bool_]] = []
        for g in range(first, stop):
            special, keeps = (frame.separator, between) if parts else (frame.prefix, front)
            parts.append(np.full(len(special), keeps))
            text = np.ones(int(self.length[g]), bool) if self.keep is None else self.keep[int(self.doc[g])]
            parts.append(text if self.keep is None else text[self._slice(g)])
        return np.flatnonzero(np.concatenate([*parts, np.full(len(frame.suffix), between)]))

    def docs(self, i: int) -> Ints:
        """Return the document of every token of ``ids(i)``; a separator is the document's before it."""
        first, stop = int(self.bounds[i]), int(self.bounds[i + 1])
        sizes = self.length[first:stop] + len(self.frame.separator)
        sizes[0] += len(self.frame.prefix)
        sizes[-1] += len(self.frame.suffix) - len(self.frame.separator)
        return np.repeat(self.doc[first:stop], sizes)

    def _slice(self, g: int) -> slice:
        start = int(self.start[g])
        return slice(start, start + int(self.length[g]))


Pieces = tuple[Ints, Ints, Ints, Ints]  # doc, start, length, bounds


def _pieces(docs: Ints, lengths: Ints, context: int) -> Pieces:
    count = -(-lengths // context)
    doc = np.repeat(docs, count)
    ordinal = np.arange(len(doc)) - np.repeat(cumulate(count)[:-1], count)
    start = ordinal * context
    return doc, start, np.minimum(np.repeat(lengths, count) - start, context), np.arange(len(doc) + 1)


def _windows(docs: Ints, lengths: Ints, context: int, keep: Sequence[NDArray[np.bool_]]) -> Pieces:
    kept = np.fromiter((keep[i].argmax() if keep[i].any() else -1 for i in docs), np.int64, len(docs))
    docs, lengths, kept = docs[kept >= 0], lengths[kept >= 0], kept[kept >= 0]
    start = np.maximum(kept + 1 - context, 0)
    return docs, start, np.minimum(lengths - start, context), np.arange(len(docs) + 1)


def _packed(docs: Ints, lengths: Ints, context: int, gap: int) -> Pieces:
    doc: list[int] = []
    start: list[int] = []
    length: list[int] = []
    bounds: list[int] = []
    room = 0
    for document, left in zip(docs.tolist(), lengths.tolist(), strict=True):
        at = 0
        if left:  # goes on in the sequence of the document before if a token fits behind the separator
            room = max(room - gap, 0)
        while left:
            if not room:
                bounds.append(len(doc))
                room = context
            taken = min(left, room)
            doc.append(document)
            start.append(at)
            length.append(taken)
            at, left, room = at + taken, left - taken, room - taken
    bounds.append(len(doc))
    return np.array(doc, np.int64), np.array(start, np.int64), np.array(length, np.int64), np.array(bounds, np.int64)


def _without_empty(doc: Ints, start: Ints, length: Ints, bounds: Ints, counts: Ints) -> tuple[Ints, ...]:
    """Leave out the sequences in which nothing is kept."""
    pieces = np.diff(bounds)
    full = np.add.reduceat(counts, bounds[:-1]) > 0 if len(pieces) else np.empty(0, bool)
    held = np.repeat(full, pieces)
    return doc[held], start[held], length[held], cumulate(pieces[full]), counts[held]


def cumulate(counts: Ints) -> Ints:
    """Sums of all counts before each place, and of all: shape (n + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
