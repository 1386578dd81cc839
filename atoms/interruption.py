"""Being asked to stop: Ctrl-C at the keyboard, or a scheduler that wants its machine back.

A fit stops between two steps, after a checkpoint; whatever else runs is left at once, since what it has written is
whole block by block. A second Ctrl-C waits for nothing.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; preemption (Slurm, Kubernetes, `kill`); and what `sbatch --signal=USR1@120` sends before the time is up."""


class Interrupted(BaseException):
    """The process was asked to stop and has reached a place where it may.

    Args:
        number: The signal.
        checkpoint: Where a fit can be taken up again, if it is one and has got that far.
    """

    def __init__(self, number: signal.Signals, checkpoint: str = "") -> None:
        super().__init__(number.name)
        self.number = number
        self.checkpoint = checkpoint


class _Asked:
    """What this process has been asked, and whether somebody will look before it matters."""

    number: signal.Signals | None = None
    somebody_looks = False


def asked() -> signal.Signals | None:
    """The first signal since `caught` began, or None."""
    return _Asked.number


@contextlib.contextmanager
def caught() -> Iterator[None]:
    """Turn `SIGNALS` into `Interrupted` while the block runs.

    Raises:
        Interrupted: At any place of the block, or where `deferred` code asks.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _Asked.number, _Asked.somebody_looks = None, False
    listen()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _Asked.somebody_looks = False


def listen() -> None:
    """Take the signals (again): Lightning puts handlers of its own in place when a fit begins."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _note)


def defer(wait: bool) -> None:
    """From now on raise nothing, because the caller looks at `asked` after every step; or no longer so."""
    _Asked.somebody_looks = wait


def requeue() -> str | None:
    """Put this job back into Slurm's queue, if it is one.

    A preempted job Slurm requeues itself; one that runs out of time has to ask.

    Returns:
        What came of it, a line for the user; None outside Slurm.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or shutil.which("scontrol") is None or os.environ.get("SLURM_PROCID", "0") != "0":
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    return f"job {job} requeued" if done.returncode == 0 else f"job {job} not requeued: {done.stderr.strip()}"


def _note(number: int, frame: FrameType | None) -> None:
    first, _Asked.number = _Asked.number is None, _Asked.number or signal.Signals(number)
    if not first and number != signal.SIGINT:
        return  # schedulers repeat themselves; only a person may be impatient
    if first and _Asked.somebody_looks:
        # print() may itself be what was interrupted
        os.write(2, f"{_Asked.number.name}: stopping after this step; Ctrl-C stops at once\n".encode())
        return
    raise Interrupted(_Asked.number)
