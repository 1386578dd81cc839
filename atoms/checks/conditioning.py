"""How evenly directions are treated: by the atoms, by the encoder, by the rows, and by the few atoms a row uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Section
from atoms.checks.isometry import Isometry
from atoms.checks.sums import Sums
from atoms.checks.support_condition import SupportCondition
from atoms.conditioning import ShapeNull, condition_number, effective_rank, entropy_loss, shape_null, spectrum
from atoms.conditioning.random_spectrum import random_spectrum
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, directions
from atoms.geometry.inner_product import unit_rows

MATRICES = {
    "decoder": "the atoms, where rows about the unit's centre are white (ridge included), at unit length",
    "decoder_used": "those atoms that fire on held-out rows",
    "decoder_aip": "the atoms at unit length in S",
    "decoder_unit": "the atoms at unit length in activation space",
    "decoder_raw": "the atoms as they are",
    "encoder": "the encoder of white rows, for coefficients of unit atoms",
    "encoder_raw": "the encoder as it is",
    "rows": "the rows about the unit's centre (ridge included)",
}
"""What is measured. What the rows themselves have comes back in matrices of activation space."""
_BRIEF = {"decoder_used", "decoder_aip", "decoder_unit", "decoder_raw", "encoder_raw"}
_UNEVEN = 10.0  # times the condition number of a random matrix, from which on a warning is given
_SINGLE = 1e6  # condition number from which on weights in single precision do not tell their smallest singular value
_BLOCK = 8192  # rows of a matrix that are changed at once
_POINTS = 200  # of a spectrum's curve


@dataclass(frozen=True, eq=False)
class Matrix:
    """The condition of one matrix, its rows of zeros left out.

    Attributes:
        shape: Its rows and columns.
        sigma: Its singular values, (min(shape),) float64, descending; 0 where they cannot be told from it.
        null: What random matrices of the shape have.
    """

    shape: tuple[int, int]
    sigma: Tensor
    null: ShapeNull

    @property
    def kappa(self) -> float:
        """Condition number; infinite for a singular matrix."""
        return condition_number(self.sigma)

    @property
    def relative(self) -> float:
        """Condition number over the median one of random matrices."""
        return self.kappa / self.null.kappa

    def numbers(self) -> dict[str, float]:
        """What is said of it, and of random matrices of its shape."""
        return {
            "kappa": self.kappa,
            "kappa_random": self.null.kappa,
            "relative": self.relative,
            "effective_rank": effective_rank(self.sigma),
            "effective_rank_random": self.null.effective_rank,
            "entropy_loss": entropy_loss(self.sigma),
            "entropy_loss_random": self.null.entropy_loss,
        }


class Conditioning(Check):
    """Condition numbers, effective ranks and entropy losses, each beside that of a random matrix of the same shape.

    What atoms have to explain is rows about the unit's centre. Where these are white, and only there, are uneven
    singular values the dictionary's own. S is not quite that place: it whitens rows about zero, in which the direction
    of the mean row is long, though the centre explains it and no atom has to. An atom's length and its encoder's can be
    traded for each other, which changes no reconstruction: atoms are taken at unit length, and the encoder for
    coefficients of such atoms.

    Args:
        subject: What is judged.
    """

    name: ClassVar[str] = "conditioning"
    title: ClassVar[str] = "Conditioning: how evenly directions are treated"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._fired = Sums(rows=torch.zeros(subject.num_atoms, dtype=torch.int64)).to(subject.device)

    def update(self, batch: Encoded) -> None:
        """Note which atoms fire."""
        self._fired.update(rows=torch.bincount(batch.codes.indices.long(), minlength=batch.codes.width))

    def compute(self) -> dict[str, Matrix]:
        """Measure every matrix of `MATRICES` that there is.

        Raises:
            AtomsError: If no atom has a direction, or one is not finite.
        """
        subject = self.subject
        fired = self._fired.pooled()["rows"].to(subject.device) > 0
        atoms, moments = subject.unit.atoms.to(subject.device), subject.train.moments.about(subject.unit.centre)
        white = AtomicInnerProduct.from_moments(moments)
        unit = directions(atoms, aip=white)
        alive = unit.any(1)
        if not bool(alive.any()):
            raise AtomsError(f"unit {subject.unit.name} has no atom of non-zero norm, so there is no condition number")
        found = {"decoder": _measured(unit)}
        if bool((used := alive & fired).any()):
            found["decoder_used"] = found["decoder"] if torch.equal(used, alive) else _measured(unit[used])
        del unit
        found["decoder_aip"] = _measured(subject.directions)
        found["decoder_unit"] = _measured(_changed(atoms, lambda block, _: unit_rows(block)))
        found["decoder_raw"] = _measured(atoms)
        weights = subject.unit.encoder_weights
        if weights is not None and bool(weights.any()):
            weights = weights.to(subject.device)
            if self._reads_itself:
                found["encoder"] = _measured(
                    _changed(weights, lambda block, rows: white.unwhiten(block) * white.norm(atoms[rows])[:, None])
                )
            found["encoder_raw"] = _measured(weights)
        shape = moments.count, subject.width
        # Of fewer rows than dimensions, the other lengths are the ridge alone.
        lengths = (white.eigenvalues.flip(0)[: min(shape)] + white.ridge_value).sqrt()
        found["rows"] = Matrix(shape, lengths, shape_null(*shape))
        return found

    @property
    def _reads_itself(self) -> bool:
        """Whether the unit encodes the rows it explains, whose geometry is known."""
        return self.subject.unit.reads == self.subject.unit.site

    def report(self, found: Mapping[str, Any]) -> Section:
        """The section; what is said of supports needs the results of ``isometry`` and ``separability``."""
        own: dict[str, Matrix] = found[self.name]
        isometry: Isometry | None = found.get("isometry")
        numbers = {
            f"{name}_{key}": value
            for name, matrix in own.items()
            for key, value in matrix.numbers().items()
            if name not in _BRIEF or key in ("kappa", "relative", "effective_rank")
        }
        numbers["whitening_kappa"] = math.sqrt(self.subject.geometry.condition)
        tables, notes = _tables(own), list(self._notes(own))
        if isometry is None:
            notes.append("What rows' supports show is missing with the check isometry.")
            return Section(self.name, self.title, numbers, (), tables, tuple(notes))
        supports = SupportCondition.of(isometry, found.get("separability"))
        return Section(
            name=self.name,
            title=self.title,
            numbers=numbers | supports.numbers(),
            claims=(supports.claim(),),
            tables=tables | {"growth": supports.table()},
            notes=(*notes, *supports.notes()),
        )

    def _notes(self, own: Mapping[str, Matrix]) -> Iterator[str]:
        for name in ("decoder", "decoder_used", "encoder"):
            if name not in own or (name == "decoder_used" and own[name] is own["decoder"]):
                continue
            matrix = own[name]
            rank = int((matrix.sigma > 0).sum())
            if rank < len(matrix.sigma):
                yield f"Singular, of rank {rank:,} of {len(matrix.sigma):,}: {MATRICES[name]}."
            elif name != "encoder" and matrix.relative > _UNEVEN:
                yield (
                    f"One direction has {matrix.kappa:,.0f} times the weight of another (random: "
                    f"{matrix.null.kappa:,.1f}), so that atoms hardly reach some, or are nearly dependent: "
                    f"{MATRICES[name]}."
                )
        raw = [name for name in ("decoder_unit", "decoder_raw", "encoder_raw") if name in own]
        if vague := [name for name in raw if _SINGLE < own[name].kappa < math.inf]:
            yield f"Beyond what single precision tells: {', '.join(vague)}."
        if "encoder_raw" not in own:
            yield "The unit has no encoder that is a matrix."
        elif "encoder" not in own:
            yield f"Its encoder reads {self.subject.unit.reads}, of which no geometry is known: it is taken as it is."


def _measured(matrix: Tensor) -> Matrix:
    alive = matrix.any(1)
    seen = spectrum(matrix if bool(alive.all()) else matrix[alive])
    assert seen.values is not None
    return Matrix(seen.shape, seen.values, shape_null(*seen.shape))


def _changed(matrix: Tensor, change: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """A matrix changed row by row in float64, in the precision it has: it is never held in float64 as a whole."""
    found = torch.empty_like(matrix)
    for start in range(0, len(matrix), _BLOCK):
        rows = slice(start, start + _BLOCK)
        found[rows] = change(matrix[rows].double(), rows)
    return found


def _tables(own: Mapping[str, Matrix]) -> dict[str, dict[str, list[float] | list[str]]]:
    columns = {name: matrix.numbers() for name, matrix in own.items()}
    shares = (np.arange(_POINTS) + 0.5) / _POINTS
    return {
        "matrices": {
            "matrix": list(own),
            "rows": [float(matrix.shape[0]) for matrix in own.values()],
            "columns": [float(matrix.shape[1]) for matrix in own.values()],
            **{key: [columns[name][key] for name in own] for key in columns["decoder"]},
        },
        "spectrum": {
            "share": shares.tolist(),
            **{name: _curve(matrix.sigma, shares) for name, matrix in own.items()},
            "random": random_spectrum(*own["decoder"].shape, shares).tolist(),
        },
    }


def _curve(sigma: Tensor, shares: np.typing.NDArray[np.float64]) -> list[float]:
    """Singular values over their root mean square, at these shares of them, the largest first."""
    places = torch.from_numpy((shares * len(sigma)).astype(np.int64))
    return (sigma[places] / sigma.square().mean().sqrt()).tolist()
