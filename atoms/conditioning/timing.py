"""What a survey takes of this machine, said before it begins: seconds and memory."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from atoms.conditioning.shape_null import draw_null
from atoms.conditioning.spectrum import spectrum
from atoms.conditioning.survey import SMALL, cost, small, threads_for
from atoms.conditioning.weights import Weight, digest, named_weight

_SAMPLES = {
    "square": (768, 768),
    "oblong": (3072, 768),
    "beyond": (1024, 1024),
    "small square": (SMALL, SMALL),
    "small oblong": (4 * SMALL, SMALL),
    "small beyond": (SMALL, SMALL),
}
"""A matrix for each way to treat one: decomposed, squared first, only bounded; small ones on one thread."""
_NULL = (256, 256)
_THIN = (2**17, 8)  # so few columns that a look at each value is all that counts
_BLOCK = 2**24  # elements that are converted to float64 at once


def survey_seconds(weights: Sequence[Weight], stored: int, max_dim: int, device: torch.device) -> float:
    """Seconds that `survey` will take, to first order, from how fast small matrices go here.

    Large products run faster than those that are timed, and a disk may be slower than anything else.

    Args:
        weights: The tensors.
        stored: Bytes of their values as they are stored.
        max_dim: As of `survey`.
        device: As of `survey`.
    """
    operations: dict[str, float] = {}
    for weight, each in zip(weights, cost(weights, max_dim), strict=True):
        way = _way(weight, max_dim)
        if small(*weight.matrix_shape):
            way = f"small {way}"
        operations[way] = operations.get(way, 0.0) + each
    shapes = {tuple(sorted(weight.matrix_shape)) for weight in weights}
    begun = time.perf_counter()
    draw_null(*_NULL, seed=0)
    null = (time.perf_counter() - begun) / min(_NULL)
    decomposed = sum(each / _rate(way, device) for way, each in operations.items())
    hashing, look = _look(device)
    looked_at = hashing * stored + look * sum(weight.numel for weight in weights)
    return decomposed + looked_at + null * sum(map(min, shapes))


def working_memory(weight: Weight, stored: int, max_dim: int) -> int:
    """Bytes that surveying a tensor takes at most.

    Args:
        weight: The tensor.
        stored: Bytes of its values as they are stored.
        max_dim: As of `survey`.
    """
    n, m = sorted(weight.matrix_shape)
    way = _way(weight, max_dim)
    inner = {"square": 3 * m * n, "oblong": 3 * n * n, "beyond": 0}[way]
    block = max(n * n, _BLOCK) if way == "oblong" else _BLOCK  # the first where rounding forces a triangular factor
    return stored + stored // weight.count + 8 * (inner + 2 * min(m * n, block))


def _way(weight: Weight, max_dim: int) -> str:
    n, m = sorted(weight.matrix_shape)
    return "beyond" if n > max_dim else "oblong" if 2 * m >= 3 * n else "square"


def _rate(way: str, device: torch.device) -> float:
    """Operations a second."""
    rows, columns = _SAMPLES[way]
    limit = 1 if way.endswith("beyond") else columns
    sample = _drawn(rows, columns)
    return cost([named_weight("sample", (rows, columns), lambda: sample)], limit)[0] / _seconds(sample, limit, device)


def _look(device: torch.device) -> tuple[float, float]:
    """Seconds to hash a byte, and to move, check and convert a value."""
    sample = _drawn(*_THIN)
    begun = time.perf_counter()
    digest(sample)
    hashed = time.perf_counter() - begun
    return hashed / sample.nbytes, _seconds(sample, min(_THIN), device) / sample.numel()


def _seconds(sample: Tensor, limit: int, device: torch.device) -> float:
    """Of the second try, as the first pays for starting up."""
    seconds = 0.0
    with threads_for(*sample.shape):
        for _ in range(2):
            begun = time.perf_counter()
            spectrum(sample.to(device), limit)
            seconds = time.perf_counter() - begun
    return seconds


def _drawn(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
