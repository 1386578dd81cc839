"""Which rows are judged, and which of them, or of anything else, are looked at more closely."""

from __future__ import annotations

import torch
from torch import Tensor

from atoms.checks.check import Subject


def judged_places(subject: Subject, split: str) -> Tensor:
    """Place in its split of every row that checks are shown, (rows,) int64 ascending.

    Args:
        subject: What is judged.
        split: ``"val"`` or ``"train"``.
    """
    count = subject.settings.counts(len(subject.held_out), len(subject.train))[split]
    rows = subject.held_out if split == "val" else subject.train
    return torch.from_numpy(rows.places[:count])


def spread(items: Tensor, count: int) -> Tensor:
    """Take so many of them, evenly spread, the same ones always; all if there are not so many."""
    count = min(count, len(items))
    return items[torch.arange(count, device=items.device) * len(items) // max(count, 1)]
