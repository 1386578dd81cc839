"""Which few features tell most of a label, one after the other, by what they tell on rows held out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from atoms.information.decoding import class_shares

_PRIOR = 1.0  # rows' worth of what was known before, in every estimate
_CELLS = 2**23  # counts held at once

_Labels = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Signs:
    """The sign of every feature on every row: 0 for almost all.

    Attributes:
        positive: (n, F) sparse, 1 where a feature is positive.
        negative: The same where it is negative; None where none ever is.
        labels: (n,) in [0, classes).
    """

    positive: Any
    negative: Any | None
    labels: _Labels

    @classmethod
    def of(cls, codes: Any, labels: _Labels) -> Signs:
        """Signs of codes (n, F), sparse by rows."""
        parts = [sparse.csr_matrix(part, dtype=np.float64) for part in (codes > 0, codes < 0)]
        return cls(parts[0], parts[1] if parts[1].nnz else None, labels)

    def column(self, feature: int) -> _Labels:
        """-1, 0 or 1 for every row, (n,)."""
        found = self.positive[:, [feature]].toarray().ravel()
        if self.negative is not None:
            found -= self.negative[:, [feature]].toarray().ravel()
        return np.asarray(found, np.int64)


@dataclass(frozen=True)
class Step:
    """One feature taken.

    Attributes:
        feature: Which.
        gain: Bits of the label it told beyond those before it, on the rows it was chosen by.
        left: Bits that are left with it and those before it, on the rows scored.
    """

    feature: int
    gain: float
    left: float


def greedy_gain(fit: Signs, select: Signs, score: Signs, classes: int, steps: int) -> list[Step]:
    """Take features by their conditional information, held out.

    The label is predicted from the signs of the features taken, by counting rows with the same signs, with what was
    known before the last feature as a prior. A feature is taken for the bits its counts on the rows to fit to save on
    the rows to select by, so that having many to choose from is no merit; what is left is told on rows of neither.
    One whose sign follows, on the rows to fit to, from those taken before it saves nothing. It stops where the best
    saves no more than the best of as many useless ones would by chance, √(2 ln F) standard errors for F features.

    Args:
        fit: Rows to count.
        select: Rows to choose by.
        score: Rows to score on.
        classes: Number of labels.
        steps: Most features taken.

    Returns:
        The features in order.
    """
    parts = (fit, select, score)
    pattern = [np.zeros(len(part.labels), np.int64) for part in parts]
    model = class_shares(fit.labels, classes)[None]  # of every pattern, the label's distribution
    taken: list[Step] = []
    for _ in range(steps):
        best, gain = -1, 0.0
        for first, saved in _savings(fit, select, pattern[0], pattern[1], model):
            here = int(saved.argmax())
            if saved[here] > gain:
                best, gain = first + here, float(saved[here])
        if best < 0:
            break
        before, known = pattern, model
        pattern = [3 * each + part.column(best) + 1 for each, part in zip(pattern, parts, strict=True)]
        counts = _counts(pattern[0], fit.labels, 3 * len(model), classes)
        prior = np.repeat(model, 3, axis=0)
        model = (counts + _PRIOR * prior) / (counts.sum(1, keepdims=True) + _PRIOR)
        saved_by_row = np.log2(model[pattern[1], select.labels]) - np.log2(known[before[1], select.labels])
        chance = math.sqrt(2 * math.log(max(fit.positive.shape[1], 2)) / len(saved_by_row))
        if gain <= chance * float(saved_by_row.std()):
            break
        left = float(-np.log2(model[pattern[2], score.labels]).mean())
        taken.append(Step(best, gain, left))
    return taken


def _counts(pattern: _Labels, labels: _Labels, patterns: int, classes: int) -> _Floats:
    flat = np.bincount(pattern * classes + labels, minlength=patterns * classes)
    return flat.reshape(patterns, classes).astype(np.float64)


def _savings(
    fit: Signs, select: Signs, fit_pattern: _Labels, select_pattern: _Labels, model: _Floats
) -> Iterator[tuple[int, _Floats]]:
    """Bits a row that each feature would save on the rows to select by; in blocks, with the first feature of each."""
    patterns, classes = model.shape
    known = -np.log2(model)
    features = fit.positive.shape[1]
    block = max(1, _CELLS // (patterns * classes))
    cells = [_cells(fit_pattern, fit.labels, model), _cells(select_pattern, select.labels, model)]
    whole = [np.asarray(each.sum(0)).reshape(1, patterns, classes) for each in cells]
    for first in range(0, features, block):
        own = slice(first, min(first + block, features))
        saved, divides = np.zeros(own.stop - first), np.zeros(own.stop - first, bool)
        rest = [np.broadcast_to(each, (own.stop - first, patterns, classes)).copy() for each in whole]
        signs = [(fit.positive, select.positive)]
        if fit.negative is not None or select.negative is not None:
            signs.append((_negative(fit), _negative(select)))
        for sides in signs:
            with_sign = [_count(side[:, own], each, patterns) for side, each in zip(sides, cells, strict=True)]
            saved += _saved(with_sign[0], with_sign[1], model, known)
            rows = with_sign[0].sum(2)
            divides |= ((rows > 0) & (rows < whole[0].sum(2))).any(1)
            for place in (0, 1):
                rest[place] -= with_sign[place]
        saved += _saved(rest[0], rest[1], model, known)
        yield first, np.where(divides, saved, 0) / len(select.labels)


def _negative(signs: Signs) -> Any:
    """Where features are negative, (n, F) sparse, be it nowhere."""
    return sparse.csr_matrix(signs.positive.shape) if signs.negative is None else signs.negative


def _cells(pattern: _Labels, labels: _Labels, model: _Floats) -> Any:
    """For every row a 1 at its pattern and label, (n, patterns * classes) sparse."""
    patterns, classes = model.shape
    rows = np.arange(len(labels))
    return sparse.csr_matrix(
        (np.ones(len(labels)), (rows, pattern * classes + labels)), shape=(len(labels), patterns * classes)
    )


def _count(signs: Any, cells: Any, patterns: int) -> _Floats:
    """Rows of each pattern and label on which each feature has the sign, (features, patterns, classes)."""
    found: _Floats = (signs.T @ cells).toarray()
    return found.reshape(len(found), patterns, -1)


def _saved(fitted: _Floats, selected: _Floats, model: _Floats, known: _Floats) -> _Floats:
    """Bits saved on rows selected, (features, patterns, classes) of them, by what fitted ones say of their label."""
    told = (fitted + _PRIOR * model) / (fitted.sum(2, keepdims=True) + _PRIOR)
    return np.asarray((selected * (known + np.log2(told))).sum((1, 2)), np.float64)
