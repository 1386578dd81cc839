"""The controls that decide: what random directions earn of the joint claim when a pursuit codes rows by them.

No trained encoder is asked to be as good as a pursuit that looks at every atom on every row, so these are strong
controls. Each row is coded by as few atoms as bring it within η, and the claim's own certificate is asked of that code,
one-sided and by coefficients that are not negative where the unit's are not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from atoms.checks.check import Subject
from atoms.checks.recovery_margins import CERTIFIED, recovery_margins
from atoms.checks.row_certificates import RowCertificates
from atoms.errors import AtomsError
from atoms.geometry.inner_product import unit_rows
from atoms.progress import Meter
from atoms.units.pursuit import nonnegative_least_squares, orthogonal_matching_pursuit

ISOTROPIC, LIKE_ROWS = "random directions", "random rows"
_FIRST = 16  # atoms tried first; then twice as many, and so on
_KEPT = 8
_SUPPORTS: dict[tuple[object, ...], Tensor] = {}


@dataclass(frozen=True)
class RandomControl:
    """What one random dictionary, of as many atoms as the unit, earns.

    Attributes:
        f: Share of rows within η by at most K atoms in a code with the certificate that counts. K is the unit's, or
            for coefficients of either sign `k` where that is more.
        k: Fewest of `steps` at which it has the unit's R² on these rows; None where it never has.
        r2: Its R² there, or the best.
        rows: Rows it was judged on.
        steps: Numbers of atoms per row that were tried.
        curve: Its R² at each.
    """

    f: float
    k: int | None
    r2: float
    rows: int
    steps: tuple[int, ...]
    curve: tuple[float, ...]


@torch.no_grad()
def random_controls(subject: Subject, rows: RowCertificates) -> dict[str, RandomControl]:
    """Judge two random dictionaries by the predicate the unit is judged by.

    ``random directions`` are isotropic where S is Euclid's, pursued in S, and given as many atoms per row as it takes
    to reach the unit's R² on the same rows, up to H/2 and `CheckSettings.certified_k`: beyond, nothing is certified.
    ``random rows`` are drawn from the Gaussian of the training rows' covariance and pursued in raw space: where a few
    directions hold most of the variance, they are what a dictionary of data points is.

    Args:
        subject: The unit under judgement; ``settings.null_rows`` of its held-out rows are coded.
        rows: Its row certificates: K and which certificate counts.

    Returns:
        The controls by name; the same on every rank.

    Raises:
        AtomsError: If the site has less than two dimensions or the unit no atom.
    """
    settings, geometry, device = subject.settings, subject.geometry, subject.device
    top = min(subject.width // 2, subject.num_atoms, max(settings.certified_k, rows.max_k))
    if top < 1:
        raise AtomsError(
            f"unit {subject.unit.name} has {subject.num_atoms} atoms in {subject.width} dimensions: no control can be "
            "made below one atom or two dimensions"
        )
    reads = subject.unit.reads or subject.held_out.site
    sample = subject.held_out.sample(settings.null_rows, [reads], limit=settings.rows)
    exact = sample[subject.held_out.site].to(device)
    target = _r2(exact, _rebuilt(subject, sample[reads].to(device)))
    moments = subject.train.moments
    scale = geometry.unit
    centred = (exact.double() - moments.mean.to(device)) / scale
    generator = torch.Generator().manual_seed(settings.seed)
    shape = subject.num_atoms, subject.width
    isotropic = torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
    values, vectors = torch.linalg.eigh(moments.covariance.cpu())
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    like_rows = torch.randn(shape, generator=generator, dtype=torch.float64) @ root

    to_white, to_raw = (matrix.to(device) for matrix in (geometry.map(unitless=True), geometry.unmap(unitless=True)))
    eye = torch.eye(subject.width, dtype=torch.float64, device=device)
    spaces = {
        ISOTROPIC: (centred @ to_white, unit_rows(isotropic), to_raw, eye),
        LIKE_ROWS: (centred, unit_rows(like_rows.to(device)), eye, to_white),
    }
    found = {}
    for name, space in spaces.items():
        # Coefficients of either sign rebuild more, those without negative ones are certified more often: the better.
        tried = [
            _control(subject, rows, sample[""], exact, top, target, name, *space, nonnegative=nonnegative)
            for nonnegative in ((False, True) if rows.one_sided else (False,))
        ]
        found[name] = replace(tried[0], f=max(control.f for control in tried))
    return found


def _control(
    subject: Subject,
    rows: RowCertificates,
    index: Tensor,
    exact: Tensor,
    top: int,
    target: float,
    name: str,
    coordinates: Tensor,
    directions: Tensor,
    to_raw: Tensor,
    to_white: Tensor,
    *,
    nonnegative: bool,
) -> RandomControl:
    """Pursue rows in the coordinates of one metric; `to_raw` and `to_white` lead on from there.

    With more atoms than the unit's K only isotropic directions are tried, and coefficients of either sign.
    """
    settings = subject.settings
    energy = (coordinates @ to_raw).square().sum(1)
    spread = (exact.double() - exact.double().mean(0)).square().sum() / subject.geometry.unit**2
    least = min(rows.max_k, top)
    k = least if nonnegative or name == LIKE_ROWS else max(min(_FIRST, top), least)
    while True:
        supports = _pursued(subject, index, name, coordinates, directions, k, nonnegative)
        steps = _steps(k, least)
        curve, needed = [], torch.full((len(exact),), top + 1, device=exact.device)
        codes = torch.zeros(len(exact), k, dtype=torch.float64, device=exact.device)
        for step in reversed(steps):
            coefficients, left = _solve(subject, coordinates, directions, supports[:, :step], to_raw, nonnegative)
            curve.append(float(1 - left.sum() / spread))
            near = left <= settings.eta * energy
            needed[near] = step
            codes[near] = torch.nn.functional.pad(coefficients[near], (0, k - step))
        curve.reverse()
        reached = [step for step, r2 in zip(steps, curve, strict=True) if r2 >= target]
        if reached or k == top or nonnegative or name == LIKE_ROWS:
            break
        k = min(2 * k, top)
    limit = least if nonnegative else max(reached[0] if reached else 0, least)
    margins = recovery_margins(
        unit_rows(directions @ to_white), supports.clamp_min(0), codes, memory_mib=settings.memory_mib // 4
    )
    margin = margins.one_sided if nonnegative else margins.fuchs
    earned = (needed <= limit) & (margin < CERTIFIED) & codes.any(1)
    r2 = curve[steps.index(reached[0])] if reached else max(curve)
    return RandomControl(
        f=float(earned.double().mean()),
        k=reached[0] if reached else None,
        r2=r2,
        rows=len(exact),
        steps=tuple(steps),
        curve=tuple(curve),
    )


def _pursued(
    subject: Subject, index: Tensor, name: str, coordinates: Tensor, directions: Tensor, k: int, nonnegative: bool
) -> Tensor:
    """Supports of k atoms, (N, k). The same for every unit of as many atoms, and dear: one unit's serve the next."""
    rows = hashlib.sha256(index.numpy().tobytes()).hexdigest()
    store = subject.held_out.data.store.identity_hash
    drawn = name, len(directions), nonnegative, subject.settings.seed
    key = (subject.geometry.digest, store, rows, str(coordinates.device), *drawn)
    if key not in _SUPPORTS or _SUPPORTS[key].shape[1] < k:
        while len(_SUPPORTS) >= _KEPT:
            _SUPPORTS.pop(next(iter(_SUPPORTS)))
        first = not (dist.is_available() and dist.is_initialized() and dist.get_rank())
        parts = []
        with Meter(f"{name}, {k} atoms a row", len(coordinates), unit="rows", enabled=first) as meter:
            for some in torch.split(coordinates, 128):
                parts.append(orthogonal_matching_pursuit(some, directions, k, nonnegative=nonnegative).support)
                meter.advance(len(some))
        _SUPPORTS[key] = torch.cat(parts)
    return _SUPPORTS[key][:, :k]


