"""The pictures of a certificate, drawn from its tables and numbers alone, so that a saved one can be drawn again."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from atoms.checks.certificate import Certificate
from atoms.checks.stability import SHARED
from atoms.figures import ACCENT, ALERT, INK, QUIET, canvas, panels, tint
from atoms.information.signs import least_rajski
from atoms.metrics import random_cosine_density

FIVE_WAYS = {
    "euclid": ("Euclid", ALERT, "-"),
    "centred": ("Euclid, centred", ALERT, "--"),
    "aip": ("AIP of the training documents", ACCENT, "-"),
    "mahalanobis": ("Mahalanobis, centred", INK, "--"),
    "random": ("the AIP's eigenvalues, random directions", QUIET, "-"),
}
"""The ways of measuring angles that are drawn, how they are called and how drawn; the certificate has more."""
_CLOUDS = {
    "random": ("random directions", QUIET),
    "shuffled": ("atoms, shuffled labels", ALERT),
    "codes": ("atoms", ACCENT),
}
"""Whose distances to a label are drawn, one over the other."""
_BARS = 60
_FLOOR = 1e-4  # of densities
_SINGULAR = 1e-12
_ROUNDED = 0.01  # of distances, by what corrects entropies of samples

_Floats = NDArray[np.float64]


def draw(certificate: Certificate) -> dict[str, Figure]:
    """Draw all figures that a certificate has something for.

    Args:
        certificate: Fresh or loaded.

    Returns:
        Figures by name. One whose check failed, was left out or found nothing is not there.
    """
    source, figures = _Source(certificate), {}
    for name, make in FIGURES.items():
        try:
            figures[name] = make(source)
        except _NothingToShow:
            continue
    return figures


class _NothingToShow(Exception):  # noqa: N818  # no error
    """A certificate has nothing for a figure."""


class _Source:
    """Columns and numbers of a certificate."""

    def __init__(self, certificate: Certificate) -> None:
        self.unit = certificate.unit
        self._tables = {
            (section.name, name): table for section in certificate.sections for name, table in section.tables.items()
        }
        self._numbers = certificate.numbers()

    def table(self, section: str, name: str) -> dict[str, list[float] | list[str]]:
        """A table with at least one row."""
        table = self._tables.get((section, name), {})
        if not table or not all(table.values()):
            raise _NothingToShow
        return table

    def column(self, section: str, table: str, name: str) -> _Floats:
        """A column with at least one finite value."""
        values = np.array(self.table(section, table).get(name, []), np.float64)
        if not np.isfinite(values).any():
            raise _NothingToShow
        return values

    def counts(self, section: str, table: str, name: str) -> _Floats:
        """A column of counts, 0 for what was not counted."""
        values = self.table(section, table).get(name)
        if values is None:
            raise _NothingToShow
        return np.nan_to_num(np.array(values, np.float64))

    def number(self, name: str) -> float:
        """A number by ``section/name``, NaN if it does not exist."""
        return self._numbers.get(name, math.nan)


def _below(axes: Axes, columns: int = 2) -> None:
    """A legend under the axes, where it covers nothing."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, fontsize=8)


def _aside(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="right", color=ALERT, fontsize=9)


def _certified(source: _Source) -> Figure:
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


def _representability(source: _Source) -> Figure:
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
        raise _NothingToShow
    shown = slice(seen[0], seen[-1] + 1)
    edges = edges[seen[0] : seen[-1] + 2]
    figure, axes = canvas("Errors of rows", "squared error / squared distance from the mean", "share of rows")
    r2, r2_train = source.number("representability/r2"), source.number("representability/r2_train")
    axes.stairs(_shares(held_out)[shown], edges, fill=True, color=tint(ACCENT, 0.4), label=f"held out: R² {r2:.3f}")
    if train.sum():
        axes.stairs(_shares(train)[shown], edges, color=INK, linewidth=1.3, label=f"training: R² {r2_train:.3f}")
    axes.set_xscale("log")
    if math.isfinite(eta := source.number("joint/eta")):
        axes.axvline(eta, color=ALERT, linestyle="--", label=f"rebuilt: at most {eta:g}")
    _below(axes, 3)
    return figure


def _shares(counts: _Floats) -> _Floats:
    return np.asarray(counts / max(counts.sum(), 1), np.float64)


def _sparsity(source: _Source) -> Figure:
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
            left.stairs(_shares(counts), edges, label=label, fill=fill, color=own, linewidth=1.3)
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
        _aside(right, f"{round(dead * source.unit.atoms):,} never fire")
    _below(left, 3)
    _below(right)
    return figure


def _separability(source: _Source) -> Figure:
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
    _below(left)
    _below(right)
    return figure


def _isometry(source: _Source) -> Figure:
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
        except _NothingToShow:
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
        raise _NothingToShow
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
        _aside(axes, f"{singular:,} dependent")
    _below(axes)
    return figure


