"""Disks that are full, read-only or taken away, clocks that jump: one line, nothing lost, and going on is exact."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from atoms.activations.lock import StoreLock, lock_path
from atoms.activations.store import ActivationStore
from atoms.activations.writer import StoreWriter
from atoms.cli import main
from atoms.training.module import TSAEModule

PLANTED = {"width": 16, "atoms": 24, "rows": 20000}


class Disk:
    """A file system of its own."""

    def __init__(self, path: Path):
        self.path = path

    def fill(self) -> None:
        """Leave not one block free."""
        with (self.path / "ballast").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 2**14)

    def free(self) -> None:
        (self.path / "ballast").unlink()

    def remount(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    """A real disk of 16 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    yield Disk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def at_call(monkeypatch) -> Callable[..., None]:
    """Do something before the n-th call of a method."""

    def arm(owner: type, name: str, call: int, do: Callable[[], None]) -> None:
        original, count = getattr(owner, name), 0

        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            if count == call:
                do()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    return arm


@pytest.fixture
def refused(capfd):
    """Run a command that must fail with one line; gives the line."""

    def run(words: list[str]) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(words)
        err = capfd.readouterr().err
        assert stop.value.code == 1
        assert "Traceback" not in err
        errors = [line for line in err.splitlines() if line.startswith("atoms: error: ")]
        assert len(errors) == 1, err
        return errors[0].removeprefix("atoms: error: ")

    return run


def same_weights(left: Path, right: Path | str) -> bool:
    left, right = (torch.load(path, weights_only=True)["state_dict"] for path in (left, right))
    tensors = [name for name, value in left.items() if isinstance(value, torch.Tensor)]
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in tensors)


