"""Labels that a store knows of its rows, and which rows serve to fit, to choose and to score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoms.activations.site_rows import SiteRows
from atoms.checks.row_sample import Sampled, lots, most_frequent

TOKENS, POSITIONS, DOCUMENTS = 32, 8, 8
"""Most tokens told apart (all others are one class more), parts that positions are cut into, most document groups."""
LEAST = 10
"""Rows of a class, to fit to and to score on, that make it a class."""
_SELECT = 4  # one group in so many is there to choose by
_STRETCHES = np.array([0, 2, 0, 2, 1, 2, 0, 2])  # of a document's positions: 0 to fit to, 1 to choose by, 2 to score on

_Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Purpose:
    """Rows of one sample that serve one purpose.

    Attributes:
        sample: The sample they are of.
        chosen: Their places in it, (n,) int64.
        labels: Their labels, (n,) in [0, classes).
    """

    sample: Sampled
    chosen: _Rows
    labels: _Rows


@dataclass(frozen=True, eq=False)
class Question:
    """Which of several classes is a row in?

    Attributes:
        name: ``token``, ``position`` or ``document``.
        classes: Number of classes.
        fit: Rows to fit to.
        select: Rows to choose by.
        score: Rows to score on.
        of_groups: Whether the classes are the document groups themselves, which cannot be resampled then.
    """

    name: str
    classes: int
    fit: Purpose
    select: Purpose
    score: Purpose
    of_groups: bool = False

    @property
    def sound(self) -> bool:
        """Whether two classes or more have rows enough, and every purpose has some."""
        enough = [np.bincount(part.labels, minlength=self.classes) >= LEAST for part in (self.fit, self.score)]
        return bool((enough[0] & enough[1]).sum() > 1) and len(self.select.labels) >= LEAST


def questions(train: SiteRows, held_out: SiteRows, learnt: Sampled, judged: Sampled, seed: int) -> Iterator[Question]:
    """What can be asked.

    Tokens and positions are fitted on training rows, chosen by training rows of other document groups, and scored on
    held-out rows. Documents are held out whole, so that which group a row is from is fitted, chosen and scored on
    stretches of positions of the same held-out groups in turn: on an earlier and a later half, whatever tells positions
    would be met with positions it was not fitted to.

    Args:
        train: The training split.
        held_out: The held-out split.
        learnt: A sample of the former.
        judged: A sample of the latter.
        seed: Of the lots that say which groups are there to choose by.
    """
    about = [
        {name: np.asarray(column[sample.index], np.int64) for name, column in rows.tokens().items()}
        for rows, sample in ((train, learnt), (held_out, judged))
    ]
    groups = [np.asarray(rows.groups()[sample.index]) for rows, sample in ((train, learnt), (held_out, judged))]
    aside = _aside(groups[0], learnt.index, seed)

    def across(name: str, labels: tuple[_Rows, _Rows], classes: int) -> Question:
        fit, select = (_purpose(learnt, np.flatnonzero(mask), labels[0]) for mask in (~aside, aside))
        return Question(name, classes, fit, select, _purpose(judged, np.arange(len(labels[1])), labels[1]))

    tokens = (about[0]["token_id"], about[1]["token_id"])
    if all((each >= 0).any() for each in tokens):
        frequent = most_frequent(tokens[0], TOKENS)
        yield across("token", (_places(frequent, tokens[0]), _places(frequent, tokens[1])), len(frequent) + 1)
    positions = (about[0]["position"], about[1]["position"])
    if all((each >= 0).all() for each in positions):
        edges = np.unique(np.quantile(positions[0], np.arange(1, POSITIONS) / POSITIONS, method="inverted_cdf"))
        parts = np.searchsorted(edges, positions[0]), np.searchsorted(edges, positions[1])
        yield across("position", parts, len(edges) + 1)
        if (groups[1] >= 0).any():
            yield _document(judged, groups[1], positions[1])


def _document(judged: Sampled, groups: _Rows, positions: _Rows) -> Question:
    """Which document group a row is from: every other stretch of positions is scored, the others are fitted to."""
    largest = most_frequent(groups, DOCUMENTS)
    labels = _places(largest, groups)
    stage = np.full(len(groups), -1)
    for number in range(len(largest)):
        own = labels == number
        ends = np.quantile(positions[own], np.arange(1, len(_STRETCHES)) / len(_STRETCHES), method="inverted_cdf")
        stage[own] = _STRETCHES[np.searchsorted(ends, positions[own], side="left")]
    fit, select, score = (_purpose(judged, np.flatnonzero(stage == each), labels) for each in range(3))
    return Question("document", len(largest), fit, select, score, of_groups=True)


def _aside(groups: _Rows, index: _Rows, seed: int) -> NDArray[np.bool_]:
    """Which rows are there to choose by: a quarter of the groups, by lot; of a single group a quarter of the rows."""
    units = groups if (groups != groups[:1]).any() else index
    known = np.unique(units)
    count = -(-len(known) // _SELECT)
    return np.isin(units, known[np.argsort(lots(known, seed))[:count]])


def _purpose(sample: Sampled, chosen: _Rows, labels: _Rows) -> Purpose:
    return Purpose(sample, chosen, labels[chosen])


def _places(known: _Rows, labels: _Rows) -> Any:
    """Place of every label among those known, and their number for any other, (n,) int64."""
    order = np.argsort(known)
    at = np.minimum(np.searchsorted(known[order], labels), len(known) - 1)
    return np.where(known[order][at] == labels, order[at], len(known))