def _conditioning(source: _Source) -> Figure:
    """Singular values beside those of a random matrix, and what the Gram matrices of supports do to errors."""
    share = source.column("conditioning", "spectrum", "share")
    labels = [("Singular values", "share of them, largest first", "over their root mean square")]
    with contextlib.suppress(_NothingToShow):
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
        with contextlib.suppress(_NothingToShow):
            values = source.column("conditioning", "spectrum", name)
            kappa = source.number(
                f"conditioning/{name}_kappa" if name != "random" else "conditioning/decoder_kappa_random"
            )
            axes[0].plot(
                share, np.where(values > 0, values, np.nan), style, color=colour, label=f"{label}: κ {kappa:,.3g}"
            )
    if not axes[0].lines:
        raise _NothingToShow
    axes[0].set_yscale("log")
    _below(axes[0])
    for right in axes[1:]:
        share = source.column("conditioning", "growth", "share")
        for name, label, colour in (
            ("bound", "bound from coherence", INK),
            ("random", "random atoms", QUIET),
            ("observed", "atoms of one row", ACCENT),
        ):
            with contextlib.suppress(_NothingToShow):
                right.plot(share, source.column("conditioning", "growth", name), color=colour, label=label)
        low, high = right.dataLim.intervaly
        if high > 10 * low:
            right.set_yscale("log")
        _below(right, 1)
    return figure


def _uniqueness(source: _Source) -> Figure:
    """Where coherence of a share of the atoms stops meeting the condition."""
    figure, axes = canvas("q*: how much of the dictionary meets µ < 1/(2K - 1)", "q", "µ of the q-quantile")
    q, limit = (source.column("uniqueness", "q_pairs", name) for name in ("q", "limit"))
    limit = np.where(limit > 0, limit, np.nan)  # rows without an atom ask for nothing
    if not np.isfinite(limit).any():
        raise _NothingToShow
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
    _below(axes)
    return figure


def _identifiability(source: _Source) -> Figure:
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
    _below(left)
    _below(right, 1)
    return figure


def _shift(source: _Source) -> Figure:
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
        except _NothingToShow:
            each.set_title(f"{each.get_title(loc='left')}: none", loc="left", color=ALERT, fontsize=11)
            continue
        for way, (label, colour, style) in FIVE_WAYS.items():
            if way in present:
                angle = source.number(f"shift/{prefix}{way}_angle")
                shares = _shares(source.column("shift", table, way))
                each.stairs(shares, edges, color=colour, linestyle=style, linewidth=1.4, label=f"{label}: {angle:.1f}°")
                shown += 1
        each.axvline(90, color=INK, linewidth=0.8, linestyle=":")
        each.set_xlim(0, 180)
        each.set_xticks(range(0, 181, 30))
        _below(each, 1)
    if not shown:
        raise _NothingToShow
    return figure


def _metric(source: _Source) -> Figure:
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
    _below(left)
    _below(right, 1)
    return figure


def _stability(source: _Source) -> Figure:
    """How well each atom is found again, by how often it fires."""
    rate, cosine = (source.column("stability", "atoms", name) for name in ("firing_rate", "cos"))
    chance = source.column("stability", "atoms", "random_cos")
    figure, axes = canvas("Atoms found again by other seeds", "firing rate", "|cos| with the partner")
    alive = rate > 0
    if not alive.any():
        raise _NothingToShow
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
    _below(axes, 4)
    return figure


def _use(source: _Source) -> Figure:
    """How well few atoms tell labels, beside as many of anything else."""
    columns = {name: np.array(values) for name, values in source.table("use", "families").items()}
    if not {"family", "features", "k", "auroc", "tasks"} <= columns.keys():
        raise _NothingToShow
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
        _below(each)
    return figure


def _information(source: _Source) -> Figure:
    """How near each atom comes to a label, by how often it fires; and what all codes tell of it."""
    columns = source.table("information", "decoders")
    bits, told = (source.column("information", "decoders", name) for name in ("bits", "told"))
    lines = list(zip(columns["label"], columns["features"], bits.tolist(), told.tolist(), strict=True))
    known = {str(label): what for label, _, what, _ in lines}
    by = {(str(label), str(features)): value for label, features, _, value in lines}
    points: dict[str, dict[str, tuple[_Floats, _Floats]]] = {label: {} for label in known}
    for label in known:
        for features in _CLOUDS:
            try:
                table = f"{label} {features}"
                rate, distance = (source.column("information", table, name) for name in ("rate", "rajski"))
            except _NothingToShow:
                continue
            if (fires := rate > 0).any():
                points[label][features] = rate[fires], distance[fires]
    shown = [label for label in known if points[label]]
    if not shown:
        raise _NothingToShow
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
        _below(each)
    return figure


def _bits_told(label: str, bits: float, told: dict[tuple[str, str], float]) -> str:
    codes, random = (told.get((label, features), math.nan) for features in ("codes", "random"))
    return f"{label}: {codes:.2f} of {bits:.2f} bits told (random {random:.2f})"


FIGURES: dict[str, Callable[[_Source], Figure]] = {
    "certified": _certified,
    "representability": _representability,
    "sparsity": _sparsity,
    "separability": _separability,
    "isometry": _isometry,
    "conditioning": _conditioning,
    "uniqueness": _uniqueness,
    "identifiability": _identifiability,
    "stability": _stability,
    "use": _use,
    "information": _information,
    "shift": _shift,
    "metric": _metric,
}
"""What draws each figure, by name."""
