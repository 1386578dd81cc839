"""``atoms fit`` from the command line to what it leaves behind."""

import contextlib
import re
import sqlite3
from pathlib import Path

import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient

from atoms.cli import main
from atoms.training import checkpoint
from atoms.training.checkpoint_file import SealedCheckpointIO


def runs(client: MlflowClient) -> list:
    found = client.get_experiment_by_name("atoms")
    return client.search_runs([found.experiment_id], order_by=["attributes.start_time"]) if found else []


def final(run) -> dict[str, float]:
    return {name: value for name, value in run.data.metrics.items() if name.startswith("final/")}


def weights(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def assert_same_weights(left, right) -> None:
    left, right = weights(left), weights(right)
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, right[name]), name


class TestRun:
    """What a fit leaves in MLflow."""

    def test_is_finished_with_numeric_parameters(self, fitted):
        assert fitted.run.info.status == "FINISHED"
        params = {name: float(value) for name, value in fitted.run.data.params.items()}
        assert params["atoms"] == 40
        assert params["width"] == 16
        assert params["train_rows"] == 4800
        assert params["batch_size"] == 256

    def test_curves_step_in_rows_seen(self, fitted):
        client = MlflowClient(f"sqlite:///{fitted.folder}/mlflow.db")

        def steps(name):
            return [point.step for point in client.get_metric_history(fitted.run.info.run_id, name)]

        for name in ("loss", "error", "revival", "l0"):
            assert steps(f"train/{name}") == [256 * 10 * k for k in range(1, 6)]
        for name in ("r2", "r2_aip", "l0", "dead", "singleton"):
            assert steps(f"val/{name}") == [256 * 18 * k for k in range(1, 4)]
        assert steps("final/r2") == [256 * 54]

    def test_final_scalars(self, fitted):
        numbers = final(fitted.run)
        for name in ("r2", "r2_uncentred", "r2_aip", "r2_aip_uncentred", "l0", "dead", "singleton", "memorisation_gap"):
            assert f"final/{name}" in numbers
        for reading in ("pairs", "atoms", "max"):
            assert 0 <= numbers[f"final/q_star_{reading}"] <= 1
            assert 0 <= numbers[f"final/q_star_{reading}_null"] <= 1
        assert numbers["final/rows_per_atom"] == 120
        # The curve is logged in float32.
        assert numbers["final/r2"] == pytest.approx(fitted.run.data.metrics["val/r2"], abs=1e-6)

    def test_four_figures(self, fitted):
        folder = Path(fitted.run.info.artifact_uri) / "figures"
        figures = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert set(figures) == {"pre_activations.png", "firing_rates.png", "coherence.png", "atoms_per_row.png"}
        assert all(content.startswith(b"\x89PNG") for content in figures.values())

    def test_is_named_after_what_it_learns(self, fitted):
        assert fitted.run.info.run_name == "planted 40 atoms"


def test_config_runs_again_to_the_same_bits_in_a_run_of_its_own(fitted, database, tmp_path):
    config = Path(fitted.run.info.artifact_uri) / "config.yaml"
    assert yaml.safe_load(config.read_text())["model"]["expansion"] == 2.5
    for _ in range(2):
        main(["fit", "--config", str(config)])
    first, second = runs(database)
    assert first.info.run_id != second.info.run_id
    assert final(first) == final(second) == final(fitted.run)
    for run in (first, second):
        assert run.info.status == "FINISHED"
        (last,) = tmp_path.glob(f"runs/*/{run.info.run_id}/checkpoints/step-0000054.ckpt")
        assert_same_weights(last, fitted.last)


