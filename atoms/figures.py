"""What all figures share: colours, axes without clutter, legends. Nothing here touches the global state of pyplot."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

INK, ACCENT, QUIET, ALERT = "#1f2430", "#2a6fbb", "#9aa3b2", "#c8553d"


def canvas(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """Empty axes.

    Args:
        title: Of the figure, at the left.
        x: What lies along x.
        y: What lies along y.
    """
    figure, (axes,) = panels((title, x, y))
    return figure, axes


def panels(*labels: tuple[str, str, str]) -> tuple[Figure, list[Axes]]:
    """Empty axes side by side.

    Args:
        labels: Title and names of both axes, of each.
    """
    count = len(labels)
    figure = Figure(figsize=(6.4 if count == 1 else 4.8 * count, 4.0), layout="constrained")
    found = [figure.add_subplot(1, count, place + 1) for place in range(count)]
    for axes, (title, x, y) in zip(found, labels, strict=True):
        axes.set_title(title, loc="left", color=INK, fontsize=11)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, found


def legend_below(axes: Axes, columns: int = 2) -> None:
    """A legend under the axes, where it covers nothing; none where nothing has a label.

    Args:
        axes: Everything is drawn in them already.
        columns: How many entries stand in a line.
    """
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, fontsize=8)


def remark(axes: Axes, text: str) -> None:
    """What deserves notice, at the right above the axes.

    Args:
        axes: What it is about.
        text: Of a few words.
    """
    axes.set_title(text, loc="right", color=ALERT, fontsize=9)


def tint(colour: str, share: float) -> str:
    """A colour thinned with white.

    Args:
        colour: Any that matplotlib knows.
        share: How much of it is left, in [0, 1].
    """
    mixed = [1 - share * (1 - part) for part in to_rgb(colour)]
    return to_hex((mixed[0], mixed[1], mixed[2]))
