"""What codes tell of one label: by a decoder of all of them, by few atoms, by each alone; beside controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atoms.checks.bootstrap import Interval, interval, resampled_sums
from atoms.checks.information.row_labels import Purpose, Question
from atoms.information.decoding import Decoding, Split, class_shares, decode
from atoms.information.gain import Signs, Step, greedy_gain
from atoms.information.signs import SignInformation, sign_information

CODES, RANDOM, SHUFFLED, ROW = "codes", "random", "shuffled", "row"
"""The unit; random directions; the unit with labels in random order; all of the row."""
STEPS = 5
"""Atoms taken one after the other."""

Codes = Callable[[Purpose], Any]
"""From rows of a sample their features, (n, F)."""


@dataclass(frozen=True, eq=False)
class LabelTold:
    """What was told of a label, in bits a held-out row.

    Attributes:
        question: The label.
        bits: Held-out cross-entropy of the shares of its classes: what there is to tell.
        decoded: Decoders of `CODES`, `RANDOM`, `SHUFFLED` and `ROW`.
        told: `bits` less what the decoder of codes leaves, with an interval over groups.
        told_random: The same of random directions.
        greedy: Atoms taken one after the other, of `CODES`, `RANDOM` and `SHUFFLED`.
        atoms: Each atom's sign and the label, of the same three.
    """

    question: Question
    bits: float
    decoded: Mapping[str, Decoding]
    told: Interval
    told_random: Interval
    greedy: Mapping[str, list[Step]]
    atoms: Mapping[str, SignInformation]

    def told_by(self, name: str) -> float:
        """Bits told by a decoder; below 0 where it misleads."""
        return self.bits - self.decoded[name].bits

    def told_greedily(self, name: str, steps: int) -> float:
        """Bits told by the first so many atoms; 0 where none was worth taking."""
        taken = self.greedy[name][:steps]
        return self.bits - taken[-1].left if taken else 0.0


def label_told(
    question: Question,
    codes: Codes,
    random: Codes,
    rows: Codes,
    groups: NDArray[np.int64],
    *,
    resamples: int,
    seed: int,
) -> LabelTold:
    """See what is told of a label.

    Args:
        question: The label and the rows.
        codes: The unit's.
        random: Of random directions.
        rows: The rows themselves.
        groups: Document group of every row that is scored.
        resamples: Of the bootstrap.
        seed: Of shuffling and bootstrap.
    """
    purposes = (question.fit, question.select, question.score)
    shuffle = np.random.default_rng(seed)
    mixed = [replace(part, labels=shuffle.permutation(part.labels)) for part in purposes[:2]]
    arms = {
        CODES: (codes, purposes),
        RANDOM: (random, purposes),
        SHUFFLED: (codes, (*mixed, question.score)),
        ROW: (rows, purposes),
    }
    decoded, greedy, atoms = {}, {}, {}
    for name, (features, parts) in arms.items():
        read = [features(part) for part in parts]
        splits = [Split(values, part.labels) for values, part in zip(read, parts, strict=True)]
        decoded[name] = decode(splits[0], splits[1], splits[2], question.classes)
        if name == ROW:
            continue
        signs = [Signs.of(values, part.labels) for values, part in zip(read, parts, strict=True)]
        greedy[name] = greedy_gain(signs[0], signs[1], signs[2], question.classes, STEPS)
        scored = signs[2]
        if name == SHUFFLED:
            scored = replace(scored, labels=shuffle.permutation(scored.labels))
        atoms[name] = sign_information(scored, question.classes)
    shares = class_shares(question.fit.labels, question.classes)
    blind = -np.log2(shares)[question.score.labels]
    intervals = [_told(blind, decoded[name].costs, groups, resamples=resamples, seed=seed) for name in (CODES, RANDOM)]
    return LabelTold(question, float(blind.mean()), decoded, intervals[0], intervals[1], greedy, atoms)


def _told(
    blind: NDArray[np.float64], left: NDArray[np.float64], groups: NDArray[np.int64], *, resamples: int, seed: int
) -> Interval:
    sums = resampled_sums({"told": torch.from_numpy(blind - left)}, groups, resamples=resamples, seed=seed)
    return interval(sums["told"] / sums["rows"], len(np.unique(groups)))