def _solve(
    subject: Subject, coordinates: Tensor, directions: Tensor, support: Tensor, to_raw: Tensor, nonnegative: bool
) -> tuple[Tensor, Tensor]:
    """Least squares on supports (N, K), -1 for none: coefficients (N, K) and the raw energy that is left, (N,)."""
    coefficients = coordinates.new_zeros(support.shape)
    left = coordinates.new_zeros(len(coordinates))
    entry = 4 * 8 * support.shape[1] * (directions.shape[1] + support.shape[1])
    block = max(1, subject.settings.memory_mib * 2**20 // 4 // entry)
    for start in range(0, len(coordinates), block):
        some = slice(start, start + block)
        inside = (support[some] >= 0).double()
        atoms = directions[support[some].clamp_min(0)] * inside[..., None]
        gram, along = atoms @ atoms.mT, (atoms @ coordinates[some, :, None]).squeeze(2)
        factor = torch.linalg.cholesky(gram + torch.diag_embed(1 - inside))
        solved = torch.cholesky_solve(along[..., None], factor).squeeze(2)
        negative = (solved < 0).any(1) if nonnegative else torch.zeros(len(solved), dtype=torch.bool)
        if negative.any():
            solved[negative] = nonnegative_least_squares(gram[negative], along[negative])
        coefficients[some] = solved * inside
        missing = coordinates[some] - (solved[:, None] @ atoms).squeeze(1)
        left[some] = (missing @ to_raw).square().sum(1)
    return coefficients, left


def _steps(k: int, least: int) -> list[int]:
    """Numbers of atoms to try up to k: 1, 2, 3, 4, 6, 8, 12, 16, 24, … and `least`."""
    steps = {1, least, k}
    power = 2
    while power <= k:
        steps |= {power, power * 3 // 2}
        power *= 2
    return sorted(step for step in steps if 1 <= step <= k)


def _rebuilt(subject: Subject, rows: Tensor) -> Tensor:
    unit = subject.unit
    return torch.cat([unit.decode(unit.encode(some)) for some in torch.split(rows, subject.settings.batch_rows)])


def _r2(exact: Tensor, rebuilt: Tensor) -> float:
    rows = exact.double()
    return 1 - float((rows - rebuilt.double()).square().sum() / (rows - rows.mean(0)).square().sum())
