"""Which documents of a store say the same, kept beside its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from atoms.errors import AtomsError

GROUPS_FILE = "groups.safetensors"


@dataclass(frozen=True, eq=False)
class DocumentGroups:
    """Groups of near-duplicate documents: the units in which rows are held out, and in which they may be resampled.

    A group goes by the least number among its documents. Only documents that share their group are listed; any other is
    a group of its own, so that a corpus without repetition takes no room.

    Attributes:
        doc_id: Documents that have near-duplicates, (D,) int64 ascending.
        group: The group of each, (D,) int64.
    """

    doc_id: NDArray[np.int64]
    group: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.doc_id.ndim != 1 or self.doc_id.shape != self.group.shape or (np.diff(self.doc_id) <= 0).any():
            raise ValueError("documents are not listed once each in ascending order, with a group for each")

    @classmethod
    def alone(cls) -> Self:
        """Every document is a group of its own."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))

    @classmethod
    def from_labels(cls, doc_id: NDArray[np.int64], labels: NDArray[np.int64]) -> Self:
        """Take any labels that are equal for documents of the same group.

        Args:
            doc_id: Documents, (D,), each once, not negative.
            labels: Label of each, (D,).
        """
        order = np.argsort(doc_id)
        doc_id = np.asarray(doc_id, np.int64)[order]
        _, first, inverse, counts = np.unique(
            np.asarray(labels)[order], return_index=True, return_inverse=True, return_counts=True
        )
        shared = counts[inverse] > 1
        return cls(doc_id[shared], doc_id[first][inverse][shared])

    def of(self, doc_id: NDArray[np.int64]) -> NDArray[np.int64]:
        """The group of every row, (N,) int64, from its document; a row without document (-1) stays -1."""
        if not len(self.doc_id):
            return doc_id.astype(np.int64)
        place = np.minimum(np.searchsorted(self.doc_id, doc_id), len(self.doc_id) - 1)
        return np.where(self.doc_id[place] == doc_id, self.group[place], doc_id).astype(np.int64)

    def to_bytes(self) -> bytes:
        """The groups as a safetensors file."""
        return save({"doc_id": torch.from_numpy(self.doc_id), "group": torch.from_numpy(self.group)})

    @classmethod
    def from_bytes(cls, data: bytes, name: object = GROUPS_FILE) -> Self:
        """Read what `to_bytes` gave.

        Args:
            data: The bytes of the file.
            name: What to call it in an error.

        Raises:
            AtomsError: If they are no groups.
        """
        try:
            tensors: dict[str, Any] = load(data)
            return cls(tensors["doc_id"].numpy(), tensors["group"].numpy())
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise AtomsError(f"{name} holds no groups of documents ({error}): delete it and harvest again") from error
