"""Moments of the train split, accumulated beside the blocks, in an order that a kill does not change."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atoms.activations.files import disk_errors
from atoms.activations.grid import Span
from atoms.activations.location import LocalLocation, Location
from atoms.activations.manifest import manifest_name
from atoms.activations.reader import ChunkReader, DamagedChunkError
from atoms.activations.sealed import DamagedFileError, seal, sha256_of, unseal
from atoms.activations.spec import acts_path, norm_path, site_folder
from atoms.activations.writer import StoreWriter
from atoms.errors import AtomsError
from atoms.geometry import Moments

BLOCKS_BETWEEN_SAVES = 8


class MomentsWriter:
    """Float64 moments of one rank's training rows, added block by block in the rank's fixed order.

    Rows that are not finite are no part of them, as readers leave them out. The sums are taken from the *stored*
    values, so a block that was committed before a kill and one written now count alike. Every few blocks the sums are
    saved with the number of blocks they hold; what was committed later is read back.

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
        self.rank = rank
        self.device = torch.device("cpu") if device.type == "mps" else device  # no float64 there
        writer.retain = True
        self.counted = 0
        self.sums = {site: Moments.zeros(width) for site, width in writer.spec.sites.items()}
        self._saved: list[list[str]] = []  # file and digest of the sums saved last, per site
        if saved := self._load(rank):
            self.counted, self.sums, self._saved = saved

    def after(self, span: Span) -> None:
        """Count every block of this rank up to ``span``, which has just been written."""
        if span.split == "train":
            self._count_to(self.own.index(span) + 1)

    def finish(self) -> None:
        """Count what is left and save."""
        self._count_to(len(self.own))
        self._save()

    def pool(self) -> None:
        """Add all ranks' sums and write them to their final place. One rank calls it, after a barrier.

        Raises:
            AtomsError: A rank's sums are lost or damaged.
        """
        pooled = {site: Moments.zeros(width) for site, width in self.writer.spec.sites.items()}
        for rank in range(self.world_size):
            saved = self._load(rank)
            if saved is None:
                raise AtomsError(
                    f"data.store={self.writer.path}: the moments of rank {rank} are lost or damaged; run the command "
                    "again, they are summed anew"
                )
            for site, sums in saved[1].items():
                pooled[site] = pooled[site] + sums
        for site, sums in pooled.items():
            self.writer.write_moments(site, sums)

    def sweep(self) -> None:
        """Delete all ranks' sums, once they are pooled and before the store is complete. One rank calls it.

        A kill in between costs a reading of the rows; after completion nobody would come back to sweep.
        """
        found = self._folder.files() or {}
        # Marks first: one without its sums would only be found damaged by a repair.
        for name in sorted(found, key=lambda name: not name.startswith("mark-")):
            (self._folder / name).delete()
        if isinstance(self._folder, LocalLocation):
            self._folder.path.rmdir()

    @property
    def _folder(self) -> Location:
        return self.writer.path / "moments/parts"

    def _mark_of(self, rank: int) -> Location:
        return self._folder / f"mark-rank-{rank}-of-{self.world_size}.json"

    def _name(self, site: str) -> str:
        return f"{site_folder(site)}-rank-{self.rank}-of-{self.world_size}-{self.counted}.safetensors"

    def _load(self, rank: int) -> tuple[int, dict[str, Moments], list[list[str]]] | None:
        """Blocks counted, sums and files of a rank as saved last; None if there are none that are whole."""
        try:
            mark = unseal(self._mark_of(rank).read())
            sums = {}
            for (site, width), (name, digest) in zip(self.writer.spec.sites.items(), mark["files"], strict=True):
                data = (self._folder / name).read()
                if sha256_of(data) != digest:
                    return None
                sums[site] = Moments.from_bytes(data, name)
                if sums[site].width != width:
                    return None
        except (FileNotFoundError, DamagedFileError, AtomsError, KeyError, ValueError):
            return None
        return mark["blocks"], sums, mark["files"]

    def _count_to(self, stop: int) -> None:
        while self.counted < stop:
            self._count(self.own[self.counted])
            self.counted += 1
            if self.counted % BLOCKS_BETWEEN_SAVES == 0:
                self._save()

    def _count(self, span: Span) -> None:
        spec = self.writer.spec
        stored = self.writer.take(span)
        for site in spec.sites:
            values, norms = (
                stored[path] if stored else self._read(path, span)
                for path in (acts_path(span.split, site), norm_path(span.split, site))
            )
            bits = torch.from_numpy(values)
            rows = bits.view(torch.bfloat16) if spec.dtype == "bfloat16" else bits
            if not (finite := np.isfinite(norms)).all():
                rows = rows[torch.from_numpy(finite)]
            block = Moments.from_rows(rows.to(self.device))
            self.sums[site] = self.sums[site] + Moments(block.count, block.total.cpu(), block.outer.cpu())

    def _read(self, path: str, span: Span) -> NDArray[Any]:
        spec, place = self.writer.spec, self.writer.path
        try:
            return ChunkReader(place, spec.array(path), spec.grid).read_rows(span.start, span.stop)
        except DamagedChunkError as error:
            raise AtomsError(
                f"data.store={place}: {error}; delete {manifest_name(span)} in the store and run `atoms cache` with "
                "the same config to rewrite that block"
            ) from error

    def _save(self) -> None:
        before = {name for name, _ in self._saved}
        with disk_errors(self.writer.path, 0):
            self._saved = []
            for site, sums in self.sums.items():
                data = sums.to_bytes()
                (self._folder / self._name(site)).write(data)
                self._saved.append([self._name(site), sha256_of(data)])
            self._mark_of(self.rank).write(seal({"blocks": self.counted, "files": self._saved}))
        for name in before - {name for name, _ in self._saved}:
            (self._folder / name).delete()
