"""Two processes, or four, do what one does."""

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import zarr
from forked import forked, free_port, lightning_ranks, speak_into
from mlflow.tracking import MlflowClient
from tiny_models import write_llama

import atoms
from atoms.activations.store import ActivationStore
from atoms.checks import Certificate
from atoms.cli import main
from atoms.sae import ThresholdSAE

ROOT = Path(atoms.__file__).parents[1]
SHARDED = ("--trainer.devices=2", "--trainer.strategy=tensor_parallel")
GRID = ("--trainer.devices=4", "--trainer.strategy=ModelParallelStrategy", "--trainer.strategy.tensor_parallel_size=2")
FEW = (
    "--checks.bootstrap=5",
    "--checks.null_rows=64",
    "--checks.skip=[l1, isometry, identifiability, shift, metric, information]",
)
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


def atoms_in(folder: Path, *words: object, launcher: str = "fork") -> str:
    """Run the command in ``folder`` and return what it prints: here if one process does it, else in new ones.

    Args:
        launcher: Who starts them: Lightning itself; torchrun; Slurm, two tasks that ``srun`` told their place; or a
            fork of what has been imported, told what Lightning would, which saves every process its imports.
    """
    folder.mkdir(exist_ok=True)
    (folder / "witness.py").write_text(WITNESS)
    words = (*map(str, words), "--trainer.accelerator=cpu")
    devices = [int(word.partition("=")[2]) for word in words if word.startswith("--trainer.devices=")]
    if not devices:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
            patch.chdir(folder)
            patch.syspath_prepend(folder)
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            main(list(words))
        return out.getvalue()
    if launcher in ("fork", "srun"):
        environments = lightning_ranks(devices[0]) if launcher == "fork" else slurm_tasks()
        places = [(folder, words, rank) for rank in range(devices[0])]
        codes = forked(_rank, *places, environments=environments)
        said = [(folder / f"said-{rank}").read_text() for rank in range(devices[0])]
        assert codes == [0] * devices[0], said
        assert said[1:] == [""] * (devices[0] - 1)  # only the first rank speaks
        return (folder / "out.txt").read_text()
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    for name in ("MLFLOW_TRACKING_URI", "LOCAL_RANK", "MASTER_PORT", "NODE_RANK"):
        environment.pop(name, None)
    at = ["torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}", "-m"]
    command = [sys.executable, "-m", *(at if launcher == "torchrun" else []), "atoms", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def slurm_tasks() -> list[dict[str, str]]:
    """What ``srun`` tells two tasks on one machine."""
    job = {"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2, "SLURM_NNODES": 1, "SLURM_JOB_NAME": "atoms"}
    job |= {"SLURM_JOB_ID": 7, "SLURM_NODEID": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    tasks = ({"SLURM_PROCID": rank, "SLURM_LOCALID": rank, **job} for rank in (0, 1))
    return [{name: str(value) for name, value in task.items()} for task in tasks]


def _rank(folder: Path, words: tuple[str, ...], rank: int) -> None:
    """One process of a command: what the first prints goes to ``out.txt``, all else to ``said-<rank>``."""
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    sys.path.insert(0, str(folder))
    sys.argv = ["atoms", *words]  # Lightning compares it with the words it is given
    warnings.simplefilter("ignore")
    speak_into(f"said-{rank}" if rank else "out.txt", f"said-{rank}")
    main(list(words))


SETTINGS = {
    "data.batch_size": 64, "data.pool_mib": 1, "data.lanes": 2, "model.expansion": 6, "model.target_l0": 2,
    "model.lr": 5e-3, "trainer.max_epochs": 3, "trainer.limit_train_batches": 72, "trainer.log_every_n_steps": 1,
}  # fmt: skip
LAYOUTS = {"one": ((), "fork"), "two": (TWO, "torchrun"), "grid": (GRID, "fork")}


def fit_words(store: Path, *words: str) -> list[str]:
    return ["fit", f"--data.store={store}", *(f"--{name}={value}" for name, value in SETTINGS.items()), *words]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, planted_store, empty_database):
    """The same fit of 216 steps: by one process, by torchrun's two that share rows, by four that share rows and atoms.

    Few atoms are needed, so many fall silent.
    """
    found = {}
    for name, (layout, launcher) in LAYOUTS.items():
        found[name] = folder = tmp_path_factory.mktemp(name)
        (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
        words = fit_words(planted_store, "--trainer.callbacks+=witness.Witness", "--allow_import=witness", *layout)
        words += ["--checkpoint.every_n_train_steps=108", "--checkpoint.save_top_k=-1"]
        (folder / "out.txt").write_text(atoms_in(folder, *words, launcher=launcher))
    return found


def checkpoint(folder: Path, step: int = 216) -> Path:
    (path,) = folder.glob(f"runs/*/*/checkpoints/step-{step:07}.ckpt")
    return path


def run(folder: Path):
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("atoms").experiment_id])
    (found,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    return client, found


def witness(folder: Path, rank: int) -> list[dict]:
    return json.loads((folder / f"witness-{rank}.json").read_text())


class TestFit:
    """The loss sees the whole batch, whoever holds its rows and whoever the atoms."""

    def test_every_global_batch_has_the_same_rows(self, folders):
        alone = [note["rows"] for note in witness(folders["one"], 0)]
        left, right = ([note["rows"] for note in witness(folders["two"], rank)] for rank in (0, 1))
        assert len(alone) == len(left) == len(right) == 216
        for whole, first, second in zip(alone, left, right, strict=True):
            assert len(first) == len(second) == 32
            assert sorted(whole) == sorted(first + second)
        for rank, rows in enumerate((left, left, right, right)):  # those who share the atoms see the same
            assert [note["rows"] for note in witness(folders["grid"], rank)] == rows

    @pytest.mark.parametrize("layout", ["two", "grid"])
    def test_same_curves(self, folders, layout):
        curves = {}
        for name in ("one", layout):
            client, found = run(folders[name])
            assert found.info.status == "FINISHED"
            for key in ("loss", "error", "revival", "l0"):
                points = client.get_metric_history(found.info.run_id, f"train/{key}")
                assert [point.step for point in points] == [64 * step for step in range(1, 217)]
                curves[name, key] = torch.tensor([point.value for point in points], dtype=torch.float64)
        for key in ("loss", "error", "revival", "l0"):
            torch.testing.assert_close(curves["one", key], curves[layout, key], rtol=2e-4, atol=0)
        assert curves["one", "loss"][-1] < 0.8 * curves["one", "loss"][:20].mean()

    def test_same_atoms_fall_silent_and_come_back(self, folders):
        places = [("one", 0), *(("two", rank) for rank in range(2)), *(("grid", rank) for rank in range(4))]
        alone, *others = ([set(note["silent"]) for note in witness(folders[name], rank)] for name, rank in places)
        assert all(other == alone for other in others)
        revived = [before - after for before, after in pairwise(alone)]
        assert sum(map(len, revived)) >= 3

    def test_same_scores_figures_and_table(self, folders):
        finals = {}
        for layout, folder in folders.items():
            _, found = run(folder)
            finals[layout] = {key: value for key, value in found.data.metrics.items() if key.startswith("final/")}
            assert len(list(Path(found.info.artifact_uri).glob("figures/*.png"))) == 4
            assert (folder / "out.txt").read_text().count("R² centred, raw") == 1
            assert ThresholdSAE.load(*folder.glob("runs/*/*/checkpoints/atoms/tsae")).decoder.shape == (96, 16)
        for layout in ("two", "grid"):
            assert finals[layout].keys() == finals["one"].keys()
            for key, value in finals["one"].items():
                assert finals[layout][key] == pytest.approx(value, rel=1e-4, abs=1e-6), (layout, key)

    @pytest.mark.parametrize(("learnt_by", "launcher"), [("one", "lightning"), ("two", "fork"), ("grid", "fork")])
    def test_one_and_two_judge_any_checkpoint_alike(self, folders, learnt_by, launcher, tmp_path):
        """Whoever learnt it, one process and two that share the rows find the same, and what the fit has found."""
        words = ("validate", f"--ckpt_path={checkpoint(folders[learnt_by])}", "--tracking_uri=none", *FEW)
        found = {}
        for name, layout in (("alone", ()), ("both", TWO)):
            out = atoms_in(tmp_path / name, *words, *layout, launcher=launcher)
            assert out.count("600 held-out rows of planted") == 1
            found[name] = Certificate.load(tmp_path / name / "certificates" / "planted")
        assert found["alone"].claims() == found["both"].claims()
        numbers = found["alone"].numbers()
        assert found["both"].numbers() == pytest.approx(numbers, rel=1e-9, nan_ok=True)
        _, learnt = run(folders[learnt_by])
        assert numbers["representability/r2"] == pytest.approx(learnt.data.metrics["final/r2"], abs=1e-4)

    @pytest.mark.parametrize(("learnt_by", "words"), [("one", SHARDED), ("grid", ())])
    def test_either_goes_on_from_the_checkpoint_of_the_other(self, folders, planted_store, learnt_by, words, tmp_path):
        path = checkpoint(folders[learnt_by], 108)
        atoms_in(tmp_path / "on", *fit_words(planted_store, "--trainer.logger=false", f"--ckpt_path={path}", *words))
        (last,) = (tmp_path / "on").rglob("step-0000216.ckpt")
        ours, theirs = (torch.load(file, weights_only=True) for file in (last, checkpoint(folders["one"])))
        assert ours["global_step"] == theirs["global_step"] == 216
        rows = [content["loops"]["fit_loop"]["state_dict"] for content in (ours, theirs)]
        assert rows[0] == rows[1]
        for key, value in theirs["state_dict"].items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(ours["state_dict"][key], value, rtol=1e-3, atol=1e-4, msg=key)
        (mine,), (state,) = ours["optimizer_states"], theirs["optimizer_states"]
        assert mine["param_groups"] == state["param_groups"]
        for index, values in state["state"].items():
            for key, value in values.items():
                torch.testing.assert_close(mine["state"][index][key], value, rtol=1e-2, atol=1e-4, msg=key)

    def test_two_write_the_codes_of_every_row_once(self, folders, planted_store):
        path = checkpoint(folders["two"])
        words = (f"--data.store={planted_store}", f"--ckpt_path={path}", "--data.batch_size=250", "--splits=[val]")
        atoms_in(folders["two"], "predict", *words, *TWO)
        group = zarr.open_group(folders["two"] / "codes.zarr", mode="r")["val/tsae"]
        assert group.attrs["complete"]
        rows = [row for _, part in group.groups() for row in part["rows"][:]]
        assert {name.split("-")[1] for name, _ in group.groups()} == {"000", "001"}
        assert sorted(rows) == list(range(600))


@pytest.mark.slow
def test_every_activation_trains_on_shards_as_alone(planted_store, tmp_path):
    members = "{" + ", ".join(f"{name}: {{activation: {name}}}" for name in ("relu", "topk", "batch_topk")) + "}"
    words = (f"--model.members={members}", "--trainer.limit_train_batches=24", "--trainer.max_epochs=1")
    states = []
    for name, layout in (("one", ()), ("two", SHARDED)):
        atoms_in(tmp_path / name, *fit_words(planted_store, *words, "--trainer.logger=false", *layout))
        (path,) = (tmp_path / name).rglob("*.ckpt")
        states.append(torch.load(path, weights_only=True)["state_dict"])
    alone, two = states
    assert alone.keys() == two.keys()
    for key, value in alone.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4, msg=key)
    assert (alone["members.batch_topk.sae.threshold"] > 0.5).all()


def test_two_tasks_of_slurm_harvest_what_one_process_does(tiny_bert, text_folder, tmp_path):
    corpus = {"class_path": "atoms.activations.TextFiles", "init_args": {"paths": [str(text_folder)]}}
    words = [
        f"--data.harvest.model={{name: {tiny_bert}}}", f"--data.harvest.corpus={json.dumps(corpus)}",
        "--data.harvest.sites=[resid_post.1, mlp_out.0]", "--data.harvest.context=16", "--data.harvest.memory_mib=1",
        "--data.store=store", "--model.site=resid_post.1",
    ]  # fmt: skip
    digests = []
    for name, ranks in (("one", ()), ("two", TWO)):
        atoms_in(tmp_path / name, "cache", *words, *ranks, launcher="srun")
        digests.append(ActivationStore.open(tmp_path / name / "store").content_digest())
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.strategy=fsdp"], "trainer.strategy is fsdp, under which atoms does not train: use ddp, or tensor"),
        (["--trainer.strategy=deepspeed_stage_2"], "trainer.strategy is deepspeed_stage_2, under which"),
        (
            ["--trainer.strategy=ModelParallelStrategy", "--trainer.strategy.tensor_parallel_size=3"],
            "trainer.strategy: data_parallel_size 1 times tensor_parallel_size 3 is not 2, the number of processes",
        ),
    ],
)
def test_what_cannot_be_shared_is_said_in_one_line(planted_store, capsys, monkeypatch, words, message):
    with pytest.raises(SystemExit) as stop:
        main([*fit_words(planted_store, "--trainer.accelerator=cpu", "--trainer.devices=2"), *words])
    assert stop.value.code == 1
    assert message in capsys.readouterr().err


