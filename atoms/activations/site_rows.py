"""Rows of one split of a store, for those who look at them once and in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.stream import OrderedBatch, OrderedStream
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments


class SiteRows:
    """The rows of one split that are used, at one site, with the geometry that the training rows give that site.

    Args:
        data: Where the rows are, and which of them are used (`ActivationDataModule.valid`).
        site: The site.
        split: The split.

    Raises:
        AtomsError: If the store has no such site or split, or the split has no rows.
    """

    def __init__(self, data: ActivationDataModule, site: str, split: str) -> None:
        self.data, self.site, self.split = data, site, split
        self.width = data.store.width(site)
        if data.num_rows(split) < 1:
            raise AtomsError(
                f"data.store={data.path}: split {split!r} has no rows; harvest with a share for it "
                "(data.harvest.splits), or import more documents"
            )

    def __len__(self) -> int:
        """Rows used."""
        return self.data.num_rows(self.split)

    @cached_property
    def moments(self) -> Moments:
        """Moments of the *training* rows of this site, whatever the split."""
        return self.data.moments(self.site)

    @cached_property
    def geometry(self) -> AtomicInnerProduct:
        """The atomic inner product of this site, from its training rows."""
        return AtomicInnerProduct.from_moments(self.moments)

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Place in the split of every row used, (rows,) ascending."""
        valid = self.data.valid(self.split)
        return np.arange(self.data.store.n_rows(self.split)) if valid is None else np.flatnonzero(valid)

    def stream(
        self,
        batch_rows: int,
        sites: Sequence[str] = (),
        *,
        rank: int = 0,
        world_size: int = 1,
        limit: int | None = None,
    ) -> OrderedStream:
        """All rows in stored order; a batch holds the same rows for any number of ranks, which take turns.

        Args:
            batch_rows: Rows of a batch.
            sites: Further sites to read beside this one.
            rank: This process.
            world_size: Number of processes.
            limit: Use only the first so many rows.
        """
        return OrderedStream(
            self.data.store,
            self.split,
            list(dict.fromkeys((self.site, *sites))),
            batch_size=batch_rows,
            rank=rank,
            world_size=world_size,
            valid=self.data.valid(self.split),
            limit_rows=limit,
            whole_batches=True,
        )

    def batches(self, batch_rows: int, limit: int | None = None) -> Iterator[Tensor]:
        """Yield this site's rows in stored order, (B, H) float32."""
        batch: OrderedBatch
        for batch in self.stream(batch_rows, limit=limit):
            yield batch.rows[self.site].float()

    def sample(self, rows: int, sites: Sequence[str] = (), limit: int | None = None) -> dict[str, Tensor]:
        """Read rows spread evenly over the split, the same ones always; all if there are not so many.

        Args:
            rows: Number of rows.
            sites: Further sites to read beside this one.
            limit: Use only the first so many rows of the split.

        Returns:
            ``{site: (rows, H)}`` float32, and under ``""`` their places in the split, (rows,) int64.
        """
        places = self.places[:limit]
        count = min(rows, len(places))
        chosen = places[np.arange(count) * len(places) // max(count, 1)]
        wanted = tuple(dict.fromkeys((self.site, *sites)))
        store = self.data.store
        found: dict[str, list[Tensor]] = {site: [] for site in wanted}
        for chunk, span in enumerate(store.chunks(self.split)):
            inside = chosen[(chosen >= span.start) & (chosen < span.stop)] - span.start
            if len(inside):
                for site in wanted:
                    values = store.to_torch(store.read_chunk(self.split, site, chunk))
                    found[site].append(values[torch.from_numpy(inside)].float())
        return {"": torch.from_numpy(chosen), **{site: torch.cat(parts) for site, parts in found.items()}}

    def tokens(self) -> dict[str, NDArray[Any]]:
        """``token_id``, ``doc_id`` and ``position`` of every row of the split, those not used included."""
        return self.data.store.tokens(self.split)

    def groups(self) -> NDArray[np.int64]:
        """The group of near-duplicate documents of every row of the split, those not used included, (N,) int64.

        Rows of one group are not independent. Where the store does not know groups, documents stand in for them:
        `groups_note` then says so.
        """
        return self._groups

    @cached_property
    def _groups(self) -> NDArray[np.int64]:
        found = self.data.store.groups(self.split)
        return self.tokens()["doc_id"] if found is None else found

    @property
    def groups_note(self) -> str | None:
        """One sentence where `groups` are not what they are called, else None."""
        stand_in = self.data.store.provenance.get("stand_in_rows")
        if stand_in is not None:
            return f"Nothing says what a document is: each {stand_in:,} consecutive rows stand in for a group of them."
        if not self.data.store.has_groups:
            return (
                "The store was made before groups of near-duplicate documents were recorded: documents stand in for "
                "groups, and intervals may be too narrow."
            )
        return None
