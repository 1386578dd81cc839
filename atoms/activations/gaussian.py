"""Gaussian rows with the mean and the covariance of others: what is left of activations without their structure."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atoms.activations.grid import Span
from atoms.geometry import Moments

_ROWS_AT_ONCE = 16_384
"""Rows drawn at a time in float64; a block of a wide site would fill the memory."""


class GaussianRows:
    """Independent Gaussian rows, ``μ + g Σ^(1/2)`` with ``g`` standard normal, drawn in float64.

    They are the null of every claim about directions that rests on more than first and second moments. Sites are
    independent of each other.

    Args:
        moments: By site, the moments whose mean and covariance the rows have. Singular covariances work.
        rows: Rows of every split.
        seed: Seed of the rows.
    """

    def __init__(self, moments: Mapping[str, Moments], rows: dict[str, int], seed: int = 0) -> None:
        self.moments, self.rows, self.seed = dict(moments), dict(rows), seed

    @property
    def identity(self) -> dict[str, Any]:
        """The moments' digests; rows and seed are part of every store's identity."""
        digests = {site: hashlib.sha256(found.to_bytes()).hexdigest() for site, found in self.moments.items()}
        return {"kind": "gaussian", "moments": digests}

    def widths(self) -> dict[str, int]:
        """Width of every site."""
        return {site: found.width for site, found in self.moments.items()}

    def split_rows(self) -> dict[str, int]:
        """Rows of every split."""
        return self.rows

    def blocks(self, span: Span) -> dict[str, Tensor]:
        """Rows of one block, float32 ``(rows, H)`` per site."""
        return {site: self._draw(number, site, span) for number, site in enumerate(self.moments)}

    def _draw(self, number: int, site: str, span: Span) -> Tensor:
        mean, root = self._maps[site]
        split = sum(byte << 8 * place for place, byte in enumerate(span.split.encode()))
        generator = np.random.default_rng([self.seed, number, split, span.index])
        rows = torch.empty(span.rows, len(mean))
        for part in torch.split(rows, _ROWS_AT_ONCE):
            part.copy_(mean + torch.from_numpy(generator.standard_normal(part.shape)) @ root)
        return rows

    @cached_property
    def _maps(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and symmetric root of the covariance, float64, by site."""
        maps = {}
        for site, found in self.moments.items():
            values, vectors = torch.linalg.eigh(found.covariance)
            maps[site] = (found.mean, (vectors * values.clamp_min(0).sqrt()) @ vectors.T)
        return maps
