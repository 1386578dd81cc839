"""What an experiment found, as plain values, numbers and a screen."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from atoms.tuning.comparison import AXES, DEPTHS, Axis, Paired, forgetting_by_rate, interval, pairs_of
from atoms.tuning.curves import LOSSES
from atoms.tuning.experiment import ASKED_IN_RUNS, Run, best_of


@dataclass(frozen=True, eq=False)
class Found:
    """All runs of an experiment.

    Attributes:
        title: What was tuned on what.
        start: Losses of the model before any step, by the names of `LOSSES`.
        searched: Runs at the rates that were tried, by arm.
        runs: Runs at the rate that was taken, by arm; of none that diverges at every rate.
        compared: Arms at equal loss.
    """

    title: str
    start: Mapping[str, float]
    searched: Mapping[str, Sequence[Run]]
    runs: Mapping[str, Sequence[Run]]
    compared: Sequence[Paired]

    @property
    def by_rate(self) -> tuple[float, dict[str, dict[float, float]]]:
        """A training loss, and what arms have forgotten there at each rate that was tried."""
        searched = {arm: {run.lr: run.curve for run in self.searched[arm]} for arm in self.runs}
        return forgetting_by_rate(searched, {arm: self.taken(arm).lr for arm in searched})

    def taken(self, arm: str) -> Run:
        """The run of the search whose rate was taken.

        Args:
            arm: Its name.
        """
        return next(run for run in self.searched[arm] if run.lr == self.runs[arm][0].lr)

    def at_edge(self, arm: str) -> bool:
        """Whether the best rate is the lowest or highest tried, so that a better one may lie beyond.

        Args:
            arm: Its name.
        """
        rates = [run.lr for run in self.searched[arm]]
        return best_of(self.searched[arm]).lr in (min(rates), max(rates))


def to_json(found: Found, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values that strict JSON holds; what is not finite is None.

    Args:
        found: The experiment.
        settings: What it was asked.
    """
    record = {
        "title": found.title,
        "settings": settings,
        "start": found.start,
        "numbers": numbers(found),
        "by_rate": {"train_loss": (rated := found.by_rate)[0], "forgetting": rated[1]},
        "compared": [paired.to_json() for paired in found.compared],
        "searched": {arm: [run.to_json() for run in runs] for arm, runs in found.searched.items()},
        "runs": {arm: [run.to_json() for run in runs] for arm, runs in found.runs.items()},
    }
    return _finite(record)  # type: ignore[no-any-return]


def numbers(found: Found) -> dict[str, float]:
    """The numbers by which experiments are compared.

    Args:
        found: The experiment.
    """
    out: dict[str, float] = {f"start/{name}": value for name, value in found.start.items()}
    for arm, runs in found.runs.items():
        out[f"{arm}/lr"] = runs[0].lr
        out[f"{arm}/trained"] = float(np.mean([run.trained for run in runs]))
        for name in ASKED_IN_RUNS:
            out[f"{arm}/{name}"] = float(np.mean([run.curve.losses[name][-1] for run in runs]))
        out[f"{arm}/forgetting"] = float(np.mean([run.curve.forgetting()[-1] for run in runs]))
    for paired in found.compared:
        if paired.depth == DEPTHS[-1]:
            key = f"{paired.arm}_less_{paired.reference}/equal_{paired.axis}"
            out[key], out[f"{key}_low"], out[f"{key}_high"] = paired.difference, paired.low, paired.high
            out[f"{key}_less_on"] = float(paired.fewer)
    return out


def screen(found: Found) -> Group:
    """The experiment as tables.

    Args:
        found: The experiment.
    """
    compared = [_compared(found, axis, said) for axis, said in AXES.items()]
    tables = [table for table in (_ends(found), *compared, _by_rate(found)) if table.row_count]
    return Group(*(part for table in tables for part in (table, "")))


def _ends(found: Found) -> Table:
    """What each arm trains, and where it ends."""
    table = Table(found.title, box=None, pad_edge=False)
    for head in ("trained", "rank", "lr", "train loss", "test loss", "forgetting"):
        table.add_column(head, justify="right", no_wrap=True)
    start = found.start
    table.add_row("at the start", "0", "", "", f"{start['train']:.3f}", f"{start['test']:.3f}", "0")
    for arm, runs in found.runs.items():
        ends = [[run.curve.losses[name][-1] for run in runs] for name in ("train", "test")]
        cells = [_mean(values) for values in (*ends, [run.curve.forgetting()[-1] for run in runs])]
        ranks = {run.rank for run in runs if run.rank is not None}
        rank = " to ".join(dict.fromkeys(str(end(ranks)) for end in (min, max))) if ranks else ""
        edge = " (edge)" if found.at_edge(arm) else ""
        table.add_row(arm, f"{np.mean([run.trained for run in runs]):,.0f}", rank, f"{runs[0].lr:g}{edge}", *cells)
    return table