class TestPrinted:
    """What a fit says."""

    @pytest.fixture
    def rows(self, fitted):
        cells = (re.split(r"\s{2,}", line.strip()) for line in fitted.out.splitlines())
        return {row[0]: row[1] for row in cells if len(row) == 2}

    def test_table_holds_the_numbers_of_the_run(self, fitted, rows):
        numbers = {name.removeprefix("final/"): value for name, value in final(fitted.run).items()}
        assert rows["R² centred, raw"] == f"{numbers['r2']:.3f}"
        assert rows["R² centred, AIP"] == f"{numbers['r2_aip']:.3f}"
        assert rows["L0 (target)"] == f"{numbers['l0']:.1f} (2)"
        assert rows["dead atoms"] == f"{numbers['dead']:.1%}"
        assert rows["training rows per atom"] == "120"
        assert rows["memorisation gap (R² train - held out)"] == f"{numbers['memorisation_gap']:+.3f}"
        for reading in ("pairs", "atoms", "max"):
            pair = numbers[f"q_star_{reading}"], numbers[f"q_star_{reading}_null"]
            assert rows[f"q* {reading} (null)"] == "{:.3f} ({:.3f})".format(*pair)

    def test_names_the_checkpoint_of_the_table_and_the_comparison(self, fitted, rows):
        assert fitted.folder / rows["checkpoint"] == Path(fitted.last)
        assert (fitted.folder / rows["atoms"]).is_dir()
        assert rows["compare"] == f"mlflow ui --backend-store-uri sqlite:///{fitted.folder}/mlflow.db"

    def test_costs_first_then_one_line_an_epoch_and_nothing_else(self, fitted):
        lines = fitted.err.splitlines()
        assert lines[0].startswith("fit      40 atoms on 4,800 rows of ")
        assert lines[1].startswith("memory   ")
        assert [line.split("  ")[0] for line in lines[2:]] == ["epoch 1", "epoch 2", "epoch 3"]


class TestCheckpoint:
    """What a fit can be taken up from."""

    def test_loads_without_running_code_and_holds_no_language_model(self, fitted):
        content = torch.load(fitted.last, weights_only=True)
        assert all(name.startswith("members.tsae.") for name in content["state_dict"])
        assert Path(fitted.last).stat().st_size < 200_000

    def test_knows_its_run_from_any_directory(self, fitted):
        record = checkpoint.read(fitted.last)[1]
        assert record.run_id == fitted.run.info.run_id
        assert record.tracking_uri == f"sqlite:///{fitted.folder}/mlflow.db"
        assert Path(record.store).is_absolute()

    def test_last_weights_are_kept_between_two_intervals_and_replace_the_only_other(self, fit_words, tmp_path):
        main([*fit_words, "--trainer.logger=false", "--trainer.max_epochs=1", "--checkpoint.every_n_train_steps=10"])
        assert [path.name for path in tmp_path.glob("runs/checkpoints/*.ckpt")] == ["step-0000018.ckpt"]

    def test_monitored_best_is_kept_beside_the_last(self, fit_words, tmp_path, capsys):
        best = ["--checkpoint.monitor=val/r2", "--checkpoint.mode=min"]  # so that the first epoch is the best
        main([*fit_words, "--trainer.logger=false", *best])
        names = {path.name for path in tmp_path.glob("runs/checkpoints/*.ckpt")}
        assert names == {"step-0000018.ckpt", "step-0000054.ckpt"}
        assert re.search(r"checkpoint +runs/checkpoints/step-0000054.ckpt", capsys.readouterr().out)


