"""What a survey found: as CSV and JSON, as numbers to log, and as tables to read."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean, median
from typing import Any

from atoms.conditioning.shape_null import shape_null
from atoms.conditioning.site_weights import SiteCondition
from atoms.conditioning.survey import Condition
from atoms.errors import printable

SCHEMA, VERSION = "atoms-conditioning", 1
_BLOCK = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_NAME = 32  # characters of a name that are shown


@dataclass(frozen=True)
class Row:
    """Matrices that are shown together: one, or those of a block that differ by a further number, as experts do.

    Attributes:
        layer: Their block; None outside of blocks.
        label: Their name within the block, with as much of what stands before as tells towers of a model apart.
        matrices: They themselves.
    """

    layer: int | None
    label: str
    matrices: tuple[Condition, ...]

    @property
    def first(self) -> Condition:
        """One of them; all are of one kind and shape."""
        return self.matrices[0]

    @property
    def exact(self) -> bool:
        """Whether all singular values of all are known."""
        return all(each.exact for each in self.matrices)

    @property
    def unusual(self) -> int:
        """How many are worse conditioned than 95 % of Gaussian matrices of their shape."""
        return sum(each.kappa > shape_null(each.rows, each.columns).kappa_high for each in self.matrices)

    @property
    def parameters(self) -> int:
        """Values of all."""
        return sum(each.parameters for each in self.matrices)

    def mean(self, measure: Callable[[Condition], float]) -> float:
        """Mean over the matrices.

        Args:
            measure: Of one of them.
        """
        return fmean(map(measure, self.matrices))


def kappa(each: Condition) -> float:
    """Condition number."""
    return each.kappa


def relative(each: Condition) -> float:
    """Condition number over the median of Gaussian matrices of the shape."""
    return each.relative


def rank_share(each: Condition) -> float:
    """Effective rank as a share of the smaller dimension."""
    return each.effective_rank / min(each.rows, each.columns)


def rank_share_null(each: Condition) -> float:
    """The same of Gaussian matrices of the shape."""
    return each.effective_rank_null / min(each.rows, each.columns)


def loss(each: Condition) -> float:
    """Entropy loss a singular value, in nats."""
    return each.entropy_loss / min(each.rows, each.columns)


def loss_null(each: Condition) -> float:
    """The same of Gaussian matrices of the shape."""
    return each.entropy_loss_null / min(each.rows, each.columns)


def channel(each: Condition) -> float:
    """Information through a noisy channel against that of equal singular values."""
    return each.channel_share


_LARGEST: dict[str, Callable[[Row], float]] = {
    "kappa": lambda row: row.mean(kappa),
    "relative": lambda row: row.mean(relative),
    "effective_rank": lambda row: row.mean(rank_share),
    "entropy_loss": lambda row: row.mean(loss),
    "channel_share": lambda row: row.mean(channel),
    "parameters": lambda row: row.parameters,
}
ORDERS = (*_LARGEST, "name")
"""By what rows can be sorted."""


def rows_of(conditions: Sequence[Condition]) -> list[Row]:
    """A survey as rows to show, those outside of blocks first, then block after block.

    Args:
        conditions: What `survey` returned.
    """
    before = {each.tensor: _before(each) for each in conditions}
    towers = defaultdict(set)
    for each in conditions:
        towers[each.layer, each.role].add(before[each.tensor])
    shared = {role for (_, role), names in towers.items() if len(names) > 1}
    found: dict[tuple[Any, ...], list[Condition]] = defaultdict(list)
    for each in conditions:
        label = f"{before[each.tensor]}N.{each.role}" if each.role in shared else each.role
        found[each.layer, label, each.kind, each.rows, each.columns].append(each)
    rows = [Row(key[0], key[1], tuple(matrices)) for key, matrices in found.items()]
    return sorted(rows, key=lambda row: -1 if row.layer is None else row.layer)


def ordered(rows: Sequence[Row], by: str, ascending: bool = False) -> list[Row]:
    """Rows by a measure, the largest first, those of which it is not known last; by name as `rows_of` has them.

    Args:
        rows: What `rows_of` returned.
        by: One of `ORDERS`.
        ascending: The smallest first.
    """
    if by == "name":
        return list(rows)
    values = {id(row): _LARGEST[by](row) for row in rows}
    sign = 1 if ascending else -1
    return sorted(rows, key=lambda row: (math.isnan(values[id(row)]), sign * values[id(row)]))


def to_csv(conditions: Sequence[Condition]) -> str:
    """Every matrix as a line; what is not known is empty.

    Args:
        conditions: What `survey` returned.
    """
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    names = [each.name for each in fields(Condition)]
    out.writerow(names)
    out.writerows([each.to_json()[name] for name in names] for each in conditions)
    return text.getvalue()


def to_json(
    conditions: Sequence[Condition], sites: Sequence[SiteCondition], about: Mapping[str, Any], notes: Sequence[str]
) -> str:
    """All that was found, with the nulls of every shape, as JSON; what is not known is null, infinity is ``"inf"``.

    Args:
        conditions: What `survey` returned.
        sites: What `rank_sites` returned.
        about: Where it comes from: plain values.
        notes: What else there is to say.
    """
    shapes = sorted({(each.rows, each.columns) for each in conditions})
    content = {
        "schema": SCHEMA,
        "version": VERSION,
        **about,
        "notes": list(notes),
        "matrices": [each.to_json() for each in conditions],
        "nulls": [{"rows": m, "columns": n, **asdict(shape_null(m, n))} for m, n in shapes],
        "sites": [{name: _plain(value) for name, value in asdict(each).items()} for each in sites],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def numbers(conditions: Sequence[Condition]) -> dict[str, float]:
    """Scalars by name, for charts over many models: extremes, and medians of all and of each role within blocks.

    Args:
        conditions: What `survey` returned.
    """
    found = {
        "matrices": float(len(conditions)),
        "parameters": float(sum(each.parameters for each in conditions)),
        "singular": float(sum(math.isinf(each.kappa) for each in conditions)),
        "bounded": float(sum(each.rank is None for each in conditions)),
        "kappa/highest": max(each.kappa for each in conditions),
        "kappa/lowest": min(each.kappa for each in conditions),
    }
    inside = by_role([row for row in rows_of(conditions) if row.layer is not None])
    for label, matrices in {"all": conditions, **{label: _flat(rows) for label, rows in inside.items()}}.items():
        for name, measure in (("kappa", kappa), ("kappa_over_null", relative), ("effective_rank", rank_share)):
            found[f"{name}/{label}"] = _median(list(map(measure, matrices)))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def by_role(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by label.

    Args:
        rows: What `rows_of` returned.
    """
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.label].append(row)
    return dict(found)


