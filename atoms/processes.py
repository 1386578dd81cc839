"""How the processes of a fit or a harvest end together."""

import atexit

import torch.distributed as dist


def leave_at_exit() -> None:
    """Leave the process group before the interpreter goes, which Lightning sees to for NCCL alone.

    A thread of gloo that still holds a tensor of the last reduction asks the interpreter for its lock to let go of it;
    if that is gone, the process is aborted, and whoever launched it kills the others. Seen on one exit in eight.
    """
    atexit.unregister(_leave)  # once, however often it is asked for
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
