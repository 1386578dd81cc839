"""Threads that stand for the processes of a group: gloo does not mind."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from atoms.sae import Shard


def together(size: int, work: Callable[[Shard], Any]) -> list[Any]:
    """Run ``work`` once per shard, all at a time, and return what each returned."""
    store, results, failures = dist.HashStore(), [None] * size, []

    def run(rank: int) -> None:
        try:
            group = dist.ProcessGroupGloo(store, rank, size, timedelta(seconds=30))  # type: ignore[attr-defined]
            results[rank] = work(Shard(rank, size, group))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results
