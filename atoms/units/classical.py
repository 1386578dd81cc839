"""Dictionaries of the classical kind, learnt by scikit-learn from a sample of the training rows."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from atoms.activations.site_rows import SiteRows
from atoms.errors import AtomsError
from atoms.progress import Meter
from atoms.sae import SparseCodes
from atoms.units.bases import LinearUnit
from atoms.units.coded import CodedUnit

_BATCH = 1024


class ICA(LinearUnit):
    """Independent components by FastICA.

    Atoms are the columns of the mixing matrix; codes are the sources, uncorrelated, of unit variance and dense.

    Args:
        atoms: Number of components; the rank of the rows if left out.
        rows: Training rows to learn from, spread evenly.
        iterations: Most iterations; each goes over all those rows.
        seed: Seed of the first rotation.

    Raises:
        AtomsError: If a number is less than 1.
    """

    def __init__(self, atoms: int | None = None, rows: int = 20_000, iterations: int = 200, seed: int = 0) -> None:
        self.name = "ICA"
        _require(self.name, atoms=atoms, rows=rows, iterations=iterations)
        self.count, self.rows, self.iterations, self.seed = atoms, rows, iterations, seed

    def fit(self, rows: SiteRows) -> None:
        """Learn.

        Raises:
            AtomsError: If there are more components than the rows used have dimensions, or as `Unit.fit`.
        """
        from sklearn.decomposition import FastICA
        from sklearn.exceptions import ConvergenceWarning

        mean = rows.moments.mean
        sample = (rows.sample(self.rows)[rows.site].double() - mean) / rows.geometry.unit
        rank = int(torch.linalg.matrix_rank(sample))
        count = self.count or rank
        if count > rank:
            raise AtomsError(
                f"unit ICA: atoms is {count}, but the {len(sample)} rows of {rows.site} it learns from span {rank} "
                "dimensions: lower atoms, or raise rows"
            )
        _say(f"fit      ICA: {count} components of {len(sample):,} rows, at most {self.iterations} iterations")
        ica = FastICA(
            count, whiten="unit-variance", max_iter=self.iterations, random_state=self.seed, whiten_solver="eigh"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            ica.fit(sample.numpy())
        if ica.n_iter_ >= self.iterations:
            _say(f"note     ICA did not converge in {self.iterations} iterations; it is used as it is")
        mixing = torch.from_numpy(ica.mixing_.T).double() * rows.geometry.unit
        self.atoms, self.centre = mixing.float(), mean.float()
        self.analysis = torch.linalg.pinv(mixing)
        super().fit(rows)


class KMeans(CodedUnit):
    """Centroids of mini-batch k-means, as atoms about the mean.

    Args:
        atoms: Number of centroids; four times the width if left out.
        encoder: ``nearest`` for the nearest centroid alone, with coefficient 1 (vector quantisation, what k-means
            minimises); ``omp`` or ``topk`` take centroids for directions, see `CodedUnit`.
        k: Most atoms per row, for the latter two.
        rows: Training rows to learn from, spread evenly.
        passes: How often to go over them.
        seed: Seed of the first centroids.

    Raises:
        AtomsError: If a number is less than 1 or the encoder is unknown.
    """

    initialised_from_data = True

    def __init__(
        self,
        atoms: int | None = None,
        encoder: Literal["nearest", "omp", "topk"] = "nearest",
        k: int | None = None,
        rows: int = 20_000,
        passes: int = 5,
        seed: int = 0,
    ) -> None:
        self.nearest = encoder == "nearest"
        if self.nearest and k not in (None, 1):
            raise AtomsError(f"unit k-means: k is {k}, but the nearest centroid is one: set encoder to omp or topk")
        super().__init__(
            "k-means", atoms=atoms, encoder="omp" if self.nearest else encoder, k=1 if self.nearest else k, seed=seed
        )
        _require(self.name, rows=rows, passes=passes)
        self.rows, self.passes = rows, passes

    def learn(self, rows: SiteRows) -> tuple[Tensor, Tensor]:
        """Cluster."""
        from sklearn.cluster import MiniBatchKMeans

        sample, count = _sample(self, rows, self.rows)
        centred = ((sample - rows.moments.mean) / rows.geometry.unit).float().numpy()
        model = MiniBatchKMeans(count, n_init=1, random_state=self.seed)
        # The first batch gives the first centroids, by k-means++.
        _in_batches(self.name, model.partial_fit, centred, max(_BATCH, 3 * count), self.passes, self.seed)
        return torch.from_numpy(model.cluster_centers_).double() * rows.geometry.unit, rows.moments.mean

    def encode(self, rows: Tensor) -> SparseCodes:
        """Code rows (B, H)."""
        if not self.nearest:
            return super().encode(rows)
        atoms = self.atoms.double()
        closeness = (rows.double() - self.centre) @ atoms.T - atoms.square().sum(1) / 2
        return SparseCodes.from_support(closeness.argmax(1, keepdim=True), rows.new_ones(len(rows), 1), len(atoms))


class DictionaryLearning(CodedUnit):
    """Online dictionary learning with an l1 penalty (Mairal, Bach, Ponce and Sapiro 2009).

    Args:
        atoms: Number of atoms; four times the width if left out.
        encoder: ``omp`` or ``topk``, see `CodedUnit`.
        k: Most atoms per row; an eighth of the width, at most 32, if left out.
        penalty: Weight of the l1 norm of the codes of rows whose mean squared norm is brought to 1.
        rows: Training rows to learn from, spread evenly.
        passes: How often to go over them.
        seed: Seed of the training rows that are the first atoms.

    Raises:
        AtomsError: If a number is less than 1, the penalty is not above 0, or the encoder is unknown.
    """

    initialised_from_data = True

    def __init__(
        self,
        atoms: int | None = None,
        encoder: Literal["omp", "topk"] = "omp",
        k: int | None = None,
        penalty: float = 0.05,
        rows: int = 20_000,
        passes: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__("dictionary learning", atoms=atoms, encoder=encoder, k=k, seed=seed)
        _require(self.name, rows=rows, passes=passes)
        if not penalty > 0:
            raise AtomsError(f"unit {self.name}: penalty is {penalty}: give a number above 0, for example 0.05")
        self.penalty, self.rows, self.passes = penalty, rows, passes

    def learn(self, rows: SiteRows) -> tuple[Tensor, Tensor]:
        """Learn."""
        from sklearn.decomposition import MiniBatchDictionaryLearning
        from sklearn.exceptions import ConvergenceWarning

        sample, count = _sample(self, rows, self.rows)
        centred = sample - rows.moments.mean
        centred /= centred.square().sum(1).mean().sqrt()
        first = np.random.default_rng(self.seed).choice(len(centred), count, replace=False)
        start = centred[torch.from_numpy(first)]
        start = start / start.norm(dim=1, keepdim=True).clamp_min(torch.finfo(start.dtype).tiny)
        model = MiniBatchDictionaryLearning(
            count, alpha=self.penalty, dict_init=start.numpy(), fit_algorithm="cd", random_state=self.seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of single rows, which the next batch outweighs
            _in_batches(self.name, model.partial_fit, centred.numpy(), 256, self.passes, self.seed)
        return torch.from_numpy(model.components_).double(), rows.moments.mean


def _sample(unit: CodedUnit, rows: SiteRows, wanted: int) -> tuple[Tensor, int]:
    """Training rows (N, H) float64, and the number of atoms they are to give."""
    sample = rows.sample(wanted)[rows.site].double()
    count = unit.count or 4 * rows.width
    if len(sample) < count:
        raise AtomsError(
            f"unit {unit.name}: atoms is {count}, but it learns from {len(sample)} rows of {rows.site}: lower atoms, "
            f"or {'raise rows' if wanted < len(rows) else 'harvest more text'}"
        )
    return sample, count


def _in_batches(
    name: str, learn: Callable[[NDArray[Any]], object], rows: NDArray[Any], size: int, passes: int, seed: int
) -> None:
    """Show all rows some times, in a new order each time."""
    generator = np.random.default_rng([seed, 1])
    with Meter(f"fit {name}", passes * len(rows), "rows", enabled=_first_rank()) as meter:
        for _ in range(passes):
            order = generator.permutation(len(rows))
            for start in range(0, len(rows), size):
                batch = order[start : start + size]
                learn(rows[batch])
                meter.advance(len(batch))


def _require(name: str, **numbers: int | None) -> None:
    for setting, value in numbers.items():
        if value is not None and value < 1:
            raise AtomsError(f"unit {name}: {setting} is {value}: give at least 1")


def _first_rank() -> bool:
    return not (dist.is_available() and dist.is_initialized() and dist.get_rank())


def _say(line: str) -> None:
    if _first_rank():
        print(line, file=sys.stderr, flush=True)