class TestResume:
    """A fit taken up amid an epoch ends as if it had never stopped."""

    @pytest.fixture
    def stopped(self, fitted, fit_words, database, tmp_path):
        """A run that broke in its 34th step, after its checkpoint of step 30, in the second epoch."""
        (tmp_path / "stopper.py").write_text(STOPPER)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(tmp_path)
            with pytest.raises(RuntimeError, match="the power is gone"):
                main([*fitted.words, "--trainer.callbacks+=stopper.Stopper", "--allow_import=stopper"])
        (run,) = runs(database)
        assert run.info.status == "FAILED"
        assert not final(run)
        (path,) = tmp_path.glob("runs/*/*/checkpoints/step-0000030.ckpt")
        return run, path

    def test_same_bits_same_numbers_same_run(self, fitted, stopped, database, tmp_path):
        run, path = stopped
        main([*fitted.words, f"--ckpt_path={path}"])
        (resumed,) = runs(database)
        assert resumed.info.run_id == run.info.run_id
        assert resumed.info.status == "FINISHED"
        assert final(resumed) == final(fitted.run)
        assert_same_weights(path.with_name("step-0000054.ckpt"), fitted.last)
        artifacts = {path.name for path in Path(run.info.artifact_uri).glob("*.yaml")}
        assert artifacts == {"config.yaml", "config-after-step-0000030.yaml"}

    def test_run_that_is_gone_gives_way_to_a_new_one(self, fitted, stopped, database, capsys):
        run, path = stopped
        database.delete_run(run.info.run_id)
        main([*fitted.words, f"--ckpt_path={path}"])
        (new,) = runs(database)
        assert new.info.run_id != run.info.run_id
        assert final(new) == final(fitted.run)
        assert f"note     run {run.info.run_id} is not in " in capsys.readouterr().err

    def test_a_kill_between_checkpoint_and_curves_leaves_no_gap(self, fitted, stopped, database, tmp_path):
        """Lightning gives a step to the loggers after the checkpoint of that step is saved."""
        run, path = stopped
        with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as data, data:
            gone = data.execute(
                "delete from metrics where run_uuid = ? and step >= 7680", [run.info.run_id]
            )  # 30 · 256
            assert gone.rowcount > 0
        main([*fitted.words, f"--ckpt_path={path}"])
        whole = MlflowClient(f"sqlite:///{fitted.folder}/mlflow.db")
        for key in ("train/loss", "train/error", "train/l0", "train/revival", "val/r2"):
            ours, theirs = (
                [(point.step, point.value) for point in client.get_metric_history(run_id, key)]
                for client, run_id in ((database, run.info.run_id), (whole, fitted.run.info.run_id))
            )
            assert ours == theirs, key

    def test_a_checkpoint_at_the_end_of_an_epoch_has_its_scores_behind_it(self, fit_words, database, monkeypatch):
        """A fit that is taken up there does not validate that epoch again."""
        original, scored = SealedCheckpointIO.save_checkpoint, {}

        def look(self, content, path, storage_options=None):
            points = database.get_metric_history(content["atoms"]["run_id"], "val/r2")
            scored[content["global_step"]] = [point.step // 256 for point in points]
            original(self, content, path, storage_options)

        monkeypatch.setattr(SealedCheckpointIO, "save_checkpoint", look)
        main([*fit_words, "--trainer.max_epochs=2", "--checkpoint.every_n_train_steps=9"])
        assert scored == {9: [], 18: [18], 27: [18], 36: [18, 36]}

    @pytest.mark.parametrize("extra", ["--trainer.accumulate_grad_batches=2", "--trainer.limit_train_batches=13"])
    def test_same_bits_whatever_makes_up_an_epoch(self, fit_words, tmp_path, extra):
        words = [*fit_words, "--trainer.logger=false", extra]
        every = ["--checkpoint.every_n_train_steps=4", "--checkpoint.save_top_k=-1"]
        main([*words, *every])
        steps = sorted(Path("runs/checkpoints").glob("*.ckpt"))
        main([*words, *every, f"--ckpt_path={steps[len(steps) // 2]}"])
        assert_same_weights(steps[-1], steps[-1].with_stem(steps[-1].stem + "-v1"))

    def test_members_are_no_conflict_with_themselves(self, fit_words):
        words = [*fit_words, "--trainer.logger=false", "--model.members={a: {}, b: {expansion: 1, target_l0: 3}}"]
        main([*words, "--checkpoint.every_n_train_steps=30", "--checkpoint.save_top_k=-1"])
        main([*words, "--ckpt_path=runs/checkpoints/step-0000030.ckpt"])
        assert_same_weights("runs/checkpoints/step-0000054.ckpt", "runs/checkpoints/step-0000054-v1.ckpt")


STOPPER = """
import lightning as L

class Stopper(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 33:
            raise RuntimeError("the power is gone")
"""


class TestLearning:
    """It finds what is there, and says so where it learnt by heart."""

    PLANTED = ("--data.planted.width=24", "--data.planted.atoms=32", "--data.planted.active=2")

    def test_finds_the_planted_atoms(self, database):
        main([
            "fit", *self.PLANTED, "--data.planted.rows=20000", "--data.batch_size=256", "--model.expansion=2",
            "--model.power=0", "--model.error_power=0", "--model.target_l0=2", "--model.lr=5e-3",
            "--trainer.max_epochs=6", "--trainer.accelerator=cpu",
        ])  # fmt: skip
        (run,) = runs(database)
        assert run.data.metrics["final/planted_recovered"] >= 0.9
        assert run.data.metrics["final/planted_mcc"] >= 0.95
        assert run.data.metrics["final/r2"] >= 0.9
        assert abs(run.data.metrics["final/memorisation_gap"]) < 0.05

    def test_learns_a_hundred_rows_by_heart_and_says_so(self, database, capsys):
        main([
            "fit", "--data.planted.width=16", "--data.planted.atoms=64", "--data.planted.active=12", "--data.lanes=1",
            "--data.planted.noise=0.5", "--data.planted.rows=125", "--data.batch_size=100", "--model.expansion=16",
            "--model.target_l0=4", "--model.power=0", "--model.error_power=0", "--model.lr=3e-2",
            "--trainer.max_epochs=400", "--trainer.check_val_every_n_epoch=400", "--trainer.accelerator=cpu",
        ])  # fmt: skip
        (run,) = runs(database)
        held_out, gap = run.data.metrics["final/r2"], run.data.metrics["final/memorisation_gap"]
        assert held_out + gap > 0.95
        assert held_out < 0.5
        assert re.search(r"memorisation gap .*\+\d+\.\d+ MEMORISED", capsys.readouterr().out)


def test_activations_in_another_unit_train_to_the_same_bits(database, tmp_path):
    """A unit is a factor; one that is a power of two changes no mantissa, so nothing at all may change."""
    for name, unit in (("one", 1.0), ("other", 32.0)):
        planted = {
            "low": 0.5 * unit,
            "high": 1.5 * unit,
            "noise": 0.25 * unit,
            "offset": unit,
            "width": 16,
            "rows": 3000,
        }
        main([
            "fit", *(f"--data.planted.{key}={value}" for key, value in planted.items()), "--data.batch_size=128",
            "--model.expansion=3", "--model.target_l0=3", "--trainer.max_epochs=2", "--trainer.accelerator=cpu",
            "--trainer.log_every_n_steps=1", f"--checkpoint.dirpath={name}",
        ])  # fmt: skip
    one, other = runs(database)
    assert one.data.metrics.keys() == other.data.metrics.keys()
    for name in one.data.metrics:
        left, right = ([p.value for p in database.get_metric_history(r.info.run_id, name)] for r in (one, other))
        assert left == right, name
    left, right = weights("one/step-0000036.ckpt"), weights("other/step-0000036.ckpt")
    for name, value in left.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, right[name]), name
    assert torch.allclose(
        32 * left["members.tsae.sae._extra_state"]["mean"], right["members.tsae.sae._extra_state"]["mean"], rtol=1e-6
    )


