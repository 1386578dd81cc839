"""Two processes do what one does."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import zarr
from mlflow.tracking import MlflowClient

import atoms
from atoms.activations.store import ActivationStore

ROOT = Path(atoms.__file__).parents[1]
TWO = ("--trainer.devices=2", "--trainer.strategy=ddp")

# Notes, on every rank, which rows each batch holds and which atoms count as silent.
WITNESS = """
import hashlib, json
import lightning as L

class Witness(L.Callback):
    def on_train_start(self, trainer, pl_module):
        self.notes = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rows = [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in batch["planted"]]
        control = pl_module.member("tsae").control
        silent = (control.silent_rows >= control.dead_after).nonzero().flatten().tolist()
        self.notes.append({"rows": rows, "silent": silent})

    def on_train_end(self, trainer, pl_module):
        with open(f"witness-{trainer.global_rank}.json", "w") as file:
            json.dump(self.notes, file)
"""


def atoms_in(folder: Path, *words: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "witness.py").write_text(WITNESS)
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    for name in ("MLFLOW_TRACKING_URI", "LOCAL_RANK", "MASTER_PORT", "NODE_RANK"):
        environment.pop(name, None)
    command = [sys.executable, "-W", "ignore", "-m", "atoms", *map(str, words), "--trainer.accelerator=cpu"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory, planted_store, empty_database):
    """The same fit of 216 steps by one process and by two; few atoms are needed, so many fall silent."""
    settings = {
        "data.store": planted_store, "data.batch_size": 64, "data.pool_mib": 1, "data.lanes": 2, "model.expansion": 6,
        "model.target_l0": 2, "model.lr": 5e-3, "trainer.max_epochs": 3, "trainer.limit_train_batches": 72,
        "trainer.log_every_n_steps": 1, "trainer.callbacks+": "witness.Witness",
    }  # fmt: skip
    found = {}
    for ranks in (1, 2):
        found[ranks] = folder = tmp_path_factory.mktemp(f"ranks-{ranks}")
        (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
        words = [f"--{name}={value}" for name, value in settings.items()]
        (folder / "out.txt").write_text(atoms_in(folder, "fit", *words, *(TWO if ranks == 2 else ())))
    return found


def run(folder: Path):
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("atoms").experiment_id])
    (found,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    return client, found


def witness(folder: Path, rank: int) -> list[dict]:
    return json.loads((folder / f"witness-{rank}.json").read_text())


class TestFit:
    """The loss sees the whole batch, whoever holds it."""

    def test_every_global_batch_has_the_same_rows(self, folders):
        alone = [note["rows"] for note in witness(folders[1], 0)]
        left, right = ([note["rows"] for note in witness(folders[2], rank)] for rank in (0, 1))
        assert len(alone) == len(left) == len(right) == 216
        for whole, first, second in zip(alone, left, right, strict=True):
            assert len(first) == len(second) == 32
            assert sorted(whole) == sorted(first + second)

    def test_same_curves(self, folders):
        curves = {}
        for ranks, folder in folders.items():
            client, found = run(folder)
            assert found.info.status == "FINISHED"
            for name in ("loss", "error", "l0"):
                points = client.get_metric_history(found.info.run_id, f"train/{name}")
                assert [point.step for point in points] == [64 * step for step in range(1, 217)]
                curves[ranks, name] = torch.tensor([point.value for point in points], dtype=torch.float64)
        for name in ("loss", "error", "l0"):
            torch.testing.assert_close(curves[1, name], curves[2, name], rtol=1e-4, atol=0)
        assert curves[1, "loss"][-1] < 0.8 * curves[1, "loss"][:20].mean()

    def test_same_atoms_fall_silent_and_come_back(self, folders):
        alone, left, right = (
            [set(note["silent"]) for note in witness(folders[ranks], rank)] for ranks, rank in ((1, 0), (2, 0), (2, 1))
        )
        assert alone == left == right
        revived = [before - after for before, after in pairwise(alone)]
        assert sum(map(len, revived)) >= 3

    def test_same_scores_figures_and_table(self, folders):
        finals = []
        for folder in folders.values():
            _, found = run(folder)
            finals.append({name: value for name, value in found.data.metrics.items() if name.startswith("final/")})
            assert len(list(Path(found.info.artifact_uri).glob("figures/*.png"))) == 4
            assert (folder / "out.txt").read_text().count("R² centred, raw") == 1
        assert finals[0].keys() == finals[1].keys()
        for name in finals[0]:
            assert finals[0][name] == pytest.approx(finals[1][name], rel=1e-4, abs=1e-6), name

    @pytest.mark.parametrize(("learnt_by", "words"), [(1, TWO), (2, ())])
    def test_either_judges_the_checkpoint_of_the_other(self, folders, learnt_by, words):
        (path,) = folders[learnt_by].glob("runs/*/*/checkpoints/*.ckpt")
        out = atoms_in(folders[learnt_by] / "judged", "validate", f"--ckpt_path={path}", *words)
        table = out.split("logged")[0].rstrip()
        assert "memorisation gap" in table
        assert (folders[learnt_by] / "out.txt").read_text().startswith(table)

    def test_two_write_the_codes_of_every_row_once(self, folders, planted_store):
        (path,) = folders[2].glob("runs/*/*/checkpoints/*.ckpt")
        words = (f"--data.store={planted_store}", f"--ckpt_path={path}", "--data.batch_size=250", "--splits=[val]")
        atoms_in(folders[2], "predict", *words, *TWO)
        group = zarr.open_group(folders[2] / "codes.zarr", mode="r")["val/tsae"]
        assert group.attrs["complete"]
        rows = [row for _, part in group.groups() for row in part["rows"][:]]
        assert {name.split("-")[1] for name, _ in group.groups()} == {"000", "001"}
        assert sorted(rows) == list(range(600))


def test_two_harvest_what_one_does(tiny_bert, text_folder, tmp_path):
    corpus = {"class_path": "atoms.activations.TextFiles", "init_args": {"paths": [str(text_folder)]}}
    words = [
        f"--data.harvest.model={{name: {tiny_bert}}}", f"--data.harvest.corpus={json.dumps(corpus)}",
        "--data.harvest.sites=[resid_post.1, mlp_out.0]", "--data.harvest.context=16", "--data.harvest.memory_mib=1",
        "--data.store=store", "--model.site=resid_post.1",
    ]  # fmt: skip
    digests = []
    for name, ranks in (("one", ()), ("two", TWO)):
        atoms_in(tmp_path / name, "cache", *words, *ranks)
        digests.append(ActivationStore.open(tmp_path / name / "store").content_digest())
    assert digests[0] == digests[1]