def screen(
    conditions: Sequence[Condition],
    sites: Sequence[SiteCondition],
    by: str = "kappa",
    ascending: bool = False,
    top: int = 0,
) -> str:
    """What a person reads of it: the matrices, the roles, and the sites.

    Args:
        conditions: What `survey` returned.
        sites: What `rank_sites` returned.
        by: One of `ORDERS`.
        ascending: The smallest first.
        top: How many matrices and sites to show; 0 for all.
    """
    rows = rows_of(conditions)
    parts = [_matrices(ordered(rows, by, ascending), top), _roles(rows)]
    if sites:
        parts.append(_sites(sites, {each.tensor: row for row in rows for each in row.matrices}, top))
    return "\n\n".join(parts)


def _matrices(rows: Sequence[Row], top: int) -> str:
    shown = rows[:top] if top else rows
    heads = ["layer>", "matrix", "kind", "shape>", "κ>", "range>", "κ/null>", "eff. rank>", "loss>", "channel>"]
    lines = [
        [
            "-" if row.layer is None else str(row.layer),
            _name(row.label) + _times(len(row.matrices)),
            row.first.kind.replace("embedding", "embed"),
            f"{row.first.rows}x{row.first.columns}",
            f"{_bound(row.mean(kappa), row.exact)} ({_number(row.first.kappa_null)})",
            _range(row),
            _bound(row.mean(relative), row.exact) + _star(row),
            f"{_share(row.mean(rank_share), 2)} ({_share(rank_share_null(row.first), 2)})",
            f"{_share(row.mean(loss), 2)} ({_share(loss_null(row.first), 2)})",
            _share(row.mean(channel), 2),
        ]
        for row in shown
    ]
    if all(len(row.matrices) == 1 for row in shown):
        heads, *lines = ([*cells[:5], *cells[6:]] for cells in (heads, *lines))
    legend = "(in brackets: Gaussian matrices of the shape; * above 95 % of them; loss in nats a singular value)"
    return "\n".join([_table(heads, lines, len(rows) - len(shown)), legend])


