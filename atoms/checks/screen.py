"""Certificates on a terminal: numbers beside their nulls, verdicts, and the sentence that follows."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from atoms.checks.certificate import Certificate
from atoms.checks.claim import Verdict
from atoms.checks.side_by_side import SHORT, side_by_side

COLOURS = {
    Verdict.GUARANTEED: "green",
    Verdict.NOT_REFUTED: "green",
    Verdict.NOT_GUARANTEED: "yellow",
    Verdict.UNATTAINABLE: "yellow",
    Verdict.VACUOUS: "magenta",
    Verdict.REFUTED: "red",
    Verdict.NOT_APPLICABLE: "bright_black",
}
WIDTH = 100
"""Of sentences where output is no terminal; tables of several units are then as wide as they need."""
ABSENT = "-"
_BETWEEN = 3  # columns of a table


class Line(NamedTuple):
    """One line of the table of numbers.

    Attributes:
        label: For people.
        number: ``section/number``.
        form: How it is written.
        beside: A second number to stand in brackets, if it exists: a null, a ceiling, the other split.
    """

    label: str
    number: str
    form: str = ".3f"
    beside: str = ""


LINES = (
    Line("F: close, sparse, certified (principal axes)", "joint/f", ".3f", "joint/f_basis"),
    Line("F of random directions (of random rows)", "joint/f_random", ".3f", "joint/f_random_rows"),
    Line("K at which half the rows hold (principal axes)", "joint/k_half", ".0f", "joint/k_half_basis"),
    Line("certified rows (random codes of the same K)", "joint/certified", ".3f", "joint/certified_same_k"),
    Line("R² held out (training rows)", "representability/r2", ".3f", "representability/r2_train"),
    Line("R² in the AIP (refitted on the support)", "representability/r2_aip", ".3f", "representability/r2_aip_refit"),
    Line("atoms per row, mean (median)", "sparsity/l0", ".1f", "sparsity/k_median"),
    Line("dead atoms (singletons)", "sparsity/dead", ".1%", "sparsity/singleton"),
    Line("max |cos| AIP (Euclid)", "separability/mu", ".2f", "separability/mu_euclid"),
    Line(
        "κ of atoms on white rows (random matrix)",
        "conditioning/decoder_kappa",
        ".1f",
        "conditioning/decoder_kappa_random",
    ),
    Line("errors grow in codes (random atoms)", "conditioning/growth_q95", ".2f", "conditioning/growth_random_q95"),
    Line("q* pairs (null at the same K)", "uniqueness/q_pairs", ".3f", "uniqueness/q_pairs_null"),
    Line("l1 recovers the code (certified)", "l1/bp_recovered", ".3f", "l1/bp_certified"),
    Line("rows with a T5 window (θ in it)", "identifiability/window", ".3f", "identifiability/deployed_window"),
    Line("matched |cos| across seeds (random)", "stability/mean", ".3f", "stability/random_mean"),
    Line("probe AUROC, one atom (one coordinate)", "use/auroc_codes_1", ".3f", "use/auroc_raw_1"),
    Line("bits of the token told (random)", "information/token_told", ".2f", "information/token_told_random"),
    Line("by five atoms (coordinates)", "information/token_told_5", ".2f", "information/token_told_5_coordinates"),
)


def show(certificates: Sequence[Certificate], *, plain: bool = False) -> None:
    """Print certificates side by side on standard output.

    Args:
        certificates: At least one, of the same rows.
        plain: No colours and no boxes, and reasons in full.
    """
    console = Console(highlight=False, color_system=None if plain else "auto")
    width = console.width if sys.stdout.isatty() else None
    if width is None:
        console.width = 1_000_000  # tables take what they need
    console.print(screen(certificates, plain=plain, width=width))


def screen(certificates: Sequence[Certificate], *, plain: bool = False, width: int | None = None) -> RenderableType:
    """What `show` prints.

    Args:
        certificates: At least one, of the same rows.
        plain: No colours and no boxes, and reasons in full.
        width: Of the terminal. Units that do not fit beside the others have tables of their own below. Without one,
            tables are as wide as they need, and sentences `WIDTH`.
    """
    narrow, one = width or WIDTH, len(certificates) == 1
    verdicts = _reasons(certificates[0], plain, narrow) if one else _verdicts(certificates, plain, width)
    return Group(
        *(Constrain(Text(line), narrow) for line in _head(certificates[0])),
        "",
        *_numbers(certificates, plain, width),
        *([""] if plain else []),
        *verdicts,
        *([""] if plain or not one else []),
        *(Constrain(words, narrow) for words in _words(certificates)),
    )


def _head(certificate: Certificate) -> Iterator[str]:
    """What is the same for all units: the rows, and the metric made of them."""
    rows, unit, numbers = certificate.rows, certificate.unit, certificate.numbers()
    yield (f"{rows.held_out:,} held-out rows of {unit.site}, {rows.train:,} training rows beside; width {unit.width:,}")
    if numbers.keys() >= {"metric/condition", "metric/ridge_share"}:
        yield (
            f"condition of the metric {numbers['metric/condition']:.2g}, "
            f"of which the ridge is {numbers['metric/ridge_share']:.2g}"
        )


def _table(plain: bool) -> Table:
    return Table(box=None if plain else box.SIMPLE_HEAD, pad_edge=not plain, show_edge=not plain)


class _Column(NamedTuple):
    """What one unit has in a table.

    Attributes:
        header: Its lines.
        cells: One a row.
    """

    header: str
    cells: list[Text]

    @property
    def width(self) -> int:
        """What it takes if nothing is wrapped."""
        return max(map(cell_len, [*self.header.splitlines(), *(cell.plain for cell in self.cells)]))


def _beside(
    label: str, labels: Sequence[str], columns: Sequence[_Column], plain: bool, width: int | None
) -> Iterator[Table]:
    """Tables of as many columns as fit beside the labels, in which no cell is wrapped."""
    own = max(map(cell_len, [label, *labels])) + _BETWEEN + 1
    rest = list(columns)
    while rest:
        room, fitting = (math.inf if width is None else width - own), 0
        while fitting < len(rest) and (room := room - rest[fitting].width - _BETWEEN) >= 0:
            fitting += 1
        shown, rest = rest[: max(fitting, 1)], rest[max(fitting, 1) :]
        table = _table(plain)
        table.add_column(label, no_wrap=True)
        for column in shown:
            table.add_column(Text(column.header), no_wrap=True, justify="right")
        for place, name in enumerate(labels):
            table.add_row(name, *(column.cells[place] for column in shown))
        yield table


def _numbers(certificates: Sequence[Certificate], plain: bool, width: int | None) -> Iterator[Table]:
    known = [certificate.numbers() for certificate in certificates]
    lines = [line for line in LINES if any(line.number in numbers for numbers in known)]
    columns = [
        _Column(
            f"{certificate.unit.name}\n{certificate.unit.atoms:,} atoms", [Text(_cell(numbers, line)) for line in lines]
        )
        for certificate, numbers in zip(certificates, known, strict=True)
    ]
    return _beside("", [line.label for line in lines], columns, plain, width)


def _cell(numbers: dict[str, float], line: Line) -> str:
    value, beside = (numbers.get(name, math.nan) for name in (line.number, line.beside))
    said = ABSENT if math.isnan(value) else format(value, line.form)
    return f"{said} ({format(beside, line.form)})" if line.beside and not math.isnan(beside) else said


def _reasons(certificate: Certificate, plain: bool, width: int) -> Iterator[Table]:
    """Verdicts of one unit, each with its reason: one line of it, or all where nothing is drawn."""
    lines = side_by_side([certificate])
    if lines:
        table = _table(plain)
        names, verdicts = max(map(len, lines)), max(map(len, Verdict))
        rest = max(width - names - verdicts - 3 * _BETWEEN - 1, 10)
        table.add_column("claim", no_wrap=True, width=names)
        table.add_column("verdict", no_wrap=True, width=verdicts)
        table.add_column("because", no_wrap=not plain, overflow="fold" if plain else "ellipsis", width=rest)
        for name, (claim,) in lines.items():
            if claim is not None:
                table.add_row(name, Text(claim.verdict, COLOURS[claim.verdict]), Text(claim.why))
        yield table


def _verdicts(certificates: Sequence[Certificate], plain: bool, width: int | None) -> Iterator[RenderableType]:
    """Verdicts of several units, abbreviated, and what the abbreviations stand for."""
    lines = side_by_side(certificates)
    if not lines:
        return
    columns = [
        _Column(
            certificate.unit.name,
            [
                Text(ABSENT) if claim is None else Text(SHORT[claim.verdict], COLOURS[claim.verdict])
                for claim in (own[place] for own in lines.values())
            ],
        )
        for place, certificate in enumerate(certificates)
    ]
    yield from _beside("claim", list(lines), columns, plain, width)
    used = {claim.verdict for own in lines.values() for claim in own if claim is not None}
    key = [f"{short} = {verdict}" for verdict, short in SHORT.items() if verdict in used and short != verdict]
    yield Constrain(Text("; ".join(key)), width or WIDTH)


def _words(certificates: Sequence[Certificate]) -> Iterator[Text]:
    """What may be claimed of each, and what could not be done; for all at once where it is the same."""
    several = len(certificates) > 1
    for certificate in certificates:
        name = f"{certificate.unit.name}: " if several else ""
        yield Text(f"{name}{certificate.sentence}")
    failures: dict[tuple[str, str], list[Certificate]] = {}
    for certificate in certificates:
        for check, reason in certificate.failed.items():
            told = re.sub(rf"(?<!\w){re.escape(certificate.unit.name)}(?!\w)", "the unit", reason)
            failures.setdefault((check, told), []).append(certificate)
    for (check, told), failed in failures.items():
        whose = f"{', '.join(each.unit.name for each in failed)}: " if len(failed) < len(certificates) else ""
        yield Text(f"{whose}not done: {check}: {told if len(failed) > 1 else failed[0].failed[check]}")
