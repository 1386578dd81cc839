"""Certificates on a terminal: numbers beside their nulls, verdicts, and the sentence that follows."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from atoms.checks.certificate import Certificate
from atoms.checks.claim import Claim, Verdict

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
ABSENT = "-"
LEVELS = ("median", "q95", "max")
"""At how many atoms per row claims are asked: the last part of their names."""


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
    Line("F: close, sparse, certified (same-fidelity null)", "joint/f", ".3f", "joint/f_matched"),
    Line("F of the whitening basis", "joint/f_basis"),
    Line("K at which half the rows hold (whitening basis)", "joint/k_half", ".0f", "joint/k_half_basis"),
    Line("certified rows (random codes of the same K)", "joint/certified", ".3f", "joint/certified_same_k"),
    Line("R² held out (training rows)", "representability/r2", ".3f", "representability/r2_train"),
    Line("R² in the AIP (refitted on the support)", "representability/r2_aip", ".3f", "representability/r2_aip_refit"),
    Line("atoms per row, mean (median)", "sparsity/l0", ".1f", "sparsity/k_median"),
    Line("dead atoms (singletons)", "sparsity/dead", ".1%", "sparsity/singleton"),
    Line("max |cos| AIP (Euclid)", "separability/mu", ".2f", "separability/mu_euclid"),
    Line("q* pairs (null at the same K)", "uniqueness/q_pairs", ".3f", "uniqueness/q_pairs_null"),
    Line("l1 recovers the code (certified)", "l1/bp_recovered", ".3f", "l1/bp_certified"),
    Line("rows with a T5 window (θ in it)", "identifiability/window", ".3f", "identifiability/deployed_window"),
    Line("matched |cos| across seeds (random)", "stability/mean", ".3f", "stability/random_mean"),
    Line("probe AUROC, one atom (one coordinate)", "use/auroc_codes_1", ".3f", "use/auroc_raw_1"),
    Line("condition of the metric (ridge share)", "metric/condition", ".3g", "metric/ridge_share"),
)


def show(certificates: Sequence[Certificate], *, plain: bool = False) -> None:
    """Print certificates side by side on standard output.

    Args:
        certificates: At least one, of the same rows.
        plain: No colours and no boxes.
    """
    console = Console(
        width=None if sys.stdout.isatty() else max(WIDTH, 44 + 16 * len(certificates)),
        no_color=plain,
        highlight=False,
        soft_wrap=False,
    )
    console.print(screen(certificates, plain=plain))


def screen(certificates: Sequence[Certificate], *, plain: bool = False) -> RenderableType:
    """What `show` prints."""
    first = certificates[0]
    head = (
        f"{first.rows.held_out:,} held-out rows of {first.unit.site}, "
        f"{first.rows.train:,} training rows beside; width {first.unit.width}"
    )
    return Group(
        escape(head), "", _numbers(certificates, plain), *_verdicts(certificates, plain), *_words(certificates)
    )


def _table(plain: bool) -> Table:
    return Table(box=None if plain else box.SIMPLE_HEAD, pad_edge=not plain, show_edge=not plain)


def _numbers(certificates: Sequence[Certificate], plain: bool) -> Table:
    table = _table(plain)
    table.add_column("")
    for certificate in certificates:
        table.add_column(f"{escape(certificate.unit.name)}\n{certificate.unit.atoms} atoms", justify="right")
    known = [certificate.numbers() for certificate in certificates]
    for line in LINES:
        if any(line.number in numbers for numbers in known):
            table.add_row(line.label, *(_cell(numbers, line) for numbers in known))
    return table


def _cell(numbers: dict[str, float], line: Line) -> str:
    value, beside = (numbers.get(name, math.nan) for name in (line.number, line.beside))
    said = ABSENT if math.isnan(value) else format(value, line.form)
    return f"{said} ({format(beside, line.form)})" if line.beside and not math.isnan(beside) else said


def _verdicts(certificates: Sequence[Certificate], plain: bool) -> Iterator[RenderableType]:
    claims = [_merged(certificate.claims()) for certificate in certificates]
    names = list(dict.fromkeys(name for each in claims for name in each))
    if not names:
        return
    table = _table(plain)
    table.add_column("claim", no_wrap=True)
    if len(certificates) == 1:
        table.add_column("verdict", no_wrap=True)
        table.add_column("because", no_wrap=not plain, overflow="fold" if plain else "ellipsis")
        for name in names:
            table.add_row(name, _coloured(claims[0][name].verdict), escape(claims[0][name].why))
    else:
        for certificate in certificates:
            table.add_column(escape(certificate.unit.name))
        for name in names:
            table.add_row(name, *(_coloured(each[name].verdict) if name in each else ABSENT for each in claims))
    yield table


def _merged(claims: Mapping[str, Claim]) -> dict[str, Claim]:
    """Claims by name; one line for a claim asked at several sparsities that fares alike at all of them."""
    families: dict[str, list[str]] = {}
    for name in claims:
        stem, _, level = name.rpartition("_")
        families.setdefault(stem if level in LEVELS else name, []).append(name)
    merged = {}
    for stem, names in families.items():
        if len({claims[name].verdict for name in names}) == 1:
            merged[stem] = claims[names[0]]
        else:
            merged |= {name: claims[name] for name in names}
    return merged


def _coloured(verdict: Verdict) -> str:
    return f"[{COLOURS[verdict]}]{verdict}[/]"


def _words(certificates: Sequence[Certificate]) -> Iterator[RenderableType]:
    several = len(certificates) > 1
    for certificate in certificates:
        name = f"{certificate.unit.name}: " if several else ""
        yield escape(f"{name}{certificate.sentence}")
        for check, reason in certificate.failed.items():
            yield escape(f"{name}not done: {check}: {reason}")