def test_two_processes_tune_as_one_does(tmp_path, text_folder, much_text):
    """The same blocks in every batch and every measure, so the same curves but for the order of sums."""
    model = write_llama(tmp_path / "model")
    corpora = [
        f"--{name}.corpus={{class_path: TextFiles, init_args: {{paths: [{folder}]}}}}"
        for name, folder in (("task", text_folder), ("general", much_text))
    ]
    words = ["tune", f"--model.name={model}", *corpora, "--budget.fraction=0.3", "--arms=[kappa, lora]"]
    words += ["--recipe.steps=4", "--recipe.batch_size=4", "--recipe.seeds=1", "--recipe.learning_rates=[1e-2]"]
    words += ["--recipe.extensions=0", "--context=16", "--tracking_uri=none", "--general.max_tokens=200"]
    one = atoms_in(tmp_path / "one", *words)
    two = atoms_in(tmp_path / "two", *words, *TWO)
    found = [json.loads((tmp_path / name / "tune" / "tune.json").read_text())["runs"] for name in ("one", "two")]
    for arm in ("kappa", "lora"):
        (ours,), (theirs,) = (runs[arm] for runs in found)
        assert ours["chosen"] == theirs["chosen"]
        for name, losses in ours["curve"]["losses"].items():
            assert losses == pytest.approx(theirs["curve"]["losses"][name], rel=1e-4), name
    assert one.count("arm      ") == two.count("arm      ") == 2
