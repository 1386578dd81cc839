"""A dictionary of which every number is known: two orthonormal bases, turned, in which all cosines are 0 or 1/16."""

from __future__ import annotations

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from atoms.activations.site_rows import SiteRows
from atoms.checks.check import Encoded, Subject
from atoms.checks.settings import CheckSettings
from atoms.geometry import AtomicInnerProduct, Moments
from atoms.sae import SparseCodes
from atoms.units import Unit

WIDTH, ATOMS, MU = 256, 512, 1 / 16


def dictionary(seed: int = 0) -> Tensor:
    """``Q [±I, ±Hadamard / 16]`` with a random rotation Q and random signs, atoms as rows, (512, 256) float64."""
    draw = np.random.default_rng(seed)
    rotation = linalg.qr(draw.standard_normal((WIDTH, WIDTH)))[0]
    atoms = np.concatenate([np.eye(WIDTH), linalg.hadamard(WIDTH) / 16]) * draw.choice([-1, 1], (ATOMS, 1))
    return torch.from_numpy(atoms @ rotation)


def geometry() -> AtomicInnerProduct:
    """The inner product of the dictionary, exactly: it is Euclid's, halved."""
    return AtomicInnerProduct.from_atoms(torch.cat([torch.eye(WIDTH), torch.eye(WIDTH)]))


def codes(atoms: int, k: int, ratio: float, rows: int, seed: int = 0) -> Tensor:
    """Rows (rows, atoms) float64 of k coefficients between `ratio` and 1, both of which occur where k is over 1."""
    draw = np.random.default_rng(seed)
    found = np.zeros((rows, atoms))
    for row in found:
        values = draw.uniform(ratio, 1, k)
        values[0], values[-1] = ratio, 1
        row[draw.choice(atoms, k, replace=False)] = values
    return torch.from_numpy(found)


class Pursuit(Unit):
    """Given atoms, with codes by orthogonal matching pursuit.

    Args:
        atoms: (A, H).
        metric: Inner product of the pursuit.
        k: Atoms a row is given.
    """

    def __init__(self, atoms: Tensor, metric: AtomicInnerProduct, k: int) -> None:
        self.name, self.atoms, self.centre = "oracle", atoms.float(), torch.zeros(atoms.shape[1])
        self.target_l0, self._metric = float(k), metric

    def encode(self, rows: Tensor) -> SparseCodes:
        white = self._metric.whiten(self.atoms.double())
        found = torch.zeros(len(rows), len(white), dtype=torch.float64)
        for line, target in enumerate(self._metric.whiten(rows.double())):
            chosen: list[int] = []
            values, left = torch.zeros(0, dtype=torch.float64), target
            for _ in range(round(self.target_l0 or 1)):
                chosen.append(int((white @ left).abs().argmax()))
                values = torch.linalg.lstsq(white[chosen].T, target.unsqueeze(1)).solution.squeeze(1)
                left = target - values @ white[chosen]
            found[line, chosen] = values
        return SparseCodes.from_dense(found)


class Rows(SiteRows):
    """A split that is a matrix, with the geometry it is given."""

    def __init__(self, metric: AtomicInnerProduct, rows: int) -> None:
        self.site, self.split, self.width = "oracle", "val", metric.width
        vars(self).update(geometry=metric, places=np.arange(rows), moments=Moments.zeros(metric.width))

    def __len__(self) -> int:
        return len(self.places)


def subject(atoms: Tensor, metric: AtomicInnerProduct, rows: int, k: int | None = None, **settings: object) -> Subject:
    """A unit of these atoms to be judged on so many rows."""
    split = Rows(metric, rows)
    unit = Pursuit(atoms, metric, k or 1)
    if k is None:
        unit.target_l0 = None
    return Subject(unit, split, split, CheckSettings(**settings), torch.device("cpu"))  # type: ignore[arg-type]


def encoded(judged: Subject, coefficients: Tensor, noise: Tensor | float = 0.0, start: int = 0) -> Encoded:
    """A batch of rows made of these codes (B, A), and noise, with the codes as the unit's."""
    made = (coefficients @ judged.unit.atoms.double()).float()
    return Encoded(
        "val",
        torch.arange(start, start + len(made)),
        made + noise,
        SparseCodes.from_dense(coefficients),
        made,
    )