class TestTrainerSettings:
    """Settings of Lightning that must go on working."""

    def test_fast_dev_run_leaves_nothing(self, fit_words, tmp_path):
        main([*fit_words, "--trainer.fast_dev_run=true"])
        assert not list(tmp_path.iterdir())

    def test_without_a_logger(self, fit_words, fitted, tmp_path, capsys):
        main([*fit_words, "--trainer.logger=false"])
        said = capsys.readouterr().out
        assert "R² centred, raw" in said
        assert "mlflow" not in said
        assert [path.name for path in tmp_path.iterdir()] == ["runs"]
        assert_same_weights("runs/checkpoints/step-0000054.ckpt", fitted.last)

    def test_without_checkpoints(self, fit_words, tmp_path, capsys):
        main([*fit_words, "--trainer.logger=false", "--trainer.enable_checkpointing=false"])
        assert re.search(r"checkpoint +none was saved", capsys.readouterr().out)
        assert not list(tmp_path.rglob("*.ckpt"))

    def test_mixed_precision_learns_much_the_same(self, fit_words, fitted, database):
        main([*fit_words, "--trainer.precision=bf16-mixed"])
        (run,) = runs(database)
        assert run.data.metrics["final/r2"] == pytest.approx(fitted.run.data.metrics["final/r2"], abs=0.03)

    def test_max_steps_is_the_length_of_the_schedules(self, fit_words):
        main([*fit_words, "--trainer.logger=false", "--trainer.max_steps=10"])
        content = torch.load("runs/checkpoints/step-0000010.ckpt", weights_only=True)
        assert content["global_step"] == 10
        assert content["lr_schedulers"][0]["_last_lr"] == [0, 0]
