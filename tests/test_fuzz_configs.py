"""A short run of the campaign over configs and command lines, and that it would notice."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "campaigns"


@pytest.fixture(scope="module")
def campaign():
    """The campaign's module; it lies outside every package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("fuzz_configs")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_no_config_or_command_line_breaks_it(campaign, folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["atoms"])
    results = campaign.run(list(range(45)), seed=2026, folder=folder)
    assert [result for result in results if result.fault] == []
    assert len(results) == 45
    assert {result.code for result in results} >= {0, 1}
    assert len({result.kind for result in results}) > 8


def test_a_case_is_a_function_of_its_number(campaign):
    assert campaign.case_of(3, 14) == campaign.case_of(3, 14)
    assert len({str(campaign.case_of(3, number)) for number in range(50)}) > 45


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("raise RuntimeError('no')", "RuntimeError: no"),
        ("sys.exit(3)", "status 3"),
        ("sys.exit(1)", "status 1, but 0 error lines"),
        ("print('atoms: error: a\\nmore', file=sys.stderr); sys.exit(1)", "the last line is 'more'"),
        ("print('x'); print('atoms: error: a', file=sys.stderr); sys.exit(1)", "printed 'x\\n' and failed"),
        ("print('atoms: error: \\x1b[1m', file=sys.stderr); sys.exit(1)", "a control character reaches the terminal"),
        ("open('mess', 'w').close(); print('atoms: error: a', file=sys.stderr); sys.exit(1)", "left behind ['mess']"),
        (
            "open('config.yaml', 'w').close(); print('atoms: error: a', file=sys.stderr); sys.exit(1)",
            "changed ['config",
        ),
        ("open('EVIL', 'w').close()", "a forbidden module was imported"),
    ],
)
def test_it_notices(campaign, folder, monkeypatch, fault, found):
    monkeypatch.setattr(campaign, "main", lambda words: exec(fault, {"sys": sys}))
    _, noticed, _ = campaign.run_case(campaign.Case(["fit"], {"config.yaml": b"{}"}), folder)
    assert found in noticed
