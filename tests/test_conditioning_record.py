"""What a survey found, as rows, tables, files and numbers."""

import csv
import io
import json
import math
import re

import pytest
import torch

from atoms.conditioning import shape_null, survey
from atoms.conditioning.record import ORDERS, numbers, ordered, rows_of, screen, to_csv, to_json
from atoms.conditioning.site_weights import SiteCondition
from atoms.conditioning.weights import named_weight


def surveyed(tensors, **settings):
    """The condition of tensors by name; those given by a shape are drawn."""
    generator = torch.Generator().manual_seed(0)
    values = {
        name: torch.randn(*value, generator=generator) if isinstance(value, tuple) else value
        for name, value in tensors.items()
    }
    weights = [named_weight(name, tuple(value.shape), lambda value=value: value) for name, value in values.items()]
    return survey(weights, **settings)


def labels(tensors):
    return [(row.layer, row.label, len(row.matrices)) for row in rows_of(surveyed(tensors))]


MODEL = {
    "embed.weight": (30, 8),
    **{f"layers.{n}.attn.o.weight": (8, 8) for n in range(3)},
    **{f"layers.{n}.mlp.down.weight": (8, 12) for n in range(3)},
}


@pytest.fixture(scope="module")
def found():
    return surveyed(MODEL)


@pytest.fixture(scope="module")
def mixed():
    """A singular matrix, a bound and one that is known."""
    singular = torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    known = surveyed({"h.0.a.weight": singular, "h.0.b.weight": (4, 3)})
    return [*known, *surveyed({"h.0.c.weight": (9, 9)}, max_dim=4)]


# ------------------------------------------------------------------------------------------ rows


def test_a_matrix_a_row_block_after_block():
    shuffled = dict(reversed(MODEL.items()))
    assert labels(shuffled) == [
        (None, "embed", 1),
        *((n, role, 1) for n in range(3) for role in ("mlp.down", "attn.o")),
    ]


def test_experts_of_a_block_share_a_row():
    separate = {f"layers.{n}.experts.{expert}.w2.weight": (8, 12) for n in range(2) for expert in range(3)}
    assert labels(separate) == [(0, "experts.N.w2", 3), (1, "experts.N.w2", 3)]
    assert labels({"layers.0.experts.down_proj": (3, 8, 12)}) == [(0, "experts.down_proj", 3)]
    (row,) = rows_of(surveyed({"layers.0.experts.down_proj": (3, 8, 12)}))
    assert row.parameters == 3 * 8 * 12
    assert row.mean(lambda each: each.kappa) == pytest.approx(sum(each.kappa for each in row.matrices) / 3)


def test_towers_are_told_apart_by_what_stands_before_the_block():
    towers = {f"{tower}.layers.{n}.fc.weight": (8, 12) for tower in ("text", "image") for n in range(2)}
    assert labels({**towers, "text.layers.0.q.weight": (8, 8)}) == [
        (0, "text.layers.N.fc", 1), (0, "image.layers.N.fc", 1), (0, "q", 1),
        (1, "text.layers.N.fc", 1), (1, "image.layers.N.fc", 1),
    ]  # fmt: skip


def test_orders(found, mixed):
    rows = rows_of(found)
    assert ordered(rows, "name") == rows
    kappas = [row.first.kappa for row in ordered(rows, "kappa")]
    assert kappas == sorted(kappas, reverse=True)
    assert [row.first.kappa for row in ordered(rows, "kappa", ascending=True)] == kappas[::-1]
    relative = [row.first.relative for row in ordered(rows, "relative")]
    assert relative == sorted(relative, reverse=True)
    assert ordered(rows, "parameters")[0].label == "embed"
    # infinity is the largest; what is not known comes last, whichever way
    assert ordered(rows_of(mixed), "kappa")[0].label == "a"
    for way in (True, False):
        assert ordered(rows_of(mixed), "effective_rank", way)[-1].label == "c"
    assert set(ORDERS) >= {"kappa", "relative", "effective_rank", "entropy_loss", "parameters", "name"}


