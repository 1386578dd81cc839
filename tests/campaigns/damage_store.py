"""Damage any file of a store: whoever reads it is refused in one line, or gets the truth all the same."""

import contextlib
import io
import random
import tempfile
from functools import cache
from pathlib import Path

from cases import BAD, Case, campaign
from damage import Damage, judge
from forks import settings, tiny

import atoms.activations.planted
from atoms.activations.datamodule import ActivationDataModule
from atoms.cli import main as atoms_command


@cache
def store(kind: str, scratch: Path) -> tuple[Path, Case]:
    """A small store of some blocks, and all that can be read from it."""
    path = scratch / kind
    if kind == "planted":
        words = settings("data.planted", {"width": 16, "atoms": 24, "active": 2, "rows": 3000})
        atoms.activations.planted.BLOCK_BYTES = 2**16
    else:
        model, text = Path(tempfile.mkdtemp(dir=scratch)), Path(tempfile.mkdtemp(dir=scratch))
        tiny.write_gpt2(model)
        tiny.write_text(text, 60)
        corpus = {"class_path": "atoms.activations.TextFiles", "init_args": {"paths": [str(text)]}}
        words = [
            f"--data.harvest.model={{name: {model}, sha256: null}}", f"--data.harvest.corpus={corpus}",
            "--data.harvest.sites=[resid_post.1, mlp_out.2]", "--data.harvest.context=32",
            "--data.harvest.dtype=bfloat16", "--model.site=resid_post.1", "--trainer.accelerator=cpu",
        ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        atoms_command(["cache", f"--data.store={path}", *words])
    return path, read(path)


def read(path: Path) -> Case:
    """All that a fit, a judgement or a reader of codes would take from a store."""
    data = ActivationDataModule(store=str(path), verify="always")
    data.prepare_data()
    data.setup("fit")
    opened, truth = data.store, data.truth
    out = {
        "width": data.width,
        "identity": opened.identity_hash,
        "provenance": opened.provenance,
        "rows": {split: data.num_rows(split) for split in opened.splits},
        "content": opened.content_digest(),
        "truth": None if truth is None else truth.numpy().tobytes(),
    }
    for site in opened.sites:
        moments = data.moments(site)
        out[f"moments of {site}"] = [part.numpy().tobytes() for part in (moments.total, moments.outer)]
        out[f"count of {site}"] = int(moments.count)
    for split in opened.splits:
        out[f"tokens of {split}"] = {name: column.tobytes() for name, column in opened.tokens(split).items()}
        out[f"norms of {split}"] = {site: opened.norms(split, site).tobytes() for site in opened.sites}
    return out


def case(random: random.Random, scratch: Path) -> Case:
    """One damage."""
    path, truth = store(random.choice(["planted", "harvested"]), scratch)
    damage = Damage.draw(random, path)
    with damage.done():
        found = judge(lambda: read(path), truth, ["store", "verify", str(path)])
    return {"kind": damage.kind, "store": path.name, "file": damage.name, "place": damage.place, **found}


def main(words: list[str] | None = None) -> Case:
    """Run the campaign."""
    return campaign("damage_store", __doc__, case, words)


if __name__ == "__main__":
    raise SystemExit(any(outcome in BAD for outcome in main()["outcomes"]))
