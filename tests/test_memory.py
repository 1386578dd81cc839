import ctypes
import subprocess
import sys

import pytest
import torch

from atoms.memory import keep_freed_memory, peak_memory

COUNT_FAULTS = """
import resource, torch
from atoms.memory import keep_freed_memory, peak_memory
assert keep_freed_memory()
def use():
    for _ in range(20):
        torch.ones(2**22)  # 16 MiB, cleared and freed
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc only")
def test_freed_memory_is_used_again():
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20 * 2**24 // 4096 // 10  # a tenth of what clearing fresh pages would take


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert not keep_freed_memory()


def test_the_peak_of_this_process_is_said():
    held = torch.ones(2**26 // 4)  # 64 MiB
    number, unit, *rest = peak_memory(torch.device("cpu")).split()
    assert " ".join(rest) == "of memory at most"
    assert float(number) * {"MiB": 1, "GiB": 2**10}[unit] > 64
    del held


def test_on_a_gpu_the_peak_is_the_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    assert peak_memory(torch.device("cuda", 0)) == "3 GiB of GPU memory at most"
