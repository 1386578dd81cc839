"""Intervals from resampling groups of rows, where rows of one group are not independent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WEIGHTS = 2**22  # multiplicities of groups held at once


class Interval(NamedTuple):
    """A number and where it would lie had other documents been drawn.

    Attributes:
        value: The number, on all rows.
        low: Lower end; NaN with fewer than two groups, of which nothing can be said.
        high: Upper end.
    """

    value: float
    low: float
    high: float


Sums = Mapping[str, Tensor]
"""Sums of columns, and under ``rows`` the number of rows: of all rows first, then of every resampling, (1 + R, …)."""


def resampled_sums(
    columns: Mapping[str, Tensor], groups: Tensor | NDArray[np.int64], *, resamples: int, seed: int
) -> dict[str, Tensor]:
    """Sum columns over all rows, and over as many groups as there are, drawn with replacement, again and again.

    Whole groups are drawn. What is drawn depends on the number of groups and on the seed alone, so columns summed
    apart from each other are summed over the same draws.

    Source: Efron 1979; resampled by cluster, Davison and Hinkley 1997, section 3.8.

    Args:
        columns: Numbers of every row, (rows,) or (rows, C).
        groups: Group of every row, (rows,) int64.
        resamples: R, how often to draw.
        seed: Seed of the draws.

    Returns:
        By the columns' names and ``rows``: (1 + R,) or (1 + R, C) float64 on the CPU, all rows first.

    Raises:
        ValueError: If lengths disagree.
    """
    labels = np.asarray(groups)
    unique, inverse = np.unique(labels, return_inverse=True)
    count = len(unique)
    sums: dict[str, Tensor] = {}
    for name, column in {**columns, "rows": torch.ones(len(labels), dtype=torch.float64)}.items():
        if len(column) != len(labels):
            raise ValueError(f"column {name} has {len(column)} rows and groups are of {len(labels)}")
        values = column.detach().to("cpu", torch.float64)
        sums[name] = values.new_zeros(count, *values.shape[1:]).index_add_(0, torch.from_numpy(inverse), values)
    found = {name: [by_group.sum(0, keepdim=True)] for name, by_group in sums.items()}
    generator = np.random.default_rng(seed)
    step = max(1, _WEIGHTS // max(1, count))
    for start in range(0, resamples, step):
        drawn = [generator.integers(0, max(1, count), count) for _ in range(min(step, resamples - start))]
        times = torch.from_numpy(np.stack([np.bincount(draw, minlength=count) for draw in drawn])).double()
        for name, by_group in sums.items():
            found[name].append(torch.tensordot(times, by_group, dims=1))
    return {name: torch.cat(parts) for name, parts in found.items()}


def interval(values: Tensor, groups: int, level: float = 0.95) -> Interval:
    """Take a statistic of `resampled_sums` to its percentile interval.

    Args:
        values: The statistic, (1 + R,), of all rows first.
        groups: How many groups were drawn from.
        level: Share of the resamplings inside the interval.
    """
    value, again = values[0].item(), values[1:]
    if groups < 2 or not len(again) or bool(again.isnan().any()):
        return Interval(value, float("nan"), float("nan"))
    tails = again.new_tensor([(1 - level) / 2, (1 + level) / 2])
    low, high = again.quantile(tails).tolist()
    return Interval(value, low, high)


def bootstrap_interval(
    columns: Mapping[str, Tensor],
    groups: Tensor | NDArray[np.int64],
    statistic: Callable[[Sums], Tensor],
    *,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic that is a function of sums over rows, by resampling groups.

    For several statistics of the same columns call `resampled_sums` once and `interval` for each.

    Args:
        columns: Numbers of every row, (rows,) or (rows, C).
        groups: Group of every row, (rows,) int64.
        statistic: From sums (1 + R, …) by name, with ``rows``, to (1 + R,); written as for a single set of sums.
        resamples: R, how often to draw.
        seed: Seed of the draws.
        level: Share of the resamplings inside the interval.

    Example:
        >>> import torch
        >>> columns = {"error": torch.tensor([1.0, 1.0, 2.0, 2.0]), "total": torch.full((4,), 10.0)}
        >>> groups = torch.tensor([7, 7, 9, 9])
        >>> bootstrap_interval(columns, groups, lambda s: 1 - s["error"] / s["total"], resamples=200, seed=0)
        Interval(value=0.85, low=0.8, high=0.9)
    """
    sums = resampled_sums(columns, groups, resamples=resamples, seed=seed)
    return interval(statistic(sums), len(np.unique(np.asarray(groups))), level)
