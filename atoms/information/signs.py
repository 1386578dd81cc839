"""Information between a label and each of many features by its sign: all features at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import entr

from atoms.information.gain import Signs

_BLOCK = 4096  # features at once
_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SignInformation:
    """Every feature's sign and the label, (F,) each; entropies in bits, with Miller and Madow's correction.

    Attributes:
        rate: Share of rows on which the feature is not 0.
        entropy: H(sign).
        information: I(sign; label); so corrected that it is 0 on average where there is none, and may be below.
        rajski: d(sign, label), 1 where they tell nothing of each other; NaN for a feature that never changes.
        function: Whether the sign is a function of the label on these rows.
    """

    rate: _Floats
    entropy: _Floats
    information: _Floats
    rajski: _Floats
    function: NDArray[np.bool_]


def sign_information(signs: Signs, classes: int) -> SignInformation:
    """Information between the label and the sign of each feature.

    Args:
        signs: Of n rows, with their labels.
        classes: Number of labels.
    """
    rows, features = signs.positive.shape
    totals = np.bincount(signs.labels, minlength=classes).astype(np.float64)
    label_entropy = _entropy(totals[None], rows)[0]
    hot = sparse.csr_matrix((np.ones(rows), (np.arange(rows), signs.labels)), shape=(rows, classes))
    found: list[list[_Floats]] = [[], [], [], [], []]
    for start in range(0, features, _BLOCK):
        own = slice(start, min(start + _BLOCK, features))
        sides = [(side[:, own].T @ hot).toarray() for side in (signs.positive, signs.negative) if side is not None]
        silent = totals - sum(sides)
        table = np.stack([silent, *sides], 1)  # (features, signs, classes)
        entropy = _entropy(table.sum(2), rows)
        joint = _entropy(table.reshape(len(table), -1), rows)
        information = entropy + label_entropy - joint
        moving = (table.sum(2) > 0).sum(1) > 1
        rajski = np.full(len(table), np.nan)
        rajski[moving] = np.clip(1 - information[moving] / joint[moving], 0, 1)
        function = ((table > 0).sum(1) <= 1).all(1)
        for parts, values in zip(
            found, (1 - silent.sum(1) / rows, entropy, information, rajski, function), strict=True
        ):
            parts.append(values)
    whole = [np.concatenate(parts) for parts in found]
    return SignInformation(whole[0], whole[1], whole[2], whole[3], whole[4].astype(np.bool_))


def least_rajski(rate: _Floats, label_entropy: float) -> _Floats:
    """Rajski distance to the label of a feature that fires on a share of rows and is a function of the label, (n,).

    No feature of that rate that is never negative comes nearer to a label of more entropy than it has itself.

    Args:
        rate: In [0, 1], (n,).
        label_entropy: H(label), bits.
    """
    bit = (entr(rate) + entr(1 - rate)) / math.log(2)
    return np.asarray(1 - np.minimum(bit, label_entropy) / np.maximum(np.maximum(bit, label_entropy), 1e-300))


def _entropy(counts: _Floats, rows: int) -> _Floats:
    """Entropy of each line of counts (n, K) that sum to `rows`, corrected; 0 for a line with one positive count."""
    share = counts / rows
    plug_in = -np.where(share > 0, share * np.log2(np.where(share > 0, share, 1)), 0).sum(1)
    return np.asarray(plug_in + ((counts > 0).sum(1) - 1) / (2 * rows * math.log(2)), np.float64)
