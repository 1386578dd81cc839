"""The condition of every weight matrix of a model, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from atoms.conditioning import measures
from atoms.conditioning.shape_null import shape_null
from atoms.conditioning.spectrum import Spectrum, spectrum
from atoms.conditioning.weights import Kind, Weight, digest
from atoms.errors import AtomsError
from atoms.threads import one_thread

MAX_DIM = 16_384
SNR = 100.0
SMALL = 512
"""Matrices of no more dimensions gain little from a second thread, and beside another process lose tenfold by it."""
_FEW = 2**21  # values up to which products with a small side are as small as that; a table of tokens has more


@dataclass(frozen=True)
class Condition:
    """What was found of one matrix. Entropies in nats; NaN for what bounds of the spectrum do not tell.

    Attributes:
        tensor: Name of the tensor that holds it.
        expert: Which of the tensor's matrices it is; None where it is the only one.
        kind: What the tensor is.
        role: The tensor's name within its block.
        layer: Its block, counted from 0; None outside of blocks.
        rows: Outputs.
        columns: Inputs.
        parameters: Values of the tensor over the matrices it holds.
        exact: Whether all singular values are known and one is not 0; if not, `kappa` and `relative` are lower bounds.
        kappa: Condition number; infinite for a singular matrix, and for one of zeros.
        kappa_null: Median condition number of Gaussian matrices of this shape.
        relative: ``kappa / kappa_null``.
        norm: Frobenius norm.
        rank: Singular values that are not 0 in float64; None where there are only bounds.
        log_volume: What the map adds to the entropy of its input where it has at least as many outputs; where it has
            fewer, the output's entropy less that of as many independent coordinates of the input.
        entropy_loss: Entropy lost against equal singular values of the same norm.
        entropy_loss_null: Mean of it for Gaussian matrices of this shape.
        loss_bound: What `kappa` alone says it is at least.
        spectral_entropy: Of the singular values' shares of their sum.
        effective_rank: Exponential of `spectral_entropy`.
        effective_rank_null: Mean of it for Gaussian matrices of this shape.
        channel_share: Information through a noisy channel against that of equal singular values of the same norm.
        digest: sha256 of the whole tensor.
    """

    tensor: str
    expert: int | None
    kind: Kind
    role: str
    layer: int | None
    rows: int
    columns: int
    parameters: int
    exact: bool
    kappa: float
    kappa_null: float
    relative: float
    norm: float
    rank: int | None
    log_volume: float
    entropy_loss: float
    entropy_loss_null: float
    loss_bound: float
    spectral_entropy: float
    effective_rank: float
    effective_rank_null: float
    channel_share: float
    digest: str

    @property
    def name(self) -> str:
        """The tensor's, with the expert's number."""
        return self.tensor if self.expert is None else f"{self.tensor}[{self.expert}]"

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for what is not finite, but ``"inf"`` where that is the value."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def survey(
    weights: Iterable[Weight],
    max_dim: int | None = MAX_DIM,
    snr: float = SNR,
    device: torch.device | str = "cpu",
    done: Callable[[Weight], None] = lambda _: None,
) -> list[Condition]:
    """Measure every matrix of a model; one tensor is in memory at a time.

    Args:
        weights: The tensors, from `weights_of` a module or `weights_in` files.
        max_dim: Largest smaller dimension of a matrix that is decomposed; beyond it ``kappa`` is a lower bound.
        snr: Power of the output over that of the noise behind `Condition.channel_share`.
        device: Where to compute.
        done: Called after every tensor.

    Raises:
        AtomsError: If a tensor holds a matrix that has no condition number, with its name.
    """
    found: list[Condition] = []
    for weight in weights:
        with threads_for(*weight.matrix_shape):
            found += _surveyed(weight, max_dim, snr, device)
        done(weight)
    return found


def _surveyed(weight: Weight, max_dim: int | None, snr: float, device: torch.device | str) -> list[Condition]:
    found = []
    values = weight.read()
    marked = digest(values)
    for number, matrix in enumerate(weight.matrices(values)):
        expert = number if weight.count > 1 else None
        try:
            seen = _zero(matrix) if matrix.numel() and not matrix.any() else spectrum(matrix.to(device), max_dim)
        except AtomsError as error:
            where = weight.name if expert is None else f"{weight.name}[{expert}]"
            raise AtomsError(f"{where}: {error}") from error
        found.append(_condition(weight, expert, seen, snr, marked))
    return found


def small(rows: int, columns: int) -> bool:
    """Whether a matrix is so small that one thread is enough.

    Args:
        rows: Outputs.
        columns: Inputs.
    """
    return min(rows, columns) <= SMALL and rows * columns <= _FEW


def threads_for(rows: int, columns: int) -> AbstractContextManager[None]:
    """Computing on one thread where a matrix is `small`, on all otherwise.

    Args:
        rows: Outputs.
        columns: Inputs.
    """
    return one_thread() if small(rows, columns) else nullcontext()


def cost(weights: Sequence[Weight], max_dim: int | None = MAX_DIM) -> list[float]:
    """Floating-point operations of surveying each tensor, to first order.

    Args:
        weights: The tensors.
        max_dim: As of `survey`.
    """
    return [weight.count * _operations(*weight.matrix_shape, max_dim) for weight in weights]


def _operations(rows: int, columns: int, max_dim: int | None) -> float:
    m, n = max(rows, columns), min(rows, columns)
    if max_dim is not None and n > max_dim:
        return 200.0 * m * n
    return m * n**2 + 8 / 3 * n**3


def _zero(matrix: Tensor) -> Spectrum:
    """Of a matrix of zeros, such as an adapter's before it is trained: of rank 0, and nothing else to be said."""
    return Spectrum((matrix.shape[0], matrix.shape[1]), 0.0, 0.0, 0.0, None)


def _condition(weight: Weight, expert: int | None, seen: Spectrum, snr: float, marked: str) -> Condition:
    null = shape_null(*seen.shape)
    values = seen.values
    kappa = seen.condition

    def of(measure: Callable[..., float], *rest: float) -> float:
        return math.nan if values is None else measure(values, *rest)

    return Condition(
        tensor=weight.name,
        expert=expert,
        kind=weight.kind,
        role=weight.role,
        layer=weight.layer,
        rows=seen.shape[0],
        columns=seen.shape[1],
        parameters=weight.numel // weight.count,
        exact=values is not None,
        kappa=kappa,
        kappa_null=null.kappa,
        relative=kappa / null.kappa,
        norm=seen.norm,
        rank=seen.rank if seen.norm else 0,
        log_volume=of(measures.log_volume),
        entropy_loss=of(measures.entropy_loss),
        entropy_loss_null=null.entropy_loss,
        loss_bound=measures.entropy_loss_bound(kappa),
        spectral_entropy=of(measures.spectral_entropy),
        effective_rank=of(measures.effective_rank),
        effective_rank_null=null.effective_rank,
        channel_share=of(measures.channel_share, snr),
        digest=marked,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
