"""Processes that have imported what takes seconds, and are else as new."""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

HEAVY = ["atoms.commands.fit", "atoms.activations.harvest", "hypothesis", "pytest"]


def forked(
    function: Callable[..., object],
    *places: tuple[object, ...],
    environments: Sequence[Mapping[str, str]] | None = None,
) -> list[int | None]:
    """Run ``function(*place)`` for every place side by side, each in a process of its own.

    They are forked from a server that has imported `HEAVY` and done nothing else: no thread, no group of processes and
    no open store of the process that asks is in them, but its directory and its environment are.

    Args:
        function: One of a module.
        places: What each is given.
        environments: What each finds in its environment beside what is there, as a launcher would say it.

    Returns:
        Exit codes: 0 where the function returned, 1 where it raised, negative for the signal that ended it, None where
        it had to be ended after four minutes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    own = environments or [{}] * len(places)
    running = [
        context.Process(target=_child, args=({**os.environ, **more}, function, place))
        for more, place in zip(own, places, strict=True)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(240)
    codes = [process.exitcode for process in running]
    for process in running:
        process.kill()
    return codes


def _child(environment: dict[str, str], function: Callable[..., object], place: tuple[object, ...]) -> None:
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    os.environ.clear()
    os.environ.update(environment)
    rank_zero_only.rank = _get_rank() or 0  # as importing it under this environment would have
    torch.set_num_threads(1)
    function(*place)


def in_a_group(function: Callable[..., Any], folder: Path, *arguments: object) -> list[Any]:
    """Return what ``function(rank, *arguments)`` returns in each of two processes of one gloo group.

    Args:
        function: One of a module.
        folder: An empty folder.
        arguments: What both are given.
    """
    assert forked(_member, *((function, rank, str(folder), arguments) for rank in range(2))) == [0, 0]
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(2)]


def _member(function: Callable[..., Any], rank: int, folder: str, arguments: tuple[object, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = function(rank, *arguments)
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


def speak_into(out: str, err: str) -> None:
    """From here on what this process prints, from Python or not, goes to the ends of two files, or of one."""
    for descriptor, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lightning_ranks(count: int) -> list[dict[str, str]]:
    """What Lightning tells each of the processes that it starts on one machine."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0", "WORLD_SIZE": str(count)}
    return [{**meeting, "LOCAL_RANK": str(rank)} for rank in range(count)]
