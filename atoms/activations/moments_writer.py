"""Moments of the train split, accumulated beside the blocks, in an order that a kill does not change."""

import shutil
from pathlib import Path

import torch

from atoms.activations.files import disk_errors, read_json, write_json
from atoms.activations.grid import Span
from atoms.activations.reader import ChunkReader
from atoms.activations.spec import acts_path
from atoms.activations.writer import StoreWriter
from atoms.geometry import Moments

BLOCKS_BETWEEN_SAVES = 8


class MomentsWriter:
    """Float64 moments of one rank's training rows, added block by block in the rank's fixed order.

    The sums are taken from the *stored* values, so a block that was committed before a kill and one written now
    count alike. Every few blocks the sums are saved with the number of blocks they hold; what was committed later
    is read back.

    Args:
        writer: The store being written.
        own: All blocks of this rank, in order, written already or not.
        rank: This rank.
        world_size: Number of ranks; sums saved under another number are not used.
        device: Where the sums of a block are taken.
    """

    def __init__(self, writer: StoreWriter, own: list[Span], rank: int, world_size: int, device: torch.device) -> None:
        self.writer, self.world_size = writer, world_size
        self.own = [span for span in own if span.split == "train"]
        self.mark = self._part("mark", rank).with_suffix(".json")
        self.rank = rank
        self.device = torch.device("cpu") if device.type == "mps" else device  # no float64 there
        self.counted = 0
        self.sums = {site: Moments.zeros(width) for site, width in writer.spec.sites.items()}
        if self.mark.exists():
            self.counted = read_json(self.mark)["blocks"]
            self.sums = {site: Moments.load(self._saved(site, rank, self.counted)) for site in writer.spec.sites}

    def after(self, span: Span) -> None:
        """Count every block of this rank up to ``span``, which has just been written."""
        if span.split == "train":
            self._count_to(self.own.index(span) + 1)

    def finish(self) -> None:
        """Count what is left and save."""
        self._count_to(len(self.own))
        self._save()

    def pool(self) -> None:
        """Add all ranks' sums and write them to their final place. One rank calls it, after a barrier."""
        for site, width in self.writer.spec.sites.items():
            pooled = Moments.zeros(width)
            for rank in range(self.world_size):
                counted = read_json(self._part("mark", rank).with_suffix(".json"))["blocks"]
                pooled = pooled + Moments.load(self._saved(site, rank, counted))
            with disk_errors(self.writer.path, 0):
                pooled.save(self.writer.moments_path(site))

    def sweep(self) -> None:
        """Delete all ranks' sums, once the store is complete. One rank calls it."""
        for mark in self._folder.glob("mark-*"):  # first: a mark without its sums would stand in the way of a repair
            mark.unlink()
        shutil.rmtree(self._folder)

    @property
    def _folder(self) -> Path:
        return self.writer.moments_path("x").parent / "parts"

    def _part(self, name: str, rank: int) -> Path:
        return self._folder / f"{name}-rank-{rank}-of-{self.world_size}"

    def _saved(self, site: str, rank: int, counted: int) -> Path:
        name = self.writer.moments_path(site).stem
        return self._part(name, rank).with_name(f"{name}-rank-{rank}-of-{self.world_size}-{counted}.safetensors")

    def _count_to(self, stop: int) -> None:
        while self.counted < stop:
            self._count(self.own[self.counted])
            self.counted += 1
            if self.counted % BLOCKS_BETWEEN_SAVES == 0:
                self._save()

    def _count(self, span: Span) -> None:
        spec = self.writer.spec
        for site in spec.sites:
            reader = ChunkReader(self.writer.path / acts_path(span.split, site))
            bits = torch.from_numpy(reader.read_rows(span.start, span.stop))
            rows = (bits.view(torch.bfloat16) if spec.dtype == "bfloat16" else bits).to(self.device)
            block = Moments.from_rows(rows)
            self.sums[site] = self.sums[site] + Moments(block.count, block.total.cpu(), block.outer.cpu())

    def _save(self) -> None:
        before = read_json(self.mark)["blocks"] if self.mark.exists() else None
        with disk_errors(self.writer.path, 0):
            self._folder.mkdir(parents=True, exist_ok=True)
            for site, sums in self.sums.items():
                sums.save(self._saved(site, self.rank, self.counted))
            write_json(self.mark, {"blocks": self.counted})
        if before is not None and before != self.counted:
            for site in self.sums:
                self._saved(site, self.rank, before).unlink(missing_ok=True)
