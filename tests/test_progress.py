"""Progress lines, durations and sizes."""

import io

import pytest

from atoms import progress
from atoms.progress import Meter, duration, size


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7801, "2 h 10 min"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (300 * 2**20, "300 MiB"),
        (1.21 * 2**30, "1.21 GiB"),
        (5000 * 2**40, "5e+03 TiB"),
    ],
)
def test_sizes(n_bytes, words):
    assert size(n_bytes) == words


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds_where_there_is_no_terminal(clock, capsys):
    with Meter("fit", 1000, "rows") as meter:
        for _ in range(10):
            clock[0] += 4
            meter.advance(50)
    assert capsys.readouterr().err.splitlines() == [
        "fit: 150 of 1,000 rows, 12/s, 1 min 08 s left",
        "fit: 300 of 1,000 rows, 12/s, 56 s left",
        "fit: 450 of 1,000 rows, 12/s, 44 s left",
    ]


def test_a_note_stands_behind_the_line(clock, capsys):
    notes = iter(["2 GiB", "3 GiB"])
    with Meter("fit", 1000, "rows", note=lambda: next(notes)) as meter:
        for _ in range(2):
            clock[0] += 20
            meter.advance(50)
    assert [line.rpartition(", ")[2] for line in capsys.readouterr().err.splitlines()] == ["2 GiB", "3 GiB"]


def test_nothing_on_other_ranks(clock, capsys):
    with Meter("fit", 1000, enabled=False) as meter:
        clock[0] += 60
        meter.advance(10)
        meter.say("a line")
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Meter("fit", 100, "rows", note=lambda: "2 GiB") as meter:
        meter.advance(50)
        meter.say("epoch 1  [all well]")
    shown = terminal.getvalue()
    assert "epoch 1  [all well]" in shown
    assert "50/100" in shown
    assert "2 GiB" in shown
