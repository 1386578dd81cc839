"""The null that decides: how sparse random directions are when they rebuild rows as well as the unit does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Section
from atoms.checks.recovery_margins import recovery_margins
from atoms.checks.row_certificates import RowCertificates, relative_errors
from atoms.checks.support_sample import spread_rows
from atoms.errors import AtomsError
from atoms.geometry.inner_product import unit_rows
from atoms.progress import Meter
from atoms.units.pursuit import orthogonal_matching_pursuit

_BLOCK = 128  # rows coded at once
_FIRST = 16  # atoms tried first


@dataclass(frozen=True, eq=False)
class MatchedNull:
    """Random directions, as many as the unit has, coded by orthogonal matching pursuit in S.

    Attributes:
        k: Atoms per row at which they reach the unit's R²; None if not even H/2 atoms do.
        unit_r2: R² of the unit on the sample, about the mean of the training rows, pooled over rows and coordinates.
        r2: Theirs at `k`, or the best they reached.
        curve: Their R² by atoms per row, from 1 on, (K,) float64.
        certificates: Their row certificates at `k`, or at the most atoms tried; the headline's K is that too.
    """

    k: int | None
    unit_r2: float
    r2: float
    curve: Tensor
    certificates: RowCertificates


class MatchedNullCheck(Check):
    """The fidelity-matched null."""

    name: ClassVar[str] = "matched_null"
    title: ClassVar[str] = "Fidelity-matched null"
    splits: ClassVar[frozenset[str]] = frozenset({"val"})

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._chosen = spread_rows(subject, subject.settings.null_rows)
        self._sample: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, batch: Encoded) -> None:
        """Keep the rows of the sample."""
        index = batch.index.cpu()
        for line in torch.isin(index, self._chosen).nonzero().squeeze(1).tolist():
            self._sample[int(index[line])] = batch.rows[line].cpu(), batch.reconstruction[line].cpu()

    def compute(self) -> MatchedNull:
        """Code the sample; every rank codes all of it, so that all find the same.

        Raises:
            AtomsError: If there is no row, or the site is too narrow for a null.
        """
        samples = [self._sample]
        if dist.is_available() and dist.is_initialized():
            samples = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(samples, self._sample)
        sample = dict(sorted((row, kept) for part in samples for row, kept in part.items()))
        if not sample or min(self.subject.width // 2, self.subject.num_atoms) < 1:
            raise AtomsError("the fidelity-matched null needs held-out rows, a width of 2 and an atom")
        device = self.subject.device
        rows, rebuilt = (torch.stack([kept[i] for kept in sample.values()]).to(device) for i in (0, 1))
        return matched_null(self.subject, torch.tensor(list(sample)), rows, rebuilt)

    def report(self, found: Mapping[str, Any]) -> Section:
        """The section."""
        null: MatchedNull = found[self.name]
        eta, rows = self.subject.settings.eta, null.certificates
        tried = len(null.curve)
        numbers = {
            "k": math.nan if null.k is None else float(null.k),
            "r2": null.r2,
            "unit_r2": null.unit_r2,
            "f": rows.F(eta, tried),
            "certified": rows.certified.double().mean().item(),
            "rows": float(len(rows)),
        }
        tables: dict[str, dict[str, list[float] | list[str]]] = {
            "r2": {"k": [float(k) for k in range(1, tried + 1)], "r2": null.curve.tolist()}
        }
        count = self.subject.num_atoms
        if null.k is None:
            note = (
                f"{count:,} random directions miss the unit's R² of {null.unit_r2:.3f} even with H/2 = {tried} atoms "
                f"a row: the best is {null.r2:.3f}."
            )
        else:
            note = (
                f"{count:,} random directions reach the unit's R² of {null.unit_r2:.3f} with {null.k} atoms a row; "
                f"{rows.F(eta, null.k):.1%} of the rows are then rebuilt to {eta:g} with a certificate."
            )
        return Section(self.name, self.title, numbers, (), tables, (note,))


@torch.no_grad()
def matched_null(subject: Subject, index: Tensor, rows: Tensor, rebuilt: Tensor) -> MatchedNull:
    """Raise K until random directions rebuild the rows as well as the unit.

    The directions are isotropic in whitened coordinates, as many as the unit has, zero ones included; rows are taken
    about the mean of the training rows. K stops at H/2: beyond, no code on an overcomplete dictionary can be the only
    one, and at H any directions rebuild anything.

    Args:
        subject: The unit under judgement.
        index: Places of the rows in their split, (N,) int64.
        rows: (N, H) float32.
        rebuilt: What the unit makes of them, (N, H) float32.
    """
    generator = torch.Generator().manual_seed(subject.settings.seed)
    drawn = torch.randn(subject.num_atoms, subject.width, generator=generator, dtype=torch.float64)
    directions = unit_rows(drawn).to(rows.device)
    mean = subject.train.moments.mean.to(rows.device)
    centred = rows.double() - mean
    spread = centred.square().sum()
    unit_r2 = 1 - ((rows.double() - rebuilt.double()).square().sum() / spread).item()
    whitened = subject.geometry.whiten(centred)
    back = subject.geometry.unmap().to(rows.device)

    top, k = min(subject.width // 2, subject.num_atoms), _FIRST
    first = not (dist.is_available() and dist.is_initialized() and dist.get_rank())
    while True:
        k = min(k, top)
        supports, missing = [], back.new_zeros(k)
        with Meter(f"matched null, {k} atoms", len(rows), unit="rows", enabled=first) as meter:
            for some in whitened.split(_BLOCK):
                supports.append(orthogonal_matching_pursuit(some, directions, k).support)
                missing += _missing(some, directions, supports[-1], back)
                meter.advance(len(some))
        curve = 1 - missing / spread
        reached = (curve >= unit_r2).nonzero().squeeze(1)
        if len(reached) or k == top:
            break
        k *= 2
    own_k = int(reached[0]) + 1 if len(reached) else k
    support = torch.cat(supports)[:, :own_k]
    return MatchedNull(
        k=own_k if len(reached) else None,
        unit_r2=unit_r2,
        r2=curve[own_k - 1].item() if len(reached) else curve.max().item(),
        curve=curve[:own_k].cpu(),
        certificates=_certificates(subject, index, rows, whitened, directions, support),
    )


def _orthonormal(directions: Tensor, support: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Atoms of supports (B, K), -1 for none; the same made orthonormal in their order; atoms = factor @ those."""
    inside = (support >= 0).to(directions.dtype)
    atoms = directions[support.clamp_min(0)] * inside[..., None]
    factor = torch.linalg.cholesky(atoms @ atoms.mT + torch.diag_embed(1 - inside))
    return atoms, torch.linalg.solve_triangular(factor, atoms, upper=False), factor


