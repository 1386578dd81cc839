"""Commands run in forks of a process that has imported everything, and killed there."""

import importlib
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1]))  # scripts are run by their path, and tests lie above them
tiny = importlib.import_module("tiny_models")

torch.set_num_threads(1)  # threads would not survive a fork
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@dataclass(frozen=True)
class Kill:
    """When a process is to die: after some seconds, or around its n-th change to the file system.

    Args:
        seconds: Time from the start of the command; None for the other kind.
        call: Number of the change, counted from 1.
        delay: Seconds from just before that change to the kill.
    """

    seconds: float | None = None
    call: int = 0
    delay: float = 0.0

    @classmethod
    def draw(cls, random: random.Random, duration: float, calls: int) -> "Kill":
        """Either kind, anywhere in a command's life."""
        if random.random() < 0.5:
            return cls(seconds=random.uniform(0, duration))
        return cls(call=random.randint(1, calls), delay=random.choice([0.0, random.uniform(0, 0.002)]))


@dataclass(frozen=True)
class Ended:
    """How a command ended: status (negative for the signal that killed it), time, changes to the file system, words."""

    status: int
    seconds: float
    calls: int
    said: str


def run(words: list[str], folder: Path, kill: Kill | None = None, prepare: Callable[[], None] | None = None) -> Ended:
    """Run ``atoms`` in a fork of this process, which has imported everything and started no thread.

    Args:
        words: The command line.
        folder: Its working directory, whose changes count.
        kill: When to kill it; None lets it end.
        prepare: Called first in the fork.
    """
    log, count = folder / ".said", folder / ".calls"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _command(words, folder, log, count, kill, prepare)
    if kill and kill.seconds is not None:
        time.sleep(kill.seconds)
        os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 300
    while (waited := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    seconds = time.monotonic() - started
    calls = int(count.read_text() or 0) if count.exists() else 0  # a kill may come amid its writing too
    said = log.read_text(errors="replace")
    log.unlink()
    count.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(waited[1]), seconds, calls, said)


def kill_and_go_on(
    random: random.Random,
    words: list[str],
    folder: Path,
    untouched: Ended,
    look: Callable[[], dict[str, Any]],
    prepare: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Kill a command one to four times, then let it end.

    Args:
        random: Says when.
        words: The command, the same for the first start and for every later one.
        folder: Its working directory, emptied first.
        untouched: How it went when nobody touched it.
        look: What is to be noted after each kill.
        prepare: As for `run`.

    Returns:
        The kills; and ``STUCK`` with what was said, if what a kill left stood in the way.
    """
    kills: list[dict[str, Any]] = []
    wanted = random.choice([1, 1, 2, 4])
    while len(kills) < wanted:
        if not kills:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        kill = Kill.draw(random, untouched.seconds, untouched.calls)
        ended = run(words, folder, kill, prepare)
        if ended.status == 0 and kills:
            break  # it ended before it was hit
        if ended.status == 1:
            return {"kills": kills, "outcome": "STUCK", "said": ended.said[-2000:]}
        if ended.status == 0:
            continue
        kills.append({**asdict(kill), "status": ended.status, **look()})
    ended = run(words, folder, prepare=prepare)
    stuck = {"outcome": "STUCK", "said": ended.said[-2000:]} if ended.status else {}
    return {"kills": kills, **stuck}


def _command(
    words: list[str], folder: Path, log: Path, count: Path, kill: Kill | None, prepare: Callable[[], None] | None
) -> None:
    status = 1
    try:
        os.chdir(folder)
        descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = ["atoms"]  # Lightning compares it with the words it is given
        from atoms.cli import main

        changes = _watch(str(folder), kill)
        if prepare:
            prepare()
        try:
            main(words)
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        count.write_text(str(changes()))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _watch(folder: str, kill: Kill | None) -> Callable[[], int]:
    """Count changes below a folder; strike at the one that was chosen."""
    seen = 0
    striking = kill is not None and kill.seconds is None

    def change() -> None:
        nonlocal seen
        seen += 1
        if striking and seen == kill.call:
            if kill.delay:  # a moment later, amid the change or what follows
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, kill.delay)
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and _below(path, folder):
                change()
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate") and _below(
            arguments[0], folder
        ):
            change()

    fsync = os.fsync

    def counted(descriptor: int) -> None:
        change()
        fsync(descriptor)
        change()

    os.fsync = counted
    sys.addaudithook(hook)
    return lambda: seen


def _below(path: object, folder: str) -> bool:
    if not isinstance(path, (str, bytes, os.PathLike)):
        return False
    full = os.path.abspath(os.fsdecode(path))
    return full.startswith(folder) and not full.endswith((".said", ".calls"))


def files(folder: Path) -> list[str]:
    """Everything below a folder, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def settings(prefix: str, values: dict[str, Any]) -> Iterator[str]:
    """Words of a command line."""
    return (f"--{prefix}.{name}={value}" for name, value in values.items())
