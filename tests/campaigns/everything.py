"""Run several campaigns one after the other, each with its own results file in a folder."""

import argparse
import importlib
from pathlib import Path

from cases import BAD

LONG = {"kill9_cache": 100, "kill9_fit": 100, "damage_store": 1000, "damage_checkpoints": 1000}
"""Cases of a full run."""


def main(words: list[str] | None = None) -> int:
    """Run them; gives the number of cases that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the cases of a full run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(LONG), default=list(LONG))
    parser.add_argument("--out", type=Path, required=True, help="folder of the results files")
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in given.only:
        cases = max(1, round(given.share * LONG[name]))
        arguments = [f"--cases={cases}", f"--seed={given.seed}", f"--out={given.out / name}.jsonl"]
        summary = importlib.import_module(name).main(arguments)
        failed += sum(count for outcome, count in summary["outcomes"].items() if outcome in BAD)
    return failed


if __name__ == "__main__":
    raise SystemExit(bool(main()))
