"""Matrices of activations in files that others wrote: found, checked, and read a window of rows at a time."""

import glob
import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from atoms.activations.files import write_file
from atoms.errors import AtomsError, first_line
from atoms.progress import Meter

FILES = "data.matrix.files"
WINDOW_BYTES = 16 * 2**20
LARGEST_CHUNK = 2**30  # of a Zarr array, which must be decoded whole
HASHED_ALWAYS = 64 * 2**20  # the digest of a larger file is kept beside the stores
DIGESTS = "digests.json"
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
# Of Zarr's codecs those that only compute; pickle would run what the file says.
_CODECS = {
    "adler32", "bitround", "blosc", "bytes", "bz2", "crc32", "crc32c", "delta", "fixedscaleoffset", "fletcher32",
    "gzip", "jenkins_lookup3", "lz4", "lzma", "pcodec", "quantize", "sharding_indexed", "shuffle", "transpose",
    "zfpy", "zlib", "zstd",
}  # fmt: skip


class Matrix(ABC):
    """One file's rows.

    Attributes:
        path: The file.
        shape: ``(N, H)`` rows of width H, or ``(S, L, H)``, S sequences of L rows.
        dtype: Name of the float type they have.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        if len(shape) not in (2, 3):
            raise AtomsError(
                f"{FILES}: {path} has shape {shape}: give rows (N, H), or sequences (S, L, H) of the same length"
            )
        if 0 in shape:
            raise AtomsError(f"{FILES}: {path} has shape {shape}, so it holds no number: give another file")
        self.path, self.shape, self.dtype = path, shape, dtype

    @property
    def width(self) -> int:
        """H."""
        return self.shape[-1]

    @property
    def length(self) -> int:
        """Rows of one sequence; 1 for a matrix of rows."""
        return self.shape[1] if len(self.shape) == 3 else 1

    def __len__(self) -> int:
        """Count the rows."""
        return self.shape[0] * self.length

    @property
    def step(self) -> int:
        """Rows that are read at a time: whole sequences, some MiB."""
        return self.length * max(1, WINDOW_BYTES // (self.length * self.width * 8))

    def read(self, rows: NDArray[np.int64]) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows asked for in pieces.

        Args:
            rows: Row numbers, ascending, shape ``(n,)``.

        Yields:
            Which of ``rows`` come, and their values ``(m, H)`` in the file's type.
        """
        first = 0
        while first < len(rows):
            start = int(rows[first]) // self.step * self.step
            last = int(np.searchsorted(rows, start + self.step))
            yield slice(first, last), self.window(start, min(start + self.step, len(self)), rows[first:last] - start)
            first = last

    @abstractmethod
    def window(self, start: int, stop: int, rows: NDArray[np.int64]) -> Tensor:
        """Rows of ``start:stop``, numbered from ``start``; both lie between sequences."""

    def _sequences(self, start: int, stop: int) -> slice:
        return slice(start // self.length, stop // self.length)


class _Npy(Matrix):
    """A ``.npy`` file, mapped into memory: only the pages of the rows asked for are read."""

    def __init__(self, path: Path) -> None:
        self.values = _mapped(path, FILES)
        kind = self.values.dtype
        if kind.kind != "f" or kind.itemsize > 8:
            advice = "save bfloat16 as safetensors" if kind.kind == "V" else "save it as float16, float32 or float64"
            raise AtomsError(f"{FILES}: {path} holds {_named(kind)}, which is no kind of activations: {advice}")
        super().__init__(path, self.values.shape, kind.name)

    def window(self, start: int, stop: int, rows: NDArray[np.int64]) -> Tensor:  # inherited
        part = self.values[self._sequences(start, stop)]
        taken = part[rows] if part.ndim == 2 else part[rows // self.length, rows % self.length]
        return torch.from_numpy(np.ascontiguousarray(taken, taken.dtype.newbyteorder("=")))


class _Safetensors(Matrix):
    """A tensor of a ``.safetensors`` file, sliced where it lies."""

    def __init__(self, path: Path, key: str | None) -> None:
        try:
            opened: Any = safe_open(path, framework="pt")
            shapes = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
        except (SafetensorError, OSError) as error:
            raise AtomsError(f"{FILES}: {path} is not a whole safetensors file ({error}): write it again") from error
        found = {name: tuple(piece.get_shape()) for name, piece in shapes.items()}
        name = _chosen(path, key, found)
        kind = shapes[name].get_dtype()
        if kind not in FLOATS:
            raise AtomsError(
                f"{FILES}: {path} holds {kind} in {name!r}, which is no kind of activations: save it as one of "
                f"{', '.join(FLOATS)}"
            )
        self.values = shapes[name]
        super().__init__(path, found[name], FLOATS[kind])

    def window(self, start: int, stop: int, rows: NDArray[np.int64]) -> Tensor:
        part: Tensor = self.values[self._sequences(start, stop)]
        return part.reshape(-1, self.width)[torch.from_numpy(rows)]


class _Zarr(Matrix):
    """A Zarr array, version 2 or 3; windows are whole chunks."""

    def __init__(self, path: Path, key: str | None) -> None:
        try:
            opened = zarr.open(path, mode="r", use_consolidated=False)
            if isinstance(opened, zarr.Group):
                found = {name: array.shape for name, array in opened.members(max_depth=None) if hasattr(array, "shape")}
                opened = opened[_chosen(path, key, found)]  # a name of a member, so it leads nowhere else
        except AtomsError:
            raise
        except Exception as error:  # zarr raises many kinds for metadata that is not what it should be
            raise AtomsError(f"{FILES}: {path} is not a Zarr array or group ({_short(error)}): check it") from error
        array: Any = opened
        if codecs := sorted(_codecs(array.metadata.to_dict()) - _CODECS):
            raise AtomsError(f"{FILES}: {path} is coded with {', '.join(codecs)}: only {', '.join(sorted(_CODECS))}")
        self.values, kind = array, np.dtype(array.dtype)
        bits = kind == np.uint16 and array.attrs.get("logical_dtype") == "bfloat16"
        if not bits and (kind.kind != "f" or kind.itemsize > 8):
            raise AtomsError(
                f"{FILES}: {path} holds {_named(kind)}, which is no kind of activations: save it as float16, float32 "
                "or float64"
            )
        chunk = int(np.prod(array.chunks)) * kind.itemsize
        if chunk > LARGEST_CHUNK:
            raise AtomsError(
                f"{FILES}: {path} has chunks of {chunk:,} bytes {array.chunks}, which must each be read whole: "
                f"rewrite it with chunks below {LARGEST_CHUNK:,} bytes"
            )
        super().__init__(path, array.shape, "bfloat16" if bits else kind.name)

    @property
    def step(self) -> int:
        chunk: int = self.values.chunks[0] * self.length
        return chunk * max(1, super().step // chunk)

    def window(self, start: int, stop: int, rows: NDArray[np.int64]) -> Tensor:
        try:
            part = np.asarray(self.values[self._sequences(start, stop)]).reshape(-1, self.width)
        except Exception as error:  # of any codec
            raise AtomsError(
                f"{FILES}: {self.path} cannot be read from row {start:,} ({_short(error)}): it is damaged, write it "
                "again"
            ) from error
        values = torch.from_numpy(np.ascontiguousarray(part[rows], part.dtype.newbyteorder("=")))
        return values.view(torch.bfloat16) if self.dtype == "bfloat16" else values


class Site:
    """The rows of one site: those of its files, one after the other.

    Args:
        name: The site.
        patterns: Files and glob patterns; what a pattern matches comes in natural order (``a2`` before ``a10``).
        key: Name of the tensor or array inside a file that holds several.

    Raises:
        AtomsError: If a file is missing, of a format or type that cannot be read, or of another width.
    """

    def __init__(self, name: str, patterns: list[str], key: str | None) -> None:
        self.name = name
        self.parts = [_open(path, key) for path in _matches(name, patterns)]
        first = self.parts[0]
        for part in self.parts:
            if part.width != first.width:
                raise AtomsError(
                    f"{FILES}: {part.path} has rows of width {part.width}, but {first.path} of the same site {name} "
                    f"has {first.width}: give each width a site of its own"
                )
        self.starts = [0, *np.cumsum([len(part) for part in self.parts]).tolist()]
        self.width = first.width
        self.dtypes = list(dict.fromkeys(part.dtype for part in self.parts))

    def __len__(self) -> int:
        """Count the rows."""
        return int(self.starts[-1])

    @property
    def paths(self) -> list[Path]:
        """The files, in order."""
        return [part.path for part in self.parts]

    @property
    def sequences(self) -> list[tuple[int, int]]:
        """Per file how many sequences of how many rows it holds; of one row where it holds rows only."""
        return [(part.shape[0], part.length) for part in self.parts]

    def read(self, rows: NDArray[np.int64]) -> Iterator[tuple[slice, Tensor]]:
        """As `Matrix.read`, over all files."""
        done = 0
        while done < len(rows):
            number = bisect_right(self.starts, int(rows[done])) - 1
            start = self.starts[number]
            stop = int(np.searchsorted(rows, self.starts[number + 1]))
            for piece, values in self.parts[number].read(rows[done:stop] - start):
                yield slice(piece.start + done, piece.stop + done), values
            done = stop


class Column:
    """Integers beside the rows, from a ``.npy``, ``.csv`` or ``.txt`` file.

    Args:
        setting: The setting that names it, for messages.
        path: The file; text holds one integer a line, a first line of letters is a title.

    Raises:
        AtomsError: If it is missing, or holds no integers.
    """

    def __init__(self, setting: str, path: str) -> None:
        self.setting, self.path = setting, Path(path).expanduser()
        if not self.path.is_file():
            raise AtomsError(f"{setting} is {path}, which is not a file: give a .npy, .csv or .txt file of integers")
        if self.path.suffix not in (".npy", ".csv", ".txt"):
            raise AtomsError(f"{setting} is {path}: give a .npy, .csv or .txt file of integers")

    @cached_property
    def values(self) -> NDArray[Any]:
        """The integers, shape ``(n,)``; mapped into memory where the format allows."""
        values = _mapped(self.path, self.setting) if self.path.suffix == ".npy" else self._text()
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise AtomsError(
                f"{self.setting}: {self.path} holds {_named(values.dtype)} of shape {values.shape}: give one integer "
                "for every row"
            )
        if values.dtype == np.uint64 and len(values) and int(values.max()) >= 2**63:
            raise AtomsError(f"{self.setting}: {self.path} holds {int(values.max())}: give integers below 2^63")
        return values

    def _text(self) -> NDArray[np.int64]:
        try:
            with self.path.open(encoding="utf-8-sig") as file:
                title = not re.fullmatch(r"\s*[-+]?\d+\s*", file.readline())
            rows = np.loadtxt(self.path, np.int64, delimiter=",", skiprows=int(title), ndmin=2,
                              comments=None, encoding="utf-8-sig")  # fmt: skip
        except (ValueError, OverflowError) as error:
            raise AtomsError(
                f"{self.setting}: {self.path} does not hold one integer a line ({_short(error)}): mend that line"
            ) from error
        return rows[:, 0] if rows.shape[1] == 1 else rows


def content_digests(paths: list[Path], root: str) -> dict[Path, str]:
    """Hex sha256 of every file's content; of a folder's files with their names below it.

    The digest of a large file is kept in ``root`` and taken from there while size and time of change are the same.

    Args:
        paths: Files and folders.
        root: Where stores are kept; behind a URL nothing is.
    """
    kept = Path(root, DIGESTS)
    try:
        known: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    digests, todo = {}, {}
    for path in dict.fromkeys(paths):
        entry, size = known.get(str(path.resolve())) if isinstance(known, dict) else None, _size(path)
        if size > HASHED_ALWAYS and isinstance(entry, dict) and entry.get("state") == _state(path):
            digests[path] = str(entry["sha256"])
        else:
            todo[path] = size
    with Meter("hash", sum(todo.values()), "bytes") as meter:
        for path, size in todo.items():
            state = _state(path)
            digests[path] = _sha256(path, meter)
            if size > HASHED_ALWAYS:
                known[str(path.resolve())] = {"state": state, "sha256": digests[path]}
    if any(size > HASHED_ALWAYS for size in todo.values()) and os.path.isdir(root) and os.access(root, os.W_OK):
        write_file(kept, json.dumps(known, indent=1).encode())
    return digests


def _state(path: Path) -> list[list[Any]]:
    return [[str(file.relative_to(path)), *_stat(file)] for file in _below(path)]


def _stat(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _below(path))


def _below(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _sha256(path: Path, meter: Meter) -> str:
    content = hashlib.sha256()
    for file in _below(path):
        if file != path:
            name = str(file.relative_to(path)).encode(errors="surrogateescape")
            content.update(f"{len(name)} {file.stat().st_size} ".encode() + name)
        with file.open("rb") as stream:
            while piece := stream.read(2**22):
                content.update(piece)
                meter.advance(len(piece))
    return content.hexdigest()


def _matches(site: str, patterns: list[str]) -> list[Path]:
    found: dict[Path, Path] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        paths = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)), key=_natural)
        if not paths:
            raise AtomsError(f"{FILES}: nothing matches {pattern!r} of site {site}: mend the path")
        for match in paths:
            if found.setdefault(match.resolve(), match) is not match:
                raise AtomsError(f"{FILES}: {match} comes twice in site {site}: name every file once")
    if not found:
        raise AtomsError(f"{FILES}: site {site} has no file: give at least one")
    return list(found.values())


def _natural(path: Path) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(path))]


