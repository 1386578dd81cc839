"""Write the results of campaigns into docs/reliability.md, between its two marks."""

import argparse
from pathlib import Path

from cases import BAD, results, summarise

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
WHAT = {
    "kill9_cache": "`kill -9` of `atoms cache`",
    "kill9_fit": "`kill -9` of `atoms fit`",
    "damage_store": "damage to a store",
    "damage_checkpoints": "damage to checkpoints and dictionaries",
}


def row(name: str, path: Path) -> str:
    """One campaign as a row of the table."""
    cases = list(results(path).values())
    summary = summarise(name, cases)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(summary["outcomes"].items()))
    failed = sum(count for outcome, count in summary["outcomes"].items() if outcome in BAD)
    seeds = ", ".join(str(seed) for seed in sorted({case["seed"] for case in cases}))
    hits = f"{summary['kills']} kills" if summary["kills"] else f"{summary['cases']} damages"
    minutes = sum(case["seconds"] for case in cases) / 60
    return f"| {WHAT[name]} | {summary['cases']} | {hits} | {seeds} | {outcomes} | {failed} | {minutes:.1f} min |"


def main(words: list[str] | None = None) -> None:
    """Fill the table from the results files there are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where everything.py wrote")
    parser.add_argument("--docs", type=Path, default=DOCS)
    given = parser.parse_args(words)
    found = [(name, given.folder / f"{name}.jsonl") for name in WHAT if (given.folder / f"{name}.jsonl").exists()]
    head = ["| campaign | cases | | seed | outcomes | failed | time |", "|---|--:|--:|--:|---|--:|--:|"]
    table = "\n".join([*head, *(row(name, path) for name, path in found)])
    text = given.docs.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    given.docs.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


if __name__ == "__main__":
    main()
