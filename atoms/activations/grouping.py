"""Which documents repeat each other, told from their tokens alone.

A held-out score means little when a held-out paragraph was also trained on. Documents that share a run of
tokens are therefore put in one *group*, directly or through others, and a group is never divided between
splits. The comparison is exact: every run of every document is hashed and compared, nothing is sampled.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SHINGLE = 16
"""Default length of the run that makes two documents near-duplicates, in tokens: about a line of prose."""

_ODD = np.uint64(0x9E3779B97F4A7C15)
_TOKENS_AT_ONCE = 2**22
_SHINGLES_AT_ONCE = 2**24  # about half a GiB of keys, owners and their sort


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit numbers one to one (the finaliser of SplitMix64), the same on every machine and version."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def near_duplicate_groups(
    documents: Sequence[NDArray[np.int32]],
    *,
    together: NDArray[np.int64] | None = None,
    shingle: int = SHINGLE,
    shingles_at_once: int = _SHINGLES_AT_ONCE,
) -> NDArray[np.int64]:
    """Group documents that share a run of ``shingle`` consecutive tokens.

    Groups are the connected components of "shares a run, or is said to belong together". A document shorter than
    ``shingle`` is compared whole with other short documents. Memory stays bounded for large corpora: hashes are
    compared one range at a time, the tokens being hashed again for each range, and the answer does not depend on the
    number of ranges.

    Args:
        documents: Token ids of each document, arrays of shape (tokens,).
        together: Key of each document, shape (documents,); documents of equal key are in one group whatever they
            hold. None if nothing is known but the tokens.
        shingle: Length of the shared run, in tokens. Shorter runs glue more documents together.
        shingles_at_once: Hashes held in memory at a time, at about 30 bytes each.

    Returns:
        Group id of each document, shape (documents,). An id is the least fingerprint among the group's documents:
        a function of their content, and not of the order or the names of documents.

    Raises:
        ValueError: If ``shingle`` is not positive.
    """
    if shingle < 1:
        raise ValueError(f"shingle must be at least 1, got {shingle}")
    fingerprints = np.array([_fingerprint(tokens) for tokens in documents], dtype=np.uint64)
    lengths = np.array([len(tokens) for tokens in documents], dtype=np.int64)
    runs = int(np.maximum(lengths - shingle + 1, 1).sum())
    ranges = -(-runs // shingles_at_once)
    labels = np.arange(len(documents)) if together is None else np.unique(together, return_inverse=True)[1]
    for part in range(ranges):
        keys, owners = _shingles_in_range(documents, fingerprints, shingle, part, ranges)
        labels = _merge(labels, keys, owners)
    least = np.full(labels.max(initial=-1) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(least, labels, fingerprints)
    return least[labels].astype(np.int64)


def _fingerprint(tokens: NDArray[np.int32]) -> int:
    """63-bit hash of a whole document, so that it fits a signed integer."""
    digest = hashlib.blake2b(tokens.astype("<i4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _shingles_in_range(
    documents: Sequence[NDArray[np.int32]], fingerprints: NDArray[np.uint64], shingle: int, part: int, ranges: int
) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Hashes in range ``part`` of ``ranges`` of all documents' shingles, and the document each belongs to."""
    span = np.uint64(2**64 // ranges + 1) if ranges > 1 else None
    kept_keys, kept_owners = [], []
    for first, last in _chunks(documents):
        lengths = np.array([len(tokens) for tokens in documents[first:last]])
        owners = np.repeat(np.arange(first, last, dtype=np.int32), lengths)
        keys = _rolling_hash(np.concatenate(documents[first:last]), shingle)
        owners, ends = owners[: len(keys)], owners[shingle - 1 :]
        inside = owners == ends  # the window does not run into the next document
        short = first + np.flatnonzero(lengths < shingle)
        keys = np.concatenate([keys[inside], mix(fingerprints[short])])
        owners = np.concatenate([owners[inside], short.astype(np.int32)])
        if span is not None:
            here = keys // span == np.uint64(part)
            keys, owners = keys[here], owners[here]
        kept_keys.append(keys)
        kept_owners.append(owners)
    return np.concatenate(kept_keys), np.concatenate(kept_owners)


def _chunks(documents: Sequence[NDArray[np.int32]]) -> Iterator[tuple[int, int]]:
    """Ranges of whole documents of at most `_TOKENS_AT_ONCE` tokens each, or one document that is longer."""
    first, tokens = 0, 0
    for index, document in enumerate(documents):
        if index > first and tokens + len(document) > _TOKENS_AT_ONCE:
            yield first, index
            first, tokens = index, 0
        tokens += len(document)
    yield first, len(documents)


def _rolling_hash(tokens: NDArray[np.int32], width: int) -> NDArray[np.uint64]:
    """Hash of every window of ``width`` tokens, shape (max(tokens - width + 1, 0),).

    Windows of 2, 4, 8, ... tokens are combined from their halves, and the wanted width from two overlapping ones.
    The left part is mixed every time, because a sum alone would not notice tokens that change places.
    """
    if len(tokens) < width:
        return np.empty(0, dtype=np.uint64)
    hashes = mix(tokens.astype(np.uint64) + _ODD)
    size = 1
    while size * 2 <= width:
        hashes = mix(hashes[:-size]) + hashes[size:]
        size *= 2
    rest = width - size
    if rest:
        hashes = mix(hashes[:-rest]) + hashes[rest:]
    return mix(hashes)


def _merge(labels: NDArray[np.intp], keys: NDArray[np.uint64], owners: NDArray[np.int32]) -> NDArray[np.intp]:
    """Join the components ``labels`` of documents wherever two documents own the same key."""
    order = np.argsort(keys)
    keys, owners = keys[order], owners[order]
    linked = (keys[1:] == keys[:-1]) & (owners[1:] != owners[:-1])
    ends = labels[np.stack([owners[:-1][linked], owners[1:][linked]])]
    count = labels.max(initial=-1) + 1
    graph = coo_array((np.ones(ends.shape[1], dtype=np.bool_), (ends[0], ends[1])), shape=(count, count))
    _, components = connected_components(graph, directed=False)
    return np.asarray(components, dtype=np.intp)[labels]