class TestCache:
    """A store on a disk that gives way."""

    @pytest.fixture(autouse=True)
    def _small_blocks(self, monkeypatch):
        monkeypatch.setattr("atoms.activations.synthetic.BLOCK_BYTES", 2**17)

    @pytest.fixture
    def words(self, disk):
        return ["cache", f"--data.store={disk.path}/store", *(f"--data.planted.{k}={v}" for k, v in PLANTED.items())]

    def assert_goes_on(self, words, disk):
        main(words)
        main([*(word for word in words if "--data.store" not in word), "--data.store=whole"])
        whole, parts = ActivationStore.open("whole"), ActivationStore.open(disk.path / "store")
        assert whole.content_digest() == parts.content_digest()
        assert sorted(path.name for path in disk.path.iterdir()) == ["store"]

    def test_full_from_the_start(self, words, disk, refused):
        disk.fill()
        assert "No space left on device" in refused(words)  # not even for the lock
        disk.free()
        self.assert_goes_on(words, disk)

    def test_fills_up(self, words, disk, refused, at_call):
        at_call(StoreWriter, "_shards", 40, disk.fill)
        said = refused(words)
        assert "disk full, 0.00" in said
        assert "free that much and run `atoms cache` with the same config" in said
        disk.free()
        assert len(list(disk.path.glob("store/manifest/*.json"))) >= 5
        self.assert_goes_on(words, disk)

    def test_becomes_read_only(self, words, disk, refused, at_call):
        at_call(StoreWriter, "_shards", 40, lambda: disk.remount("ro"))
        assert "cannot be written (Read-only file system" in refused(words)
        disk.remount("rw")
        lock_path(disk.path / "store").delete()  # which could not be deleted; its process, this one, still lives
        self.assert_goes_on(words, disk)

    def test_read_only_from_the_start(self, words, disk, refused):
        disk.remount("ro")
        assert "Read-only file system" in refused(words)

    def test_permission_is_lost(self, words, disk, refused, at_call):
        """Root may write anywhere, so that this process becomes nobody for a while."""

        def nobody():
            for path in [disk.path / "store", *(disk.path / "store").rglob("*")]:
                path.chmod(0o555 if path.is_dir() else 0o444)
            os.seteuid(65534)

        # the way to a test's directory is barred to others
        for folder in disk.path.parents:
            if folder.stat().st_mode & 0o055 != 0o055 and str(folder).startswith("/tmp/"):
                folder.chmod(0o755)
        at_call(StoreWriter, "_shards", 40, nobody)
        try:
            assert "cannot be written (Permission denied" in refused(words)
        finally:
            os.seteuid(0)
        for path in [disk.path / "store", *(disk.path / "store").rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        for left in disk.path.glob("store.lock*"):  # nobody may not delete it, but its process is gone
            left.unlink()
        self.assert_goes_on(words, disk)


class TestFit:
    """Checkpoints, dictionaries and the MLflow database on a disk that gives way."""

    @pytest.fixture
    def words(self, disk, fit_words):
        return [
            *fit_words, f"--trainer.default_root_dir={disk.path}/runs", "--checkpoint.every_n_train_steps=10",
            "--ckpt_path=last",
        ]  # fmt: skip

    def assert_goes_on(self, words, disk, fitted):
        main(words)
        (last,) = disk.path.rglob("step-0000054.ckpt")
        assert same_weights(last, fitted.last)
        assert not list(disk.path.rglob(".*"))

    def test_fills_up_before_a_checkpoint(self, words, disk, fitted, refused, at_call):
        words = [*words, "--trainer.logger=false"]
        at_call(TSAEModule, "training_step", 25, disk.fill)
        said = refused(words)
        assert "step-0000030.ckpt: disk full; checkpoints before it are whole: free some space" in said
        assert [path.name for path in disk.path.rglob("*.ckpt")] == ["step-0000020.ckpt"]
        disk.free()
        self.assert_goes_on(words, disk, fitted)

    def test_fills_up_with_the_database_on_it(self, words, disk, fitted, empty_database, refused, at_call, monkeypatch):
        shutil.copy(empty_database, disk.path / "mlflow.db")
        monkeypatch.chdir(disk.path)
        at_call(TSAEModule, "training_step", 25, disk.fill)
        assert "disk full" in refused(words)
        disk.free()
        main(words)
        (last,) = disk.path.rglob("step-0000054.ckpt")
        assert same_weights(last, fitted.last)

    def test_fills_up_while_it_is_judged(self, words, disk, fitted, refused, at_call):
        words = [*words, "--trainer.logger=false"]
        at_call(TSAEModule, "on_validation_epoch_start", 4, disk.fill)
        assert "cannot be written (No space left on device): free some space" in refused(words)
        disk.free()
        self.assert_goes_on(words, disk, fitted)

    def test_becomes_read_only(self, words, disk, fitted, refused, at_call):
        words = [*words, "--trainer.logger=false"]
        at_call(TSAEModule, "training_step", 25, lambda: disk.remount("ro"))
        assert "step-0000030.ckpt: cannot be written (Read-only file system); set checkpoint.dirpath" in refused(words)
        disk.remount("rw")
        self.assert_goes_on(words, disk, fitted)

    def test_database_without_its_logger_s_disk(self, words, disk, fitted, refused):
        disk.remount("ro")
        said = refused([*words, "--trainer.logger.init_args.tracking_uri", f"sqlite:///{disk.path}/mlflow.db"])
        assert said.startswith("trainer.logger: sqlite:///")


class TestClock:
    """Nothing here depends on the time of day."""

    @pytest.mark.parametrize("jump", [-10 * 365 * 86400, -3600, 3600, 10 * 365 * 86400])
    def test_a_lock_of_this_machine_lives_by_its_process(self, jump, tmp_path, monkeypatch):
        with StoreLock(tmp_path / "store"):
            now = time.time()
            monkeypatch.setattr(time, "time", lambda: now + jump)
            with pytest.raises(Exception, match="being written by process"):
                StoreLock(tmp_path / "store").__enter__()
        assert not lock_path(tmp_path / "store").exists()

    def test_a_fit_through_a_jump_is_the_same(self, fit_words, fitted, at_call, monkeypatch):
        real, jump = time.time, 0.0
        monkeypatch.setattr(time, "time", lambda: real() + jump)

        def back():
            nonlocal jump
            jump = -7 * 86400.0

        at_call(TSAEModule, "training_step", 25, back)
        main([*fit_words, "--trainer.logger=false"])
        assert same_weights(Path("runs/checkpoints/step-0000054.ckpt"), fitted.last)
