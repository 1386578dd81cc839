"""Looking through a store for everything that is not as it was written."""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from atoms.activations.files import PARTIAL
from atoms.activations.grid import CHUNK_BYTES
from atoms.activations.layout import metadata_files, same_metadata
from atoms.activations.location import Location, Where, locate
from atoms.activations.manifest import (
    COMPLETE,
    FOLDER,
    SHARD,
    BlockRecord,
    FileRecord,
    Seal,
    manifest_name,
    shard_digest,
)
from atoms.activations.reader import ChunkReader
from atoms.activations.sealed import DamagedFileError, sha256_of
from atoms.activations.shard import CRC_BYTES, checksum, index
from atoms.activations.spec import METADATA, TOKENS, StoreSpec, stored_spec, tokens_path
from atoms.activations.store import mend
from atoms.activations.writer import moments_name
from atoms.errors import AtomsError
from atoms.geometry import Moments

_AT_ONCE = 8  # files read side by side from afar


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        what: What, with the file's name first.
        cure: How to mend it.
    """

    what: str
    cure: str


class Verification:
    """Checks every byte of a store against the digests taken when it was written, and what the bytes say.

    Goes on after the first fault. What cannot be listed (plain HTTP) is not searched for stray files.

    Args:
        path: The store.

    Raises:
        AtomsError: There is no store, or one whose ``zarr.json`` does not say what it is.
    """

    def __init__(self, path: Where) -> None:
        self.root = locate(path)
        spec = stored_spec(self.root)
        if spec is None:
            raise AtomsError(f"data.store={self.root}: no store there; mend the path")
        self.spec: StoreSpec = spec
        self.sealed: Seal | None = None
        self.expected: dict[str, FileRecord] = {}
        self.early: list[Finding] = list(self._read_records())
        listed = self.root.files()
        unknown = set(listed or ()) - self.expected.keys() - {COMPLETE}
        self.strays = sorted(name for name in unknown if self.sealed is not None or name.endswith(PARTIAL))
        """Files that are no part of the store; without ``complete.json`` nobody can say which are not."""
        self.total = sum(record.size for record in self.expected.values())
        """Bytes to be read."""

    def findings(self, advance: Callable[[int], None] = lambda _: None) -> Iterator[Finding]:
        """Read everything and yield what is wrong, as it is found.

        Args:
            advance: Told the bytes that were read.
        """
        yield from self.early
        bad: set[str] = set()
        workers = _AT_ONCE if self.root.remote else 1
        with ThreadPoolExecutor(workers, "store-verify") as pool:
            names = list(self.expected)
            for name, (problem, read) in zip(names, pool.map(self._check_bytes, names), strict=True):
                advance(read)
                if problem:
                    bad.add(name)
                    yield Finding(f"{name} {problem}", self._cure(name))
        yield from self._check_metadata(bad)
        yield from self._check_moments(bad)
        yield from self._check_tokens(bad)

    # ------------------------------------------------------------------------------------------ what must be there

    def _read_records(self) -> Iterator[Finding]:
        """Read ``complete.json`` and the manifests into what is expected; yield what is wrong with them."""
        try:
            self.sealed = Seal.parse((self.root / COMPLETE).read())
            self.expected |= self.sealed.files
            if self.sealed.identity_hash != self.spec.identity_hash or self.sealed.rows != self.spec.splits:
                yield Finding(f"{METADATA} and {COMPLETE} are of different stores", self._cure(COMPLETE))
        except FileNotFoundError:
            yield Finding(
                f"{COMPLETE} is missing: the store was never finished", "run `atoms cache` with the config that made it"
            )
        except DamagedFileError as error:
            yield Finding(f"{COMPLETE} is damaged ({error})", self._cure(COMPLETE))
        for span in self.spec.spans:
            name = manifest_name(span)
            try:
                record = BlockRecord.parse((self.root / name).read())
            except FileNotFoundError:
                if self.sealed is None or name not in self.sealed.files:
                    yield Finding(f"{name} is missing: its block was never finished", self._cure(name))
                continue
            except DamagedFileError as error:
                if self.sealed is None:  # else its digest tells
                    yield Finding(f"{name} is damaged ({error})", self._cure(name))
                continue
            if record.identity_hash != self.spec.identity_hash or set(record.files) != set(self.spec.shard_files(span)):
                yield Finding(f"{name} is of another store", self._cure(name))
            elif self.sealed is None:
                self.expected |= record.files
            elif any(self.sealed.files.get(file) != value for file, value in record.files.items()):
                yield Finding(f"{name} and {COMPLETE} do not agree", self._cure(name))
        if self.sealed is not None:
            needed = {METADATA, *metadata_files(self.spec)}
            needed |= {name for span in self.spec.spans for name in (manifest_name(span), *self.spec.shard_files(span))}
            for name in sorted(needed - self.expected.keys()):
                yield Finding(f"{COMPLETE} does not know {name}", self._cure(COMPLETE))

    # ------------------------------------------------------------------------------------------ the bytes

    def _check_bytes(self, name: str) -> tuple[str | None, int]:
        """What is wrong with the bytes of a file, and how many were read."""
        record, place = self.expected[name], self.root / name
        try:
            size = place.size()
            if size != record.size:
                return f"has {size:,} bytes instead of {record.size:,}", 0
            if record.digest.startswith(SHARD):
                return self._check_shard(name, record), size
            return None if sha256_of(place.read()) == record.digest else "is damaged (wrong checksum)", size
        except FileNotFoundError:
            return "is missing", 0
        except OSError as error:
            return f"cannot be read ({error.strerror})", 0

    def _check_shard(self, name: str, record: FileRecord) -> str | None:
        """Hold every chunk against its checksum, the index against what it must be, and all checksums together."""
        grid, place = self.spec.grid, self.root / name
        path, _, rest = name.partition("/c/")
        array, number = self.spec.array(path), int(rest.partition("/")[0])
        n_rows = min(grid.shard_rows, array.shape[0] - number * grid.shard_rows)
        row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
        stride, n_chunks = grid.chunk_rows * row_bytes + CRC_BYTES, grid.n_chunks(n_rows)
        at_once = max(1, CHUNK_BYTES // stride)
        buffer = np.empty(min(at_once, n_chunks) * stride, np.uint8)
        held, damaged = np.empty((n_chunks, CRC_BYTES), np.uint8), []
        for first in range(0, n_chunks, at_once):
            part = buffer[: min(at_once, n_chunks - first) * stride]
            if not place.read_into(first * stride, part.data):
                return "is cut short"
            for offset, chunk in enumerate(part.reshape(-1, stride)):
                held[first + offset] = chunk[-CRC_BYTES:]
                if not np.array_equal(checksum(chunk[:-CRC_BYTES]), held[first + offset]):
                    damaged.append(number * (grid.shard_rows // grid.chunk_rows) + first + offset)
        if damaged:
            return f"is damaged (chunk {', '.join(map(str, damaged))}: wrong checksum)"
        expected = index(n_rows, row_bytes, grid)
        found = np.empty_like(expected)
        if not place.read_into(record.size - len(found), found.data) or not np.array_equal(found, expected):
            return "is damaged (the shard's index is wrong)"
        return None if shard_digest(held) == record.digest else "is whole, but it is not the file that was written"

    # ------------------------------------------------------------------------------------------ what they say

    def _check_metadata(self, bad: set[str]) -> Iterator[Finding]:
        for name, data in metadata_files(self.spec).items():
            if name in bad:
                continue
            try:
                same = same_metadata((self.root / name).read(), data)
            except FileNotFoundError:
                same = False
            if not same:
                yield Finding(f"{name} does not say what the store holds", self._cure(name))

    def _check_moments(self, bad: set[str]) -> Iterator[Finding]:
        if self.sealed is None or "train" not in self.spec.splits:
            return
        for site, width in self.spec.sites.items():
            name = moments_name(site)
            if name in bad or name not in self.expected:
                continue
            rows = self.spec.splits["train"] - self.sealed.nonfinite["train"][site].rows
            try:
                moments = Moments.from_bytes((self.root / name).read(), name)
            except AtomsError as error:
                yield Finding(str(error), self._cure(name))
                continue
            if (moments.width, moments.count) != (width, rows):
                yield Finding(
                    f"{name} holds {moments.count:,} rows of width {moments.width}, not {rows:,} of {width}",
                    self._cure(name),
                )

    def _check_tokens(self, bad: set[str]) -> Iterator[Finding]:
        for split, n_rows in self.spec.splits.items():
            for column in TOKENS:
                path = tokens_path(split, column)
                if not n_rows or any(name.startswith(f"{path}/c/") for name in bad) or not self._has(path):
                    continue
                reader = ChunkReader(self.root, self.spec.array(path), self.spec.grid)
                for chunk in range(len(reader)):
                    if (low := int(reader.read(chunk).min())) < -1:
                        shard = self.spec.grid.chunk_rows * chunk // self.spec.grid.shard_rows
                        yield Finding(
                            f"{path} holds {low} in chunk {chunk}, below -1 for none", self._cure(f"{path}/c/{shard}")
                        )
                        break

    def _has(self, path: str) -> bool:
        return sum(name.startswith(f"{path}/c/") for name in self.expected) == len(
            {name for span in self.spec.spans for name in self.spec.shard_files(span) if name.startswith(f"{path}/c/")}
        )

    def _cure(self, name: str) -> str:
        return mend(self.spec, name)


def describe_strays(names: Iterable[str]) -> list[str]:
    """Say of every stray file what it may be."""
    said = []
    for name in names:
        if name.endswith(PARTIAL):
            said.append(f"{name} was left by a kill; the next `atoms cache` sweeps it away")
        elif name.startswith("moments/parts/"):
            said.append(f"{name} holds sums of a harvest that is not finished")
        elif name.startswith(f"{FOLDER}/"):
            said.append(f"{name} belongs to no block; delete it")
        else:
            said.append(f"{name} is no part of the store and is never read; delete it if it is not yours")
    return said


def find_stores(place: Location) -> Iterator[Location]:
    """Yield every store at or below a place, in order of names; does not look inside stores."""
    folders, files = place.children()
    if METADATA in files:
        yield place
        return
    for folder in folders:
        if not folder.endswith(PARTIAL):
            yield from find_stores(place / folder)
