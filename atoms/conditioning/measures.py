"""What singular values say of the information a linear unit passes on. Pure functions; entropies in nats.

``sigma`` are the ``r = min(m, n)`` singular values of an (m, n) matrix, shape (r,), zeros among them counted. The
condition number compares two of them; the other measures look at all, because one tiny value decides the first
(theory.md C2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def condition_number(sigma: Tensor) -> float:
    """``σ_max / σ_min``, the same for any multiple of the matrix; infinite for a singular one.

    Args:
        sigma: Singular values (r,), in any order.
    """
    lowest = sigma.min().item()
    return sigma.max().item() / lowest if lowest > 0 else math.inf


def log_volume(sigma: Tensor) -> float:
    """``Σ log σ`` in nats; -inf for a singular map.

    It is what a map adds to the differential entropy of its input where it has at least as many outputs. Of a wide one,
    with fewer, it is the output's entropy less that of r independent coordinates of the input.

    Source: theory.md C2.

    Args:
        sigma: Singular values (r,).
    """
    return sigma.double().log().sum().item()


def max_log_volume(norm: float, rank: int) -> float:
    """The largest `log_volume` at a Frobenius norm, that of equal singular values: ``r log(F / √r)``, in nats.

    Args:
        norm: Frobenius norm F.
        rank: r.
    """
    return rank * math.log(norm / math.sqrt(rank))


def entropy_loss(sigma: Tensor) -> float:
    """Entropy lost against equal singular values of the same Frobenius norm, in nats; 0 exactly where they are equal.

    ``(r/2) (log mean σ² - mean log σ²)``; the same for any multiple of the matrix, infinite for a singular one.

    Source: theory.md C2.

    Args:
        sigma: Singular values (r,).
    """
    unit = sigma.double() / sigma.max()
    return max(0.0, len(sigma) / 2 * (unit.square().mean().log() - 2 * unit.log().mean()).item())


def entropy_loss_bound(kappa: float) -> float:
    """The entropy loss that a condition number alone guarantees: ``log((κ + 1/κ) / 2)``, in nats.

    Source: theory.md C2.

    Args:
        kappa: Condition number, at least 1; a lower bound of it gives a lower bound of the loss.
    """
    return math.log(kappa) + math.log1p(kappa**-2) - math.log(2) if math.isfinite(kappa) else math.inf


def tight_spectrum(kappa: float, rank: int, norm: float = 1.0) -> Tensor:
    """The singular values whose `entropy_loss` is `entropy_loss_bound`: two extremes around equal ones.

    Source: theory.md C2.

    Args:
        kappa: Condition number, at least 1.
        rank: r, at least 2.
        norm: Frobenius norm.

    Returns:
        Singular values (r,) float64, descending.
    """
    squares = torch.ones(rank, dtype=torch.float64)
    squares[0] = 2 * kappa**2 / (kappa**2 + 1)
    squares[-1] = 2 / (kappa**2 + 1)
    return squares.sqrt() * (norm / math.sqrt(rank))


def spectral_entropy(sigma: Tensor) -> float:
    """Entropy of the singular values' shares of their sum, in nats; at most log r.

    Source: Roy and Vetterli 2007.

    Args:
        sigma: Singular values (r,); of a positive semidefinite matrix these are its eigenvalues.
    """
    return float(torch.special.entr(sigma.double() / sigma.sum()).sum())


def effective_rank(sigma: Tensor) -> float:
    """Exponential of `spectral_entropy`: how many equal singular values would be as uneven; in [1, r].

    Source: Roy and Vetterli 2007.

    Args:
        sigma: Singular values (r,).
    """
    return math.exp(spectral_entropy(sigma))


def channel_information(sigma: Tensor, signal: float = 1.0, noise: float = 1.0) -> float:
    """``I(x; Wx + η)`` in nats, for independent Gaussian x and η of these variances per coordinate.

    Finite where the entropy of ``Wx`` is not. Source: theory.md C2.

    Args:
        sigma: Singular values (r,).
        signal: Variance of a coordinate of x.
        noise: Variance of a coordinate of η, above 0.
    """
    return float(torch.log1p(sigma.double().square() * (signal / noise)).sum()) / 2


def channel_share(sigma: Tensor, snr: float) -> float:
    """Information through a noisy channel against that of equal singular values of the same norm, in (0, 1].

    Args:
        sigma: Singular values (r,).
        snr: Power of the output over that of the noise, averaged over the r directions.
    """
    unit = sigma.double() / sigma.double().square().mean().sqrt()
    return channel_information(unit, snr) / (len(sigma) / 2 * math.log1p(snr))
