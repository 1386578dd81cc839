"""Pictures of a survey: condition numbers and the rest of the spectrum by layer, a line a role, and a map of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from atoms.conditioning import record
from atoms.conditioning.record import Row
from atoms.conditioning.shape_null import shape_null
from atoms.conditioning.survey import Condition
from atoms.figures import QUIET, panels

FIGURES = ("kappa", "spectrum", "map")
"""Names of all that may be drawn."""
_MARKERS = "osD^vP"
_NAMED = 20  # names in a column of the legend and along an axis
_APART = 0.05  # shapes closer than this share of the picture's height would cover each other
_LONGEST = 34  # what is shown of a name


class _Panel(NamedTuple):
    """A measure to show, with what Gaussian matrices of the same shape have of it."""

    title: str
    measure: Callable[[Condition], float]
    null: Callable[[Condition], float]
    log: bool
    spread: bool = False  # whether to show where condition numbers of Gaussian matrices lie


_KAPPA = (
    _Panel("Condition number κ", record.kappa, lambda each: each.kappa_null, True, True),
    _Panel("κ over the median of Gaussian matrices", record.relative, lambda _: 1.0, True),
)
_SPECTRUM = (
    _Panel("Effective rank, share of all dimensions", record.rank_share, record.rank_share_null, False),
    _Panel("Entropy loss a singular value, nats", record.loss, record.loss_null, True),
)


def draw(conditions: Sequence[Condition]) -> dict[str, Figure]:
    """Figures by name; the spectrum only where one is known, the map only of what has layers.

    Args:
        conditions: What `survey` returned.
    """
    rows = record.rows_of(conditions)
    inside = [row for row in rows if row.layer is not None]
    found = {"kappa": _lines(rows, _KAPPA)}
    if any(each.exact for each in conditions):
        found["spectrum"] = _lines(rows, _SPECTRUM)
    if inside:
        found["map"] = _map(inside)
    return found


def _lines(rows: Sequence[Row], shown: Sequence[_Panel]) -> Figure:
    """Panels side by side, with one legend at their right where there are layers, else names along the axes."""
    layers = sorted({row.layer for row in rows if row.layer is not None})
    beyond = layers[-1] + 1 + len(layers) // 10 if layers else 0
    places = {id(row): beyond + (0 if layers else n) if row.layer is None else row.layer for n, row in enumerate(rows)}
    inside = sorted(rows, key=lambda row: row.layer is None)
    roles = record.by_role(inside) if layers else {"matrices": list(rows)}
    along = "layer" if layers else "grey: Gaussian matrices of the shape"
    figure, axes = panels(*((panel.title, along, "") for panel in shown))
    columns = -(-(len(roles) + 2) // _NAMED) if layers else 0
    figure.set_size_inches(9.6 + 2.6 * columns, 4.2 if layers else 5.4)
    for each, panel in zip(axes, shown, strict=True):
        if panel.log:
            each.set_yscale("log")
        for number, (label, own) in enumerate(roles.items()):
            style = {"color": colormaps["tab10"](number % 10), "marker": _MARKERS[number // 10 % len(_MARKERS)]}
            _line(each, panel, [places[id(row)] for row in own], own, _name(label), style)
        if layers:
            _nulls(each, panel, rows)
            outside = any(row.layer is None for row in rows)
            _layer_ticks(each, layers, [beyond] if outside else [])
        else:
            _own_nulls(each, panel, rows)
            each.set_xticks(range(len(rows))[:: 1 + len(rows) // (2 * _NAMED)])
            each.set_xticklabels([_name(rows[n].label) for n in map(int, each.get_xticks())], rotation=90, fontsize=7)
    if layers:
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8, ncols=columns
        )
    return figure


def _line(axes: Axes, panel: _Panel, x: Sequence[int], rows: Sequence[Row], label: str, style: dict[str, Any]) -> None:
    """One role: means, with the range of experts; hollow where there is only a bound, at the top where infinite."""
    across = np.array(x)
    means = np.array([row.mean(panel.measure) for row in rows])
    exact = np.array([row.exact for row in rows])
    joined = "-" if all(row.layer is not None for row in rows) else "none"
    axes.plot(
        across, np.where(np.isfinite(means), means, np.nan), linestyle=joined, linewidth=1.2, color=style["color"]
    )
    for shown, face in ((exact, style["color"]), (~exact, "white")):
        shown &= np.isfinite(means)
        axes.plot(across[shown], means[shown], linestyle="none", markersize=4.5, markerfacecolor=face, **style)
    singular = across[np.isinf(means)]
    top = np.full(len(singular), 0.97)
    inside = {"transform": axes.get_xaxis_transform(), "color": style["color"]}
    axes.plot(singular, top, linestyle="none", marker="$\\infty$", markersize=9, **inside)
    ends = np.array([[of(map(panel.measure, row.matrices)) for of in (min, max)] for row in rows])
    if np.isfinite(ends).all() and bool((ends[:, 0] < ends[:, 1]).any()):
        axes.fill_between(across, ends[:, 0], ends[:, 1], color=style["color"], alpha=0.15, linewidth=0)
    axes.plot([], [], linestyle=joined, markersize=4.5, label=label, **style)


def _nulls(axes: Axes, panel: _Panel, rows: Sequence[Row]) -> None:
    """What Gaussian matrices have: a dashed line a shape, named at the right where there is room."""
    shapes = {panel.null(row.first): "x".join(map(str, sorted((row.first.rows, row.first.columns)))) for row in rows}
    for value in shapes:
        axes.axhline(value, color=QUIET, linestyle="--", linewidth=0.9, zorder=0)
    axes.plot([], [], color=QUIET, linestyle="--", linewidth=0.9, label="Gaussian matrices of a shape")
    if panel.spread:
        for low, high in {_spread(row) for row in rows}:
            axes.axhspan(low, high, color=QUIET, alpha=0.15, linewidth=0, zorder=0)
        axes.fill_between([], [], [], color=QUIET, alpha=0.15, linewidth=0, label="where 90 % of them lie")
    _scale(axes, panel.log)
    taken = -math.inf
    for value, shape in sorted(shapes.items()):
        height = float(axes.transAxes.inverted().transform(axes.transData.transform((0, value)))[1])
        if len(shapes) > 1 and height > taken + _APART:
            taken = height
            axes.text(1.01, value, shape, transform=axes.get_yaxis_transform(), fontsize=6.5, color=QUIET, va="center")


def _own_nulls(axes: Axes, panel: _Panel, rows: Sequence[Row]) -> None:
    """What Gaussian matrices have, behind each matrix."""
    axes.plot([panel.null(row.first) for row in rows], "_", color=QUIET, markersize=12, zorder=0)
    if panel.spread:
        axes.vlines(range(len(rows)), *zip(*map(_spread, rows), strict=True), color=QUIET, linewidth=1, zorder=0)
    _scale(axes, panel.log)


def _spread(row: Row) -> tuple[float, float]:
    """Between which condition numbers 90 % of Gaussian matrices have theirs."""
    null = shape_null(row.first.rows, row.first.columns)
    return null.kappa_low, null.kappa_high


def _scale(axes: Axes, log: bool) -> None:
    """No range so narrow that noise fills it; where powers of ten are few, more ticks, as plain numbers."""
    low, high = axes.get_ylim()
    if not log:
        axes.set_ylim(min(low, (low + high) / 2 - 0.1), max(high, (low + high) / 2 + 0.1))
        return
    middle = math.sqrt(low * high)
    axes.set_ylim(min(low, middle / 3), max(high, middle * 3))
    if high < 200 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _layer_ticks(axes: Axes, layers: Sequence[int], outside: Sequence[int]) -> None:
    shown = list(layers[:: 1 + len(layers) // _NAMED])
    axes.set_xticks([*shown, *outside], [*map(str, shown), *("outside" for _ in outside)])
    for place in outside:
        axes.axvline(place - 0.5, color=QUIET, linewidth=0.8)


def _map(rows: Sequence[Row]) -> Figure:
    """κ over its null of every role and layer: red above Gaussian matrices, blue below, grey where there is none.

    Args:
        rows: Within blocks, by layer.
    """
    roles = _map_lines(rows)
    layers = list(dict.fromkeys(row.layer for row in rows))
    values = np.full((len(roles), len(layers)), np.nan)
    for line, own in zip(values, roles.values(), strict=True):
        for row in own:
            line[layers.index(row.layer)] = math.log10(row.mean(record.relative))
    figure, (axes,) = panels(("κ over the median of Gaussian matrices of the shape", "layer", ""))
    figure.set_size_inches(4.2 + min(max(2.4, 0.26 * len(layers)), 9.0), 1.5 + max(1.5, 0.26 * len(roles)))
    finite = np.abs(values[np.isfinite(values)])
    bound = max(float(finite.max()) if finite.size else 0.0, 0.3)
    colours = colormaps["RdBu_r"].with_extremes(bad="#e6e8ec")
    picture = axes.imshow(
        np.clip(values, -bound, bound), cmap=colours, vmin=-bound, vmax=bound, aspect="auto", interpolation="nearest"
    )
    for down, across in np.argwhere(np.isposinf(values)):
        axes.text(across, down, "∞", ha="center", va="center", color="white", fontsize=8)
    axes.set_yticks(range(len(roles)), [_name(label) for label in roles], fontsize=8)
    step = 1 + len(layers) // (2 * _NAMED)
    axes.set_xticks(range(len(layers))[::step], [str(layer) for layer in layers[::step]])
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=axes, format=lambda power, _: f"{10**power:.2g}")
    bar.outline.set_visible(False)
    return figure


def _map_lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by role, and by shape where a layer has a role in several, which would lie on each other."""
    found: dict[str, list[Row]] = {}
    for label, own in record.by_role(rows).items():
        alone = len({row.layer for row in own}) == len(own)
        for row in own:
            line = label if alone else f"{label} {row.first.rows}x{row.first.columns}"
            found.setdefault(line, []).append(row)
    return found


def _name(label: str) -> str:
    """A name as text that is no formula, without its middle where it is long."""
    kept = _LONGEST // 2
    return (label if len(label) <= _LONGEST else f"{label[:kept]}…{label[1 - kept :]}").replace("$", r"\$")