def _roles(rows: Sequence[Row]) -> str:
    lines = []
    for label, own in by_role(rows).items():
        matrices, exact = _flat(own), all(row.exact for row in own)
        cells = [_bound(of(map(relative, matrices)), exact) for of in (median, min, max)]
        ranks = _median([each.effective_rank / each.effective_rank_null for each in matrices])
        lines.append(
            [_name(label), f"{len(matrices):,}", *cells, f"{sum(row.unusual for row in own):,}", _share(ranks)]
        )
    heads = ["role", "matrices>", "κ/null: median>", "lowest>", "highest>", "above 95 %>", "eff. rank/null: median>"]
    return _table(heads, lines)


def _sites(sites: Sequence[SiteCondition], rows: Mapping[str, Row], top: int) -> str:
    shown = sites[:top] if top else sites
    lines = []
    for place, site in enumerate(shown, 1):
        writers = Counter(rows[name].label for name in site.writers)
        said = ", ".join(_name(label) + _times(count) for label, count in writers.items())
        mark = "*" if all(_star(rows[name]) == "*" for name in site.writers) else " "
        cells = (_bound(site.relative, site.exact) + mark, _share(site.effective_rank))
        lines.append([str(place), site.site, *cells, said])
    title = "Sites by the κ/null of what writes them: a hint at selective amplification, no evidence of knowledge"
    heads = [">", "site", "κ/null>", "eff. rank/null>", "written by"]
    return "\n".join([title, _table(heads, lines, len(sites) - len(shown))])


def _star(row: Row) -> str:
    return "*" if 2 * row.unusual > len(row.matrices) else " "


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], more: int = 0) -> str:
    """Aligned columns, those to the right whose head ends in ``>``."""
    right = [head.endswith(">") for head in heads]
    cells = [[head.removesuffix(">") for head in heads], *lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    said = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in cells
    ]
    return "\n".join([*said, *([f"… {more:,} more in the files; --top 0 shows all"] if more else [])])


def _name(label: str) -> str:
    """A name as one harmless line, without its middle where it is long."""
    shown = printable(label)
    return shown if len(shown) <= _NAME else f"{shown[: _NAME // 3]}…{shown[_NAME // 3 + 1 - _NAME :]}"


def _range(row: Row) -> str:
    """Of the condition numbers of several matrices."""
    ends = (min(map(kappa, row.matrices)), max(map(kappa, row.matrices)))
    return "-".join(map(_number, ends)) if len(row.matrices) > 1 else ""


def _times(count: int) -> str:
    return f" x{count}" if count > 1 else ""


def _number(value: float) -> str:
    """Three digits, or all of a whole number; infinity as its sign."""
    if math.isinf(value):
        return "∞"
    if value >= 1e6:
        return f"{value:.1e}".replace("e+0", "e")
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _bound(value: float, exact: bool) -> str:
    """A condition number, or what it is at least."""
    return ("" if exact or math.isinf(value) else "≥") + _number(value)


def _share(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:.{digits}f}"


def _before(each: Condition) -> str:
    """What stands before the number of the block; nothing outside of blocks."""
    found = _BLOCK.search(each.tensor)
    return each.tensor[: found.start(1)] if found else ""


def _median(values: Sequence[float]) -> float:
    """NaN where one is not known."""
    return math.nan if any(map(math.isnan, values)) else median(values)


def _flat(rows: Sequence[Row]) -> list[Condition]:
    return [each for row in rows for each in row.matrices]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
