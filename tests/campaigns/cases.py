"""The loop of a campaign: cases drawn from a seed, and a file of results that grows."""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

Case = dict[str, Any]
BAD = ("WRONG DATA", "TRACEBACK", "DIFFERENT", "STUCK")
"""How a case must not end."""


def campaign(name: str, describe: str, run: Callable[[random.Random, Path], Case], words: list[str] | None) -> Case:
    """Run the cases of a campaign that its results file does not hold yet, and summarise all of them.

    Args:
        name: The campaign.
        describe: What it does, for ``--help``.
        run: Given a generator of the case's own and the campaign's scratch directory, does one case; the outcome is
            under ``"outcome"``.
        words: The command line, or None for that of the process.

    Returns:
        The summary, which is also printed as JSON.
    """
    parser = argparse.ArgumentParser(description=describe)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, required=True, help="one JSON line a case; an existing file is gone on with"
    )
    given = parser.parse_args(words)
    done = results(given.out)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as scratch, given.out.open("a") as out:
        todo = [number for number in range(given.cases) if (given.seed, number) not in done]
        for place, number in enumerate(todo):
            # a case is the same whatever ran before it
            begun = time.monotonic()
            case = {"campaign": name, "seed": given.seed, "case": number}
            case |= run(random.Random(f"{name} {given.seed} {number}"), Path(scratch))
            case["seconds"] = round(time.monotonic() - begun, 3)
            out.write(json.dumps(case) + "\n")
            out.flush()
            done[given.seed, number] = case
            left = (time.monotonic() - started) / (place + 1) * (len(todo) - place - 1)
            bad = sum(case["outcome"] in BAD for case in done.values())
            print(f"{name}: {len(done)} cases, {bad} failed, {left:.0f} s left", file=sys.stderr, flush=True)
    summary = summarise(name, list(done.values()))
    print(json.dumps(summary, indent=1))
    return summary


def results(path: Path) -> dict[tuple[int, int], Case]:
    """Cases of a results file by seed and number; a line cut short by a kill is none."""
    if not path.exists():
        return {}
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole))
    cases = [json.loads(line) for line in whole]
    return {(case["seed"], case["case"]): case for case in cases}


def summarise(name: str, cases: list[Case]) -> Case:
    """Counts of outcomes, in all and by what was done."""
    by_kind: dict[str, Counter[str]] = {}
    for case in cases:
        by_kind.setdefault(case["kind"], Counter())[case["outcome"]] += 1
    return {
        "campaign": name,
        "cases": len(cases),
        "outcomes": dict(Counter(case["outcome"] for case in cases)),
        "by_kind": {kind: dict(counts) for kind, counts in sorted(by_kind.items())},
        "kills": sum(len(case.get("kills", ())) for case in cases),
        "failed": [case for case in cases if case["outcome"] in BAD],
    }
