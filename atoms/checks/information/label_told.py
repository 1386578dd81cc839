"""What codes tell of one label: by a decoder of all of them, by few atoms, by each alone; beside controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atoms.checks.bootstrap import Interval, bootstrap_interval
from atoms.checks.information.row_labels import Purpose, Question
from atoms.information.decoding import Decoding, Split, decode
from atoms.information.gain import Signs, Step, greedy_gain
from atoms.information.signs import SignInformation, sign_information

CODES, RANDOM, ROWS, SHUFFLED = "codes", "random", "rows", "shuffled"
"""The unit; random directions; training rows as directions; the unit with labels in random order."""
COORDINATES, WHOLE = "coordinates", "whole"
"""Single coordinates of the row; all of it, whitened."""
STEPS = 5
"""Atoms taken one after the other."""

Features = Callable[[Purpose], Any]
"""From rows of a sample their features, (n, F)."""


@dataclass(frozen=True, eq=False)
class LabelTold:
    """What was told of a label, in bits a held-out row.

    Attributes:
        question: The label.
        bits: Entropy of the label on the rows scored: what there is to tell.
        decoded: Decoders of all but `COORDINATES`.
        told: `bits` less what the decoder leaves, for `CODES` and `RANDOM`, with an interval over groups.
        greedy: Features taken one after the other, of all but `WHOLE`.
        signs: Each feature's sign and the label, of these.
    """

    question: Question
    bits: float
    decoded: Mapping[str, Decoding]
    told: Mapping[str, Interval]
    greedy: Mapping[str, list[Step]]
    signs: Mapping[str, SignInformation]

    def told_by(self, name: str) -> float:
        """Bits told by a decoder; below 0 where it misleads."""
        return self.bits - self.decoded[name].bits

    def told_greedily(self, name: str, steps: int) -> float:
        """Bits told by the first so many features; 0 where none was worth taking."""
        taken = self.greedy[name][:steps]
        return self.bits - taken[-1].left if taken else 0.0


def label_told(
    question: Question,
    features: Mapping[str, Features],
    groups: NDArray[np.int64],
    *,
    resamples: int,
    seed: int,
) -> LabelTold:
    """See what is told of a label.

    Args:
        question: The label and the rows.
        features: By name, of `CODES`, `RANDOM`, `ROWS`, `COORDINATES` and `WHOLE`.
        groups: Document group of every row that is scored.
        resamples: Of the bootstrap.
        seed: Of shuffling and bootstrap.
    """
    purposes = (question.fit, question.select, question.score)
    shuffle = np.random.default_rng(seed)
    mixed = [replace(part, labels=shuffle.permutation(part.labels)) for part in purposes[:2]]
    arms = {name: (read, purposes) for name, read in features.items()}
    arms[SHUFFLED] = features[CODES], (mixed[0], mixed[1], question.score)
    decoded, greedy, signs = {}, {}, {}
    for name, (read, parts) in arms.items():
        values = [read(part) for part in parts]
        if name != COORDINATES:
            splits = [Split(own, part.labels) for own, part in zip(values, parts, strict=True)]
            decoded[name] = decode(splits[0], splits[1], splits[2], question.classes)
        if name != WHOLE:
            of_parts = [Signs.of(own, part.labels) for own, part in zip(values, parts, strict=True)]
            greedy[name] = greedy_gain(of_parts[0], of_parts[1], of_parts[2], question.classes, STEPS)
            scored = of_parts[2]
            if name == SHUFFLED:
                scored = replace(scored, labels=shuffle.permutation(scored.labels))
            signs[name] = sign_information(scored, question.classes)
    labels = question.score.labels
    shares = np.bincount(labels, minlength=question.classes) / len(labels)
    surprise = -np.log2(shares[labels])  # its mean is the entropy of the label
    times = 0 if question.of_groups else resamples
    told = {}
    for name in (CODES, RANDOM):
        saved = {"bits": torch.from_numpy(surprise - decoded[name].costs)}
        told[name] = bootstrap_interval(
            saved, groups, lambda sums: sums["bits"] / sums["rows"], resamples=times, seed=seed
        )
    return LabelTold(question, float(surprise.mean()), decoded, told, greedy, signs)
