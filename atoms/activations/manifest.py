"""The record of what is whole: one sealed file per block, written after its shards, and one for the store."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from atoms.activations.grid import Span
from atoms.activations.location import Location
from atoms.activations.sealed import DamagedFileError, seal, sha256_of, unseal
from atoms.activations.spec import StoreSpec
from atoms.errors import AtomsError

COMPLETE = "complete.json"
FOLDER = "manifest"
SHARD = "checksums:"  # what the digest of a shard begins with
_AT_ONCE = 16  # small files read side by side where each costs a round trip


@dataclass(frozen=True)
class NonFinite:
    """Values of a site that are no numbers, as stored.

    Args:
        infinite: Infinite values; most often float16's overflow.
        nan: Values that are NaN.
        rows: Rows that readers leave out because their norm is not finite.
    """

    infinite: int = 0
    nan: int = 0
    rows: int = 0

    def __add__(self, other: "NonFinite") -> "NonFinite":
        return NonFinite(self.infinite + other.infinite, self.nan + other.nan, self.rows + other.rows)

    def __bool__(self) -> bool:
        return bool(self.rows or self.infinite or self.nan)


@dataclass(frozen=True)
class FileRecord:
    """What a file must be.

    Args:
        size: Its bytes.
        digest: ``sha256:…`` of its bytes, or ``checksums:sha256:…`` of the checksums in a shard, one after the other.
    """

    size: int
    digest: str


def shard_digest(checksums: NDArray[np.uint8]) -> str:
    """Digest of a shard from the (chunks, 4) checksums it holds."""
    return f"{SHARD}{sha256_of(np.ascontiguousarray(checksums))}"


@contextmanager
def _read(data: bytes, whole: str) -> Iterator[dict[str, Any]]:
    """What a sealed file says, with the records of its files; whatever turns out to be missing in it is damage."""
    content = unseal(data)
    try:
        yield content | {"files": {name: FileRecord(**record) for name, record in content["files"].items()}}
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"it lacks what {whole} has") from error


def _counts(sites: dict[str, dict[str, int]]) -> dict[str, NonFinite]:
    return {site: NonFinite(**counts) for site, counts in sites.items()}


@dataclass(frozen=True)
class BlockRecord:
    """A block whose shards are all written.

    Args:
        identity_hash: Of the store it belongs to.
        rows: Rows of the block.
        files: Its shards, by path relative to the store.
        nonfinite: What is no number, by site.
    """

    identity_hash: str
    rows: int
    files: dict[str, FileRecord]
    nonfinite: dict[str, NonFinite]

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(record.size for record in self.files.values())

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a manifest.

        Raises:
            DamagedFileError: It is not what was written.
        """
        with _read(data, "a manifest") as content:
            return cls(**content | {"nonfinite": _counts(content["nonfinite"])})


@dataclass(frozen=True)
class Seal:
    """``complete.json``: a whole store, every file of it by size and digest.

    Args:
        identity_hash: Of the store's settings.
        blocks: Number of blocks.
        rows: Rows per split.
        size: Bytes of all shards.
        files: Every file but this one, by path relative to the store.
        nonfinite: What is no number, by split and site.
        extra: Facts about the making that are no part of the identity.
    """

    identity_hash: str
    blocks: int
    rows: dict[str, int]
    size: int
    files: dict[str, FileRecord]
    nonfinite: dict[str, dict[str, NonFinite]]
    extra: dict[str, Any]

    def encode(self) -> bytes:
        """The bytes of the file."""
        return seal(asdict(self))

    @property
    def digest(self) -> str:
        """Digest of everything in the store."""
        return sha256_of(self.encode())

    def nonfinite_rows(self, split: str) -> int:
        """Rows of a split that a site's norm excludes, counted once per site."""
        return sum(counts.rows for counts in self.nonfinite[split].values())

    def warning(self, dtype: str) -> str | None:
        """One line if anything is no number, with the cure."""
        found = {
            f"{split} {site}": counts
            for split, sites in self.nonfinite.items()
            for site, counts in sites.items()
            if counts
        }
        if not found:
            return None
        each = "; ".join(
            f"{name}: {counts.infinite:,} infinities and {counts.nan:,} NaN in {counts.rows:,} rows"
            for name, counts in found.items()
        )
        cure = (
            "float16 ends at 65,504: harvest with data.harvest.dtype: bfloat16"
            if dtype == "float16"
            else "the model itself gives them: run it in float32 or bfloat16, or choose another site"
        )
        return f"{each}; such rows are left out of every fit and score. {cure[0].upper()}{cure[1:]}"

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read ``complete.json``.

        Raises:
            DamagedFileError: It is not what was written.
        """
        with _read(data, "a whole store") as content:
            nonfinite = {split: _counts(sites) for split, sites in content["nonfinite"].items()}
            return cls(**content | {"nonfinite": nonfinite})


def manifest_name(span: Span) -> str:
    """Where the block's manifest lies. Deleting that file makes the writer rewrite the block on resume."""
    return f"{FOLDER}/{span.split}-{span.index:06d}.json"


