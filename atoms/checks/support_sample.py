"""Supports of some rows, spread over the held-out ones, from all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from atoms.checks.check import Encoded, Subject
from atoms.checks.sampling import judged_places, spread


class SupportSample:
    """The atoms that rows of a sample use.

    Args:
        subject: What is judged.
        rows: Rows of the sample.
    """

    def __init__(self, subject: Subject, rows: int) -> None:
        self._chosen = spread(judged_places(subject, "val"), rows)
        self._alive = subject.norms.cpu() > 0
        self._found: dict[int, Tensor] = {}

    def add(self, batch: Encoded) -> None:
        """Take from a batch the rows that belong to the sample."""
        offsets, indices = batch.codes.offsets.tolist(), batch.codes.indices.cpu().long()
        places = batch.index.cpu()
        for line in torch.isin(places, self._chosen).nonzero().squeeze(1).tolist():
            support = indices[offsets[line] : offsets[line + 1]]
            self._found[int(places[line])] = support[self._alive[support]]

    def gather(self) -> dict[int, Tensor]:
        """Atoms by row, ascending, from all ranks; every rank must call it.

        Atoms of zero norm are left out of supports, and rows without any atom out of the sample.
        """
        parts = [self._found]
        if dist.is_available() and dist.is_initialized():
            parts = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, self._found)
        whole = {row: support for part in parts for row, support in part.items() if len(support)}
        return dict(sorted(whole.items()))
