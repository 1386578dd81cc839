"""What was found of a problem: as JSON, as numbers to log, and as lines to read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from atoms.information.estimation import Estimate
from atoms.information.reconstruction import ROUNDING, Reconstruction, Verdict

SCHEMA, VERSION = "atoms-information", 1
_SETS = 5  # minimal sets that are printed
_COLOURS = {
    Verdict.PERFECT: "green",
    Verdict.RULED_OUT: "red",
    Verdict.NOT_PERFECT: "red",
    Verdict.NOT_APPLICABLE: "yellow",
}


def to_json(found: Reconstruction) -> str:
    """All that was found, as JSON; numbers that do not exist are null.

    Args:
        found: What `perfect_reconstruction` returned.
    """
    content = {"schema": SCHEMA, "version": VERSION, **asdict(found), "why": found.why}
    return json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def numbers(found: Reconstruction) -> dict[str, float]:
    """Scalars by name, for charts over many runs.

    Args:
        found: What `perfect_reconstruction` returned.
    """
    scalars = {
        "entropy": found.entropy,
        "values": float(found.size),
        "components": float(len(found.components)),
        "joint": found.joint,
        "gap": found.gap,
        "redundancy": found.redundancy,
        "perfect": float(found.verdict is Verdict.PERFECT),
        "confused": float(found.confused),
    }
    if found.condition is not None:
        scalars |= {"condition": float(found.condition), "slack": found.slack, "rajski_slack": found.rajski_slack}
    if found.subsets is not None and found.subsets.greedy:
        smallest = found.subsets.minimal[0] if found.subsets.minimal else found.subsets.greedy
        scalars["sufficient"] = float(len(smallest))
    return scalars


def screen(found: Reconstruction, *, plain: bool = False) -> RenderableType:
    """What a person reads of it.

    Args:
        found: What `perfect_reconstruction` returned.
        plain: No colours and no boxes.
    """
    table = Table(box=None if plain else box.SIMPLE_HEAD, pad_edge=not plain, show_edge=not plain)
    table.add_column("component")
    for head in ("values", "H", f"H({found.x}|·)", f"H(·|{found.x})", "D", "d"):
        table.add_column(Text(head), justify="right", no_wrap=True)
    for part in found.components:
        cells = (part.entropy, part.unknown, part.extra, part.distance, part.rajski)
        table.add_row(Text(part.name), f"{part.size:,}", *(f"{value:.3f}" for value in cells))
    whole = "exact" if found.draws is None else f"{found.draws:,} samples"
    head = f"{found.x} has {found.size:,} values and {found.entropy:.3f} bits ({whole}); distances are to {found.x}"
    lines = Table(box=None, show_header=False, pad_edge=False)
    lines.add_column(no_wrap=True)
    lines.add_column()
    for name, line in _lines(found):
        lines.add_row(Text(name), Text(line, _COLOURS[found.verdict] if name == "verdict" and not plain else ""))
    return Group(*([Text(found.title)] if found.title else []), Text(head), table, lines)


def _lines(found: Reconstruction) -> Iterator[tuple[str, str]]:
    n = len(found.components)
    if found.condition is not None:
        total, rajski = (sum(getattr(part, name) for part in found.components) for name in ("distance", "rajski"))
        how = "not met" if not found.condition else "met with equality" if found.slack <= ROUNDING * n else "met"
        sign = "≤" if found.condition else ">"
        yield (
            "condition",
            f"{how}: sum of D {total:.3f} {sign} (n - 1) H({found.x}) {(n - 1) * found.entropy:.3f}; "
            f"sum of d {rajski:.3f} {sign} n - 1 = {n - 1}",
        )
    else:
        yield "condition", "does not speak of these components"
    yield (
        "together",
        f"{found.joint:.3f} bits, redundancy {found.redundancy:.3f}; "
        f"{'independent' if found.independent else 'not independent'}; unknown of {found.x}: {found.gap:.3f} bits",
    )
    yield "verdict", f"{found.verdict}: {found.why}"
    if found.confused:
        yield "confused", f"{found.confused:,} of {found.size:,} values share all components with another"
    yield from _enough(found)
    for name, each in found.estimates.items():
        yield name, _said(each)
    for note in found.notes:
        yield "note", note


def _enough(found: Reconstruction) -> Iterator[tuple[str, str]]:
    if found.subsets is None or found.verdict is not Verdict.PERFECT:
        return
    names = [part.name for part in found.components]
    if found.subsets.minimal is None:
        yield "enough", f"{_set(names, found.subsets.greedy)} (greedily; too many components to try all sets)"
        return
    for chosen in found.subsets.minimal[:_SETS]:
        yield "enough", _set(names, chosen)
    if (more := len(found.subsets.minimal) - _SETS) > 0:
        yield "enough", f"and {more:,} other sets of which no component can be left out"


def _set(names: list[str], places: tuple[int, ...]) -> str:
    return ", ".join(names[place] for place in places) or "nothing at all"


def _said(each: Estimate) -> str:
    ends = "" if math.isnan(each.low) else f", 95% interval {each.low:.3f} to {each.high:.3f}"
    return f"{each.plug_in:.3f} bits, Miller-Madow {each.miller_madow:.3f}{ends}"
