"""Memory of this process and machine: how much it took, keeping what was freed, refusing what cannot fit."""

import ctypes
import os
import resource
import sys

import torch

from atoms.errors import AtomsError
from atoms.progress import size

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Let the C library hold on to large blocks for the life of the process.

    By default glibc returns every freed block beyond some 32 MiB to the kernel, which then clears fresh pages for the
    next step's tensors of the same size: 17,000 page faults a step at 2,048 rows and 1,536 atoms, a third of its CPU
    time. Process-wide, so only the command line calls it; memory use stays at its peak.

    Returns:
        Whether the C library took the settings; other C libraries than glibc are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 * 2**20}
    return all(mallopt(name, value) for name, value in settings.items())


def peak_memory(device: torch.device) -> str:
    """The most memory held so far, for people: of the GPU the process runs on, else of the process.

    Args:
        device: Where the process computes.
    """
    if device.type == "cuda":
        return f"{size(torch.cuda.max_memory_allocated(device))} of GPU memory at most"
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return f"{size(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)} of memory at most"


def require_memory(n_bytes: float, what: str, fix: str) -> None:
    """Refuse what cannot fit the machine before anything is allocated.

    Args:
        n_bytes: What it takes.
        what: What takes it, for the message.
        fix: What to do about it.

    Raises:
        AtomsError: If it takes more than the machine has.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if n_bytes > there:
        raise AtomsError(
            f"{what} takes {size(min(n_bytes, 1e300))} and this machine has {size(there)} of memory: {fix}"
        )
