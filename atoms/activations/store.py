"""ActivationStore: rows of hidden states on disk, whole or refused."""

import hashlib
import os
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoms.activations.files import read_json
from atoms.activations.grid import Grid
from atoms.activations.lock import holder
from atoms.activations.manifest import COMPLETE, committed_bytes, fault, manifest_path
from atoms.activations.reader import ChunkReader, DamagedChunkError
from atoms.activations.spec import TOKENS, StoreSpec, acts_path, norm_path, stored_spec, tokens_path
from atoms.activations.writer import StoreWriter, moments_path
from atoms.errors import AtomsError

__all__ = ["ActivationStore", "StoreSpec", "StoreWriter", "moments_path"]


class ActivationStore:
    """A complete store, open for reading.

    The directory is a Zarr v3 group that any Zarr reader opens; per split and site ``<split>/<site>/acts (N, H)`` and
    ``norm (N,)``, and ``<split>/tokens/{token_id, doc_id, position}`` in the same order of rows.

    Reading is safe from several threads and after a fork.

    Args:
        path: the store.
        spec: what it holds.
        extra: what its writer noted about the making.
        verify: ``first`` checks a chunk's checksum the first time this process reads it, ``always`` every time.
    """

    def __init__(self, path: Path, spec: StoreSpec, extra: dict[str, Any], verify: str) -> None:
        self.path = path
        self.spec = spec
        self.extra = extra
        self.verify = verify
        self._readers: dict[str, ChunkReader] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str], verify: Literal["first", "always"] = "first") -> Self:
        """Open a store after checking that every shard is there and has its size.

        Raises:
            AtomsError: there is no store, it is still being written, incomplete, or a shard is missing or damaged.
        """
        path = Path(path)
        if verify not in ("first", "always"):
            raise AtomsError(f"data.verify={verify}: unknown; use first or always")
        spec = stored_spec(path)
        if spec is None:
            raise AtomsError(f"data.store={path}: no store there; make it with `atoms cache`, or mend the path")
        spans = spec.spans
        done = [span for span in spans if committed_bytes(path, span) is not None]
        complete = path / COMPLETE
        if len(done) < len(spans) or not complete.exists():
            if (writer := holder(path)) is not None:
                raise AtomsError(
                    f"data.store={path}: process {writer.pid} on {writer.host} is writing it, {len(done)} of "
                    f"{len(spans)} blocks are done; wait for it to finish"
                )
            raise AtomsError(
                f"data.store={path}: incomplete, {len(done)} of {len(spans)} blocks are done; run `atoms cache` with "
                "the config that made it, it resumes"
            )
        for span in spans:
            if (problem := fault(path, span)) is not None:
                name = manifest_path(path, span).relative_to(path)
                raise AtomsError(f"data.store={path}: {problem}; {_mend(str(name))}")
        return cls(path, spec, read_json(complete)["extra"], verify)

    @property
    def sites(self) -> list[str]:
        """Names of the sites."""
        return list(self.spec.sites)

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return list(self.spec.splits)

    @property
    def grid(self) -> Grid:
        """How rows are cut."""
        return self.spec.grid

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of rows, as tensors."""
        return self.spec.torch_dtype

    @property
    def provenance(self) -> dict[str, Any]:
        """What the rows come from, as the writer's caller said."""
        return self.spec.provenance

    @property
    def identity_hash(self) -> str:
        """Hex hash of all settings and provenance."""
        return self.spec.identity_hash

    def width(self, site: str) -> int:
        """Hidden size of a site."""
        self._check(None, site)
        return self.spec.sites[site]

    def n_rows(self, split: str) -> int:
        """Rows of a split."""
        self._check(split, None)
        return self.spec.splits[split]

    def moments_path(self, site: str) -> Path:
        """Return where the moments of a site belong."""
        return moments_path(self.path, site)

    def chunks(self, split: str) -> list[range]:
        """Return the rows of every chunk of a split; the last may be shorter."""
        rows, step = self.n_rows(split), self.grid.chunk_rows
        return [range(start, min(start + step, rows)) for start in range(0, rows, step)]

    def read_chunk(self, split: str, site: str, chunk: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read one chunk of a site.

        Args:
            split: name of the split.
            site: name of the site.
            chunk: number of the chunk.
            out: contiguous ``(chunk_rows, H)`` buffer in the storage dtype to read into; fresh memory if None.

        Returns:
            (rows, H) in the storage dtype, bfloat16 as uint16; a view of ``out`` if given.

        Raises:
            AtomsError: the chunk on the disk is not what was written.
        """
        self._check(split, site)
        return self._read(split, acts_path(split, site), chunk, out)

    def read_rows(self, split: str, site: str, start: int, stop: int) -> Tensor:
        """Read rows ``start:stop`` of a site as a fresh (rows, H) float32 tensor."""
        self._check(split, site)
        if not 0 <= start <= stop <= self.n_rows(split):
            raise IndexError(f"rows {start}:{stop} of {self.n_rows(split)}")
        path = acts_path(split, site)
        out = torch.empty(stop - start, self.width(site))
        filled = 0
        for chunk, part in self._reader(path).slices(start, stop):
            rows = self.to_torch(self._read(split, path, chunk, None)[part])
            out[filled : filled + len(rows)] = rows
            filled += len(rows)
        return out

    def norms(self, split: str, site: str) -> NDArray[np.float32]:
        """Return the (N,) float32 Euclidean norms of a site's stored rows."""
        self._check(split, site)
        return self._column(split, norm_path(split, site))

    def tokens(self, split: str) -> dict[str, NDArray[Any]]:
        """Return (N,) ``token_id`` int32, ``doc_id`` int64 and ``position`` int32 of a split's rows."""
        self._check(split, None)
        return {name: self._column(split, tokens_path(split, name)) for name in TOKENS}

    def to_torch(self, rows: NDArray[Any]) -> Tensor:
        """View stored rows as a tensor of the store's dtype, without a copy."""
        tensor = torch.from_numpy(rows)
        return tensor.view(torch.bfloat16) if self.dtype == torch.bfloat16 else tensor

    def content_digest(self) -> str:
        """Hex sha256 over the stored values of all arrays, rows in order; blind to how they are cut into files."""
        digest = hashlib.sha256()
        for split in self.splits:
            for path in self.spec.arrays(split):
                reader = self._reader(path)
                digest.update(f"{path} {reader.shape} {reader.dtype}".encode())
                for chunk in range(len(reader)):
                    digest.update(self._read(split, path, chunk, None).data)
        return digest.hexdigest()

    def _reader(self, path: str) -> ChunkReader:
        if path not in self._readers:
            self._readers[path] = ChunkReader(self.path / path, self.verify)
        return self._readers[path]

    def _read(self, split: str, path: str, chunk: int, out: NDArray[Any] | None) -> NDArray[Any]:
        try:
            return self._reader(path).read(chunk, out)
        except DamagedChunkError as error:
            block = chunk * self.grid.chunk_rows // self.grid.block_rows
            name = f"manifest/{split}-{block:06d}.json"
            raise AtomsError(
                f"data.store={self.path}: chunk {error.chunk} in {path}/{error.file} is damaged ({error.reason}); "
                f"{_mend(name)}"
            ) from error

    def _column(self, split: str, path: str) -> NDArray[Any]:
        reader = self._reader(path)
        out = np.empty(reader.shape, reader.dtype)
        for chunk in range(len(reader)):
            rows = reader.rows(chunk)
            out[rows.start : rows.stop] = self._read(split, path, chunk, None)
        return out

    def _check(self, split: str | None, site: str | None) -> None:
        if split is not None and split not in self.spec.splits:
            raise AtomsError(f"data.store={self.path}: has no split {split!r}; name one of {', '.join(self.splits)}")
        if site is not None and site not in self.spec.sites:
            raise AtomsError(f"data.store={self.path}: has no site {site!r}; name one of {', '.join(self.sites)}")


def _mend(manifest: str) -> str:
    return f"delete {manifest} in the store and run `atoms cache` with the same config to rewrite that block"
