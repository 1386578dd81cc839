"""Entropies, information and the two distances between variables, in bits.

On a space of known probabilities they are exact; on samples they are those of the relative frequencies (plug-in), and
`atoms.information.estimation` says how far these may be off. Each is made of joint entropies alone, and takes what
computes them, so that a corrected entropy corrects them all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from atoms.information.labels import masses
from atoms.information.variable import Variable, common_space

Entropy = Callable[..., float]
"""From one or more variables their joint entropy."""
Measure = Callable[..., float]
"""Any function of this module: from variables, and ``entropy=`` to compute with, a number."""


def entropy_of(weights: NDArray[np.float64]) -> float:
    """Entropy of a distribution in bits.

    Args:
        weights: Not negative and not all zero, of any total.
    """
    positive = weights[weights > 0]
    share = positive / positive.sum()
    return max(0.0, -float(share @ np.log2(share)))


def entropy(x: Variable, *more: Variable, entropy: Entropy | None = None) -> float:
    """Joint entropy H(X, Y, …).

    Args:
        x: A variable.
        more: Further ones on its space.
        entropy: Computes it instead, as in all other measures.

    Example:
        >>> from atoms.information import from_table
        >>> entropy(*from_table([[0.25, 0.25], [0.25, 0.25]]))
        2.0
    """
    if entropy is not None:
        return entropy(x, *more)
    space = common_space([x, *more])
    return entropy_of(masses([variable.part for variable in (x, *more)], space.weights, space.alike))


def conditional_entropy(x: Variable, *given: Variable, entropy: Entropy = entropy) -> float:
    """H(X | Y, …): what is still unknown of X.

    Args:
        x: A variable.
        given: What is known; nothing, for H(X).
        entropy: Computes joint entropies.
    """
    return max(0.0, entropy(x, *given) - (entropy(*given) if given else 0.0))


def mutual_information(x: Variable, y: Variable, *, entropy: Entropy = entropy) -> float:
    """I(X; Y) = H(X) + H(Y) - H(X, Y)."""
    return max(0.0, entropy(x) + entropy(y) - entropy(x, y))


def shannon_distance(x: Variable, y: Variable, *, entropy: Entropy = entropy) -> float:
    """D(X, Y) = H(X | Y) + H(Y | X), a metric on variables up to equivalence, in [0, H(X, Y)].

    Source: Shannon 1953, The lattice theory of information.
    """
    return max(0.0, 2 * entropy(x, y) - entropy(x) - entropy(y))


def rajski_distance(x: Variable, y: Variable, *, entropy: Entropy = entropy) -> float:
    """d(X, Y) = D(X, Y) / H(X, Y), a metric in [0, 1]: 0 for equivalent variables, 1 for independent ones.

    Of two constants it is 0.

    Source: Rajski 1961, A metric space of discrete probability distributions.
    """
    joint = entropy(x, y)
    return min(1.0, max(0.0, 2 * joint - entropy(x) - entropy(y)) / joint) if joint > 0 else 0.0


def dependency_coefficient(x: Variable, y: Variable, *, entropy: Entropy = entropy) -> float:
    """rho(X, Y) = I(X; Y) / H(X, Y) = 1 - d(X, Y): 1 for equivalent variables, 0 for independent ones."""
    return 1.0 - rajski_distance(x, y, entropy=entropy)


def redundancy(*variables: Variable, entropy: Entropy = entropy) -> float:
    """R = Σ H(X_i) - H(X_1, …, X_n), total correlation: 0 if and only if they are independent.

    Source: Watanabe 1960, Information theoretical analysis of multivariate correlation.
    """
    common_space(variables)
    return max(0.0, sum(entropy(variable) for variable in variables) - entropy(*variables))
