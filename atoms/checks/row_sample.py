"""Rows and their codes, as many as memory bears, the same ones for any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from atoms.checks.check import Subject
from atoms.sae import SparseCodes


@dataclass(frozen=True, eq=False)
class Sampled:
    """Rows by ascending place.

    Attributes:
        index: Place of each in its split, (n,) int64.
        rows: (n, H) float32.
        codes: (n, A) float32, compressed by row.
    """

    index: NDArray[np.int64]
    rows: NDArray[np.float32]
    codes: Any

    def take(self, chosen: NDArray[np.int64]) -> Sampled:
        """Some of the rows, (k,) by their place in the sample."""
        return Sampled(self.index[chosen], self.rows[chosen], self.codes[chosen])


class RowSample:
    """Keeps the rows that draw the lowest lots, where a row's lot depends on its place and the seed alone.

    Every row is as likely as another, and batches, their order and the number of ranks change nothing: the lowest lots
    of all are among the lowest of each part. At most three times `limit` rows are held at once.

    Args:
        limit: Number of rows to keep.
        seed: Seed of the lots.
    """

    def __init__(self, limit: int, seed: int = 0) -> None:
        self.limit, self.seed = limit, seed
        self._parts: list[Sampled] = []
        self._highest = np.uint64(2**64 - 1)

    def add(self, index: Tensor, rows: Tensor, codes: SparseCodes) -> None:
        """Add a batch.

        Args:
            index: Place of each row in its split, (B,) int64.
            rows: (B, H).
            codes: B rows over A atoms.
        """
        places = index.cpu().numpy()
        kept = np.flatnonzero(lots(places, self.seed) <= self._highest)
        if not len(kept):
            return
        matrix = sparse.csr_matrix(
            (codes.values.cpu().numpy(), codes.indices.cpu().numpy(), codes.offsets.cpu().numpy()),
            shape=(len(codes), codes.width),
        )
        self._parts.append(Sampled(places[kept], rows.detach().float().cpu().numpy()[kept], matrix[kept]))
        if sum(len(part.index) for part in self._parts) >= 2 * self.limit:
            self._keep(self._parts)

    def gather(self) -> Sampled | None:
        """The sample over all ranks' rows; every rank must call it. None without any row."""
        if self._parts:
            self._keep(self._parts)
        if dist.is_available() and dist.is_initialized():
            gathered: list[list[Sampled]] = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(gathered, self._parts)
            if parts := [part for own in gathered for part in own]:
                self._keep(parts)
        return self._parts[0] if self._parts else None

    def _keep(self, parts: list[Sampled]) -> None:
        """Put parts into one, and keep of it what belongs to the sample."""
        places = np.concatenate([part.index for part in parts])
        drawn = lots(places, self.seed)
        kept = np.argsort(drawn)[: self.limit]
        if len(kept) == self.limit:
            self._highest = drawn[kept[-1]]
        kept = kept[np.argsort(places[kept])]
        self._parts = [
            Sampled(
                places[kept],
                np.concatenate([part.rows for part in parts])[kept],
                sparse.vstack([part.codes for part in parts], format="csr")[kept],
            )
        ]


def sample_limit(subject: Subject, least: int) -> int:
    """Rows of each split that two samples may hold in the memory the checks may take; no more than probes ask for.

    A sample is there up to three times over while it grows, and an unsteered unit may fire everywhere.

    Args:
        subject: What is judged.
        least: Rows to hold in any case.
    """
    aim = subject.unit.target_l0
    entries = subject.num_atoms if aim is None else min(subject.num_atoms, round(4 * aim))
    most = subject.settings.memory_mib * 2**20 // (8 * (4 * subject.width + 8 * entries))
    return max(least, min(subject.settings.probe_rows, most))


def lots(places: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A lot for every place, different for different places, with no pattern in them.

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood 2014).

    Args:
        places: (n,) int64.
        seed: Another seed, other lots.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        z = places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def most_frequent(labels: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Labels with most rows, the most frequent first; negative ones stand for none.

    Args:
        labels: Of rows, (n,).
        most: How many.
    """
    known, counts = np.unique(labels[labels >= 0], return_counts=True)
    return np.asarray(known[np.lexsort((known, -counts))][:most], np.int64)