def _compared(found: Found, axis: Axis, said: str) -> Table:
    """Pairs of arms at one loss, as wide as a narrow screen."""
    table = Table(title=f"forgetting at equal {said}", title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in ("at loss", "arm", "ref.", "difference (95 %)", "less on", "half-way (95 %)", "forgets"):
        table.add_column(head, justify="right", no_wrap=True)
    at = {(each.arm, each.reference, each.depth): each for each in found.compared if each.axis == axis}
    for arm, reference in dict.fromkeys(pair[:2] for pair in at):
        half, full = (at.get((arm, reference, depth)) for depth in DEPTHS)
        if full is not None:
            table.add_row(
                f"{arm} - {reference}",
                f"{full.level:.3f}",
                _signed(full.forgetting),
                _signed(full.forgetting_reference),
                _difference(full),
                f"{full.fewer} of {full.seeds}",
                "" if half is None else _difference(half),
                {"forgets less": "less", "forgets more": "more"}.get(full.verdict, ""),
            )
    return table


def _by_rate(found: Found) -> Table:
    level, table = found.by_rate
    rates = sorted({lr for row in table.values() for lr in row})
    out = Table(f"forgetting at training loss {level:.3f}, seed 0, by rate (* taken)", box=None, pad_edge=False)
    for lr in rates:
        out.add_column(f"{lr:g}", justify="right", no_wrap=True)
    for arm, row in table.items():
        marks = {found.taken(arm).lr: "*"}
        known = {lr: f"{value:+.3f}{marks.get(lr, ' ')}" for lr, value in row.items() if math.isfinite(value)}
        out.add_row(arm, *(known.get(lr, "") for lr in rates))
    return out


def notes(found: Found, references: Sequence[str]) -> list[str]:
    """What a reader of the tables should know.

    Args:
        found: The experiment.
        references: Arms the others were to be held against.
    """
    out = []
    for arm, runs in found.runs.items():
        best = best_of(found.searched[arm])
        if found.at_edge(arm):
            out.append(f"{arm}: the best rate is the last one tried; widen recipe.learning_rates")
        if best.best >= best.curve.losses["val"][0]:
            out.append(f"{arm}: no rate lowers the validation loss")
        if diverged := [str(run.seed) for run in runs if run.diverged]:
            out.append(f"{arm}: diverged on seed {', '.join(diverged)}, and is compared as far as it got")
    out += [
        f"{arm}: diverges at every rate, and is left out: set recipe.learning_rates lower"
        for arm in found.searched
        if arm not in found.runs
    ]
    pairs = pairs_of(found.runs, references)
    if not pairs:
        out.append("nothing is compared: of references, none was run beside another arm")
    there = {(each.arm, each.reference, each.axis) for each in found.compared}
    for (arm, reference), (axis, said) in product(pairs, AXES.items()):
        if (arm, reference, axis) not in there:
            out.append(
                f"{arm} - {reference}: not compared at equal {said}, which one of them never lowers on some seed"
            )
    return out


def csv_rows(found: Found) -> str:
    """All curves as CSV: one line a run and point.

    Args:
        found: The experiment.
    """
    lines = [f"arm,stage,lr,seed,step,tokens,{','.join(f'{name}_loss' for name in LOSSES)},forgetting"]
    for stage, groups in (("search", found.searched), ("run", found.runs)):
        for arm, runs in groups.items():
            for run in runs:
                curve = run.curve
                unknown = [""] * len(curve.steps)
                losses = (curve.losses.get(name, unknown) for name in LOSSES)
                points = zip(curve.steps, curve.tokens, *losses, curve.forgetting() or unknown, strict=True)
                lines += [f"{arm},{stage},{run.lr:g},{run.seed},{','.join(map(str, point))}" for point in points]
    return "\n".join(lines) + "\n"


def _difference(paired: Paired) -> str:
    ends = f"({_signed(paired.low)} to {_signed(paired.high)})" if paired.seeds > 1 else "(one seed)"
    return f"{_signed(paired.difference)} {ends}"


def _signed(value: float) -> str:
    """With its sign and, so that a line holds it, without a zero before the point."""
    return re.sub(r"^([+-])0\.", r"\1.", f"{value:+.3f}")


def _mean(values: Sequence[float]) -> str:
    mean, low, _ = interval(np.asarray(values))
    return f"{mean:.3f} ± {mean - low:.3f}" if math.isfinite(low) else f"{mean:.3f}"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
