"""Which rows are judged, and which of them are looked at more closely."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from atoms.checks.check import Subject


def judged_places(subject: Subject, split: str) -> Tensor:
    """Place in its split of every row that checks are shown, (rows,) int64 ascending.

    Args:
        subject: What is judged.
        split: ``"val"`` or ``"train"``.
    """
    settings = subject.settings
    held_out = len(subject.held_out) if settings.rows is None else min(settings.rows, len(subject.held_out))
    if split == "val":
        return torch.from_numpy(subject.held_out.places[:held_out])
    beside = held_out if settings.train_rows is None else settings.train_rows
    return torch.from_numpy(subject.train.places[:beside])


def spread(places: Tensor, count: int) -> Tensor:
    """Take so many of them, evenly spread, the same ones always; all if there are not so many."""
    count = min(count, len(places))
    return places[torch.from_numpy(np.arange(count) * len(places) // max(count, 1))]
