"""Pictures of several certificates side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from atoms.checks.certificate import Certificate
from atoms.checks.claim import Verdict
from atoms.checks.side_by_side import SHORT, side_by_side
from atoms.figures import ACCENT, ALERT, INK, QUIET, canvas, tint

COLOURS = {
    Verdict.GUARANTEED: ACCENT,
    Verdict.NOT_REFUTED: tint(ACCENT, 0.45),
    Verdict.NOT_GUARANTEED: tint(QUIET, 0.35),
    Verdict.UNATTAINABLE: tint(QUIET, 0.8),
    Verdict.VACUOUS: tint(ALERT, 0.45),
    Verdict.REFUTED: ALERT,
    Verdict.NOT_APPLICABLE: "#ffffff",
}
COMPARISONS = frozenset({"frontier", "claims"})
"""Names of the figures."""
_DARK = {Verdict.GUARANTEED, Verdict.REFUTED}
_LOWEST_R2 = -0.25
_GAP = 0.052  # least distance of two labels, as a share of the height


def compare(certificates: Sequence[Certificate]) -> dict[str, Figure]:
    """Draw certificates side by side.

    Args:
        certificates: Of the same rows.

    Returns:
        ``frontier``: fidelity against sparsity, and F; ``claims``: who may claim what. One that the certificates have
        nothing for is not there.
    """
    figures: dict[str, Figure] = {}
    numbers = [(certificate.unit.name, certificate.numbers()) for certificate in certificates]
    points = [
        (name, own["sparsity/k_median"], own["representability/r2"], own.get("joint/f", math.nan))
        for name, own in numbers
        if own.keys() >= {"sparsity/k_median", "representability/r2"}
    ]
    if points:
        figures["frontier"] = _frontier(points)
    if any(certificate.claims() for certificate in certificates):
        figures["claims"] = _claims(certificates)
    return figures


def _frontier(points: list[tuple[str, float, float, float]]) -> Figure:
    """R² against K, each unit named at the right of the axes, where no name can cover another."""
    figure, axes = canvas(
        "Fidelity against sparsity; size and colour: F", "atoms per row (median)", "R² on held-out rows"
    )
    k, r2, f = (np.array(column) for column in list(zip(*points, strict=True))[1:])
    shown, known = np.maximum(r2, _LOWEST_R2), np.isfinite(f)
    colours = LinearSegmentedColormap.from_list("f", [tint(QUIET, 0.4), ACCENT, INK])
    axes.set_xscale("symlog", linthresh=1)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(-0.1 if k.min() < 1 else 0.8, max(2.0, 1.6 * k.max()))
    axes.set_ylim(min(0.0, shown.min()) - 0.05, 1.05)
    axes.scatter(k[~known], shown[~known], s=30, facecolors="none", edgecolors=QUIET)
    axes.scatter(
        k[known], shown[known], s=30 + 170 * f[known], c=f[known], cmap=colours, vmin=0, vmax=1, zorder=3,
        edgecolors="white", linewidths=0.7,
    )  # fmt: skip
    bottom, top = axes.get_ylim()
    heights = spread((shown - bottom) / (top - bottom), min(_GAP, 1 / len(points)))
    for (name, *_), x, y, true, share, height in zip(points, k, shown, r2, f, heights, strict=True):
        below = f", R² {true:.2g}" if true < _LOWEST_R2 else ""
        axes.annotate(
            f"{name}{below}" + (f": F {share:.2f}" if math.isfinite(share) else ""),
            (x, y),
            (1.06, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.6, "shrinkB": 3},
            annotation_clip=False,
        )
    figure.set_size_inches(7.6, 4.4)
    return figure


def spread(places: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Move places apart that are too close, as little as a pass up and one down will do.

    Args:
        places: In [0, 1], (n,).
        gap: Least distance, at most 1/n.

    Returns:
        Places in [0, 1] in the same order, (n,).
    """
    order = np.argsort(places, kind="stable")
    moved = places[order].astype(np.float64)
    for place in range(1, len(moved)):
        moved[place] = max(moved[place], moved[place - 1] + gap)
    moved[-1] = min(moved[-1], 1.0)
    for place in range(len(moved) - 2, -1, -1):
        moved[place] = min(moved[place], moved[place + 1] - gap)
    found = np.empty_like(moved)
    found[order] = moved
    return found


def _claims(certificates: Sequence[Certificate]) -> Figure:
    """A table of verdicts in colours."""
    lines = side_by_side(certificates)
    verdicts = list(COLOURS)
    numbers = np.array(
        [[math.nan if claim is None else verdicts.index(claim.verdict) for claim in own] for own in lines.values()]
    )
    figure, axes = canvas("What may be claimed", "", "")
    figure.set_size_inches(max(6.0, 2.9 + 0.72 * len(certificates)), 1.6 + 0.24 * len(lines))
    axes.imshow(
        numbers, cmap=ListedColormap(list(COLOURS.values())), vmin=-0.5, vmax=len(verdicts) - 0.5, aspect="auto"
    )
    names = [certificate.unit.name for certificate in certificates]
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(lines)), list(lines), fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(0.5, len(names) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(lines) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    for y, own in enumerate(lines.values()):
        for x, claim in enumerate(own):
            if claim is not None:
                colour = "white" if claim.verdict in _DARK else INK
                axes.text(x, y, SHORT[claim.verdict], ha="center", va="center", fontsize=6.5, color=colour)
    used = {claim.verdict for own in lines.values() for claim in own if claim is not None}
    patches = [
        Patch(facecolor=colour, edgecolor=QUIET, linewidth=0.5, label=str(verdict))
        for verdict, colour in COLOURS.items()
        if verdict in used
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure
