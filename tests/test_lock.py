import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from atoms.activations import lock
from atoms.activations.lock import Holder, StoreLock, holder, sweep_lock
from atoms.errors import AtomsError

ROOT = Path(__file__).parents[1]  # where `python -c` finds the package, installed or not
HOLD = """
import sys, time
from atoms.activations.lock import StoreLock
with StoreLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def lock_path(store: Path) -> Path:
    return Path(lock.lock_path(store))


@pytest.fixture
def other_process(tmp_path):
    """Another process that holds the lock of tmp_path / store."""
    arguments = [sys.executable, "-c", HOLD, str(tmp_path / "store")]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def leave_lock(path: Path, record: Holder, heartbeat_age: float = 0.0) -> None:
    lock_path(path).write_text(json.dumps(asdict(record)))
    beat = time.time() - heartbeat_age
    os.utime(lock_path(path), (beat, beat))


def test_lock_is_held_inside_and_gone_outside(tmp_path):
    store = tmp_path / "deep" / "store"
    with StoreLock(store):
        found = holder(store)
        assert found is not None
        assert found.pid == os.getpid()
    assert holder(store) is None
    assert list(store.parent.iterdir()) == []


def test_lock_can_be_used_again(tmp_path):
    guard = StoreLock(tmp_path / "store")
    for _ in range(2):
        with guard:
            assert holder(tmp_path / "store") is not None


def test_live_lock_is_refused_by_name(tmp_path, other_process):
    with pytest.raises(AtomsError, match=rf"process {other_process.pid} on .*store\.lock.*wait for it or stop it"):
        StoreLock(tmp_path / "store").__enter__()
    found = holder(tmp_path / "store")
    assert found is not None
    assert found.pid == other_process.pid


def test_lock_of_a_killed_process_is_taken_over(tmp_path, other_process):
    other_process.kill()
    other_process.wait()
    assert lock_path(tmp_path / "store").exists()
    assert holder(tmp_path / "store") is None
    with StoreLock(tmp_path / "store"):
        found = holder(tmp_path / "store")
        assert found is not None
        assert found.pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_lock_of_a_zombie_is_taken_over(tmp_path, other_process):
    other_process.kill()
    os.waitid(os.P_PID, other_process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table
    with StoreLock(tmp_path / "store"):
        pass


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_reused_pid_is_not_mistaken_for_the_holder(tmp_path):
    leave_lock(tmp_path / "store", replace(Holder.me(), process="another boot:1"))
    assert holder(tmp_path / "store") is None


@pytest.mark.parametrize(("age", "live"), [(10.0, True), (120.0, False)])
@pytest.mark.parametrize("elsewhere", ["host", "namespace"])
def test_other_machines_live_by_their_heartbeat(tmp_path, age, live, elsewhere):
    record = replace(Holder.me(), pid=2**22 + 1, **{elsewhere: "elsewhere"})
    leave_lock(tmp_path / "store", record, heartbeat_age=age)
    assert (holder(tmp_path / "store") is not None) is live
    if live:
        with pytest.raises(AtomsError, match="being written"):
            StoreLock(tmp_path / "store").__enter__()
    else:
        with StoreLock(tmp_path / "store"):
            pass


@pytest.mark.parametrize(("age", "live"), [(1.0, True), (120.0, False)])
def test_an_unreadable_lock_lives_by_its_age(tmp_path, age, live):
    path = lock_path(tmp_path / "store")
    path.write_text("")
    os.utime(path, (time.time() - age,) * 2)
    assert (holder(tmp_path / "store") is not None) is live


def test_heartbeat_is_refreshed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.01)
    with StoreLock(tmp_path / "store"):
        os.utime(lock_path(tmp_path / "store"), (0, 0))
        deadline = time.monotonic() + 10
        while lock_path(tmp_path / "store").stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        found = holder(tmp_path / "store")
        assert found is not None
        assert found.age < 60


def test_only_one_of_many_takers_wins(tmp_path):
    """Every taker starts from the same dead lock; at no time do two hold it, and at the end it is free."""
    inside, most, wins, refusals = 0, 0, 0, 0
    guard = threading.Lock()

    def take() -> None:
        nonlocal inside, most, wins, refusals
        barrier.wait()
        try:
            with StoreLock(tmp_path / "store"):
                with guard:
                    inside += 1
                    wins += 1
                    most = max(most, inside)
                time.sleep(0.002)
                with guard:
                    inside -= 1
        except AtomsError:
            with guard:
                refusals += 1

    for _ in range(20):
        leave_lock(tmp_path / "store", replace(Holder.me(), host="elsewhere"), heartbeat_age=1000)
        barrier = threading.Barrier(8)
        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(tmp_path.iterdir()) == []
    assert most == 1
    assert wins >= 20
    assert wins + refusals == 160


def test_taker_that_died_halfway_does_not_block_the_next(tmp_path):
    dead = replace(Holder.me(), host="elsewhere")
    leave_lock(tmp_path / "store", dead, heartbeat_age=1000)
    claim = lock_path(tmp_path / "store").with_name(f"store.lock.{dead.token}")
    claim.write_text(json.dumps(asdict(replace(Holder.me(), host="elsewhere"))))
    os.utime(claim, (0, 0))
    with StoreLock(tmp_path / "store"):
        assert holder(tmp_path / "store") is not None
    assert list(tmp_path.iterdir()) == []


def test_lock_taken_over_meanwhile_is_not_removed(tmp_path):
    with StoreLock(tmp_path / "store"):
        thief = replace(Holder.me(), token="thief")
        leave_lock(tmp_path / "store", thief)
    found = holder(tmp_path / "store")
    assert found is not None
    assert found.token == "thief"


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AtomsError, match=r"cannot create the lock .*choose a directory"):
        StoreLock(tmp_path / "file" / "store").__enter__()


# --- beside a store far away -----------------------------------------------------------------------------------------


def leave_object(url: str, record: Holder) -> None:
    lock.lock_path(url).write(json.dumps(asdict(record)).encode())


def test_an_object_locks_as_a_file_does(s3):
    with StoreLock(s3):
        found = holder(s3)
        assert found is not None
        assert found.pid == os.getpid()
        with pytest.raises(AtomsError, match=rf"being written by process {os.getpid()} .*lock {s3}\.lock"):
            StoreLock(s3).__enter__()
    assert holder(s3) is None
    assert not lock.lock_path(s3).exists()


def test_the_object_of_a_dead_process_is_taken_over(s3):
    leave_object(s3, replace(Holder.me(), process="another boot:1"))
    assert holder(s3) is None
    with StoreLock(s3):
        assert holder(s3) is not None
    assert not lock.lock_path(s3).exists()


@pytest.mark.parametrize(("silent", "live"), [(30.0, True), (3600.0, False)])
def test_another_machine_s_object_lives_by_its_heartbeat(s3, monkeypatch, silent, live):
    leave_object(s3, replace(Holder.me(), host="elsewhere"))
    now = time.time()
    monkeypatch.setattr(lock.time, "time", lambda: now + silent)
    assert (holder(s3) is not None) is live


def test_the_heartbeat_of_an_object_is_refreshed(s3, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.01)
    with StoreLock(s3):
        place = lock.lock_path(s3)
        first = place.stamp()[1]
        deadline = time.monotonic() + 10
        while place.stamp()[1] == first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert place.stamp()[1] > first
        leave_object(s3, replace(Holder.me(), token="thief"))  # taken over by someone who thought us dead
        time.sleep(0.1)
        found = holder(s3)
        assert found is not None
        assert found.token == "thief"
    assert lock.lock_path(s3).exists()


def test_lock_of_the_dead_is_swept_from_a_whole_store(tmp_path):
    store = tmp_path / "store"
    sweep_lock(store)  # none there
    dead = subprocess.Popen(["true"])
    dead.wait()
    lock_path(store).write_text(json.dumps({**asdict(Holder.me()), "pid": dead.pid}))
    sweep_lock(store)
    assert not list(tmp_path.iterdir())


def test_lock_of_the_living_is_not_swept(tmp_path):
    with StoreLock(tmp_path / "store"):
        sweep_lock(tmp_path / "store")
        assert holder(tmp_path / "store") is not None
