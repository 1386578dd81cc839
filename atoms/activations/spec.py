"""What a store is: its identity, and where its arrays lie."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import numpy as np
import torch

from atoms.activations.files import PARTIAL
from atoms.activations.grid import Grid, Span
from atoms.activations.location import LocalLocation, Location, Where, locate
from atoms.errors import AtomsError, printable

FORMAT_VERSION = 2
ATTRIBUTE = "atoms"  # the key of the group's attributes that holds the spec
IDENTITY = "identity_hash"  # and the one that holds its hash, so that a flipped bit is not taken for a setting
METADATA = "zarr.json"
TOKENS: dict[str, np.dtype[Any]] = {
    "token_id": np.dtype(np.int32),
    "doc_id": np.dtype(np.int64),
    "position": np.dtype(np.int32),
}
NORM: np.dtype[Any] = np.dtype(np.float32)
STORAGE: dict[
    str, tuple[np.dtype[Any], torch.dtype]
] = {  # zarr has no bfloat16; its bits are stored as uint16 and every reader can open them
    "float32": (np.dtype(np.float32), torch.float32),
    "float16": (np.dtype(np.float16), torch.float16),
    "bfloat16": (np.dtype(np.uint16), torch.bfloat16),
}


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store.

    Args:
        path: where, relative to the store.
        shape: rows first.
        dtype: as stored, little-endian.
        hole: the fill value; also pads the last chunk.
        attributes: what other readers need to understand the values.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    hole: float
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StoreSpec:
    """Everything that decides the bytes of a store. JSON-able; equal specs make equal stores.

    Args:
        sites: width per site.
        dtype: ``float32``, ``float16`` or ``bfloat16``, for all sites.
        splits: rows per split.
        grid: how rows are cut.
        seed: seed of the shuffle windows.
        provenance: what the rows come from (hashes of weights and corpus, context, filters, …), plain JSON values.
            All of it counts as identity; what may differ between equal stores goes to ``StoreWriter.finalise``.
        format_version: version of the layout on disk.

    Raises:
        AtomsError: a dtype or a choice of sites no store can have.
        ValueError: a split's name no store can have.
    """

    sites: dict[str, int]
    dtype: str
    splits: dict[str, int]
    grid: Grid
    seed: int
    provenance: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Check what comes from users."""
        if self.dtype not in STORAGE:
            raise AtomsError(f"data.harvest.dtype={self.dtype}: unknown; use one of {', '.join(STORAGE)}")
        if not self.sites:
            raise AtomsError("data.harvest.sites=[]: a store needs at least one site; name one")
        require_names(self.sites)
        for split in self.splits:
            if not re.fullmatch(r"[A-Za-z0-9_]+", split) or split in ("manifest", "moments"):
                raise ValueError(
                    f"{split!r} cannot name a split: letters, digits, underscores; not manifest or moments"
                )

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` gave."""
        return cls(**(dict(content) | {"grid": Grid(**content["grid"])}))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; numpy integers, tuples and the like are normalised away."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self), sort_keys=True, default=_plain))
        # JSON objects have no order, yet the order of splits and sites is what digests and tables follow
        content["sites"] = {name: int(width) for name, width in self.sites.items()}
        content["splits"] = {name: int(rows) for name, rows in self.splits.items()}
        return content

    @property
    def identity_hash(self) -> str:
        """Hex sha256 of everything above."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    @property
    def storage_dtype(self) -> np.dtype[Any]:
        """The numpy dtype on disk."""
        return STORAGE[self.dtype][0]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype rows have as tensors."""
        return STORAGE[self.dtype][1]

    @property
    def row_bytes(self) -> list[int]:
        """Bytes of one row, per site."""
        return [width * self.storage_dtype.itemsize for width in self.sites.values()]

    @property
    def disk_bytes(self) -> int:
        """Exact bytes of all shards."""
        return self.grid.store_bytes(self.row_bytes, self.splits)

    @property
    def spans(self) -> list[Span]:
        """All blocks."""
        return [span for split, rows in self.splits.items() for span in self.grid.spans(split, rows)]

    def arrays(self, split: str) -> list[ArraySpec]:
        """All arrays of a split."""
        rows, found = self.splits[split], []
        bits = {"logical_dtype": self.dtype} if self.dtype == "bfloat16" else {}
        hole = 0xFFFF if bits else float("nan")  # 0xFFFF are the bits of a NaN
        for site, width in self.sites.items():
            about = {"site": site}
            found.append(ArraySpec(acts_path(split, site), (rows, width), self.storage_dtype, hole, {**about, **bits}))
            found.append(ArraySpec(norm_path(split, site), (rows,), NORM, float("nan"), about))
        return found + [ArraySpec(tokens_path(split, name), (rows,), dtype, -1) for name, dtype in TOKENS.items()]

    def array(self, path: str) -> ArraySpec:
        """The array at ``path``."""
        split = path.partition("/")[0]
        return next(array for array in self.arrays(split) if array.path == path)

    def shard_files(self, span: Span) -> list[str]:
        """Paths, relative to the store, of the files that hold a block."""
        shards = range(span.start // self.grid.shard_rows, -(-span.stop // self.grid.shard_rows))
        return [shard_path(array.path, index) for array in self.arrays(span.split) for index in shards]

    def differences(self, asked: "StoreSpec") -> list[str]:
        """Name the settings in which ``asked`` differs, with both values."""
        mine, theirs = _flatten(self.to_dict()), _flatten(asked.to_dict())
        return [
            f"{key}: stored {mine.get(key)!r}, asked {theirs.get(key)!r}"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]

    def require_equal(self, asked: "StoreSpec", path: object) -> None:
        """Refuse to take the store at ``path``, whose spec this is, for another.

        Raises:
            AtomsError: it was made by other settings.
        """
        if differences := self.differences(asked):
            raise AtomsError(
                f"data.store={path}: made by other settings ({'; '.join(differences)}); "
                "use the stored settings, choose another data.store, or delete this one"
            )


def require_names(sites: Iterable[str]) -> None:
    """Refuse names that no site can have.

    Raises:
        AtomsError: one is empty, or holds what would move a terminal's cursor.
    """
    for site in sites:
        if not site or printable(site) != site:
            raise AtomsError(
                f"site {site!r}: a name is printed as it is, so it holds characters that can be seen and no others; "
                "rename it"
            )


def stored_spec(path: Where) -> StoreSpec | None:
    """Read the spec of the store at ``path``, whole or not.

    Returns:
        The spec, or None where there is nothing, or nothing but what is left of a store without its ``zarr.json``.

    Raises:
        AtomsError: there is something else, a damaged store, or a store of another format.
    """
    place = locate(path)
    try:
        data = (place / METADATA).read()
    except (FileNotFoundError, NotADirectoryError) as error:
        if _is_free(place):
            return None
        raise AtomsError(f"data.store={place}: not an activation store; point data.store at one") from error
    return parse_spec(data, place)


def parse_spec(data: bytes, place: Location) -> StoreSpec:
    """Read the spec from the bytes of a store's ``zarr.json``.

    Raises:
        AtomsError: they are not those of a store, are damaged, or of another format.
    """
    try:
        attributes = json.loads(data)["attributes"]
        content = attributes[ATTRIBUTE]
        version = content["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        if f'"{ATTRIBUTE}"'.encode() in data:
            raise _damaged(place) from error
        raise AtomsError(f"data.store={place}: not an activation store; point data.store at one") from error
    if version != FORMAT_VERSION:
        raise AtomsError(
            f"data.store={place}: format {version}, this version of atoms reads {FORMAT_VERSION}; "
            "delete the store and make it anew with `atoms cache`"
        )
    try:
        spec = StoreSpec.from_dict(content)
        if spec.identity_hash == attributes[IDENTITY]:
            return spec
    except (AtomsError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(place) from error
    raise _damaged(place)


def _damaged(place: Location) -> AtomsError:
    return AtomsError(
        f"data.store={place}: its zarr.json is damaged; delete zarr.json and complete.json there and run `atoms cache` "
        "with the same config, which writes them anew and keeps the rows"
    )


def _is_free(place: Location) -> bool:
    """Whether a store may be laid out here: nothing is there, or the rest of one."""
    if isinstance(place, LocalLocation) and place.path.exists() and not place.path.is_dir():
        return False
    found = place.files(limit=1000)
    if not found:
        return True
    names = [name for name in found if not name.endswith(PARTIAL)]
    return any(name.startswith("manifest/") for name in names) or all(name.endswith("/zarr.json") for name in names)


def site_folder(site: str) -> str:
    """Map a site's name to a folder: readable, one to one, and safe whatever the name holds."""
    folder = quote(site, safe="")
    if site in TOKENS or site == "tokens" or folder.startswith((".", "_")):  # zarr and the tokens own these
        folder = f"%{ord(folder[0]):02X}{folder[1:]}"
    return folder


def acts_path(split: str, site: str) -> str:
    """Path of the (N, H) rows of a site."""
    return f"{split}/{site_folder(site)}/acts"


def norm_path(split: str, site: str) -> str:
    """Path of the (N,) norms of a site."""
    return f"{split}/{site_folder(site)}/norm"


def tokens_path(split: str, name: str) -> str:
    """Path of one of the (N,) token columns."""
    return f"{split}/tokens/{name}"


def shard_path(array: str, index: int) -> str:
    """Path of a shard: zarr's default chunk keys, rows first."""
    return f"{array}/c/{index}/0" if array.endswith("/acts") else f"{array}/c/{index}"


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _plain(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"provenance must hold plain JSON values, got {type(value).__name__}")
