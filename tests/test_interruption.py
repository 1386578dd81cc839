"""Signals: a fit stops between two steps and goes on to the same bits; what has been written stays in order."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

import atoms.training.evaluation as evaluation
from atoms import interruption
from atoms.activations.store import ActivationStore
from atoms.activations.writer import StoreWriter, moments_name
from atoms.checks.sparsity import Sparsity
from atoms.cli import main
from atoms.interruption import Interrupted, asked, caught, defer
from atoms.training import checkpoint
from atoms.training.module import TSAEModule

ROOT = Path(__file__).parents[1]


def kill(number: int) -> None:
    os.kill(os.getpid(), number)


def receive(*numbers: int, wait: bool = False) -> None:
    with caught():
        defer(wait)
        for number in numbers:
            kill(number)


@pytest.fixture
def strike(monkeypatch):
    """Send this process a signal at the n-th call of a method."""

    def arm(owner, name, call, *numbers):
        original, count = getattr(owner, name), 0

        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            if count == call:
                for number in numbers:
                    kill(number)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    return arm


def stopped(words, capsys) -> tuple[int, str]:
    """Run a command that is interrupted; gives its status and last line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(words)
    return stop.value.code, capsys.readouterr().err.splitlines()[-1]


def same_weights(left, right) -> bool:
    left, right = (torch.load(path, weights_only=True)["state_dict"] for path in (left, right))
    tensors = [name for name, value in left.items() if isinstance(value, torch.Tensor)]
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in tensors)


def last_of(folder: Path) -> Path:
    (path,) = folder.rglob("step-0000054*.ckpt")
    return path


# ---------------------------------------------------------------------------------------------- the handlers


class TestCaught:
    """What a signal does while a command runs."""

    @pytest.mark.parametrize("number", interruption.SIGNALS)
    def test_raises_at_once_where_nobody_looks(self, number):
        with pytest.raises(Interrupted) as found:
            receive(number)
        assert found.value.number == number

    def test_waits_where_somebody_does(self, capfd):
        with caught():
            defer(True)
            kill(signal.SIGTERM)
            assert asked() == signal.SIGTERM
            defer(False)
        assert capfd.readouterr().err == "SIGTERM: stopping after this step; Ctrl-C stops at once\n"

    def test_second_ctrl_c_does_not_wait(self):
        receive(signal.SIGINT, wait=True)
        with pytest.raises(Interrupted):
            receive(signal.SIGINT, signal.SIGINT, wait=True)

    def test_scheduler_may_repeat_itself(self):
        with caught():
            defer(True)
            for _ in range(3):
                kill(signal.SIGTERM)
            kill(signal.SIGUSR1)
            assert asked() == signal.SIGTERM

    def test_handlers_are_put_back(self):
        before = [signal.getsignal(number) for number in interruption.SIGNALS]
        with caught():
            pass
        assert [signal.getsignal(number) for number in interruption.SIGNALS] == before

    def test_one_command_does_not_hear_the_last_one_s_signal(self):
        with pytest.raises(Interrupted):
            receive(signal.SIGTERM)
        with caught():
            assert asked() is None

    def test_other_threads_leave_handlers_alone(self):
        def inside():
            with caught():
                seen.append(signal.getsignal(signal.SIGTERM))

        seen = []
        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        assert seen == [signal.getsignal(signal.SIGTERM)]


