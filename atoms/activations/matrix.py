"""Activations that others computed: rows in files become a store like any other."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoms.activations.document_groups import GROUPS_FILE, DocumentGroups
from atoms.activations.grid import Grid, Span
from atoms.activations.harvest import announce
from atoms.activations.identity import digest_of
from atoms.activations.location import Location, Where, locate
from atoms.activations.lock import StoreLock
from atoms.activations.matrix_files import FILES, Column, Site, content_digests
from atoms.activations.moments_writer import MomentsWriter
from atoms.activations.permutation import permutation
from atoms.activations.reader import ChunkReader
from atoms.activations.spec import STORAGE, StoreSpec, acts_path, require_names, stored_spec
from atoms.activations.text import assign_splits
from atoms.activations.writer import StoreWriter
from atoms.errors import AtomsError
from atoms.progress import Meter, size

STAND_IN_ROWS = 1024  # consecutive rows that stand in for a document where nothing says what one is
STAND_INS = 100  # at least so many, so that every split gets some of a short matrix
COLUMNS = ("doc_ids", "token_ids", "positions")
SPLITS = ("train", "val", "test")
_STRIDE = 2**16  # rows between two marks of how many rows of each split came before
_PIECE = 2**20  # integers of a column looked at at a time


@dataclass
class MatrixSpec:
    """Rows of activations from files: ``.npy``, ``.safetensors`` or Zarr arrays, never whole in memory.

    A file holds rows (N, H), or S sequences of L tokens (S, L, H), each of which is a document.
    """

    files: dict[str, str | list[str]]
    """By site: files and glob patterns, whose rows are joined in this order. All sites have the same rows."""
    doc_ids: str | None = None
    """File of the document of every row (or sequence): integers as .npy, .csv or .txt. Rows are held out by document.
    Without it, spans of consecutive rows stand in for documents."""
    token_ids: str | None = None
    """File of the token of every row, as doc_ids."""
    positions: str | None = None
    """File of the place of every row in its sequence, as doc_ids; known where the files hold sequences."""
    key: str | None = None
    """Name of the tensor or array to take from files that hold several."""
    root: str = "activations"
    """Directory under which stores are kept."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Type rows are stored in; auto is the files' own, float32 where they differ or are float64."""
    val: float = 0.1
    """Share of rows held out for validation, by documents."""
    test: float = 0.1
    """Share of rows held out for test."""
    seed: int = 0
    """Seed of splits and of the order of rows."""
    memory_mib: int = 512
    """Memory of one block of rows, in MiB: the window in which rows are shuffled when written."""

    def __post_init__(self) -> None:
        """Check what cannot work."""
        if not self.files:
            raise AtomsError(f"{FILES} is empty: name at least one site and its files")
        require_names(self.files)
        if self.dtype not in ("auto", *STORAGE):
            raise AtomsError(f"data.matrix.dtype is {self.dtype}: give auto or one of {', '.join(STORAGE)}")
        if self.memory_mib < 1:
            raise AtomsError(f"data.matrix.memory_mib is {self.memory_mib}: give at least 1")
        if not (0 < self.val < 1 and 0 < self.test < 1 and self.val + self.test < 1):
            raise AtomsError(
                f"data.matrix.val={self.val} and test={self.test}: give shares above 0 that leave some for training"
            )

    # ------------------------------------------------------------------------------------------ what is there

    @cached_property
    def sites(self) -> dict[str, Site]:
        """The rows of every site."""
        sites = {
            name: Site(name, [given] if isinstance(given, str) else given, self.key)
            for name, given in self.files.items()
        }
        first, *others = sites.values()
        for other in others:
            if len(other) != len(first) or other.sequences != first.sequences:
                raise AtomsError(
                    f"{FILES}: site {other.name} has {len(other):,} rows in files of {_shapes(other)}, but site "
                    f"{first.name} {len(first):,} in files of {_shapes(first)}: give the same rows of every site"
                )
        return sites

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The files of integers that were given."""
        given = {name: getattr(self, name) for name in COLUMNS}
        return {name: Column(f"data.matrix.{name}", path) for name, path in given.items() if path is not None}

    @property
    def rows(self) -> int:
        """Rows over all splits."""
        return len(next(iter(self.sites.values())))

    @property
    def storage(self) -> str:
        """Type rows are stored in."""
        if self.dtype != "auto":
            return self.dtype
        found = {dtype for site in self.sites.values() for dtype in site.dtypes}
        return found.pop() if len(found) == 1 and found <= STORAGE.keys() else "float32"

    def widths(self) -> dict[str, int]:
        """Width of every site."""
        return {name: site.width for name, site in self.sites.items()}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything the rows' values depend on: the content of the files, not where they lie."""
        for name in COLUMNS:
            self.column(name)  # what does not fit is said before files are read whole
        beside = {name: column.path for name, column in self.columns.items()}
        paths = [path for site in self.sites.values() for path in site.paths]
        digests = content_digests([*paths, *beside.values()], self.root)
        return {
            "kind": "matrix",
            "files": {name: [digests[path] for path in site.paths] for name, site in self.sites.items()},
            **{name: digests[beside[name]] if name in beside else None for name in COLUMNS},
            "key": self.key,
            "dtype": self.storage,
            "stand_in_rows": None if self.doc_ids or self._in_sequences else self._stand_in_rows,
            "shares": {"val": self.val, "test": self.test},
            "seed": self.seed,
        }

    def directory(self) -> Location:
        """Where the store is kept: a name that carries the identity's digest."""
        stem = next(iter(self.sites.values())).paths[0].stem
        name = "".join(c if (c.isascii() and c.isalnum()) or c in "-_" else "-" for c in stem).strip("-")[-80:]
        return locate(self.root) / f"{name or 'matrix'}-{digest_of(self.identity)[:12]}"

    # ------------------------------------------------------------------------------------------ documents

    @property
    def _in_sequences(self) -> bool:
        return any(length > 1 for _, length in self._sequences)

    @property
    def _sequences(self) -> list[tuple[int, int]]:
        return next(iter(self.sites.values())).sequences

    @property
    def _stand_in_rows(self) -> int:
        return max(1, min(STAND_IN_ROWS, self.rows // STAND_INS))

    def column(self, name: str) -> NDArray[Any] | None:
        """The integers of ``doc_ids``, ``token_ids`` or ``positions``, one a row; None where no file is given.

        Raises:
            AtomsError: If the file has another number of them.
        """
        if name not in self.columns:
            return None
        values = self.columns[name].values
        sequences = sum(count for count, _ in self._sequences)
        if name == "doc_ids" and self._in_sequences and len(values) == sequences:
            lengths = np.repeat([length for _, length in self._sequences], [count for count, _ in self._sequences])
            return np.repeat(np.asarray(values), lengths)
        if len(values) != self.rows:
            raise AtomsError(
                f"data.matrix.{name}: {self.columns[name].path} holds {len(values):,} integers, but the files hold "
                f"{self.rows:,} rows: give one for every row"
            )
        return values

    def runs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where runs of rows of the same document start, shape ``(R,)``, and which document each is of, ``(R,)``."""
        given = self.column("doc_ids")
        if given is not None:
            starts, before = [], None
            for begin in range(0, len(given), _PIECE):
                piece = np.asarray(given[begin : begin + _PIECE])
                changes = np.flatnonzero(piece[1:] != piece[:-1]) + 1
                starts.append(begin + (changes if piece[0] == before else np.concatenate([[0], changes])))
                before = piece[-1]
            where = np.concatenate(starts).astype(np.int64)
            return where, np.asarray(given[where]).astype(np.int64)
        if self._in_sequences:
            lengths = np.concatenate([np.full(count, length) for count, length in self._sequences])
            where = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        else:
            where = np.arange(0, self.rows, self._stand_in_rows)
        return where, np.arange(len(where))

    def position(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Place of some rows in their sequences; -1 where it is not known."""
        given = self.column("positions")
        if given is not None:
            return _int32("positions", given[rows])
        out = np.full(len(rows), -1, np.int32)
        start = 0
        for count, length in self._sequences:
            inside = (rows >= start) & (rows < start + count * length)
            if length > 1:
                out[inside] = (rows[inside] - start) % length
            start += count * length
        return out


class Deal:
    """Which split every row went to.

    Args:
        spec: The rows.

    Attributes:
        n_rows: Rows of every split.
        documents: How many documents there are.
        warnings: What the user should be told.
    """

    def __init__(self, spec: MatrixSpec) -> None:
        self.starts, self.ids = spec.runs()
        unique, document = np.unique(self.ids, return_inverse=True)
        lengths = np.diff(self.starts, append=spec.rows)
        rows = np.bincount(document, weights=lengths, minlength=len(unique)).astype(np.int64)
        shares = {"train": 1 - spec.val - spec.test, "val": spec.val, "test": spec.test}
        try:
            dealt = assign_splits(np.arange(len(unique)), rows, shares, spec.seed)
        except AtomsError as error:
            raise AtomsError(
                f"data.matrix.val={spec.val} and test={spec.test}: {len(unique)} documents of {spec.rows:,} rows "
                "cannot be dealt so that every split gets some: give more rows or documents, or larger shares"
            ) from error
        self.documents = len(unique)
        self.warnings = [warning.replace("tokens", "rows").replace("the corpus has", "there are").replace(
            "groups of near-duplicate documents", "documents") for warning in dealt.warnings]  # fmt: skip
        self.split = np.repeat(dealt.split[document], lengths)
        marks = [
            np.bincount(self.split[start : start + _STRIDE], minlength=3) for start in range(0, spec.rows, _STRIDE)
        ]
        self._marks = np.concatenate([np.zeros((1, 3), np.int64), np.cumsum(marks, axis=0)])
        self.n_rows = dict(zip(SPLITS, map(int, self._marks[-1]), strict=True))

    def rows(self, span: Span) -> NDArray[np.int64]:
        """Row numbers of a block, ascending: a split keeps the order of the files."""
        split = SPLITS.index(span.split)
        first = int(np.searchsorted(self._marks[:, split], span.start, side="right")) - 1
        last = int(np.searchsorted(self._marks[:, split], span.stop))
        found = np.flatnonzero(self.split[first * _STRIDE : last * _STRIDE] == split) + first * _STRIDE
        skipped = span.start - int(self._marks[first, split])
        return found[skipped : skipped + span.rows]

    def doc_id(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The document of some rows."""
        return self.ids[np.searchsorted(self.starts, rows, side="right") - 1]


class Twins:
    """Counts held-out rows that are equal, bit for bit and in every site, to a row learnt from.

    Rows are told by 64-bit fingerprints; only those of held-out rows are kept, 8 bytes each.
    """

    def __init__(self) -> None:
        self._held_out: list[NDArray[np.int64]] = []
        self._train: list[NDArray[np.int64]] = []
        self._sorted: NDArray[np.int64] | None = None

    def see(self, split: str, rows: list[NDArray[Any]]) -> None:
        """Look at a block: per site its rows as stored. All held-out blocks come before those learnt from."""
        prints = np.fromiter((hash(tuple(row.tobytes() for row in sites)) for sites in zip(*rows, strict=True)),
                             np.int64, len(rows[0]))  # fmt: skip
        if split != "train":
            self._held_out.append(prints)
            return
        if self._sorted is None:
            self._sorted = np.sort(np.concatenate(self._held_out))
        self._train.append(np.unique(prints[np.isin(prints, self._sorted)]))

    @property
    def count(self) -> int:
        """Held-out rows that also came to be learnt from."""
        if self._sorted is None:
            return 0
        return int(np.isin(self._sorted, np.unique(np.concatenate(self._train))).sum())


def import_matrix(spec: MatrixSpec, path: Where) -> None:
    """Write the store of ``spec`` to ``path``, going on where an earlier try ended. One process does it alone.

    Every block is read from the files in their order, each window once, and shuffled in memory.

    Raises:
        AtomsError: If a file is not what it should be, another process is writing the store, or the disk refuses.
    """
    started = time.monotonic()
    with StoreLock(path):
        deal, widths = Deal(spec), spec.widths()
        row_bytes = [width * STORAGE[spec.storage][0].itemsize for width in widths.values()]
        place = locate(path)
        stored = stored_spec(place)
        # A store begun with another memory setting is continued on the grid it has.
        grid = stored.grid if stored else Grid.choose(row_bytes, deal.n_rows, spec.memory_mib * 2**20)
        store = StoreSpec(widths, spec.storage, deal.n_rows, grid, spec.seed, spec.identity)
        for line in _costs(spec, deal, store, place):
            announce(line)
        writer = StoreWriter.open(path, store)
        pending = set(writer.pending)
        moments = MomentsWriter(writer, store.spans, rank=0, world_size=1, device=torch.device("cpu"))
        twins, broken = Twins(), dict.fromkeys(widths, 0)
        held_out_first = sorted(store.spans, key=lambda span: span.split == "train")
        with Meter("import", sum(deal.n_rows.values()), "rows") as meter:
            for span in held_out_first:
                rows = _read(spec, deal, span) if span in pending else _read_back(writer, span)
                if span in pending:
                    _write(spec, deal, writer, span, rows)
                    moments.after(span)
                for site, values in rows.items():
                    broken[site] += _not_finite(values)
                twins.see(span.split, [_bits(values) for values in rows.values()])
                meter.advance(span.rows)
                del rows  # before the next ones take their place
        moments.finish()
        moments.pool()
        held_out = deal.n_rows["val"] + deal.n_rows["test"]
        if twins.count:
            announce(
                f"note     {twins.count:,} of {held_out:,} held-out rows are equal to a row learnt from: scores on "
                "them show memory; give doc_ids that keep repeated text in one document"
            )
        for site, count in broken.items():
            if count:
                announce(
                    f"note     {count:,} of {spec.rows:,} rows of {site} hold NaN or infinite values as {spec.storage}"
                )
        facts = {"documents": deal.documents, "held_out_twins": twins.count, "not_finite": broken}
        writer.write_file(GROUPS_FILE, DocumentGroups.alone().to_bytes())  # whatever is in one document is one group
        moments.sweep()
        writer.finalise({**facts, "seconds": round(time.monotonic() - started, 1)})


def _costs(spec: MatrixSpec, deal: Deal, store: StoreSpec, place: Location) -> Iterator[str]:
    sites = (f"{name} ({site.width}) from {_files(site)}" for name, site in spec.sites.items())
    yield f"import   {', '.join(sites)}"
    yield (
        f"rows     {spec.rows:,} in {deal.documents:,} documents "
        f"({', '.join(f'{split} {count:,}' for split, count in deal.n_rows.items())})"
    )
    stand_in = store.provenance["stand_in_rows"]
    if stand_in is not None:
        yield (
            f"note     no data.matrix.doc_ids: each {stand_in:,} consecutive rows stand in for a document, so rows of "
            "one text may be learnt from and held out where such spans meet"
        )
    yield from (f"note     {warning}" for warning in deal.warnings)
    free = place.free()
    yield f"disk     {size(store.disk_bytes)} in {place}" + ("" if free is None else f" ({size(free)} free)")
    block = min(store.grid.block_rows, max(store.splits.values())) * sum(store.row_bytes)
    beside = spec.rows + 16 * len(deal.starts) + 8 * (deal.n_rows["val"] + deal.n_rows["test"])
    yield f"memory   {size(2 * block + beside)}: two blocks, the split of every row, fingerprints of held-out ones"


def _read(spec: MatrixSpec, deal: Deal, span: Span) -> dict[str, Tensor]:
    """Rows of a block as they will be stored: converted, and in the order of its slots."""
    numbers = deal.rows(span)
    slots = torch.from_numpy(_slots(spec, span))
    rows = {}
    for name, site in spec.sites.items():
        out = torch.empty(span.rows, site.width, dtype=STORAGE[spec.storage][1])
        for piece, values in site.read(numbers):
            out[slots[piece]] = values.to(out.dtype)
        rows[name] = out
    return rows


def _read_back(writer: StoreWriter, span: Span) -> dict[str, Tensor]:
    """Rows of a block that an earlier try wrote."""
    rows = {}
    for site in writer.spec.sites:
        array = writer.spec.array(acts_path(span.split, site))
        found = ChunkReader(writer.path, array, writer.spec.grid).read_rows(span.start, span.stop)
        bits = torch.from_numpy(found)
        rows[site] = bits.view(torch.bfloat16) if writer.spec.dtype == "bfloat16" else bits
    return rows


def _write(spec: MatrixSpec, deal: Deal, writer: StoreWriter, span: Span, rows: dict[str, Tensor]) -> None:
    numbers = deal.rows(span)
    slots, token_id = _slots(spec, span), np.full(span.rows, -1, np.int32)
    doc_id, position = np.empty(span.rows, np.int64), np.empty(span.rows, np.int32)
    given = spec.column("token_ids")
    if given is not None:
        token_id[slots] = _int32("token_ids", given[numbers])
    doc_id[slots], position[slots] = deal.doc_id(numbers), spec.position(numbers)
    try:
        writer.write_block(span, rows, token_id=token_id, doc_id=doc_id, position=position)
    except AtomsError as error:
        bad = {site: count for site, values in rows.items() if (count := _not_finite(values))}
        if not bad:
            raise
        counts = ", ".join(f"{count:,} of {span.rows:,} rows of {site}" for site, count in bad.items())
        raise AtomsError(
            f"{FILES}: {counts} in one block hold NaN or infinite values as {spec.storage}: leave those rows out, or "
            "set data.matrix.dtype to bfloat16 or float32 if they overflow"
        ) from error


def _slots(spec: MatrixSpec, span: Span) -> NDArray[np.int64]:
    """Where the rows of a block land in it, in the order of the files."""
    return permutation(span.rows, spec.seed, "rows", span.split, span.index)


def _not_finite(values: Tensor) -> int:
    return int((~values.isfinite().all(1)).sum())


def _bits(values: Tensor) -> NDArray[Any]:
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def _int32(name: str, values: NDArray[Any]) -> NDArray[np.int32]:
    if len(values) and not (int(values.min()) >= -(2**31) and int(values.max()) < 2**31):
        raise AtomsError(f"data.matrix.{name}: {int(values.min())} to {int(values.max())}: give integers of 32 bits")
    return values.astype(np.int32)


def _files(site: Site) -> str:
    return site.paths[0].name if len(site.paths) == 1 else f"{len(site.paths)} files"


def _shapes(site: Site) -> str:
    shapes = [str(part.shape) for part in site.parts]
    return ", ".join(shapes[:5]) + (", …" if len(shapes) > 5 else "")
