"""Figures of single atoms: whether other seeds find them again, and what they tell of labels.

Each takes what a certificate holds, and raises `NothingToShow` where there is nothing to draw.
"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from atoms.checks.figures.source import Floats, NothingToShow, Source
from atoms.checks.stability import SHARED
from atoms.figures import ACCENT, ALERT, INK, QUIET, canvas, legend_below, panels
from atoms.information.signs import least_rajski

_CLOUDS = {
    "random": ("random directions", QUIET),
    "shuffled": ("atoms, shuffled labels", ALERT),
    "codes": ("atoms", ACCENT),
}
"""Whose distances to a label are drawn, one over the other."""
_ROUNDED = 0.01  # of distances, by what corrects entropies of samples


def stability(source: Source) -> Figure:
    """How well each atom is found again, by how often it fires."""
    rate, cosine = (source.column("stability", "atoms", name) for name in ("firing_rate", "cos"))
    chance = source.column("stability", "atoms", "random_cos")
    figure, axes = canvas("Atoms found again by other seeds", "firing rate", "|cos| with the partner")
    alive = rate > 0
    if not alive.any():
        raise NothingToShow
    size = 4 if alive.sum() > 500 else 6
    axes.plot(rate[alive], chance[alive], ".", color=QUIET, markersize=size, alpha=0.4)
    axes.plot(rate[alive], cosine[alive], ".", color=ACCENT, markersize=size, alpha=0.5)
    mean, random = source.number("stability/mean"), source.number("stability/random_mean")
    axes.plot([], [], "o", color=ACCENT, label=f"other seeds: mean {mean:.2f}")
    axes.plot([], [], "o", color=QUIET, label="random directions")
    axes.axhline(random, color=INK, linewidth=1, label=f"chance: {random:.2f}")
    axes.axhline(SHARED, color=ALERT, linewidth=1, linestyle="--", label=f"the same: {SHARED:g}")
    axes.set_xscale("log")
    axes.set_ylim(-0.03, 1.03)
    legend_below(axes, 4)
    return figure


def use(source: Source) -> Figure:
    """How well few atoms tell labels, beside as many of anything else."""
    columns = {name: np.array(values) for name, values in source.table("use", "families").items()}
    if not {"family", "features", "k", "auroc", "tasks"} <= columns.keys():
        raise NothingToShow
    known = source.column("use", "families", "auroc")
    families = list(dict.fromkeys(columns["family"]))
    figure, axes = panels(*((f"Telling: {name}", "features read (k)", "AUROC") for name in families))
    lowest = min(0.45, float(np.nanmin(known)) - 0.02)
    for each, family in zip(axes, families, strict=True):
        for features, label, colour in (
            ("codes", "atoms", ACCENT),
            ("raw", "coordinates of the row", ALERT),
            ("random", "random projections", INK),
            ("shuffled", "atoms, shuffled labels", QUIET),
        ):
            own = (columns["family"] == family) & (columns["features"] == features)
            each.plot(columns["k"][own], columns["auroc"][own], ".-", color=colour, label=label)
        own = (columns["family"] == family) & (columns["features"] == "dense")
        if own.any():
            ceiling = float(columns["auroc"][own][0])
            each.axhline(ceiling, color=INK, linestyle="--", linewidth=1, label=f"all of the row: {ceiling:.2f}")
        each.set_xscale("log")
        ticks = np.unique(columns["k"][columns["features"] == "codes"])
        each.set_xticks(ticks, [f"{k:g}" for k in ticks])
        each.minorticks_off()
        each.set_ylim(lowest, 1.01)
        legend_below(each)
    return figure


def information(source: Source) -> Figure:
    """How near each atom comes to a label, by how often it fires; and what all codes tell of it."""
    columns = source.table("information", "decoders")
    bits, told = (source.column("information", "decoders", name) for name in ("bits", "told"))
    lines = list(zip(columns["label"], columns["features"], bits.tolist(), told.tolist(), strict=True))
    known = {str(label): what for label, _, what, _ in lines}
    by = {(str(label), str(features)): value for label, features, _, value in lines}
    points: dict[str, dict[str, tuple[Floats, Floats]]] = {label: {} for label in known}
    for label in known:
        for features in _CLOUDS:
            try:
                table = f"{label} {features}"
                rate, distance = (source.column("information", table, name) for name in ("rate", "rajski"))
            except NothingToShow:
                continue
            if (fires := rate > 0).any():
                points[label][features] = rate[fires], distance[fires]
    shown = [label for label in known if points[label]]
    if not shown:
        raise NothingToShow
    figure, axes = panels(*((_bits_told(label, known[label], by), "firing rate", "Rajski distance") for label in shown))
    for each, label in zip(axes, shown, strict=True):
        for features, (rate, distance) in points[label].items():
            name, colour = _CLOUDS[features]
            each.plot(rate, distance, ".", color=colour, markersize=4, alpha=0.5)
            each.plot([], [], "o", color=colour, label=f"{name}: at least {distance.min():.3f}")
        rates, distances = (np.concatenate(parts) for parts in zip(*points[label].values(), strict=True))
        curve = np.geomspace(rates.min() / 1.5, min(1.0, 1.5 * rates.max()), 200)
        if (least_rajski(rates, known[label]) <= distances + _ROUNDED).all():  # codes of either sign may come nearer
            each.plot(curve, least_rajski(curve, known[label]), color=INK, linewidth=1, label="a function of the label")
        each.set_xscale("log")
        each.set_ylim(max(0.0, 1 - 1.6 * (1 - distances.min())) - 0.01, 1.01)
        legend_below(each)
    return figure


def _bits_told(label: str, bits: float, told: dict[tuple[str, str], float]) -> str:
    codes, random = (told.get((label, features), math.nan) for features in ("codes", "random"))
    return f"{label}: {codes:.2f} of {bits:.2f} bits told (random {random:.2f})"
