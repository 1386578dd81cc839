"""Pictures of an experiment, from its runs alone."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from atoms.figures import INK, QUIET, panels, tint
from atoms.tuning.comparison import AXES, DEPTHS, descent
from atoms.tuning.record import Found

_COLOURS = {
    "full": INK,
    "lora": "#2a6fbb",
    "kappa": "#c8553d",
    "kappa_lora": "#e39a3b",
    "reversed": "#3b8b6f",
    "random": "#9aa3b2",
    "relative": "#8156a5",
    "reversed_lora": "#7fc2aa",
    "random_lora": "#8c6d4f",
    "relative_lora": "#b99ad0",
}


def draw(found: Found) -> dict[str, Figure]:
    """All pictures, by name.

    Args:
        found: The experiment.
    """
    return {
        "curves": losses_over_tokens(found),
        "forgetting": forgetting_over_loss(found),
        "differences": paired_differences(found),
        "learning_rates": rates(found),
    }


def losses_over_tokens(found: Found) -> Figure:
    """Losses on the way, means over seeds, one line an arm.

    Args:
        found: The experiment.
    """
    figure, axes = panels(
        ("Training text", "tokens", "loss, nats a token"),
        ("Held-out task text", "tokens", ""),
        ("General text", "tokens", ""),
    )
    for arm, runs in found.runs.items():
        for panel, name in zip(axes, ("train", "test", "general"), strict=True):
            curve = runs[0].curve
            mean = np.mean([run.curve.losses[name] for run in runs], 0)
            panel.plot(np.array(curve.tokens) + 1, mean, color=_COLOURS[arm], lw=1.6, label=arm)
    for panel in axes:
        panel.set_xscale("symlog", linthresh=max(2, _first(found)))
    _legend(figure, axes[0], len(found.runs))
    return figure


def forgetting_over_loss(found: Found) -> Figure:
    """What is forgotten where the task loss is the same: lower lines forget less for what they learn.

    Args:
        found: The experiment.
    """
    figure, axes = panels(
        *((f"At equal {said}", f"{said}, nats a token", "forgetting, nats a token") for said in AXES.values())
    )
    for panel, axis in zip(axes, AXES, strict=True):
        for arm, runs in found.runs.items():
            colour = _COLOURS[arm]
            for run in runs:
                panel.plot(*descent(run.curve, axis), color=tint(colour, 0.35), lw=0.7)
            level = np.mean([run.curve.losses[axis] for run in runs], 0)
            forgotten = np.mean([run.curve.forgetting() for run in runs], 0)
            stop = int(np.argmin(level)) + 1
            panel.plot(level[:stop], forgotten[:stop], color=colour, lw=1.8, label=arm)
        panel.invert_xaxis()
        panel.axhline(0, color=QUIET, lw=0.8)
    _legend(figure, axes[0], len(found.runs))
    return figure


def paired_differences(found: Found) -> Figure:
    """Differences in forgetting at equal loss with their intervals; left of zero the first named forgets less.

    Args:
        found: The experiment.
    """
    figure, axes = panels(
        *((f"At equal {said}", "difference in forgetting, nats a token", "") for said in AXES.values())
    )
    pairs = list(dict.fromkeys((each.arm, each.reference) for each in found.compared))
    figure.set_size_inches(9.6, max(2.5, 0.26 * len(pairs) + 1.2))
    for panel, axis in zip(axes, AXES, strict=True):
        for each in found.compared:
            if each.axis == axis and each.depth == DEPTHS[-1]:
                place = pairs.index((each.arm, each.reference))
                colour = _COLOURS[each.arm]
                panel.plot([each.low, each.high], [place, place], color=colour, lw=2)
                panel.plot(each.difference, place, "o", color=colour, ms=4)
        panel.axvline(0, color=QUIET, lw=0.8)
        panel.set_ylim(max(1, len(pairs)) - 0.5, -0.5)
        panel.set_yticks(range(len(pairs)), [f"{arm} - {reference}" for arm, reference in pairs], fontsize=8)
    axes[1].set_yticklabels([])
    return figure


def rates(found: Found) -> Figure:
    """The search for learning rates: lowest validation loss and forgetting at one training loss, the rate taken marked.

    Args:
        found: The experiment.
    """
    level, table = found.by_rate
    figure, axes = panels(
        ("Learning rates", "learning rate", "lowest validation loss, nats a token"),
        (f"At training loss {level:.2f}" if table else "", "learning rate", "forgetting, nats a token"),
    )
    for arm in found.runs:
        taken = found.taken(arm)
        losses = {run.lr: run.best for run in found.searched[arm]}
        for panel, values in zip(axes, (losses, table.get(arm, {})), strict=True):
            tried = [lr for lr in values if np.isfinite(values[lr])]
            panel.plot(tried, [values[lr] for lr in tried], color=_COLOURS[arm], lw=1.4, label=arm)
            if taken.lr in tried:
                panel.plot(taken.lr, values[taken.lr], "o", color=_COLOURS[arm], ms=5)
    for panel in axes:
        panel.set_xscale("log")
    _legend(figure, axes[0], len(found.runs))
    return figure


def _first(found: Found) -> int:
    """Tokens of the first step."""
    return next(iter(found.runs.values()))[0].curve.tokens[1]


def _legend(figure: Figure, axes: Axes, arms: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    rows = -(-arms // 7)
    figure.legend(handles, labels, loc="outside lower center", ncols=-(-arms // rows), frameon=False)
