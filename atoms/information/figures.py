"""Pictures of a problem: its components between X and a constant, and the bits that they tell together."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from atoms.figures import ACCENT, ALERT, INK, QUIET, panels, tint
from atoms.information.reconstruction import Reconstruction

_NAMED = 12  # components, and places of them, that are named
_LONGEST = 24  # what is shown of a name
_APART = 0.045  # names closer than this share of the picture's height would cover each other


def draw(found: Reconstruction) -> Figure:
    """The metric plane with the condition's half-space, and the bits that components tell together.

    In the plane a component stands at its Shannon distances from the constant and from X. Functions of X lie on the
    segment from the constant to X, with which they are aligned; anything else lies above. The condition says that the
    mean of the points lies in the half-space of distances from X up to (n - 1)/n H(X).

    Args:
        found: What `perfect_reconstruction` returned.
    """
    figure, (plane, bits) = panels(
        (
            "Components in the metric plane",
            "distance from a constant: H(·), bits",
            f"distance from {_shown(found.x)}: D, bits",
        ),
        ("What they tell together", "components, the most telling first", "bits"),
    )
    _plane(plane, found)
    _bits(bits, found)
    for axes in (plane, bits):
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=3, fontsize=8, columnspacing=1)
    return figure


def _shown(name: str) -> str:
    """A name as text that is no formula, and short enough to stand in a picture."""
    return (name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…").replace("$", r"\$")


def _plane(axes: Axes, found: Reconstruction) -> None:
    x = np.array([part.entropy for part in found.components])
    y = np.array([part.distance for part in found.components])
    top = 1.06 * max(found.entropy, float(x.max()), float(y.max()), 1e-9)
    axes.plot([0, found.entropy], [found.entropy, 0], color=QUIET, linewidth=1, zorder=1)
    if found.condition is not None:
        reach = (len(x) - 1) / len(x) * found.entropy
        axes.axhspan(0, reach, color=tint(ACCENT, 0.15), linewidth=0, zorder=0, label=f"mean at most {reach:.3f}")
    axes.plot(0, found.entropy, "s", color=QUIET, markersize=7, clip_on=False, label="a constant", zorder=3)
    axes.plot(
        found.entropy, 0, "*", color=INK, markersize=13, clip_on=False, label=f"{_shown(found.x)} itself", zorder=3
    )
    axes.plot(x, y, "o", color=INK, markersize=5, clip_on=False, label="components", zorder=4)
    if found.condition is not None:
        axes.plot(
            x.mean(), y.mean(), "D", color=ACCENT if found.condition else ALERT, markersize=8, clip_on=False,
            markerfacecolor="none", markeredgewidth=2, label=f"their mean: {y.mean():.3f}", zorder=5,
        )  # fmt: skip
    places: dict[tuple[float, float], list[str]] = {}
    for part in found.components:
        places.setdefault((round(part.entropy, 2), round(part.distance, 2)), []).append(_shown(part.name))
    named: list[float] = []
    for (across, up), names in places.items():
        if len(named) == _NAMED or any(abs(up - other) < _APART * top for other in named):
            continue
        named.append(up)
        said = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        axes.annotate(said, (across, up), (8, 4), textcoords="offset points", fontsize=8, color=INK)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)


def _bits(axes: Axes, found: Reconstruction) -> None:
    """What is known after each component where X is made of them; else only of all together."""
    if found.subsets is not None and found.subsets.told:
        order, told = found.subsets.order, found.subsets.told
        names = [_shown(found.components[place].name) for place in order]
        alone = np.cumsum([found.components[place].entropy for place in order])
    else:
        told, names = (found.joint,), ["all"]
        alone = np.array([sum(part.entropy for part in found.components)])
    steps = np.arange(1, len(told) + 1)
    axes.bar(steps, told, color=tint(ACCENT, 0.5), label="entropy of them together")
    axes.plot(steps, alone, ".-", color=INK, label="sum of their entropies")
    whole = f"H({_shown(found.x)}) = {found.entropy:.3f}"
    axes.axhline(found.entropy, color=ALERT, linestyle="--", linewidth=1, label=whole)
    if len(steps) <= _NAMED:
        axes.set_xticks(steps, names, rotation=30, ha="right")
    axes.set_ylim(0, None)
