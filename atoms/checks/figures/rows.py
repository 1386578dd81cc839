"""Figures of rows: how many are rebuilt, how well, and from how many atoms.

Each takes what a certificate holds, and raises `NothingToShow` where there is nothing to draw.
"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from atoms.checks.figures.source import NothingToShow, Source, shares_of
from atoms.figures import ACCENT, ALERT, INK, QUIET, canvas, legend_below, panels, remark, tint

_BARS = 60


def certified(source: Source) -> Figure:
    """F(η, K) over K, the headline and its controls."""
    k = source.column("rows", "f", "k")
    curves = {float(name[4:]): name for name in source.table("rows", "f") if name.startswith("eta ")}
    headline = source.number("rows/f_eta")
    figure, axes = canvas(
        "Rows rebuilt, sparse and certified at once", "K: most atoms a row may have", "F: share of held-out rows"
    )
    for place, eta in enumerate(sorted(curves)):
        own = eta == headline
        axes.plot(
            k,
            source.column("rows", "f", curves[eta]),
            color=ACCENT if own else tint(INK, 0.25 + 0.5 * place / len(curves)),
            linewidth=2.2 if own else 1.2,
            marker="." if len(k) == 1 else None,
            label=f"error at most {eta:g}",
        )
    most = source.number("rows/f_k")
    axes.axvline(most, color=QUIET, linewidth=0.8, linestyle=":", label=f"K = {most:g}")
    f, low, high = (source.number(name) for name in ("rows/f", "joint/f_low", "joint/f_high"))
    if math.isfinite(low):
        axes.errorbar(most, f, [[max(f - low, 0)], [max(high - f, 0)]], color=ACCENT, capsize=3, linewidth=1)
    axes.plot(most, f, "o", color=ACCENT, markersize=8, label=f"the unit: {f:.3f}", zorder=5)
    controls = (("joint/f_basis", "s", ALERT, "principal axes"), ("joint/f_random", "X", INK, "random directions"))
    for name, marker, colour, label in (*controls, ("joint/f_random_rows", "P", INK, "random rows")):
        if math.isfinite(value := source.number(name)):
            axes.plot(most, value, marker, color=colour, label=f"{label}: {value:.3f}", zorder=4)
    if math.isfinite(share := source.number("joint/share")):
        axes.axhline(share, color=QUIET, linewidth=0.8, linestyle="--", label=f"asked for: {share:g}")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(0, None)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    return figure


def representability(source: Source) -> Figure:
    """Errors of rows, held out beside training rows."""
    upper = source.column("representability", "row_errors", "error_at_most")
    held_out, train = (
        source.counts("representability", "row_errors", f"{name}_rows") for name in ("held_out", "train")
    )
    # the first bin holds all smaller errors, the last all larger ones: both are drawn as wide as their neighbours
    step = upper[1] / upper[0]
    edges = np.concatenate([[upper[0] / step], upper[:-1], [upper[-2] * step]])
    seen = np.flatnonzero(held_out + train)
    if not len(seen):
        raise NothingToShow
    shown = slice(seen[0], seen[-1] + 1)
    edges = edges[seen[0] : seen[-1] + 2]
    figure, axes = canvas("Errors of rows", "squared error / squared distance from the mean", "share of rows")
    r2, r2_train = source.number("representability/r2"), source.number("representability/r2_train")
    axes.stairs(shares_of(held_out)[shown], edges, fill=True, color=tint(ACCENT, 0.4), label=f"held out: R² {r2:.3f}")
    if train.sum():
        axes.stairs(shares_of(train)[shown], edges, color=INK, linewidth=1.3, label=f"training: R² {r2_train:.3f}")
    axes.set_xscale("log")
    if math.isfinite(eta := source.number("joint/eta")):
        axes.axvline(eta, color=ALERT, linestyle="--", label=f"rebuilt: at most {eta:g}")
    legend_below(axes, 3)
    return figure


def sparsity(source: Source) -> Figure:
    """Atoms per row, and how often atoms fire."""
    k = source.column("sparsity", "k_histogram", "k")
    rank = source.column("sparsity", "firing_by_rank", "rank")
    figure, (left, right) = panels(
        ("Atoms in a row", "K", "share of rows"),
        ("How often atoms fire", "atoms, most frequent first", "share of rows"),
    )
    width = max(1, math.ceil((k.max() - k.min() + 1) / _BARS))
    edges = np.arange(k.min(), k.max() + width + 1, width) - 0.5
    most, least = source.number("sparsity/max_k"), 1.0
    for name, label, fill, colour, style in (
        ("held_out", "held out", True, ACCENT, "-"),
        ("train", "training", False, INK, "--"),
    ):
        counts = np.histogram(k, edges, weights=source.counts("sparsity", "k_histogram", f"{name}_rows"))[0]
        rates = source.counts("sparsity", "firing_by_rank", f"{name}_rate")
        if counts.sum():
            own = tint(colour, 0.4) if fill else colour
            left.stairs(shares_of(counts), edges, label=label, fill=fill, color=own, linewidth=1.3)
        if (rates > 0).any():
            right.plot(rank[rates > 0], rates[rates > 0], style, color=colour, label=label, linewidth=1.3)
            least = min(least, rates[rates > 0].min())
    if math.isfinite(most):
        left.axvline(most, color=ALERT, linestyle="--", label=f"K = {most:g}")
    left.set_xlim(min(0, edges[0]), max(edges[-1], most if math.isfinite(most) else 0) * 1.05)
    right.set_xlim(1, max(2.0, 1.1 * rank.max()))
    right.set_xscale("log")
    if right.lines:
        right.set_yscale("log")
        right.set_ylim(min(least / 2, 0.1), None if least < 0.5 else 2)
    dead = source.number("sparsity/dead")
    if dead > 0:
        remark(right, f"{round(dead * source.unit.atoms):,} never fire")
    legend_below(left, 3)
    legend_below(right)
    return figure
