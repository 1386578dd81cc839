"""Moments of training rows by folds of documents, for what another choice of documents would have given."""

from __future__ import annotations

import numpy as np
import torch

from atoms.activations.grouping import mix
from atoms.checks.check import Encoded, Subject
from atoms.checks.sums import Sums
from atoms.geometry import Moments


class Folds:
    """Moments of the training rows looked at, documents dealt to folds by whole groups.

    Args:
        subject: What is judged.
        folds: Number of folds.
    """

    def __init__(self, subject: Subject, folds: int) -> None:
        groups = subject.train.groups().astype(np.uint64)
        scrambled = mix(groups ^ mix(np.full(1, subject.settings.seed + 1, np.uint64)))
        self.fold = torch.from_numpy((scrambled % np.uint64(folds)).astype(np.uint8))
        """Fold of every row of the training split, (N,)."""
        width = subject.width
        self.sums = Sums(
            count=torch.zeros(folds, dtype=torch.int64),
            total=torch.zeros(folds, width, dtype=torch.float64),
            outer=torch.zeros(folds, width, width, dtype=torch.float64),
        ).to(subject.device)

    def update(self, batch: Encoded) -> None:
        """Add a batch of training rows."""
        fold = self.fold[batch.index.cpu()].to(batch.rows.device)
        for number in set(fold.tolist()):
            moments = Moments.from_rows(batch.rows[fold == number])
            self.sums.add(number, count=torch.tensor(moments.count), total=moments.total, outer=moments.outer)

    def pooled(self) -> list[Moments]:
        """The moments of each fold, over all ranks; every rank must call it."""
        sums = self.sums.pooled()
        counts: list[int] = sums["count"].tolist()
        return [Moments(count, sums["total"][fold], sums["outer"][fold]) for fold, count in enumerate(counts)]


def joined(parts: list[Moments]) -> Moments:
    """Pool the moments of several folds, at least one."""
    whole, *others = parts
    for other in others:
        whole = whole + other
    return whole
