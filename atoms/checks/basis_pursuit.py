"""The code of least l1 norm that gives a row, exactly or within a radius, and a bound on how far from least it is."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

_SPREAD = 1e-10
"""Atoms cost between 1 and 1 + 1e-10, so that no two ever enter at once; the gap counts what that costs."""
_SPANNED = 1e-11
"""Share of a row outside the span of a support that is taken for rounding."""
_DRIFT = 1e-9
"""Error of the running inverse at which it is worked out afresh."""


@dataclass(frozen=True, eq=False)
class Pursued:
    """Codes of B rows, each with its own proof of how good it is.

    Attributes:
        codes: (B, A) float64; zero off the support.
        primal: ``‖a‖₁``, (B,) float64.
        dual: ``⟨y, u⟩ - r ‖u‖`` of a dual vector u that is feasible, (B,): no code within the radius has a smaller
            l1 norm than this.
        residual: ``‖y - a D‖``, (B,): what the code leaves.
        feasible: Whether that is within the radius, to 1e-9 of ``‖y‖``, (B,) bool. Where it is not, no code is, or the
            solver gave up.
        steps: Steps taken, (B,) int64.
    """

    codes: Tensor
    primal: Tensor
    dual: Tensor
    residual: Tensor
    feasible: Tensor
    steps: Tensor

    @property
    def gap(self) -> Tensor:
        """``primal - dual`` as a share of the primal value, (B,): zero for a solution."""
        return (self.primal - self.dual) / torch.where(self.primal > 0, self.primal, 1.0)


@dataclass
class _Path:
    """Where some rows are on their way: one line of everything per row.

    Attributes:
        row: Which row.
        target: y, (B, H).
        radius: r, (B,).
        level: λ, which falls from ``max |d_j · y|`` towards zero, (B,).
        support: Atoms in the code, packed first, (B, C).
        signs: Their signs, 0 beyond the support, (B, C).
        coefficients: Theirs, (B, C).
        inverse: Inverse of their Gram matrix, zeros beyond the support, (B, C, C).
        size: Atoms in the code, (B,).
        entered: Whether the last of them has only just entered, (B,) bool.
        steps: Steps taken, (B,).
    """

    row: Tensor
    target: Tensor
    radius: Tensor
    level: Tensor
    support: Tensor
    signs: Tensor
    coefficients: Tensor
    inverse: Tensor
    size: Tensor
    entered: Tensor
    steps: Tensor

    def keep(self, chosen: Tensor) -> _Path:
        """Only some of the rows."""
        return _Path(**{part.name: getattr(self, part.name)[chosen] for part in fields(self)})


@torch.no_grad()
def basis_pursuit(
    rows: Tensor,
    directions: Tensor,
    radius: Tensor | None = None,
    *,
    non_negative: bool = False,
    max_steps: int | None = None,
) -> Pursued:
    """Solve ``min ‖a‖₁`` subject to ``‖y - a D‖ ≤ r`` for each row y.

    Follows the solutions of ``min ½‖y - a D‖² + λ‖a‖₁`` from large λ, where they are zero, down to the λ at which the
    residual meets the radius, or to zero for basis pursuit. They are piecewise linear in λ; at each step one atom
    enters or leaves. The dual vector ``(y - a D) / λ``, shrunk until it is feasible, bounds the optimum from below, so
    that the answer need not be believed: its gap says how good it is.

    Source: Osborne, Presnell and Turlach, A new approach to variable selection in least squares problems (2000);
    Efron et al., Least angle regression (2004).

    Args:
        rows: y, (B, H) float64, in the coordinates in which `directions` have unit length.
        directions: D, (A, H) float64 unit rows; rows of zeros are never used.
        radius: r, (B,) float64, at least 0; None for basis pursuit, that is zero.
        non_negative: Allow no negative coefficient.
        max_steps: Steps after which a row is given up, with the gap it has; ``20 · min(A, H) + 50`` by default.

    Returns:
        One code per row, in the order given.
    """
    count, (num_atoms, width) = len(rows), directions.shape
    radius = rows.new_zeros(count) if radius is None else radius
    generator = torch.Generator().manual_seed(0)
    costs = 1 + _SPREAD * torch.rand(num_atoms, generator=generator, dtype=torch.float64).to(rows.device)
    correlations = _signed(rows @ directions.T, non_negative) / costs
    level, first = correlations.max(1) if num_atoms else (rows.new_zeros(count), None)

    codes = rows.new_zeros(count, num_atoms)
    duals = rows.new_zeros(count, width)
    steps = torch.zeros(count, dtype=torch.int64, device=rows.device)
    moving = (level > 0) & (rows.norm(dim=1) > radius)
    if first is not None and moving.any():
        path = _start(rows, radius, level, first, directions, moving)
        limit = 20 * min(num_atoms, width) + 50 if max_steps is None else max_steps
        while len(path.row):
            done, dual = _step(path, directions, costs, non_negative, limit)
            if done.any():
                over = path.keep(done)
                codes[over.row] = _dense(over, num_atoms)
                duals[over.row], steps[over.row] = dual[done], over.steps
                path = path.keep(~done)
    return _judged(rows, directions, radius, codes, duals, steps, non_negative)


def _signed(correlations: Tensor, non_negative: bool) -> Tensor:
    return correlations if non_negative else correlations.abs()


def _dense(path: _Path, num_atoms: int) -> Tensor:
    codes = path.target.new_zeros(len(path.row), num_atoms)
    return codes.scatter_add_(1, path.support, path.coefficients)  # beyond the support coefficients are zero


def _start(rows: Tensor, radius: Tensor, level: Tensor, first: Tensor, directions: Tensor, moving: Tensor) -> _Path:
    """Rows with their first atom, whose coefficient is still zero."""
    row = moving.nonzero().squeeze(1)
    room = min(16, len(directions), directions.shape[1])
    path = _Path(
        row=row,
        target=rows[row],
        radius=radius[row],
        level=level[row],
        support=torch.zeros(len(row), room, dtype=torch.int64, device=rows.device),
        signs=rows.new_zeros(len(row), room),
        coefficients=rows.new_zeros(len(row), room),
        inverse=rows.new_zeros(len(row), room, room),
        size=torch.zeros_like(row),
        entered=torch.zeros_like(row, dtype=torch.bool),
        steps=torch.zeros_like(row),
    )
    everyone = torch.arange(len(row), device=rows.device)
    sign = (path.target * directions[first[row]]).sum(1).sign()
    _enter(path, everyone, first[row], sign, directions)
    return path


def _step(path: _Path, directions: Tensor, costs: Tensor, non_negative: bool, limit: int) -> tuple[Tensor, Tensor]:
    """Move every row to where its support changes next. Return which have arrived, and their dual vectors."""
    here = torch.arange(len(path.row), device=path.row.device)
    weights = path.signs * costs[path.support]
    moves = _moves(path, weights)
    towards = _combined(path, moves, directions)
    rates = towards @ directions.T
    drift = (rates.gather(1, path.support) - weights).abs().where(path.signs != 0, 0.0).amax(1)
    stale = (drift > _DRIFT).nonzero().squeeze(1)
    if len(stale):
        _refresh(path, stale, directions)
        moves[stale] = _moves(path, weights)[stale]
        towards[stale] = _combined(path, moves, directions)[stale]
        rates[stale] = towards[stale] @ directions.T

    residual = path.target - _combined(path, path.coefficients, directions)
    correlations = residual @ directions.T
    # What rounding has added to the coefficients shows in the correlations of the support, which are known.
    astray = (correlations.gather(1, path.support) - path.level[:, None] * weights).where(path.signs != 0, 0.0)
    path.coefficients += (path.inverse @ astray[..., None]).squeeze(2)
    residual = path.target - _combined(path, path.coefficients, directions)
    correlations = residual @ directions.T

    enters, candidate, sign = _next_to_enter(path, correlations, rates, costs, non_negative)
    # Once the support spans the row, residual and direction are one, and what remains is worth its cost nowhere.
    spanned = (residual - path.level[:, None] * towards).norm(dim=1) <= _SPANNED * path.target.norm(dim=1)
    enters = enters.masked_fill(spanned, torch.inf)
    leaves, leaver = _next_to_leave(path, moves)
    arrives = _arrival(path, residual, towards)

    # Coefficients that a spanned row does not need reach zero where the level does; rounding may put that before it.
    near = path.level - leaves <= 1e-7 * path.level + 1e-11 * path.target.norm(dim=1)
    leaves = leaves.masked_fill(spanned & near, torch.inf)
    step = torch.minimum(torch.minimum(enters, leaves), arrives)
    arrived = arrives <= step
    path.coefficients += step[:, None] * moves
    path.level = path.level - step
    path.steps += 1
    arrived |= path.steps >= limit
    # At level zero the residual says nothing any more, but the direction it went does.
    dual = (residual - step[:, None] * towards) / torch.where(path.level > 0, path.level, 1.0)[:, None]
    dual = torch.where(path.level[:, None] > 0, dual, towards)

    leaving, entering = ~arrived & (leaves <= enters), ~arrived & (enters < leaves)
    path.entered = torch.zeros_like(path.entered)
    if leaving.any():
        _leave(path, here[leaving], leaver[leaving])
    if entering.any():
        _enter(path, here[entering], candidate[entering], sign[entering], directions)
    return arrived, dual


def _moves(path: _Path, weights: Tensor) -> Tensor:
    """How fast the coefficients change as the level falls, (B, C)."""
    return (path.inverse @ weights[..., None]).squeeze(2)


def _combined(path: _Path, coefficients: Tensor, directions: Tensor) -> Tensor:
    """Atoms of the support times coefficients, (B, H)."""
    dense = coefficients.new_zeros(len(coefficients), len(directions)).scatter_add_(1, path.support, coefficients)
    return dense @ directions


def _next_to_enter(
    path: _Path, correlations: Tensor, rates: Tensor, costs: Tensor, non_negative: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """How far the level falls until an atom off the support is worth its cost; that atom, and its sign."""
    level = path.level[:, None]

    def fall(sign: int) -> Tensor:
        slack, closing = level * costs - sign * correlations, costs - sign * rates
        away = torch.where(closing > 1e-12, slack.clamp_min(0) / closing, torch.inf)
        # Those of the support are always worth just that; what padding repeats is masked apart.
        on = torch.where(path.signs != 0, path.support, path.support[:, :1])
        return away.scatter_(1, on, torch.inf)

    positive, up = fall(1).min(1)
    if non_negative:
        return positive, up, torch.ones_like(positive)
    negative, down = fall(-1).min(1)
    first = positive <= negative
    return torch.minimum(positive, negative), torch.where(first, up, down), torch.where(first, 1.0, -1.0).to(level)


def _next_to_leave(path: _Path, moves: Tensor) -> tuple[Tensor, Tensor]:
    """How far the level falls until a coefficient of the support reaches zero, and its place."""
    shrinking = (path.signs * moves < 0) & (path.signs != 0)
    away = torch.where(shrinking, (-path.coefficients / moves).clamp_min(0), torch.inf)
    # The one that has just entered grows from zero, whatever rounding says.
    last = torch.where(path.entered, path.size - 1, 0)[:, None]
    away = away.scatter(1, last, torch.where(path.entered[:, None], torch.inf, away.gather(1, last)))
    step, place = away.min(1)
    return step, place


def _arrival(path: _Path, residual: Tensor, towards: Tensor) -> Tensor:
    """How far the level falls until the residual meets the radius, at most to zero."""
    a = towards.square().sum(1)
    b = (residual * towards).sum(1)
    c = residual.square().sum(1) - path.radius.square()
    root = (b.square() - a * c).clamp_min(0).sqrt()
    # The smaller root without cancellation; complex roots mean that the radius is not met on this piece.
    meets = torch.where(b.square() >= a * c, c.clamp_min(0) / (b + root), torch.inf)
    meets = torch.where(path.radius > 0, meets, torch.inf)
    return torch.minimum(meets, path.level)


def _enter(path: _Path, where: Tensor, atoms: Tensor, signs: Tensor, directions: Tensor) -> None:
    """Put an atom into the support of some rows; the inverse grows by its border."""
    size = path.size[where]
    if int(size.max()) == path.support.shape[1]:
        _make_room(path, min(2 * path.support.shape[1], max(directions.shape)))
    inside = (path.signs[where] != 0).to(directions.dtype)
    products = directions.new_zeros(path.signs.shape)
    products[where] = (directions[atoms] @ directions.T).gather(1, path.support[where]) * inside
    along = (path.inverse @ products[..., None]).squeeze(2)
    height = directions[atoms].square().sum(1) - (products[where] * along[where]).sum(1)
    border = -along
    border[where, size] = 1.0
    scale = directions.new_zeros(len(border))
    scale[where] = 1 / height.clamp_min(1e-14)
    path.inverse.baddbmm_(border[:, :, None], (scale[:, None] * border)[:, None, :])
    path.support[where, size], path.signs[where, size] = atoms, signs
    path.coefficients[where, size] = 0.0
    path.size[where] += 1
    path.entered[where] = True


def _leave(path: _Path, where: Tensor, place: Tensor) -> None:
    """Take an atom out of the support of some rows; the last of the support takes its place."""
    column = path.inverse.new_zeros(path.signs.shape)
    column[where] = path.inverse[where, :, place]
    scale = column.new_zeros(len(column))
    scale[where] = 1 / column[where, place]
    path.inverse.baddbmm_(column[:, :, None], (scale[:, None] * column)[:, None, :], alpha=-1)
    last = path.size[where] - 1
    path.inverse[where, place] = path.inverse[where, last]
    path.inverse[where, :, place] = path.inverse[where, :, last]
    path.inverse[where, last] = 0.0
    path.inverse[where, :, last] = 0.0
    for part in (path.support, path.signs, path.coefficients):
        part[where, place] = part[where, last]
        part[where, last] = 0
    path.size[where] -= 1


def _refresh(path: _Path, where: Tensor, directions: Tensor) -> None:
    """Work the inverse out afresh for some rows."""
    inside = (path.signs[where] != 0).to(directions.dtype)
    atoms = directions[path.support[where]] * inside[..., None]
    factor, failed = torch.linalg.cholesky_ex(atoms @ atoms.mT + torch.diag_embed(1 - inside))
    sound = failed == 0
    fresh = torch.cholesky_inverse(factor[sound]) * inside[sound][:, None] * inside[sound][..., None]
    path.inverse[where[sound]] = fresh


def _make_room(path: _Path, room: int) -> None:
    """Let supports grow to ``room`` atoms."""
    more = room - path.support.shape[1]
    for name in ("support", "signs", "coefficients"):
        setattr(path, name, torch.nn.functional.pad(getattr(path, name), (0, more)))
    path.inverse = torch.nn.functional.pad(path.inverse, (0, more, 0, more))


def _judged(
    rows: Tensor,
    directions: Tensor,
    radius: Tensor,
    codes: Tensor,
    duals: Tensor,
    steps: Tensor,
    non_negative: bool,
) -> Pursued:
    """Measure what was found by itself, whatever led there."""
    if non_negative:
        codes = codes.clamp_min(0)
    residual = (rows - codes @ directions).norm(dim=1)
    worth = _signed(duals @ directions.T, non_negative)
    duals = duals / worth.amax(1).clamp_min(1.0)[:, None] if len(directions) else duals
    dual = (rows * duals).sum(1) - radius * duals.norm(dim=1)
    feasible = residual <= radius + 1e-9 * rows.norm(dim=1)
    # Zero is always a lower bound.
    return Pursued(codes, codes.abs().sum(1), dual.clamp_min(0), residual, feasible, steps)
