"""Rows in classes, and which atoms tell the classes apart: perfect reconstruction where its condition applies.

A code is a function of its row, not of the class the row is in. So each class has a representative, a training row
whose code is its class's: what fires on the representative is a function of the class, as the condition demands.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoms.checks.row_sample import Sampled
from atoms.information.estimation import FewSamplesWarning
from atoms.information.gain import Signs
from atoms.information.measures import entropy_of
from atoms.information.reconstruction import Reconstruction, perfect_reconstruction
from atoms.information.signs import SignInformation, sign_information
from atoms.information.variable import SampleSpace

MOST_ATOMS = 4096
"""Atoms among which is searched, those whose signs on the representatives have most entropy."""
_ROWS_PER_CLASS = 20
_STEPS = 2**24  # distances held at once


@dataclass(frozen=True, eq=False)
class RowClasses:
    """Classes of rows.

    Attributes:
        of_held_out: The class of every held-out row of the sample, (n,).
        representatives: Places in the training sample, one a class, (C,).
    """

    of_held_out: NDArray[np.int64]
    representatives: NDArray[np.int64]

    @property
    def count(self) -> int:
        """C."""
        return len(self.representatives)


def row_classes(learnt: Sampled, judged: Sampled, most: int, seed: int) -> RowClasses | None:
    """Cluster training rows, by k-means in activation space, and put held-out rows to the nearest representative.

    Args:
        learnt: Training rows.
        judged: Held-out rows.
        most: Most classes; fewer where there are not 20 rows of either sample for each.
        seed: Of the first centres.

    Returns:
        None where there are too few rows for two classes.
    """
    from sklearn.cluster import MiniBatchKMeans  # slow to import

    count = min(most, len(learnt.index) // _ROWS_PER_CLASS, len(judged.index) // _ROWS_PER_CLASS)
    if count < 2:
        return None
    centre = learnt.rows.mean(0)
    scale = max(float(np.abs(learnt.rows - centre).max()), np.finfo(np.float32).tiny)
    near, far = ((sample.rows - centre) / scale for sample in (learnt, judged))
    model = MiniBatchKMeans(count, n_init=1, random_state=seed, batch_size=max(1024, 3 * count)).fit(near)
    centres = model.cluster_centers_
    representatives = np.unique(_nearest(centres, near))  # a row may be nearest to two centres
    return RowClasses(_nearest(far, near[representatives]), representatives)


def _nearest(rows: NDArray[Any], others: NDArray[Any]) -> NDArray[np.int64]:
    """For every row the nearest of others, (n,)."""
    squares = np.square(others, dtype=np.float64).sum(1)
    step = max(1, _STEPS // len(others))
    parts = [
        (squares - 2 * (rows[start : start + step].astype(np.float64) @ others.T)).argmin(1)
        for start in range(0, len(rows), step)
    ]
    return np.concatenate(parts).astype(np.int64)


@dataclass(frozen=True, eq=False)
class ClassesTold:
    """What signs tell of classes.

    Attributes:
        found: Whether signs on representatives determine the class, and how many atoms that takes; None where no sign
            differs between any two.
        searched: Atoms searched among.
        rows: What the signs on the held-out rows themselves have to do with their classes.
    """

    found: Reconstruction | None
    searched: int
    rows: SignInformation


def classes_told(classes: RowClasses, on_representatives: NDArray[np.int8], on_rows: Any) -> ClassesTold:
    """See what one unit's signs tell of classes.

    Args:
        classes: The classes.
        on_representatives: Sign of every atom on every representative, (C, A).
        on_rows: Codes of the held-out rows of the sample, (n, A) sparse by rows.
    """
    weights = np.bincount(classes.of_held_out, minlength=classes.count)
    present = on_representatives[weights > 0]
    moving = np.flatnonzero((present != present[:1]).any(0))
    if len(moving) > MOST_ATOMS:
        share = np.stack([((present[:, moving] == sign).T @ weights[weights > 0]) for sign in (-1, 0, 1)], 1)
        entropies = np.array([entropy_of(line) for line in share.astype(np.float64)])
        moving = np.sort(moving[np.argsort(-entropies, kind="stable")[:MOST_ATOMS]])
    found = None
    if len(moving):
        space = SampleSpace.of_samples(classes.count, weights)
        x = space.variable(np.arange(classes.count), "class")
        components = [space.variable(on_representatives[:, atom], str(atom)) for atom in moving]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewSamplesWarning)  # classes are made to have rows enough
            found = perfect_reconstruction(x, components, resamples=0)
    rows = sign_information(Signs.of(on_rows, classes.of_held_out), classes.count)
    return ClassesTold(found, len(moving), rows)
