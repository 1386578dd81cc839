"""The null that decides: how sparse random directions are when they rebuild rows as well as the unit does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from atoms.checks.check import Subject
from atoms.checks.recovery_margins import recovery_margins
from atoms.checks.row_certificates import RowCertificates, relative_errors
from atoms.errors import AtomsError
from atoms.geometry.inner_product import unit_rows
from atoms.progress import Meter
from atoms.units.pursuit import orthogonal_matching_pursuit

_BLOCK = 128  # rows coded at once
_FIRST = 16  # atoms tried first; then twice as many, and so on
_KEPT = 4
_PURSUED: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}


@dataclass(frozen=True, eq=False)
class MatchedNull:
    """Random directions, as many as the unit has, coded by orthogonal matching pursuit in S.

    Attributes:
        k: Atoms per row at which they reach the unit's R²; the most that were tried, H/2, where they do not.
        reached: Whether they do.
        r2: Their R² at `k`, or the best they reached.
        f: Share of rows rebuilt to ``settings.eta`` by those `k` atoms with a two-sided Fuchs certificate.
        curve: Their R² by atoms per row, from 1 to `k`, (k,) float64.
        certificates: Their row certificates at `k`.
    """

    k: int
    reached: bool
    r2: float
    f: float
    curve: Tensor
    certificates: RowCertificates


@torch.no_grad()
def fidelity_matched_null(subject: Subject, r2: float) -> MatchedNull:
    """Raise K until random directions rebuild held-out rows as well as the unit.

    The directions are isotropic in whitened coordinates and as many as the unit has; rows are taken about the mean of
    the training rows. K stops at H/2: beyond, no code on an overcomplete dictionary can be the only one, and at H any
    directions rebuild anything. Every rank finds the same.

    Args:
        subject: The unit under judgement; ``settings.null_rows`` of its held-out rows are coded.
        r2: The unit's R² on held-out rows, raw, centred and pooled over rows and coordinates.

    Raises:
        AtomsError: If the site has less than two dimensions or the unit no atom.
    """
    top, k = min(subject.width // 2, subject.num_atoms), _FIRST
    if top < 1:
        raise AtomsError(
            f"unit {subject.unit.name} has {subject.num_atoms} atoms in {subject.width} dimensions: no null is matched "
            "below one atom or two dimensions"
        )
    settings, geometry, site = subject.settings, subject.geometry, subject.held_out.site
    sample = subject.held_out.sample(settings.null_rows, limit=settings.rows)
    rows = sample[site].to(subject.device)
    generator = torch.Generator().manual_seed(settings.seed)
    drawn = torch.randn(subject.num_atoms, subject.width, generator=generator, dtype=torch.float64)
    directions = unit_rows(drawn).to(subject.device)
    exact = rows.double()
    spread = (exact - exact.mean(0)).square().sum()
    whitened = geometry.whiten(exact - subject.train.moments.mean.to(subject.device))
    back = geometry.unmap().to(subject.device)

    # The same for every unit of as many atoms, and dear: what was pursued for one serves the next.
    drawn_for = len(directions), settings.null_rows, settings.rows, settings.seed
    key = (geometry.digest, subject.held_out.data.store.identity_hash, *drawn_for)
    while True:
        k = min(k, top)
        if key not in _PURSUED or len(_PURSUED[key][1]) < k:
            while len(_PURSUED) >= _KEPT:
                _PURSUED.pop(next(iter(_PURSUED)))
            _PURSUED[key] = _pursue(whitened, directions, k, back)
        supports, missing = _PURSUED[key]
        curve = 1 - missing / spread
        enough = (curve >= r2).nonzero().squeeze(1)
        if len(enough) or len(curve) == top:
            break
        k = 2 * len(curve)
    k = int(enough[0]) + 1 if len(enough) else top
    found = _certificates(subject, sample[""], rows, whitened, directions, supports[:, :k])
    best = curve[k - 1] if len(enough) else curve.max()
    return MatchedNull(k, bool(len(enough)), best.item(), found.F(settings.eta, k), curve[:k].cpu(), found)


def _pursue(whitened: Tensor, directions: Tensor, k: int, back: Tensor) -> tuple[Tensor, Tensor]:
    """Supports of k atoms, (N, k), and the squared raw norm of what their first 1, 2, … leave, summed over rows."""
    first = not (dist.is_available() and dist.is_initialized() and dist.get_rank())
    supports, missing = [], back.new_zeros(k)
    with Meter(f"matched null, {k} atoms", len(whitened), unit="rows", enabled=first) as meter:
        for some in torch.split(whitened, _BLOCK):
            supports.append(orthogonal_matching_pursuit(some, directions, k).support)
            missing += _missing(some, directions, supports[-1], back)
            meter.advance(len(some))
    return torch.cat(supports), missing


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
        max_k=support.shape[1],
    )
