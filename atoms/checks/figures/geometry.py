"""Figures of the geometry: how evenly directions are treated, angles in every metric, and what the metric can bear.

Each takes what a certificate holds, and raises `NothingToShow` where there is nothing to draw.
"""

from __future__ import annotations

import contextlib
import math

import numpy as np
from matplotlib.figure import Figure

from atoms.checks.figures.source import NothingToShow, Source, shares_of
from atoms.figures import ACCENT, ALERT, INK, QUIET, legend_below, panels

FIVE_WAYS = {
    "euclid": ("Euclid", ALERT, "-"),
    "centred": ("Euclid, centred", ALERT, "--"),
    "aip": ("AIP of the training documents", ACCENT, "-"),
    "mahalanobis": ("Mahalanobis, centred", INK, "--"),
    "random": ("the AIP's eigenvalues, random directions", QUIET, "-"),
}
"""The ways of measuring angles that are drawn, how they are called and how drawn; the certificate has more."""


def conditioning(source: Source) -> Figure:
    """Singular values beside those of a random matrix, and what the Gram matrices of supports do to errors."""
    share = source.column("conditioning", "spectrum", "share")
    labels = [("Singular values", "share of them, largest first", "over their root mean square")]
    with contextlib.suppress(NothingToShow):
        source.column("conditioning", "growth", "observed")
        labels.append(("How errors of a row grow in its coefficients", "share of rows", "at most this many times"))
    figure, axes = panels(*labels)
    for name, label, colour, style in (
        ("random", "random matrix", QUIET, "-"),
        ("rows", "rows about the centre", INK, "--"),
        ("decoder_raw", "atoms as they are", ALERT, "--"),
        ("encoder", "encoder, on white rows", ALERT, "-"),
        ("decoder", "atoms, where rows are white", ACCENT, "-"),
    ):
        with contextlib.suppress(NothingToShow):
            values = source.column("conditioning", "spectrum", name)
            kappa = source.number(
                f"conditioning/{name}_kappa" if name != "random" else "conditioning/decoder_kappa_random"
            )
            axes[0].plot(
                share, np.where(values > 0, values, np.nan), style, color=colour, label=f"{label}: κ {kappa:,.3g}"
            )
    if not axes[0].lines:
        raise NothingToShow
    axes[0].set_yscale("log")
    legend_below(axes[0])
    for right in axes[1:]:
        share = source.column("conditioning", "growth", "share")
        for name, label, colour in (
            ("bound", "bound from coherence", INK),
            ("random", "random atoms", QUIET),
            ("observed", "atoms of one row", ACCENT),
        ):
            with contextlib.suppress(NothingToShow):
                right.plot(share, source.column("conditioning", "growth", name), color=colour, label=label)
        low, high = right.dataLim.intervaly
        if high > 10 * low:
            right.set_yscale("log")
        legend_below(right, 1)
    return figure


def shift(source: Source) -> Figure:
    """Angles between rows and between atoms, five ways."""
    figure, axes = panels(
        ("Angles between held-out rows", "degrees", "share of pairs, per degree"),
        ("Angles between atoms", "degrees", ""),
    )
    shown = 0
    for each, table, prefix in zip(axes, ("row_angles", "atom_angles"), ("", "atoms_"), strict=True):
        try:
            edges = np.concatenate([[0.0], source.column("shift", table, "degrees_at_most")])
            present = source.table("shift", table)
        except NothingToShow:
            each.set_title(f"{each.get_title(loc='left')}: none", loc="left", color=ALERT, fontsize=11)
            continue
        for way, (label, colour, style) in FIVE_WAYS.items():
            if way in present:
                angle = source.number(f"shift/{prefix}{way}_angle")
                shares = shares_of(source.column("shift", table, way))
                each.stairs(shares, edges, color=colour, linestyle=style, linewidth=1.4, label=f"{label}: {angle:.1f}°")
                shown += 1
        each.axvline(90, color=INK, linewidth=0.8, linestyle=":")
        each.set_xlim(0, 180)
        each.set_xticks(range(0, 181, 30))
        legend_below(each, 1)
    if not shown:
        raise NothingToShow
    return figure


def metric(source: Source) -> Figure:
    """What depends on the ridge, and the spectrum it is added to."""
    share = source.column("metric", "strip", "ridge_share")
    figure, (left, right) = panels(
        ("What depends on the ridge", "share of the metric that is ridge", ""),
        ("Spectrum of the rows", "direction, largest first", "share"),
    )
    for name, label, colour in (("mu", "µ", ACCENT), ("q", "q* (pairs)", INK)):
        values = source.column("metric", "strip", name)
        left.plot(
            share, values, ".-", color=colour, label=f"{label}: {np.nanmin(values):.3f} to {np.nanmax(values):.3f}"
        )
    own = source.number("metric/ridge_share")
    if math.isfinite(own):
        left.axvline(own, color=ALERT, linestyle="--", label=f"as judged: {own:.2g}")
    left.set_xscale("log")
    left.set_ylim(-0.03, 1.03)
    rank = source.column("metric", "spectrum", "rank")
    for name, label, colour in (
        ("eigenvalue_share", "of the energy", ACCENT),
        ("whitened_variance", "of its variance left by the ridge", INK),
    ):
        values = source.column("metric", "spectrum", name)
        if (values > 0).any():
            right.plot(rank, np.where(values > 0, values, np.nan), color=colour, label=label)
    right.set_xscale("log")
    right.set_yscale("log")
    condition, effective = source.number("metric/condition"), source.number("metric/effective_rank")
    right.plot([], [], " ", label=f"condition {condition:.2g}, effective rank {effective:.0f}")
    legend_below(left)
    legend_below(right, 1)
    return figure