def _open(path: Path, key: str | None) -> Matrix:
    if path.is_dir():
        return _Zarr(path, key)
    if path.suffix == ".npy":
        return _Npy(path)
    if path.suffix == ".safetensors":
        return _Safetensors(path, key)
    pickled = path.suffix in (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
    why = "a pickle, which may run any program when it is read" if pickled else f"of type {path.suffix or 'unknown'}"
    raise AtomsError(f"{FILES}: {path} is {why}: save the matrix as .npy, .safetensors or a Zarr array")


def _mapped(path: Path, setting: str) -> NDArray[Any]:
    try:
        with np.errstate(over="raise"):  # of a size that no address reaches
            values = np.lib.format.open_memmap(path, mode="r")  # which reads no pickle and no archive
    except (ValueError, OSError, EOFError, SyntaxError, MemoryError, ArithmeticError) as error:
        reason = "it holds pickled objects" if "object" in str(error) else _short(error)
        raise AtomsError(f"{setting}: {path} is not a whole .npy file of numbers ({reason}): write it again") from error
    return values


def _chosen(path: Path, key: str | None, shapes: dict[str, tuple[int, ...]]) -> str:
    listed = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:20]) or "nothing"
    if key is not None:
        if key not in shapes:
            raise AtomsError(f"data.matrix.key is {key!r}, which {path} does not hold: it holds {listed}")
        return key
    fitting = [name for name, shape in shapes.items() if len(shape) == 2] or [
        name for name, shape in shapes.items() if len(shape) == 3
    ]
    if len(fitting) != 1:
        raise AtomsError(f"data.matrix.key is not set and {path} holds {listed}: name one of them")
    return fitting[0]


def _codecs(metadata: Any) -> set[str]:
    """Names of all codecs in the metadata of an array, those inside shards included."""
    names: set[str] = set()
    if isinstance(metadata, dict):
        for key, value in metadata.items():
            if key in ("codecs", "index_codecs", "filters", "compressor"):
                for codec in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(codec, dict):
                        name = str(codec.get("name") or codec.get("id"))
                        names.add(name.removeprefix("numcodecs."))
                        names |= _codecs(codec.get("configuration"))
    return names


def _named(dtype: np.dtype[Any]) -> str:
    return "fields" if dtype.names else dtype.name


def _short(error: BaseException) -> str:
    return first_line(error)[:200]