def commit(root: Location, spec: StoreSpec, span: Span, record: BlockRecord) -> None:
    """Record a block whose shards are written."""
    (root / manifest_name(span)).write(seal(asdict(record)))


def read_blocks(root: Location, spec: StoreSpec) -> dict[Span, BlockRecord]:
    """Read the records of all committed blocks; a damaged one, or one of other settings, counts as none."""
    names = {manifest_name(span): span for span in spec.spans}
    listed = (root / FOLDER).files()
    found = {}
    for name, data in read_all(root, [n for n in names if listed is None or n.removeprefix(f"{FOLDER}/") in listed]):
        try:
            record = BlockRecord.parse(data)
        except DamagedFileError:
            continue
        span = names[name]
        expected = (spec.identity_hash, span.rows, set(spec.shard_files(span)))
        if (record.identity_hash, record.rows, set(record.files)) == expected:
            found[span] = record
    return found


def read_all(root: Location, names: Iterable[str]) -> list[tuple[str, bytes]]:
    """Read small files, several at a time; those that are not there are left out."""

    def one(name: str) -> tuple[str, bytes] | None:
        try:
            return name, (root / name).read()
        except FileNotFoundError:
            return None

    if not root.remote:
        return [found for name in names if (found := one(name))]
    with ThreadPoolExecutor(_AT_ONCE, "store-read") as pool:
        return [found for found in pool.map(one, names) if found]


def read_seal(root: Location) -> Seal | None:
    """Read ``complete.json``; None where there is none.

    Raises:
        AtomsError: It is damaged.
    """
    try:
        return Seal.parse((root / COMPLETE).read())
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        raise AtomsError(
            f"data.store={root}: complete.json is damaged ({error}); delete it and run `atoms cache` with the same "
            "config, which writes it anew and keeps the rows"
        ) from error


def committed(root: Location, spec: StoreSpec) -> int:
    """Number of blocks that have a manifest; does not look at the shards."""
    listed = (root / FOLDER).files()
    if listed is None:  # plain HTTP, where only whole stores are published
        return len(spec.spans)
    return sum(manifest_name(span).removeprefix(f"{FOLDER}/") in listed for span in spec.spans)


def is_complete(root: Location, spec: StoreSpec) -> bool:
    """Whether every block is committed and the store was marked complete; does not look at the shards."""
    try:
        sealed = Seal.parse((root / COMPLETE).read())
    except (FileNotFoundError, DamagedFileError):
        return False
    return sealed.identity_hash == spec.identity_hash and committed(root, spec) == len(spec.spans)


def fault(expected: Mapping[str, FileRecord], found: Mapping[str, int]) -> str | None:
    """The first file that is missing or has the wrong size among those found; None if all is well."""
    for name, record in expected.items():
        if name not in found:
            return f"{name} is missing (expected {record.size} bytes)"
        if found[name] != record.size:
            return f"{name} is damaged (expected {record.size} bytes, found {found[name]})"
    return None
