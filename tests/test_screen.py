"""Certificates on a terminal: no number is wrapped, nothing said twice."""

import io
import re
from dataclasses import replace

import pytest
from certificates import certificate, claim
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from atoms.checks.certificate import Certificate
from atoms.checks.claim import Section, Verdict
from atoms.checks.screen import LINES, WIDTH, screen, show
from atoms.checks.side_by_side import SHORT, side_by_side
from atoms.checks.sparsity_levels import LEVELS

NAMES = [
    "resid_post.3", "neurons", "random omp", "random topk", "data k1", "data omp", "rotation", "pca", "ica", "kmeans",
    "dict. learning",
]  # fmt: skip


def full(name: str = "unit", **changes) -> Certificate:
    """With every number there is a line for, and as many claims as all checks make."""
    sections: dict[str, dict[str, float]] = {"metric": {"condition": 144444.5, "ridge_share": 0.0031}}
    for line in LINES:
        for number in filter(None, (line.number, line.beside)):
            section, key = number.split("/")
            sections.setdefault(section, {})[key] = 0.123456
    verdicts = list(Verdict)
    claims = [claim(f"claim_{number:02}", verdicts[number % 7], why="because " * 40) for number in range(22)]
    own = tuple(
        Section(section, section, numbers, tuple(claims) if section == "joint" else ())
        for section, numbers in sections.items()
    )
    plain = certificate(name)
    reason = f"seeds is empty: one seed of {name} says nothing"
    return replace(plain, unit=replace(plain.unit, atoms=1536), sections=own, failed={"stability": reason}, **changes)


def shown(certificates, width=None, **asked) -> list[str]:
    """Lines of the screen, on a terminal of a width or on none."""
    file = io.StringIO()
    console = Console(file=file, width=width or 10_000, color_system=None, highlight=False)
    console.print(screen(certificates, width=width, **asked))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_one_certificate_fits_a_screen():
    lines = shown([full("resid_post.3")], 100)
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 60
    reasons = [line for line in lines if "because because" in line]
    assert len(reasons) == 22
    assert all(line.endswith("…") for line in reasons)
    for verdict in Verdict:
        assert any(re.search(rf"joint\.claim_\d\d +{verdict} +because", line) for line in lines)
    for line in LINES:
        (own,) = [text for text in lines if line.label in text]
        assert format(0.123456, line.form) in own


def test_eleven_units_where_there_is_room():
    lines = shown([full(name) for name in NAMES])
    header = next(line for line in lines if "kmeans" in line)
    assert re.split(r"  +", header.strip()) == NAMES
    for line in LINES:
        (own,) = [text for text in lines if line.label in text]
        assert own.count(format(0.123456, line.form)) == 11 * (2 if line.beside else 1)
    for number in range(22):
        (own,) = [text for text in lines if f"claim_{number:02}" in text]
        assert own.count(SHORT[list(Verdict)[number % 7]]) == 11


@pytest.mark.parametrize("width", [80, 100, 140])
def test_narrow_terminal_has_several_tables(width):
    lines = shown([full(name) for name in NAMES], width)
    assert max(map(len, lines)) <= width
    for line in LINES:
        own = [text for text in lines if line.label in text]
        assert len(own) > 1
        assert sum(text.count(format(0.123456, line.form)) for text in own) == 11 * (2 if line.beside else 1)
    headers = [line for line in lines if re.search(r"atoms( +[\d,]+ atoms)*$", line)]
    assert sum(line.count("1,536 atoms") for line in headers) == 11


@settings(max_examples=20)
@given(st.integers(90, 200), st.lists(st.text("abc ", min_size=1, max_size=20), min_size=2, max_size=6))
def test_every_cell_is_whole_at_any_width(width, names):
    units = [full(f"u{name}z") for name in names]
    lines = shown(units, width)
    assert max(map(len, lines)) <= width
    assert sum(line.count("0.123 (0.123)") for line in lines) == len(units) * sum(
        line.form == ".3f" and bool(line.beside) for line in LINES
    )


