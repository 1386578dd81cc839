"""Kill `atoms cache` again and again; the store it ends with must be that of a harvest nobody touched."""

import random
from functools import cache
from pathlib import Path

from cases import BAD, Case, campaign
from forks import Ended, files, kill_and_go_on, run, settings, tiny

import atoms.activations.planted
import atoms.commands.fit  # the forks must not import it anew
from atoms.activations.store import ActivationStore
from atoms.activations.writer import moments_name

KINDS = ("gpt2", "bert", "planted")


def words(kind: str, scratch: Path) -> list[str]:
    """The command that makes a store of some seven blocks."""
    if kind == "planted":
        return ["cache", "--data.store=store", *settings("data.planted", {"width": 32, "atoms": 48, "rows": 12000})]
    model, text = scratch / kind, scratch / "text"
    if not text.exists():
        text.mkdir()
        tiny.write_text(text, 500)
    if not model.exists():
        model.mkdir()
        (tiny.write_gpt2 if kind == "gpt2" else tiny.write_bert)(model)
    corpus = {"class_path": "atoms.activations.TextFiles", "init_args": {"paths": [str(text)]}}
    sites = [f"{name}.{block}" for block in range(3) for name in ("resid_post", "mlp_out")]
    return [
        "cache", "--data.store=store", f"--data.harvest.model={{name: {model}, sha256: null}}",
        f"--data.harvest.corpus={corpus}", f"--data.harvest.sites={sites}", "--data.harvest.context=32",
        "--data.harvest.memory_mib=1", "--model.site=resid_post.0", "--trainer.accelerator=cpu",
    ]  # fmt: skip


def prepare() -> None:
    """Small blocks for planted rows too."""
    atoms.activations.planted.BLOCK_BYTES = 2**17


def content(store: Path) -> Case:
    """All that a store says of its rows."""
    opened = ActivationStore.open(store, verify="always")
    moments = {site: opened.read_file(moments_name(site)).hex() for site in opened.sites}
    return {"identity": opened.identity_hash, "rows": opened.content_digest(), "moments": moments}


@cache
def untouched(kind: str, scratch: Path) -> tuple[Ended, Case, list[str]]:
    """The harvest nobody touched: how it went, its content and its files."""
    folder = scratch / f"untouched-{kind}"
    folder.mkdir()
    ended = run(words(kind, scratch), folder, prepare=prepare)
    assert ended.status == 0, ended.said
    return ended, content(folder / "store"), files(folder)


def case(random: random.Random, scratch: Path) -> Case:
    """One to four kills, then to the end."""
    kind = random.choice(KINDS)
    reference, expected, expected_files = untouched(kind, scratch)
    folder = scratch / "case"

    def look() -> Case:
        return {"blocks": len(list(folder.glob("store/manifest/*.json")))}

    out = {"kind": kind, **kill_and_go_on(random, words(kind, scratch), folder, reference, look, prepare)}
    if "outcome" in out:
        return out
    if content(folder / "store") != expected:
        return out | {"outcome": "DIFFERENT"}
    left = sorted(set(files(folder)) ^ set(expected_files))
    return out | ({"outcome": "DIFFERENT", "files": left} if left else {"outcome": "equal"})


def main(words: list[str] | None = None) -> Case:
    """Run the campaign."""
    return campaign("kill9_cache", __doc__, case, words)


if __name__ == "__main__":
    raise SystemExit(any(outcome in BAD for outcome in main()["outcomes"]))