class TestRequeue:
    """A Slurm job that runs out of time asks for another turn."""

    @pytest.fixture
    def scontrol(self, tmp_path, monkeypatch):
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "scontrol"
        program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit ${{SCONTROL_STATUS:-0}}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        for name in ("SLURM_ARRAY_JOB_ID", "SLURM_PROCID"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        return tmp_path / "asked"

    def test_by_number(self, scontrol):
        assert interruption.requeue() == "job 77 requeued"
        assert scontrol.read_text() == "requeue 77\n"

    def test_of_an_array(self, scontrol, monkeypatch):
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
        interruption.requeue()
        assert scontrol.read_text() == "requeue 70_3\n"

    def test_refused(self, scontrol, monkeypatch):
        monkeypatch.setenv("SCONTROL_STATUS", "1")
        assert interruption.requeue().startswith("job 77 not requeued")

    def test_other_tasks_are_silent(self, scontrol, monkeypatch):
        monkeypatch.setenv("SLURM_PROCID", "1")
        assert interruption.requeue() is None
        assert not scontrol.exists()

    def test_outside_slurm(self, monkeypatch):
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        assert interruption.requeue() is None

    def test_of_a_fit(self, scontrol, strike, fit_words, capsys):
        strike(TSAEModule, "training_step", 5, signal.SIGUSR1)
        assert stopped([*fit_words, "--trainer.logger=false"], capsys) == (0, "atoms: job 77 requeued")

    def test_preempted_jobs_slurm_requeues_itself(self, scontrol, strike, fit_words, capsys):
        strike(TSAEModule, "training_step", 5, signal.SIGTERM)
        assert stopped([*fit_words, "--trainer.logger=false"], capsys)[0] == 0
        assert not scontrol.exists()


# ---------------------------------------------------------------------------------------------- fit


class TestFit:
    """A fit of 54 steps, 18 an epoch, stopped somewhere and taken up with ``--ckpt_path=last``."""

    @pytest.mark.parametrize(
        ("method", "call", "saved"),
        [
            ("training_step", 30, 30),
            ("training_step", 36, 36),  # the last of an epoch
            ("training_step", 54, 54),
            ("validation_step", 6, 36),  # amid the second epoch's validation
            ("on_train_epoch_start", 2, 19),
        ],
    )
    def test_goes_on_to_the_same_bits(self, method, call, saved, strike, fit_words, fitted, capsys, tmp_path):
        words = [*fit_words, "--trainer.logger=false", "--ckpt_path=last"]
        strike(TSAEModule, method, call, signal.SIGTERM)
        status, line = stopped(words, capsys)
        path = f"runs/checkpoints/step-{saved:07d}.ckpt"
        assert status == 0
        assert line.startswith("atoms: interrupted by SIGTERM; to go on, run the same command again with --ckpt_path=")
        assert path in line
        assert Path(path).exists()
        main(words)
        said = capsys.readouterr()
        assert f"resume   {path}" in said.err
        assert "R² centred, raw" in said.out
        assert same_weights(last_of(tmp_path), fitted.last)

    def test_amid_accumulated_batches_it_stops_after_the_step(self, strike, fit_words, capsys, tmp_path):
        words = [*fit_words, "--trainer.logger=false", "--trainer.accumulate_grad_batches=3"]
        main([*words, "--checkpoint.dirpath=whole"])
        strike(TSAEModule, "training_step", 8, signal.SIGTERM)
        stopped([*words, "--checkpoint.dirpath=parts"], capsys)
        assert [path.name for path in Path("parts").iterdir()] == ["step-0000003.ckpt"]
        main([*words, "--checkpoint.dirpath=parts", "--ckpt_path=last"])
        assert same_weights("whole/step-0000018.ckpt", "parts/step-0000018.ckpt")

    def test_while_it_is_judged(self, strike, fit_words, fitted, capsys, tmp_path, monkeypatch):
        words = [*fit_words, "--trainer.logger=false", "--ckpt_path=last"]
        with monkeypatch.context():
            strike(evaluation, "summaries_of", 1, signal.SIGTERM)
            assert stopped(words, capsys)[0] == 0
        main(words)
        said = capsys.readouterr().out
        assert "R² centred, raw" in said
        assert f"{last_of(tmp_path).name}\n" in said
        assert same_weights(last_of(tmp_path), fitted.last)

    def test_run_in_mlflow_is_killed_and_then_finished(self, strike, fit_words, fitted, database, capsys):
        strike(TSAEModule, "training_step", 30, signal.SIGTERM)
        stopped(fit_words, capsys)
        experiment = database.get_experiment_by_name("atoms").experiment_id
        (run,) = database.search_runs([experiment])
        assert run.info.status == "KILLED"
        main([*fit_words, "--ckpt_path=last"])
        (run,) = database.search_runs([experiment])
        assert run.info.status == "FINISHED"
        theirs = MlflowClient(f"sqlite:///{fitted.folder}/mlflow.db")
        assert run.data.metrics == fitted.run.data.metrics
        for name in run.data.metrics:  # no point of a curve is lost, none comes twice
            one = database.get_metric_history(run.info.run_id, name)
            other = theirs.get_metric_history(fitted.run.info.run_id, name)
            assert [(point.step, point.value) for point in one] == [(point.step, point.value) for point in other], name

    def test_ctrl_c_saves_and_says_so_by_its_status(self, strike, fit_words, capsys):
        strike(TSAEModule, "training_step", 7, signal.SIGINT)
        status, line = stopped([*fit_words, "--trainer.logger=false"], capsys)
        assert status == 130
        assert "step-0000007.ckpt" in line

    def test_ctrl_c_twice_keeps_what_was_saved_before(self, strike, fit_words, capsys):
        strike(TSAEModule, "training_step", 7, signal.SIGINT, signal.SIGINT)
        words = [*fit_words, "--trainer.logger=false", "--checkpoint.every_n_train_steps=5"]
        status, line = stopped(words, capsys)
        assert (status, line) == (130, "atoms: interrupted by SIGINT; to go on, run the same command again, whole "
                                       "blocks are kept")  # fmt: skip
        assert [path.name for path in Path("runs/checkpoints").iterdir()] == ["step-0000005.ckpt"]

    def test_saving_amid_a_step_is_refused(self, fit_words, capsys):
        status, line = stopped([*fit_words, "--trainer.logger=false", "--checkpoint.save_on_exception=true"], capsys)
        assert status == 1
        assert line.startswith("atoms: error: checkpoint.save_on_exception is true")


class TestLast:
    """``--ckpt_path=last`` is the same command again: newest checkpoint of these settings, or the beginning."""

    def test_begins_where_there_is_none(self, fit_words, fitted, capsys, tmp_path):
        main([*fit_words, "--trainer.logger=false", "--ckpt_path=last"])
        assert "note     no checkpoint of these settings in runs: starting from the" in capsys.readouterr().err
        assert same_weights(last_of(tmp_path), fitted.last)

    def test_passes_over_other_settings(self, fit_words, capsys):
        words = [*fit_words, "--trainer.logger=false", "--trainer.max_steps=3"]
        main(words)
        for number, other in enumerate(("--model.lr=0.1", "--data.seed=5", "--model.members={a: {}}")):
            main([*words, other, f"--checkpoint.dirpath=runs/{number}"])
        main([*words, "--ckpt_path=last"])
        assert "resume   runs/checkpoints/step-0000003.ckpt" in capsys.readouterr().err

    def test_passes_over_damage(self, strike, fit_words, fitted, capsys, tmp_path):
        words = [
            *fit_words,
            "--trainer.logger=false",
            "--checkpoint.every_n_train_steps=10",
            "--checkpoint.save_top_k=-1",
        ]
        strike(TSAEModule, "training_step", 33, signal.SIGTERM)
        stopped(words, capsys)
        newest = Path("runs/checkpoints/step-0000033.ckpt")
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
        main([*words, "--ckpt_path=last"])
        said = capsys.readouterr().err
        assert "note     passed over: ckpt_path is " in said
        assert "resume   runs/checkpoints/step-0000030.ckpt" in said
        assert same_weights(last_of(tmp_path), fitted.last)

    def test_is_no_file_for_other_commands(self, capsys):
        assert "ckpt_path is last, which is not a file" in stopped(["validate", "--ckpt_path=last"], capsys)[1]


# ---------------------------------------------------------------------------------------------- other commands


PLANTED = {"width": 16, "atoms": 24, "rows": 4000}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_harvest_stops_at_once_and_goes_on_to_the_same_bits(number, code, strike, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("atoms.activations.synthetic.BLOCK_BYTES", 2**14)
    words = ["cache", *(f"--data.planted.{name}={value}" for name, value in PLANTED.items())]
    main([*words, "--data.store=whole"])
    with monkeypatch.context():
        strike(StoreWriter, "_shards", 17, number)  # five columns a block: amid the fourth
        status, line = stopped([*words, "--data.store=parts"], capsys)
    assert (status, line.partition(";")[0]) == (code, f"atoms: interrupted by {signal.Signals(number).name}")
    assert "run the same command again, whole blocks are kept" in line
    assert len(list(Path("parts/manifest").iterdir())) == 3
    assert not Path("parts.lock").exists()
    main([*words, "--data.store=parts"])
    whole, parts = ActivationStore.open("whole"), ActivationStore.open("parts")
    assert whole.content_digest() == parts.content_digest()
    moments = moments_name("planted")
    assert whole.read_file(moments) == parts.read_file(moments)


def test_commands_that_cannot_go_on_do_not_claim_success(strike, fitted, capsys):
    strike(Sparsity, "update", 1, signal.SIGTERM)
    status, line = stopped(["validate", f"--ckpt_path={fitted.last}", "--trainer.accelerator=cpu"], capsys)
    assert status == 128 + signal.SIGTERM
    assert line.endswith("run the same command again")
    assert not Path("certificates").exists()


def test_process_exits_as_it_should(fit_words, tmp_path):
    """From outside: a real process, a real signal, amid real steps."""
    words = [*fit_words, "--trainer.logger=false", "--trainer.max_epochs=10000", "--checkpoint.every_n_train_steps=20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "atoms", *words], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    while process.poll() is None and not list(tmp_path.rglob("*.ckpt")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err.splitlines()[-1].startswith("atoms: interrupted by SIGTERM; to go on, run the same command again with")
    assert "Traceback" not in err
    (saved,) = tmp_path.rglob("*.ckpt")
    assert checkpoint.read(saved)
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


@pytest.mark.slow
def test_two_ranks_stop_after_the_same_step_though_one_is_told(fit_words, tmp_path):
    """SIGTERM to the first of two gloo ranks; both save and leave, and two ranks go on to the same bits."""
    words = [*fit_words, "--trainer.logger=false", "--trainer.devices=2", "--trainer.strategy=ddp",
             "--trainer.max_epochs=30", "--checkpoint.every_n_train_steps=50"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(folder: str) -> subprocess.Popen:
        command = [sys.executable, "-W", "ignore", "-m", "atoms", *words, f"--checkpoint.dirpath={folder}"]
        return subprocess.Popen(
            [*command, "--ckpt_path=last"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    process = start("parts")
    while process.poll() is None and not list(tmp_path.rglob("*.ckpt")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "atoms: interrupted by SIGTERM; to go on, run the same command again with" in err, err
    assert not list(Path("parts").glob("step-0000540*"))
    for folder in ("parts", "whole"):
        _, err = start(folder).communicate(timeout=240)
    assert same_weights("parts/step-0000540.ckpt", "whole/step-0000540.ckpt"), err