def _missing(rows: Tensor, directions: Tensor, support: Tensor, back: Tensor) -> Tensor:
    """Squared raw norm of what least squares on the first 1, 2, … atoms leaves of whitened rows, summed over rows."""
    _, basis, _ = _orthonormal(directions, support)
    parts = ((basis @ rows[..., None]) * basis) @ back
    return ((rows @ back)[:, None] - parts.cumsum(1)).square().sum((0, 2))


def _certificates(
    subject: Subject, index: Tensor, rows: Tensor, whitened: Tensor, directions: Tensor, support: Tensor
) -> RowCertificates:
    """Row certificates of the least-squares codes on supports (N, K)."""
    coefficients = whitened.new_zeros(support.shape)
    rebuilt = torch.empty_like(whitened)
    for start in range(0, len(rows), _BLOCK):
        some = slice(start, start + _BLOCK)
        atoms, basis, factor = _orthonormal(directions, support[some])
        along = basis @ whitened[some, :, None]
        solution = torch.linalg.solve_triangular(factor.mT, along, upper=True).squeeze(2)
        coefficients[some] = solution * (support[some] >= 0)
        rebuilt[some] = (coefficients[some, None] @ atoms).squeeze(1)
    mean = subject.train.moments.mean.to(rows.device)
    error, error_aip = relative_errors(subject, rows, subject.geometry.unwhiten(rebuilt) + mean, mean)
    margins = recovery_margins(
        directions, support.clamp_min(0), coefficients, memory_mib=subject.settings.memory_mib // 4
    )
    used = (coefficients != 0).sum(1)
    nowhere = torch.zeros(len(rows), dtype=torch.bool)
    columns = {"k": used, "used": used, "error": error, "error_aip": error_aip}
    columns |= {"fuchs": margins.fuchs, "fuchs_one_sided": margins.one_sided, "erc": margins.erc}
    columns |= {"singular": margins.singular, "smallest": margins.smallest, "cut": nowhere, "left_out": nowhere}
    return RowCertificates(
        index=index,
        **{name: column.cpu() for name, column in columns.items()},
        one_sided=False,
        headline_k=support.shape[1],
    )