def test_what_failed_alike_is_said_once():
    lines = " ".join(shown([full(name) for name in NAMES]))
    assert lines.count("not done: ") == 1
    assert "not done: stability: seeds is empty: one seed of the unit says nothing" in lines
    alone = " ".join(shown([full("pca")]))
    assert "not done: stability: seeds is empty: one seed of pca says nothing" in alone
    well = replace(full("well"), failed={})
    some = " ".join(shown([full("pca"), well, full("ica")]))
    assert "pca, ica: not done: stability: seeds is empty: one seed of the unit says nothing" in some
    other = replace(full("odd"), failed={"stability": "all atoms of odd are dead"})
    both = " ".join(shown([full("pca"), other]))
    assert "pca: not done: stability: seeds is empty: one seed of pca" in both
    assert "odd: not done: stability: all atoms of odd are dead" in both


def test_plain_has_reasons_in_full_and_neither_boxes_nor_colours(capsys):
    show([full()], plain=True)
    out = capsys.readouterr().out
    assert not re.search("[\u2500-\u257f\x1b…]", out)
    assert out.count("because") == 22 * 40 + 1
    assert max(map(len, out.splitlines())) <= WIDTH


def test_output_that_is_no_terminal_is_as_wide_as_its_tables(capsys):
    show([full(name) for name in NAMES])
    lines = capsys.readouterr().out.splitlines()
    assert 200 < max(map(len, lines)) < 300
    assert max(len(line) for line in lines if "Something may be claimed" in line) <= WIDTH
    assert "condition of the metric 1.4e+05, of which the ridge is 0.0031" in lines


def test_names_are_no_markup():
    lines = shown([full("[red]a[/]"), full("b[0]")])
    assert any(re.search(r"\[red\]a\[/\] +b\[0\]", line) for line in lines)


def test_certificate_without_claims_or_numbers():
    bare = replace(certificate(), sections=(), sentence="", failed={})
    assert "37 held-out rows" in shown([bare])[0]
    assert "37 held-out rows" in shown([bare, bare], 80)[0]


class TestSideBySide:
    """Claims asked at several sparsities."""

    def answers(self, name: str, *verdicts: Verdict) -> Certificate:
        claims = tuple(claim(f"t3_{level}", verdict) for level, verdict in zip(LEVELS, verdicts, strict=False))
        return replace(certificate(name), sections=(Section("uniqueness", "", {}, claims),))

    def test_one_line_where_all_levels_fare_alike(self):
        sure, not_so = (self.answers("a", *[verdict] * 3) for verdict in (Verdict.GUARANTEED, Verdict.UNATTAINABLE))
        (line,) = side_by_side([sure, not_so]).items()
        assert line[0] == "uniqueness.t3"
        assert [found.verdict for found in line[1]] == [Verdict.GUARANTEED, Verdict.UNATTAINABLE]

    def test_one_a_level_for_all_where_one_unit_s_differ(self):
        alike = self.answers("a", *[Verdict.GUARANTEED] * 3)
        differ = self.answers("b", Verdict.GUARANTEED, Verdict.NOT_GUARANTEED, Verdict.NOT_GUARANTEED)
        lines = side_by_side([alike, differ])
        assert list(lines) == [f"uniqueness.t3_{level}" for level in LEVELS]
        assert [found.verdict for found in lines["uniqueness.t3_max"]] == [Verdict.GUARANTEED, Verdict.NOT_GUARANTEED]

    def test_unit_that_was_not_asked(self):
        lines = side_by_side([self.answers("a", *[Verdict.GUARANTEED] * 3), certificate("b")])
        assert lines["uniqueness.t3"][1].verdict is Verdict.UNATTAINABLE
        assert lines["joint.atoms"][0] is None