# ------------------------------------------------------------------------------------------ the screen


def table(text, head):
    """Cells of the table under a head, by columns that two spaces part."""
    lines = text.splitlines()
    (start,) = (n for n, line in enumerate(lines) if re.match(rf" *{head}\b", line))
    stop = next((n for n in range(start + 1, len(lines)) if not lines[n] or lines[n][0] in "…("), len(lines))
    return [re.split(r" {2,}", line.strip()) for line in lines[start + 1 : stop]]


def test_matrices_on_the_screen(found):
    lines = table(screen(found, []), "layer")
    assert len(lines) == 7
    by_name = {("-" if each.layer is None else str(each.layer), each.role): each for each in found}
    for layer, role, kind, shape, kappa, relative, rank, loss, channel in lines:
        each = by_name[layer, role]
        r = min(each.rows, each.columns)
        null = shape_null(each.rows, each.columns)
        assert kind == ("embed" if each.layer is None else "linear")
        assert shape == f"{each.rows}x{each.columns}"
        assert [float(part) for part in re.findall(r"[\d.]+", kappa.replace(",", ""))] == pytest.approx(
            [each.kappa, null.kappa], rel=0.01
        )
        assert float(relative.rstrip("*")) == pytest.approx(each.kappa / null.kappa, rel=0.01)
        assert relative.endswith("*") is (each.kappa > null.kappa_high)
        assert rank == f"{each.effective_rank / r:.2f} ({null.effective_rank / r:.2f})"
        assert loss == f"{each.entropy_loss / r:.2f} ({null.entropy_loss / r:.2f})"
        assert channel == f"{each.channel_share:.2f}"


def test_the_first_few(found):
    text = screen(found, [], by="parameters", top=2)
    assert [line[1] for line in table(text, "layer")] == ["embed", "mlp.down"]
    assert "… 5 more in the files; --top 0 shows all" in text
    assert len(table(text, "role")) == 3
    assert "more in the files" not in screen(found, [], top=7)


def test_infinity_bounds_and_what_is_not_known(mixed):
    lines = {line[1]: line for line in table(screen(mixed, []), "layer")}
    assert lines["a"][4].startswith("∞ (")
    assert lines["a"][7].startswith("∞ (")
    assert lines["c"][4].startswith("≥")
    assert lines["c"][5].startswith("≥")
    assert lines["c"][6].startswith("- (")
    assert lines["c"][8] == "-"
    assert "≥" not in " ".join(lines["b"])
    roles = {line[0]: line for line in table(screen(mixed, []), "role")}
    assert roles["a"][2:5] == ["∞"] * 3
    assert all(cell.startswith("≥") for cell in roles["c"][2:5])
    assert roles["c"][6] == "-"


def test_experts_on_the_screen():
    found = surveyed({"layers.0.experts.down_proj": (3, 8, 12), "layers.0.o.weight": (8, 8)})
    lines = {line[1]: line for line in table(screen(found, []), "layer")}
    kappas = sorted(each.kappa for each in found if each.expert is not None)
    low, high = lines["experts.down_proj x3"][5].split("-")
    assert (float(low), float(high)) == pytest.approx((kappas[0], kappas[-1]), rel=0.01)
    assert float(lines["experts.down_proj x3"][4].split()[0]) == pytest.approx(sum(kappas) / 3, rel=0.01)


def test_roles_on_the_screen(found):
    lines = {line[0]: line for line in table(screen(found, []), "role")}
    assert lines.keys() == {"embed", "attn.o", "mlp.down"}
    relative = sorted(each.relative for each in found if each.role == "attn.o")
    shown = [float(cell) for cell in lines["attn.o"][2:5]]
    assert shown == pytest.approx([relative[1], relative[0], relative[2]], rel=0.01)
    assert lines["attn.o"][1] == "3"


