"""Damage checkpoints and saved dictionaries: whoever reads one is refused in one line, or gets the truth."""

import contextlib
import io
import random
import shutil
from functools import cache
from pathlib import Path

import torch
from cases import BAD, Case, campaign
from damage import Damage, judge
from forks import settings

from atoms.cli import main as atoms_command
from atoms.sae import ThresholdSAE
from atoms.sae.artefact import read_description
from atoms.training import checkpoint


@cache
def made(scratch: Path) -> tuple[Path, Case]:
    """A folder with two checkpoints and a dictionary, and all that can be read from them."""
    folder = scratch / "made"
    words = [
        *settings("data.planted", {"root": scratch / "rows", "width": 16, "atoms": 24, "active": 2, "rows": 2000}),
        "--data.batch_size=256", "--model.target_l0=2", "--trainer.max_epochs=2", "--trainer.accelerator=cpu",
        "--trainer.logger=false", "--checkpoint.every_n_train_steps=6", "--checkpoint.save_top_k=-1",
        f"--checkpoint.dirpath={scratch / 'fit'}", f"--trainer.default_root_dir={scratch}",
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        atoms_command(["fit", *words])
    folder.mkdir()
    for path in (scratch / "fit").glob("*.ckpt"):
        shutil.copy(path, folder)
    shutil.copytree(scratch / "fit" / "atoms" / "tsae", folder / "tsae")
    return folder, read(folder)


def plain(value: object) -> object:
    """Content that compares by value."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value if isinstance(value, (int, float, str, bytes, type(None))) else repr(value)


def read(folder: Path, name: str | None = None) -> Case:
    """Read everything, or only what one file belongs to."""
    out: Case = {}
    for path in [folder / name] if name and name.endswith(".ckpt") else sorted(folder.glob("*.ckpt")):
        content, record = checkpoint.read(path)
        out[path.name] = [plain(content), record]
    if name is None or not name.endswith(".ckpt"):
        sae = ThresholdSAE.load(folder / "tsae")
        out["tsae"] = [plain(dict(sae.state_dict())), plain(sae.geometry.state())]
        out["description"] = read_description(folder / "tsae")
    return out


def case(random: random.Random, scratch: Path) -> Case:
    """One damage."""
    folder, truth = made(scratch)
    damage = Damage.draw(random, folder)
    own = {key: value for key, value in truth.items() if key in read(folder, damage.name)}
    with damage.done():
        found = judge(lambda: read(folder, damage.name), own)
    return {"kind": damage.kind, "file": damage.name, "place": damage.place, **found}


def main(words: list[str] | None = None) -> Case:
    """Run the campaign."""
    return campaign("damage_checkpoints", __doc__, case, words)


if __name__ == "__main__":
    raise SystemExit(any(outcome in BAD for outcome in main()["outcomes"]))
