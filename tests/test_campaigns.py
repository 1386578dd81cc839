"""The campaigns in short; the full ones are in docs/reliability.md."""

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from forked import forked

FOLDER = Path(__file__).parent / "campaigns"


def _everything(words: list[str], folder: Path) -> None:
    os.chdir(folder)
    sys.path.insert(0, str(FOLDER))
    raise SystemExit(importlib.import_module("everything").main(words))


@pytest.fixture(scope="module")
def summaries(tmp_path_factory) -> dict[str, dict]:
    """What a hundredth of the campaigns gives, which fork in turn."""
    only = ["kill9_cache", "kill9_fit", "damage_checkpoints", "damage_store"]
    out = tmp_path_factory.mktemp("campaigns")
    assert forked(_everything, (["--share=0.01", f"--out={out}", "--only", *only], out)) == [0]
    found = {}
    for name in only:
        cases = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        found[name] = Counter(case["outcome"] for case in cases)
    found["folder"] = out
    return found


@pytest.mark.parametrize("name", ["kill9_cache", "kill9_fit"])
def test_kills_change_nothing(summaries, name):
    assert summaries[name] == {"equal": 1}


def test_damage_is_refused(summaries):
    assert summaries["damage_checkpoints"] == {"refused": 10}


def test_table_is_made_of_the_results(summaries, tmp_path):
    docs = tmp_path / "docs.md"
    docs.write_text("before\n<!-- results: begin -->\nold\n<!-- results: end -->\nafter\n")
    subprocess.run([sys.executable, FOLDER / "table.py", summaries["folder"], "--docs", docs], check=True)
    lines = docs.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    (row,) = [line for line in lines if "damage to checkpoints" in line]
    assert "| 10 | 10 damages | 0 | 10 refused | 0 |" in row
    assert "old" not in lines
