"""q*: the share of a dictionary and its codes for which sparse codes are provably unique."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from atoms.geometry import Coherence

Reading = Literal["pairs", "atoms", "max"]
_Floats = NDArray[np.float64]
_Counts = NDArray[np.int64]


class QStar(NamedTuple):
    """Stability of a dictionary at its sparsity.

    Attributes:
        q: Largest share up to which every quantile meets ``mu_q (2 K_q - 1) < 1``, in [0, 1].
        mu: Coherence quantile in force at ``q`` (just above it when ``q`` is 0).
        k: Sparsity quantile in force there, at least 1.
    """

    q: float
    mu: float
    k: int


def q_star(coherence: Coherence, l0_histogram: Tensor, reading: Reading = "pairs") -> QStar:
    """Return ``q* = sup{q : mu_q < 1 / (2 K_q - 1)}``, exactly.

    Both quantiles are step functions of q, so the condition is checked once between any two steps instead of on a
    grid. Coherence quantiles are rounded up to the edge of their bin, hence q* is never flattered.

    What ``mu_q`` is a quantile of is ambiguous in the paper. ``"pairs"`` reproduces its numbers but guarantees nothing;
    ``"atoms"`` is the honest share of atoms; ``"max"`` is the theorem's own condition. Always read q* beside
    :func:`q_star_null`, held-out fidelity and the share of singleton atoms: a whitening basis has q* = 1.

    Source: Towards Atoms (arXiv 2509.20784), stability.

    Args:
        coherence: Coherence of the dictionary. Atoms of zero norm count in no reading.
        l0_histogram: Number of rows by number of atoms firing, (A+1,) int64; a row without any counts as one atom.
        reading: Population of ``mu_q``: ``|cos|`` of all pairs, each atom's largest ``|cos|``, or the largest of all.

    Raises:
        ValueError: If the histogram counts no row or ``reading`` is unknown.
    """
    k, k_reached = _sparsity_steps(l0_histogram)
    mu, mu_reached = _coherence_steps(coherence, reading)
    ends = np.union1d(k_reached, mu_reached)  # both quantiles are constant on each (ends[i-1], ends[i]]
    mu_q, k_q = mu[np.searchsorted(mu_reached, ends)], k[np.searchsorted(k_reached, ends)]
    failing = np.flatnonzero(mu_q * (2 * k_q - 1) >= 1)
    last = int(failing[0]) - 1 if len(failing) else len(ends) - 1
    step = max(last, 0)
    return QStar(float(ends[last]) if last >= 0 else 0.0, float(mu_q[step]), int(k_q[step]))


def q_star_null(width: int, atoms: int, l0_histogram: Tensor, reading: Reading = "pairs") -> QStar:
    """Return the q* of random directions, isotropic in whitened space, at a given sparsity.

    There ``cos²`` of a pair follows Beta(1/2, (H-1)/2), and the pairs are taken as independent for the largest of
    several; the largest of all is represented by its median.

    Args:
        width: Width H, at least 2.
        atoms: Number of atoms A, at least 2.
        l0_histogram: As in :func:`q_star`: the histogram of the unit under test.
        reading: As in :func:`q_star`.

    Raises:
        ValueError: If ``width`` or ``atoms`` is less than 2, the histogram counts no row or ``reading`` is unknown.
    """
    if width < 2 or atoms < 2:
        raise ValueError(f"width {width} and atoms {atoms} must be at least 2")
    rivals = {"pairs": 1, "atoms": atoms - 1, "max": atoms * (atoms - 1) // 2}[_checked(reading)]
    shape = 0.5, (width - 1) / 2

    def quantile(q: float) -> float:
        tail = -np.expm1(np.log(q) / rivals)  # 1 - q^(1/rivals) without cancellation
        return float(np.sqrt(special.betainccinv(*shape, tail)))

    k, reached = _sparsity_steps(l0_histogram)
    limit = 1.0 / (2 * k - 1)
    if reading == "max":
        admitted = np.where(quantile(0.5) < limit, 1.0, 0.0)
    else:
        admitted = special.betainc(*shape, limit**2) ** rivals
    # On (begin, end] sparsity is k, which q up to `admitted` can bear.
    begin = np.concatenate([[0.0], reached[:-1]])
    failing = np.flatnonzero(admitted < reached)
    step = int(failing[0]) if len(failing) else len(k) - 1
    q = max(float(begin[step]), float(admitted[step])) if len(failing) else 1.0
    in_force = int(np.searchsorted(reached, q))
    mu = quantile(0.5) if reading == "max" else quantile(q) if q > 0 else 0.0
    return QStar(q, mu, int(k[in_force]))


def quantile_curve(
    coherence: Coherence, l0_histogram: Tensor, reading: Reading = "pairs", points: int = 200
) -> tuple[_Floats, _Floats, _Counts]:
    """Return q with the quantiles ``mu_q`` and ``K_q`` that :func:`q_star` compares.

    Args:
        coherence: As in :func:`q_star`.
        l0_histogram: As in :func:`q_star`.
        reading: As in :func:`q_star`.
        points: Number of values of q, evenly spaced up to 1.

    Returns:
        q, ``mu_q`` and ``K_q``, (points,) each.

    Raises:
        ValueError: As in :func:`q_star`.
    """
    k, k_reached = _sparsity_steps(l0_histogram)
    mu, mu_reached = _coherence_steps(coherence, reading)
    q = np.arange(1, points + 1) / points
    return q, mu[np.searchsorted(mu_reached, q)], k[np.searchsorted(k_reached, q)]


def random_cosine_density(cosine: _Floats, width: int) -> _Floats:
    """Return the probability density of ``|cos|`` between two random directions, the law behind :func:`q_star_null`.

    Args:
        cosine: Values of ``|cos|`` in [0, 1), any shape.
        width: Width H, at least 2.
    """
    log_density = (width - 3) / 2 * np.log1p(-np.square(cosine)) - special.betaln(0.5, (width - 1) / 2)
    return np.asarray(2 * np.exp(log_density), dtype=np.float64)


def _checked(reading: Reading) -> Reading:
    if reading not in get_args(Reading):
        raise ValueError(f"reading is {reading!r}, not one of {get_args(Reading)}")
    return reading


def _sparsity_steps(l0_histogram: Tensor) -> tuple[_Counts, _Floats]:
    """Values K takes, ascending, and the share of rows reached with each."""
    counts: _Counts = l0_histogram.cpu().numpy().astype(np.int64)
    rows = counts.sum()
    if rows == 0:
        raise ValueError("l0_histogram counts no row")
    present = np.flatnonzero(counts)
    return np.maximum(present, 1).astype(np.int64), counts[present].cumsum() / rows


def _coherence_steps(coherence: Coherence, reading: Reading) -> tuple[_Floats, _Floats]:
    """Values mu takes, ascending, and the share of the population reached with each."""
    if _checked(reading) == "pairs" and coherence.histogram.any():
        present = coherence.histogram.nonzero().squeeze(1)
        reached = coherence.histogram[present].cumsum(0).to(torch.float64)
        return coherence.upper_edges[present].numpy(), (reached / reached[-1]).numpy()
    if reading == "atoms" and len(coherence.per_atom) > coherence.n_zero:
        # atoms of zero norm hold the smallest value there is, so they sort first
        mu = coherence.per_atom.sort().values[coherence.n_zero :].numpy()
        return mu, np.arange(1, len(mu) + 1) / len(mu)
    return np.array([coherence.maximum]), np.array([1.0])
