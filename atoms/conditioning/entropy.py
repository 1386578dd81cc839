"""Differential entropies of Gaussian vectors through linear maps and element-wise functions, in nats (theory.md C2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atoms.conditioning.measures import log_volume
from atoms.errors import AtomsError


def gaussian_entropy(covariance: Tensor) -> float:
    """``½ log det(2πe Σ)``; -inf for a singular covariance.

    Args:
        covariance: (n, n), symmetric and positive semidefinite.
    """
    n = len(covariance)
    return n / 2 * math.log(2 * math.pi * math.e) + float(torch.linalg.slogdet(covariance.double())[1]) / 2


def isotropic_entropy(n: int, variance: float = 1.0) -> float:
    """Entropy of n independent Gaussian coordinates.

    Args:
        n: Coordinates.
        variance: Of each.
    """
    return n / 2 * math.log(2 * math.pi * math.e * variance)


def output_entropy(sigma: Tensor, variance: float = 1.0) -> float:
    """Entropy of ``Wx`` for x of independent Gaussian coordinates: ``(r/2) log(2πe s²) + Σ log σ``.

    Of a wide W it is the entropy of its output; of a tall one, whose outputs fill a subspace only, that of the output's
    coordinates in it.

    Args:
        sigma: Singular values of W (r,), r = min(m, n).
        variance: Of a coordinate of x.
    """
    return isotropic_entropy(len(sigma), variance) + log_volume(sigma)


def entropy_after(entropy: float, derivative: Tensor) -> float:
    """Entropy of ``φ(y)`` from that of y, for an element-wise invertible φ: ``h(y) + E Σ log|φ'(y)|``.

    For a contractive φ (``|φ'| ≤ 1`` everywhere) it is at most h(y): a linear stage's entropy bounds that of its
    activations. ReLU is not invertible and has no such entropy; there, data processing bounds mutual information.

    Args:
        entropy: h(y).
        derivative: φ' at samples of y, (N, n).

    Raises:
        AtomsError: Where φ' is zero at a sample: φ is not invertible there.
    """
    if not bool((derivative != 0).all()):
        raise AtomsError("derivative is 0 at a sample: the function is not invertible, so its entropy is not this")
    return entropy + float(derivative.double().abs().log().sum(1).mean())
