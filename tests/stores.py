"""A small store of two sites that several test files write, read and spoil."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atoms.activations import writer as writing
from atoms.activations.grid import Grid, Span
from atoms.activations.spec import site_folder
from atoms.activations.store import StoreSpec, StoreWriter

SITE, ODD_SITE = "model.layers.3", "blocks/1:post"
SPEC = StoreSpec(
    sites={SITE: 8, ODD_SITE: 3},
    dtype="float32",
    splits={"train": 150, "val": 37, "test": 0},
    grid=Grid(chunk_rows=4, shard_rows=16, block_rows=32),
    seed=5,
    provenance={"model": {"name": "m", "hash": "abc"}, "context": 64},
)


def make_rows(spec: StoreSpec, span: Span) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * span.index + len(span.split))
    return {site: torch.randn(span.rows, width, generator=generator) for site, width in spec.sites.items()}


def make_tokens(span: Span) -> dict[str, np.ndarray]:
    rows = np.arange(span.start, span.stop)
    return {"token_id": rows % 7, "doc_id": rows // 10, "position": rows % 10}


def write(writer: StoreWriter, spans: list[Span] | None = None) -> None:
    for span in writer.pending if spans is None else spans:
        writer.write_block(span, make_rows(writer.spec, span), **make_tokens(span))


def make_store(path: Path, spec: StoreSpec = SPEC) -> Path:
    writer = StoreWriter.create(path, spec)
    write(writer)
    writer.finalise({"versions": "1"})
    return path


def shard(path: Path, split: str = "train", site: str = SITE, index: int = 0) -> Path:
    return path / split / site_folder(site) / "acts" / "c" / str(index) / "0"


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def die_at_commit(number: int) -> None:
    """From here on this process kills itself where the shards of its n-th block are written and nothing says so."""
    commit, commits = writing.commit, []

    def die(*args: Any) -> None:
        commits.append(args)
        if len(commits) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        commit(*args)

    writing.commit = die


@contextmanager
def broken_off(blocks: int) -> Iterator[None]:
    """Whoever writes a store in here is broken off after so many blocks."""
    original, written = StoreWriter.write_block, []

    def break_off(self: StoreWriter, *args: Any, **kwargs: Any) -> None:
        if len(written) == blocks:
            raise RuntimeError("broken off")
        written.append(args)
        original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "write_block", break_off)
        with pytest.raises(RuntimeError, match="broken off"):
            yield