def test_sites_on_the_screen(found):
    sites = [
        SiteCondition("resid_post.1", 12.3, 0.9, True, ("layers.1.attn.o.weight", "layers.1.mlp.down.weight")),
        SiteCondition("attn_out.0", 1.0, math.nan, False, ("layers.0.attn.o.weight",)),
    ]
    text = screen(found, sites)
    first, second = text.splitlines()[-2:]
    assert re.split(r" {2,}", first) == ["1", "resid_post.1", first.split()[2], "0.900", "attn.o, mlp.down"]
    assert first.split()[2].rstrip("*") == "12.3"
    assert re.split(r" {2,}", second)[2:] in (["≥1.00", "-", "attn.o"], ["≥1.00*", "-", "attn.o"])
    assert "no evidence of knowledge" in text
    assert "Sites" not in screen(found, [])
    assert "attn_out.0" not in screen(found, sites, top=1)


def test_long_and_hostile_names():
    name = "layers.0." + "part." * 30 + "end.weight"
    text = screen(surveyed({name: (8, 12), "a\x1b[31m\nb": (4, 6)}), [])
    assert "…" in text
    assert "part.end" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 120


# ------------------------------------------------------------------------------------------ files and numbers


def test_csv_holds_every_number(mixed):
    lines = list(csv.DictReader(io.StringIO(to_csv(mixed))))
    assert [line["tensor"] for line in lines] == ["h.0.a.weight", "h.0.b.weight", "h.0.c.weight"]
    assert lines[0]["kappa"] == lines[0]["entropy_loss"] == "inf"
    assert (lines[2]["exact"], lines[2]["effective_rank"]) == ("False", "")
    for line, each in zip(lines, mixed, strict=True):
        assert float(line["kappa"]) == each.kappa
        assert float(line["norm"]) == each.norm
        assert line["digest"] == each.digest
        assert line.keys() == each.to_json().keys()


def test_json_is_strict_and_holds_the_nulls(mixed):
    sites = [SiteCondition("mlp_out.0", math.inf, math.nan, False, ("h.0.a.weight",))]
    text = to_json(mixed, sites, {"source": {"name": "x"}}, ["a note"])
    read = json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
    assert (read["schema"], read["version"]) == ("atoms-conditioning", 1)
    assert read["source"] == {"name": "x"}
    assert read["notes"] == ["a note"]
    assert read["matrices"] == [each.to_json() for each in mixed]
    assert read["sites"][0]["relative"] == "inf"
    assert read["sites"][0]["effective_rank"] is None
    nulls = {(null["rows"], null["columns"]): null for null in read["nulls"]}
    assert nulls.keys() == {(3, 3), (4, 3), (9, 9)}
    assert nulls[9, 9]["kappa_high"] == shape_null(9, 9).kappa_high


def test_numbers_are_few_and_finite(found, mixed):
    scalars = numbers(found)
    assert scalars["matrices"] == 7
    assert scalars["parameters"] == sum(each.parameters for each in found)
    assert scalars["singular"] == scalars["bounded"] == 0
    kappas = sorted(each.kappa for each in found)
    assert (scalars["kappa/lowest"], scalars["kappa/highest"]) == (kappas[0], kappas[-1])
    assert scalars["kappa/all"] == kappas[3]
    assert scalars["kappa_over_null/attn.o"] == sorted(e.relative for e in found if e.role == "attn.o")[1]
    assert "kappa/embed" not in scalars  # only one
    assert len(scalars) == 6 + 3 * 3
    other = numbers(mixed)
    assert (other["singular"], other["bounded"]) == (1, 1)
    assert all(map(math.isfinite, other.values()))
    assert "kappa/highest" not in other
    zeros = numbers(surveyed({"h.0.a.weight": torch.zeros(3, 4), "h.0.b.weight": (4, 3)}))
    assert (zeros["singular"], zeros["bounded"]) == (1, 0)
    assert "effective_rank/c" not in other
