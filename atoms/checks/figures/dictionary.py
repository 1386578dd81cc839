"""Figures of the dictionary: what the theorems ask of its atoms, and how far they meet it.

Each takes what a certificate holds, and raises `NothingToShow` where there is nothing to draw.
"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from atoms.checks.figures.source import NothingToShow, Source
from atoms.figures import ACCENT, ALERT, INK, QUIET, canvas, legend_below, panels, remark
from atoms.metrics import random_cosine_density

_FLOOR = 1e-4  # of densities
_SINGULAR = 1e-12


def separability(source: Source) -> Figure:
    """|cos| of pairs beside random directions, and the Babel function."""
    upper = source.column("separability", "pairs", "upper_edge")
    edges = np.concatenate([[0.0], upper])
    figure, (left, right) = panels(
        ("|cos| between pairs of atoms", "|cos|", "density"), ("Babel function", "K", "sum of the K largest |cos|")
    )
    furthest = 0.0
    for name, label, colour in (
        ("euclid", "Euclid", ALERT),
        ("aip", "AIP", ACCENT),
        ("encoder", "encoder's metric", INK),
    ):
        if name in source.table("separability", "pairs"):
            density = source.column("separability", "pairs", name) / np.diff(edges)
            largest = source.number("separability/mu" + ("" if name == "aip" else f"_{name}"))
            left.stairs(
                np.where(density > 0, density, np.nan), edges, color=colour, label=f"{label}: max {largest:.2f}"
            )
            furthest = max(furthest, upper[density > 0].max(initial=0))
    if source.unit.width > 1:
        grid = np.linspace(1e-3, 1 - 1e-3, 500)
        density = random_cosine_density(grid, source.unit.width)
        left.plot(grid, density, color=QUIET, linestyle="--", label="random directions")
    left.set_yscale("log")
    left.set_ylim(_FLOOR, 3 / edges[1])
    left.set_xlim(0, min(1.0, max(1.15 * furthest, 5 * edges[1])))
    k, babel = source.column("separability", "babel", "k"), source.column("separability", "babel", "mu_1")
    marker = "." if len(k) < 10 else None
    for values, colour, style, label in (
        (babel, ACCENT, "-", "µ₁(K)"),
        (source.column("separability", "babel", "k_mu"), INK, "-", "Kµ"),
        (source.column("separability", "babel", "least"), QUIET, "--", "least for this H and A"),
    ):
        if (values > 0).any():
            right.plot(k, np.where(values > 0, values, np.nan), style, color=colour, label=label, marker=marker)
    right.axhline(1, color=ALERT, linewidth=0.8, linestyle=":", label="1: theorems stop")
    right.set_yscale("log")
    legend_below(left)
    legend_below(right)
    return figure


def isometry(source: Source) -> Figure:
    """Condition numbers of the supports that were looked at."""
    figure, axes = canvas("Condition numbers of supports", "atoms in the support", "κ of their Gram matrix")
    shown = singular = 0
    worst = 1.0
    bounds: dict[float, float | str] = {}
    for name, label, colour in (
        ("random", "random atoms", QUIET),
        ("unions", "atoms of two rows", ALERT),
        ("observed", "atoms of one row", ACCENT),
    ):
        try:
            k, lowest, highest = (source.column("isometry", name, part) for part in ("k", "lowest", "highest"))
        except NothingToShow:
            continue
        independent = lowest > _SINGULAR
        singular += int((~independent).sum())
        shown += len(k)
        kappa = highest[independent] / lowest[independent]
        worst = max(worst, kappa.max(initial=1))
        axes.plot(k[independent], kappa, ".", color=colour, markersize=3, alpha=0.5)
        axes.plot([], [], "o", color=colour, label=label)
        bounds |= dict.fromkeys(k.tolist(), math.nan)
        bounds |= dict(zip(k.tolist(), source.table("isometry", name).get("kappa_bound", []), strict=False))
    if not shown:
        raise NothingToShow
    known = sorted((at, float(bound)) for at, bound in bounds.items() if math.isfinite(float(bound)))
    if known:
        axes.plot(*zip(*known, strict=True), "_", color=INK, markersize=14, label="bound from coherence")
    else:
        axes.plot([], [], " ", label="coherence bounds none of them")
    # from 1 to 2 at least: orthogonal atoms differ from 1 by rounding, which is no finding
    axes.set_ylim(0.9, 1.3 * max([2.0, worst, *(bound for _, bound in known)]))
    axes.set_yscale("log")
    axes.set_xlim(min(bounds) - 1, max(bounds) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if singular:
        remark(axes, f"{singular:,} dependent")
    legend_below(axes)
    return figure


def uniqueness(source: Source) -> Figure:
    """Where coherence of a share of the atoms stops meeting the condition."""
    figure, axes = canvas("q*: how much of the dictionary meets µ < 1/(2K - 1)", "q", "µ of the q-quantile")
    q, limit = (source.column("uniqueness", "q_pairs", name) for name in ("q", "limit"))
    limit = np.where(limit > 0, limit, np.nan)  # rows without an atom ask for nothing
    if not np.isfinite(limit).any():
        raise NothingToShow
    axes.plot(q, limit, color=ALERT, label="1/(2K - 1) at the q-quantile of K", zorder=3)
    for reading, label, colour in (("pairs", "pairs", ACCENT), ("atoms", "atoms", INK), ("max", "maximum", QUIET)):
        at = source.column("uniqueness", f"q_{reading}", "q")
        mu = source.column("uniqueness", f"q_{reading}", "mu")
        star, null = (source.number(f"uniqueness/q_{reading}{which}") for which in ("", "_null"))
        positive = np.where(mu > 0, mu, np.nan)
        axes.plot(at, positive, color=colour, label=f"{label}: q* {star:.3f}, random {null:.3f}")
        for where, face in ((star, colour), (null, "none")):
            if where > 0:
                axes.plot(where, np.interp(where, q, limit), "o", color=colour, markerfacecolor=face, zorder=4)
    axes.set_yscale("log")
    axes.set_xlim(0, 1.01)
    # pairs of the smallest |cos| would take all of the height; what lies below the lowest limit by far decides nothing
    axes.set_ylim(max(axes.get_ylim()[0], np.nanmin(limit) / 30), None)
    legend_below(axes)
    return figure


def identifiability(source: Source) -> Figure:
    """Whether a threshold can tell the atoms of a row from the others."""
    q = source.column("identifiability", "windows", "q")
    figure, (left, right) = panels(
        ("Pre-activations a threshold must part", "share of rows", "quantile over rows"),
        ("Rows whose atoms one threshold finds", "threshold", "share of held-out rows"),
    )
    tau = source.column("identifiability", "thresholds", "tau")
    for name, ends, label, colour in (
        ("guaranteed", ("window_low", "window_high"), "bound", QUIET),
        ("synthetic", ("synthetic_off", "synthetic_on"), "sum of the row's atoms", ACCENT),
        ("real", ("real_off", "real_on"), "the row itself", INK),
    ):
        off, on = (source.column("identifiability", "windows", end) for end in ends)
        left.plot(q, off, "--", color=colour)
        left.plot(q, on, color=colour, label=label)
        served = source.column("identifiability", "thresholds", name)
        right.plot(tau, served, color=colour, label=f"{label}: {served.max():.3f} at most")
    left.plot([], [], "--", color=QUIET, label="largest off the support")
    left.plot([], [], color=QUIET, label="smallest on it")
    left.set_yscale("symlog", linthresh=1)
    right.set_ylim(-0.03, 1.03)
    right.set_xlim(0, None)
    legend_below(left)
    legend_below(right, 1)
    return figure
