"""What a decoder learns of a label from features, held out: bits that are left, errors, and Fano's inequality."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import brentq

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Inverse strengths of regularisation tried, the strongest first, until one does worse than that before it."""
BLIND = (1e-3, 0.03, 0.1, 0.3, 1.0)
"""Shares of the prediction left to the shares of the classes; 1 for a decoder that learnt nothing."""
_ITERATIONS, _TOLERANCE = 100, 1e-3
_DENSE = 0.5  # share of features that are not 0 from which they are held and centred as a dense matrix

_Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Decoding:
    """How much of a label a decoder could tell on rows that it was not fitted to.

    Attributes:
        bits: Held-out cross-entropy, bits a row: an upper bound of H(label | features), up to sampling.
        costs: Bits of every row, (n,), of which that is the mean.
        error: Share of these rows whose label it gets wrong.
        fano: Least error a decoder can have if H(label | features) is `bits`, by Fano's inequality. Where the decoder
            is far from the best one, less may be left than `bits`, and this bounds nothing; NaN where that shows, as
            this decoder errs less.
        strength: Inverse strength of regularisation that was chosen.
        blind: Share left to the shares of the classes that was chosen.
    """

    bits: float
    costs: NDArray[np.float64]
    error: float
    fano: float
    strength: float
    blind: float


@dataclass(frozen=True, eq=False)
class Split:
    """Features and labels of rows for one purpose.

    Attributes:
        features: (n, F), dense or sparse by rows.
        labels: (n,) in [0, classes).
    """

    features: Any
    labels: _Labels


def decode(fit: Split, select: Split, score: Split, classes: int) -> Decoding:
    """Fit a multinomial logistic regression, choose how far to trust it, and score it, each on rows of its own.

    Features are taken in standard deviations over the rows to fit to, and from their mean where most are not 0, so that
    neither a unit nor an offset matters to the regularisation.
    Predicted probabilities are mixed with the shares of the classes, so that features that tell nothing cost nothing
    and no row costs infinitely many bits.

    Args:
        fit: Rows to fit to.
        select: Rows whose cross-entropy chooses among `STRENGTHS` and `BLIND`.
        score: Rows to score on.
        classes: Number of labels.
    """
    from sklearn.exceptions import ConvergenceWarning  # slow to import
    from sklearn.linear_model import LogisticRegression

    parts = _standard(fit.features, [part.features for part in (fit, select, score)])
    shares = class_shares(fit.labels, classes)
    known = np.flatnonzero(np.bincount(fit.labels, minlength=classes))
    best = costs(np.broadcast_to(shares, (len(select.labels), classes)), select.labels).mean(), STRENGTHS[0], 1.0
    told = np.zeros((len(score.labels), classes))
    model = LogisticRegression(max_iter=_ITERATIONS, tol=_TOLERANCE, warm_start=True)
    for strength in STRENGTHS if len(known) > 1 else ():
        with warnings.catch_warnings():  # whoever is not there after so many steps is scored where they are
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=strength).fit(parts[0], fit.labels)
        seen, unseen = (_spread(model.predict_proba(part), known, classes) for part in parts[1:])
        left = min((float(costs((1 - w) * seen + w * shares, select.labels).mean()), strength, w) for w in BLIND)
        if left[0] >= best[0] and best[2] < 1:
            break
        if left[0] < best[0]:
            best, told = left, unseen
    scored = costs((1 - best[2]) * told + best[2] * shares, score.labels)
    bits = float(scored.mean())
    error = float((((1 - best[2]) * told + best[2] * shares).argmax(1) != score.labels).mean())
    fano = fano_error(bits, classes)
    return Decoding(bits, scored, error, fano if fano <= error else math.nan, best[1], best[2])


def class_shares(labels: _Labels, classes: int) -> NDArray[np.float64]:
    """Share of each class, (classes,), as if each had been seen once more."""
    counts = np.bincount(labels, minlength=classes) + 1.0
    return np.asarray(counts / counts.sum(), np.float64)


def costs(told: NDArray[np.float64], labels: _Labels) -> NDArray[np.float64]:
    """Bits of every label (n,) under predicted probabilities (n, classes); their mean is the cross-entropy."""
    return np.asarray(-np.log2(told[np.arange(len(labels)), labels]), np.float64)


def fano_error(bits: float, classes: int) -> float:
    """Least error P with h(P) + P log2(classes - 1) ≥ bits, where h is the entropy of a bit.

    Source: Fano 1961; Cover and Thomas 2006, theorem 2.10.1.

    Args:
        bits: H(label | what is known).
        classes: Number of labels.

    Example:
        >>> fano_error(1.0, 2)
        0.5
        >>> fano_error(0.0, 7)
        0.0
    """
    most = 1 - 1 / classes

    def allowed(p: float) -> float:
        h = -sum(x * math.log2(x) for x in (p, 1 - p) if x > 0)
        return h + p * math.log2(max(classes - 1, 1)) - bits

    if bits <= 0:
        return 0.0
    return most if allowed(most) <= 0 else float(brentq(allowed, 0, most))


def _standard(fit: Any, parts: Sequence[Any]) -> list[Any]:
    """Features in standard deviations of the first; sparse ones stay uncentred unless most are not 0."""
    if not isinstance(fit, np.ndarray):
        if fit.nnz > _DENSE * fit.shape[0] * fit.shape[1]:
            return _standard(fit.toarray(), [part.toarray() for part in parts])
        mean = np.asarray(fit.mean(0, dtype=np.float64)).ravel()
        exact = fit.astype(np.float64)
        largest = float(np.abs(exact.data).max(initial=0.0)) or 1.0  # squares of tiny or huge ones would not be numbers
        square = np.asarray((exact / largest).power(2).mean(0)).ravel() - (mean / largest) ** 2
        by = largest * _positive(np.sqrt(np.maximum(square, 0)))
        return [(part.astype(np.float64) @ sparse.diags(1 / by)).astype(np.float32).tocsr() for part in parts]
    exact = np.asarray(fit, np.float64)
    mean, deviation = exact.mean(0), _positive(exact.std(0))
    return [((part - mean) / deviation).astype(np.float32) for part in parts]


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values to divide by: 1 in place of 0."""
    return np.where(values > 0, values, 1.0)


def _spread(told: NDArray[Any], known: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Probabilities of the classes that were fitted to as ones of all classes, (n, classes)."""
    whole = np.zeros((len(told), classes))
    whole[:, known] = told
    return whole
