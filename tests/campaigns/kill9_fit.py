"""Kill `atoms fit` again and again; with --ckpt_path=last it must end with the weights of a fit nobody touched."""

import random
from functools import cache
from pathlib import Path

import torch
from cases import BAD, Case, campaign
from forks import Ended, kill_and_go_on, run, settings

from atoms.training import checkpoint

KINDS = ("plain", "members", "accumulated", "mlflow")
STEPS = {"plain": 54, "members": 54, "accumulated": 27, "mlflow": 54}


def words(kind: str, scratch: Path) -> list[str]:
    """The same command for the first start and for every later one."""
    values = {
        "data.store": scratch / "store", "data.batch_size": 256, "data.pool_mib": 1, "model.expansion": 2.5,
        "model.target_l0": 2, "model.encoder": "aligned", "model.lr": 2e-3, "trainer.max_epochs": 3,
        "trainer.accelerator": "cpu", "trainer.log_every_n_steps": 1, "checkpoint.every_n_train_steps": 4,
        "ckpt_path": "last",
    }  # fmt: skip
    if kind != "mlflow":
        values["trainer.logger"] = "false"
    if kind == "accumulated":
        values["trainer.accumulate_grad_batches"] = 2
    if kind == "members":
        values["model.members"] = "{a: {}, b: {expansion: 1, target_l0: 3}}"
        values["checkpoint.save_top_k"] = -1
    return ["fit", *(f"--{name}={value}" for name, value in values.items())]


def result(folder: Path, steps: int) -> tuple[Case, dict[str, dict[int, float]] | None]:
    """Weights and optimizer at the end, and MLflow's curves where there are some."""
    (last, *_) = sorted(folder.rglob(f"step-{steps:07d}*.ckpt"))
    content, record = checkpoint.read(last)
    state = {key: content[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}
    return state, _curves(record) if record.run_id else None


def _curves(record: checkpoint.Record) -> dict[str, dict[int, float]]:
    # read with the library of the database, not MLflow, which would start threads in the process that forks
    import sqlite3

    with sqlite3.connect(record.tracking_uri.removeprefix("sqlite:///")) as database:
        rows = database.execute("select key, step, value from metrics where run_uuid = ?", [record.run_id]).fetchall()
        (status,) = database.execute("select status from runs where run_uuid = ?", [record.run_id]).fetchone()
    assert status == "FINISHED", status
    curves: dict[str, dict[int, float]] = {}
    for key, step, value in rows:
        curves.setdefault(key, {})[step] = value
    return curves


def same(left: object, right: object) -> bool:
    """Equality to the bit, through containers."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def _make_store(scratch: Path) -> None:
    if not (scratch / "store").exists():
        planted = settings("data.planted", {"width": 16, "atoms": 24, "active": 2, "rows": 6000})
        ended = run(["cache", f"--data.store={scratch / 'store'}", *planted], scratch)
        assert ended.status == 0, ended.said


@cache
def untouched(kind: str, scratch: Path) -> tuple[Ended, tuple[Case, dict[str, dict[int, float]] | None]]:
    """The fit nobody touched."""
    _make_store(scratch)
    folder = scratch / f"untouched-{kind}"
    folder.mkdir()
    ended = run(words(kind, scratch), folder)
    assert ended.status == 0, ended.said
    return ended, result(folder, STEPS[kind])


def case(random: random.Random, scratch: Path) -> Case:
    """One to four kills, then to the end."""
    kind = random.choice(KINDS)
    reference, expected = untouched(kind, scratch)
    folder = scratch / "case"

    def look() -> Case:
        return {"checkpoint": max((path.name for path in folder.rglob("step-*.ckpt")), default="none")}

    out = {"kind": kind, **kill_and_go_on(random, words(kind, scratch), folder, reference, look)}
    if "outcome" in out:
        return out
    if not same(result(folder, STEPS[kind]), expected):
        return out | {"outcome": "DIFFERENT"}
    # A run that was killed before its first checkpoint is never taken up; its folder is left as it was.
    (last, *_) = sorted(folder.rglob(f"step-{STEPS[kind]:07d}*.ckpt"))
    left = [str(path) for path in (*last.parent.glob("*.partial"), *folder.glob("*.partial*"))]
    return out | ({"outcome": "DIFFERENT", "files": left} if left else {"outcome": "equal"})


def main(words: list[str] | None = None) -> Case:
    """Run the campaign."""
    return campaign("kill9_fit", __doc__, case, words)


if __name__ == "__main__":
    raise SystemExit(any(outcome in BAD for outcome in main()["outcomes"]))
