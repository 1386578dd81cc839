"""ActivationStore: rows of hidden states on disk, whole or refused."""

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoms.activations.cache import ChunkCache
from atoms.activations.document_groups import GROUPS_FILE, DocumentGroups
from atoms.activations.grid import Grid
from atoms.activations.location import Location, Where, locate
from atoms.activations.lock import holder
from atoms.activations.manifest import FOLDER, Seal, committed, fault, manifest_name, read_seal
from atoms.activations.reader import ChunkReader, DamagedChunkError
from atoms.activations.sealed import sha256_of
from atoms.activations.spec import METADATA, TOKENS, StoreSpec, acts_path, norm_path, stored_spec, tokens_path
from atoms.activations.writer import StoreWriter, moments_name
from atoms.errors import AtomsError
from atoms.geometry import Moments

__all__ = ["ActivationStore", "StoreSpec", "StoreWriter"]

IN_FLIGHT = 8  # chunks fetched side by side from afar


class ActivationStore:
    """A complete store, open for reading.

    The directory is a Zarr v3 group that any Zarr reader opens; per split and site ``<split>/<site>/acts (N, H)`` and
    ``norm (N,)``, and ``<split>/tokens/{token_id, doc_id, position}`` in the same order of rows.

    Reading is safe from several threads and after a fork.

    Args:
        path: the store.
        spec: what it holds.
        sealed: every file of it.
        verify: ``first`` checks a chunk's checksum the first time this process reads it, ``always`` every time.
        cache: keeps what is read from afar.
    """

    def __init__(
        self, path: Location, spec: StoreSpec, sealed: Seal, verify: str, cache: ChunkCache | None = None
    ) -> None:
        self.path = path
        self.spec = spec
        self.sealed = sealed
        self.verify = verify
        self._cache = cache
        self._readers: dict[str, ChunkReader] = {}

    @classmethod
    def open(cls, path: Where, verify: Literal["first", "always"] = "first", cache: ChunkCache | None = None) -> Self:
        """Open a store after checking that every file is there and has its size.

        Over plain HTTP, where nothing can be listed, that is left to reading.

        Raises:
            AtomsError: there is no store, it is still being written, incomplete, or a file is missing or damaged.
        """
        place = locate(path)
        if verify not in ("first", "always"):
            raise AtomsError(f"data.verify={verify}: unknown; use first or always")
        spec = stored_spec(place)
        if spec is None:
            raise AtomsError(f"data.store={place}: no store there; make it with `atoms cache`, or mend the path")
        sealed = read_seal(place)
        done = len(spec.spans) if sealed and not place.writable else committed(place, spec)
        if sealed is None or done < len(spec.spans):
            if (writer := holder(place)) is not None:
                raise AtomsError(
                    f"data.store={place}: process {writer.pid} on {writer.host} is writing it, {done} of "
                    f"{len(spec.spans)} blocks are done; wait for it to finish"
                )
            raise AtomsError(
                f"data.store={place}: incomplete, {done} of {len(spec.spans)} blocks are done; run `atoms cache` with "
                "the config that made it, it resumes"
            )
        if sealed.identity_hash != spec.identity_hash:
            raise AtomsError(
                f"data.store={place}: zarr.json and complete.json are of different stores; delete complete.json and "
                "run `atoms cache` with the same config, which writes it anew and keeps the rows"
            )
        found = place.files()
        if found is not None and (problem := fault(sealed.files, found)) is not None:
            raise AtomsError(f"data.store={place}: {problem}; {mend(spec, problem.partition(' ')[0])}")
        return cls(place, spec, sealed, verify, cache)

    @property
    def extra(self) -> dict[str, Any]:
        """What its writer noted about the making."""
        return self.sealed.extra

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

    def moments(self, site: str) -> Moments:
        """Read the moments of a site's training rows that are finite.

        Raises:
            AtomsError: the store has none, or they are damaged.
        """
        self._check(None, site)
        data = self.read_file(moments_name(site))
        if data is None:
            raise AtomsError(
                f"data.store={self.path}: has no moments of {site}; delete complete.json there and run `atoms cache` "
                "with the same config, which sums them"
            )
        return Moments.from_bytes(data, moments_name(site))

    def read_file(self, name: str) -> bytes | None:
        """Read a small file that was sealed with the store; None if there was none of that name.

        Raises:
            AtomsError: it is lost or damaged.
        """
        record = self.sealed.files.get(name)
        if record is None:
            return None
        try:
            data = (self.path / name).read()
        except FileNotFoundError:
            raise AtomsError(f"data.store={self.path}: {name} is missing; {mend(self.spec, name)}") from None
        if sha256_of(data) != record.digest:
            raise AtomsError(f"data.store={self.path}: {name} is damaged (wrong checksum); {mend(self.spec, name)}")
        return data

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

    def read_chunks(
        self, split: str, wanted: Iterable[tuple[str, int]], buffers: Mapping[str, NDArray[Any]]
    ) -> Generator[NDArray[Any], None, None]:
        """Read chunks one after the other; from afar, several are in flight.

        Args:
            split: name of the split.
            wanted: sites and numbers of the chunks.
            buffers: per site a buffer as for :meth:`read_chunk`. A chunk is valid until the next is asked for.

        Yields:
            What :meth:`read_chunk` returns, in the order asked for.
        """
        if not self.path.remote:
            for site, chunk in wanted:
                yield self.read_chunk(split, site, chunk, buffers[site])
            return
        ahead: deque[Future[NDArray[Any]]] = deque()
        with ThreadPoolExecutor(IN_FLIGHT, "activation-fetch") as pool:
            try:
                for site, chunk in wanted:
                    ahead.append(pool.submit(self.read_chunk, split, site, chunk))
                    if len(ahead) == IN_FLIGHT:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

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

    @property
    def has_groups(self) -> bool:
        """Whether groups of near-duplicate documents were recorded."""
        return GROUPS_FILE in self.sealed.files

    def groups(self, split: str) -> NDArray[np.int64] | None:
        """Return the group of near-duplicate documents of a split's rows, (N,) int64, -1 for a row of no document.

        None if the store does not say: those made before groups were recorded do not.

        Raises:
            AtomsError: the groups are lost or damaged.
        """
        self._check(split, None)
        data = self.read_file(GROUPS_FILE)
        if data is None:
            return None
        return DocumentGroups.from_bytes(data).of(self._column(split, tokens_path(split, "doc_id")))

    def to_torch(self, rows: NDArray[Any]) -> Tensor:
        """View stored rows as a tensor of the store's dtype, without a copy."""
        tensor = torch.from_numpy(rows)
        return tensor.view(torch.bfloat16) if self.dtype == torch.bfloat16 else tensor

    def content_digest(self) -> str:
        """Hex sha256 over the stored values of all arrays, rows in order; blind to how they are cut into files."""
        digest = hashlib.sha256()
        for split in self.splits:
            for array in self.spec.arrays(split):
                reader = self._reader(array.path)
                digest.update(f"{array.path} {reader.shape} {reader.dtype}".encode())
                for chunk in range(len(reader)):
                    digest.update(self._read(split, array.path, chunk, None).data)
        return digest.hexdigest()

    def _reader(self, path: str) -> ChunkReader:
        if path not in self._readers:
            self._readers[path] = ChunkReader(
                self.path, self.spec.array(path), self.grid, self.verify, self._cache, self.sealed.digest
            )
        return self._readers[path]

    def _read(self, split: str, path: str, chunk: int, out: NDArray[Any] | None) -> NDArray[Any]:
        try:
            return self._reader(path).read(chunk, out)
        except DamagedChunkError as error:
            raise AtomsError(
                f"data.store={self.path}: chunk {error.chunk} in {error.file} is damaged ({error.reason}); "
                f"{mend(self.spec, error.file)}"
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


def mend(spec: StoreSpec, name: str) -> str:
    """Say how a lost or damaged file of a store is made anew.

    Args:
        spec: the store's.
        name: the file, relative to the store.
    """
    again = "run `atoms cache` with the same config"
    if name == METADATA:
        return f"delete zarr.json and complete.json in the store and {again}, which writes them anew"
    if name.startswith(f"{FOLDER}/"):
        return f"delete {name} in the store and {again} to rewrite that block"
    for span in spec.spans:
        if name in spec.shard_files(span):
            return f"delete {manifest_name(span)} in the store and {again} to rewrite that block"
    return f"delete complete.json in the store and {again}, which writes it and {name} anew and keeps the rows"
