"""Permutations that depend on their key alone, not on numpy's version or the machine."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def permutation(n: int, *key: int | str) -> NDArray[np.int64]:
    """Permute ``range(n)`` by a key.

    ``Generator.permutation`` may change between numpy releases, which would reorder a half-written store or a
    resumed run. The raw words of a bit generator and its seeding are guaranteed, so the order is the stable sort
    of raw words instead.

    Args:
        n: number of items.
        key: integers (taken modulo 2^64) and strings that name the permutation, e.g. ``(seed, "train", block)``.

    Returns:
        ``(n,)`` int64, each of ``range(n)`` once.
    """
    words = [_word(part) for part in key]
    raw = np.random.PCG64(np.random.SeedSequence(words)).random_raw(n)
    return np.argsort(raw, kind="stable").astype(np.int64, copy=False)


def _word(part: int | str) -> int:
    if isinstance(part, str):
        return int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little")
    return int(part) % 2**64
