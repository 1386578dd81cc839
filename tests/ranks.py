"""The same lines run by two processes of a gloo group."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import atoms

HEAD = """
import json, sys
import torch, torch.distributed as dist
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
"""
TAIL = """
print(json.dumps(found))
dist.destroy_process_group()
"""


def by_two_ranks(code: str, folder: Path) -> list[Any]:
    """Run code that finds ``rank`` set and sets ``found`` to what JSON can hold; return what each found."""
    environment = {**os.environ, "PYTHONPATH": str(Path(atoms.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", HEAD + code + TAIL, str(rank), str(folder / "meeting")],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert not any(process.returncode for process in running), said
    return [json.loads(out) for out, _ in said]
