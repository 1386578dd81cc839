"""Sufficient conditions of the classical theorems, as predicates of sparsity and coherence.

All hold in any inner product, as long as atoms have unit length in it and ``mu`` is measured in it. Each is
*sufficient*: where it fails, the conclusion may still hold. They nest: `candes` ⇒ `cai_zhang` ⇒ `donoho_elad` =
`tropp_coherence` ⇒ `gershgorin_rip`, and a non-empty `threshold_window` ⇒ `donoho_elad`; each is monotone in ``k`` and
in ``mu``.

Coherence is measured in floating point, so a condition met by less than rounding, one part in 10⁹, counts as missed.
"""

from __future__ import annotations

import math
from typing import overload

from torch import Tensor

_ONE = 1 - 1e-9


def gershgorin_rip(k: int, mu: float) -> bool:
    """Whether any k atoms are linearly independent, ``(k - 1) mu < 1``.

    The eigenvalues of every Gram matrix of k unit atoms then lie in ``1 ± (k - 1) mu``: restricted isometry of order k
    with ``delta_k <= (k - 1) mu``.

    Source: Gershgorin's circles; Towards Atoms (arXiv 2509.20784), T2.

    Args:
        k: Atoms of a representation, at least 1.
        mu: Largest ``|cos|`` of two atoms.
    """
    return (k - 1) * mu < _ONE


def donoho_elad(k: int, mu: float) -> bool:
    """Whether a representation by k atoms is the only one by that few, ``mu < 1 / (2k - 1)``.

    Source: Donoho and Elad 2003; Gribonval and Nielsen 2003; Towards Atoms (arXiv 2509.20784), T3.

    Args:
        k: As in `gershgorin_rip`.
        mu: As in `gershgorin_rip`.
    """
    return (2 * k - 1) * mu < _ONE


def tropp_coherence(k: int, mu: float) -> bool:
    """Whether basis pursuit and orthogonal matching pursuit recover any k atoms, ``mu < 1 / (2k - 1)``.

    Word for word the condition of `donoho_elad`, with a stronger conclusion.

    Source: Tropp 2004, Greed is Good.

    Args:
        k: As in `gershgorin_rip`.
        mu: As in `gershgorin_rip`.
    """
    return donoho_elad(k, mu)


def candes(k: int, mu: float) -> bool:
    """Whether basis pursuit recovers any k atoms, stably under noise, by ``delta_2k < sqrt(2) - 1``.

    ``delta_2k`` is bounded by ``(2k - 1) mu``, as in `gershgorin_rip`.

    Source: Candès 2008.

    Args:
        k: As in `gershgorin_rip`.
        mu: As in `gershgorin_rip`.
    """
    return (2 * k - 1) * mu < (math.sqrt(2) - 1) * _ONE


def cai_zhang(k: int, mu: float) -> bool:
    """Whether basis pursuit recovers any k atoms, stably under noise, by ``delta_2k < 1 / sqrt(2)``.

    ``delta_2k`` is bounded by ``(2k - 1) mu``, as in `gershgorin_rip`.

    Source: Cai and Zhang 2014.

    Args:
        k: As in `gershgorin_rip`.
        mu: As in `gershgorin_rip`.
    """
    return (2 * k - 1) * mu < math.sqrt(0.5) * _ONE


def babel_rip(k: int, babel: Tensor) -> bool:
    """Whether any k atoms are linearly independent, ``mu_1(k - 1) < 1``; never stricter than `gershgorin_rip`.

    Source: Tropp 2004, Greed is Good.

    Args:
        k: As in `gershgorin_rip`.
        babel: Babel function ``mu_1(1), mu_1(2), …``, (length,) float64.

    Raises:
        ValueError: If `babel` ends before ``k - 1``.
    """
    return _mu_1(babel, k - 1) < _ONE


def babel_uniqueness(k: int, babel: Tensor) -> bool:
    """Whether a representation by k atoms is the only one by that few: any 2k are independent, ``mu_1(2k - 1) < 1``.

    Source: Donoho and Elad 2003 (spark); Tropp 2004.

    Args:
        k: As in `gershgorin_rip`.
        babel: As in `babel_rip`.

    Raises:
        ValueError: If `babel` ends before ``2k - 1``.
    """
    return _mu_1(babel, 2 * k - 1) < _ONE


def tropp_babel(k: int, babel: Tensor) -> bool:
    """Whether basis pursuit and OMP recover any k atoms, ``mu_1(k) + mu_1(k - 1) < 1``; implies `babel_uniqueness`.

    Never stricter than `tropp_coherence`.

    Source: Tropp 2004, Greed is Good.

    Args:
        k: As in `gershgorin_rip`.
        babel: As in `babel_rip`.

    Raises:
        ValueError: If `babel` ends before `k`.
    """
    return _mu_1(babel, k) + _mu_1(babel, k - 1) < _ONE


@overload
def threshold_window(k: int, epsilon: float, low: float, high: float) -> tuple[float, float]: ...
@overload
def threshold_window(k: Tensor, epsilon: float, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]: ...
def threshold_window(
    k: int | Tensor, epsilon: float, low: float | Tensor, high: float | Tensor
) -> tuple[float | Tensor, float | Tensor]:
    """Return the thresholds ``lo < tau < hi`` that single out the support of every row of k atoms.

    Off the support a pre-activation is at most ``lo = epsilon k high`` in size, on it at least
    ``hi = low - epsilon (k - 1) high``. There is such a threshold where ``lo < hi``, that is where
    ``low > epsilon (2k - 1) high``.

    Source: Towards Atoms (arXiv 2509.20784), T5.

    Args:
        k: Atoms of a representation; or of each of several rows, (B,).
        epsilon: Bound on ``|cos|`` of two atoms.
        low: Smallest coefficient on unit atoms, positive; or (B,).
        high: Largest one; or (B,).
    """
    return epsilon * k * high, low - epsilon * (k - 1) * high


def _mu_1(babel: Tensor, k: int) -> float:
    if k > len(babel):
        raise ValueError(f"the Babel function is known up to {len(babel)}, not to {k}")
    return babel[k - 1].item() if k > 0 else 0.0
