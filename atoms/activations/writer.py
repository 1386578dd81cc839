"""Writing a store block by block, so that a kill or a full disk costs one block at most."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, Self
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoms.activations.files import PARTIAL, disk_errors, fsync, gigabytes, make_folder
from atoms.activations.grid import Span
from atoms.activations.layout import metadata_files, same_metadata
from atoms.activations.location import LocalLocation, Location, Where, locate
from atoms.activations.manifest import (
    COMPLETE,
    FOLDER,
    BlockRecord,
    FileRecord,
    NonFinite,
    Seal,
    commit,
    fault,
    manifest_name,
    read_all,
    read_blocks,
    shard_digest,
)
from atoms.activations.sealed import sha256_of
from atoms.activations.shard import checksums, encode
from atoms.activations.spec import (
    STORAGE,
    TOKENS,
    StoreSpec,
    acts_path,
    norm_path,
    shard_path,
    site_folder,
    stored_spec,
    tokens_path,
)
from atoms.errors import AtomsError
from atoms.geometry import Moments

Rows = Tensor | NDArray[Any]

_NORM_ROWS = 64  # keeps the float64 copy in the cache
_HOPELESS_ROWS = 256  # a block of so many rows and not one of them finite is no accident of a few outliers


class StoreWriter:
    """Writes a store in blocks. Use one of the constructors.

    One process (rank 0, holding the :class:`~atoms.activations.lock.StoreLock`) calls :meth:`open`; after a barrier
    every other process calls :meth:`attach`. Processes may then write different blocks at the same time: blocks share
    no file, and no metadata is written until one process calls :meth:`finalise`.
    """

    def __init__(self, path: Location, spec: StoreSpec) -> None:
        self.path = path
        self.spec = spec
        self.retain = False
        """Keep the stored values of the block written last for :meth:`take`."""
        self._last: tuple[Span, dict[str, NDArray[Any]]] | None = None
        self._beside: set[str] = set()
        self._committed = self._whole_blocks()

    @classmethod
    def open(cls, path: Where, spec: StoreSpec) -> Self:
        """Resume the store at ``path`` if there is one, else create it. See :meth:`resume` and :meth:`create`."""
        place = locate(path)
        return cls.create(place, spec) if stored_spec(place) is None else cls.resume(place, spec)

    @classmethod
    def create(cls, path: Where, spec: StoreSpec) -> Self:
        """Create an empty store; it is none before all its metadata is there. Blocks left there are kept.

        Raises:
            AtomsError: the path is taken or cannot be written, or the disk is too small.
        """
        place = locate(path)
        place.require_writable()
        with disk_errors(place, spec.disk_bytes):
            if stored_spec(place) is not None:
                raise AtomsError(f"data.store={place}: exists; resume it, delete it, or choose another path")
            _check_space(place, spec.disk_bytes)
            if isinstance(place, LocalLocation):
                place.sweep()
                make_folder(place.path.parent)
            if isinstance(place, LocalLocation) and not place.exists():
                staged = place.beside(f".{uuid4().hex}{PARTIAL}")
                _lay_out(staged, spec)
                os.rename(staged, place)
                fsync(place.path.parent)
            else:
                _lay_out(place, spec)
        return cls(place, spec)

    @classmethod
    def resume(cls, path: Where, spec: StoreSpec) -> Self:
        """Take up the store at ``path``: keep its whole blocks, sweep away what a kill left, mend its metadata.

        Raises:
            AtomsError: there is no store, it was made by other settings, or the disk is too small for the rest.
        """
        writer = cls.attach(path, spec)
        place, missing = writer.path, writer.missing_bytes
        with disk_errors(place, missing):
            if isinstance(place, LocalLocation):
                place.sweep()
            if writer.pending:
                (place / COMPLETE).delete()  # whole no longer
            if not (place / COMPLETE).exists():
                _lay_out(place, spec)
            _check_space(place, missing)
        return writer

    @classmethod
    def attach(cls, path: Where, spec: StoreSpec) -> Self:
        """Join a store that another process has opened; changes nothing there.

        Raises:
            AtomsError: there is no store, or it was made by other settings.
        """
        place = locate(path)
        place.require_writable()
        stored = stored_spec(place)
        if stored is None:
            raise AtomsError(f"data.store={place}: no store to resume; run `atoms cache` to make it")
        stored.require_equal(spec, place)
        return cls(place, stored)

    @property
    def pending(self) -> list[Span]:
        """Blocks still to be written, as this process knows; other processes' commits do not show."""
        return [span for span in self.spec.spans if span not in self._committed]

    @property
    def missing_bytes(self) -> int:
        """Bytes of the shards still to be written."""
        return self.spec.disk_bytes - sum(record.size for record in self._committed.values())

    def write_moments(self, site: str, moments: Moments) -> None:
        """Write the moments of a site's training rows."""
        self.write_file(moments_name(site), moments.to_bytes())

    def write_file(self, name: str, content: bytes) -> None:
        """Write a small file that belongs to the store and is sealed with it."""
        with disk_errors(self.path, 0):
            (self.path / name).write(content)
        self._beside.add(name)

    def take(self, span: Span) -> dict[str, NDArray[Any]] | None:
        """Hand over the stored values of a block, by array, if it was written last and :attr:`retain` is set."""
        last, self._last = self._last, None
        return last[1] if last and last[0] == span else None

    def write_block(
        self,
        span: Span,
        rows: Mapping[str, Rows],
        *,
        token_id: NDArray[np.integer[Any]],
        doc_id: NDArray[np.integer[Any]],
        position: NDArray[np.integer[Any]],
    ) -> None:
        """Write one block and commit it.

        Args:
            span: which block, one of ``spec.spans``.
            rows: per site ``(rows, H)`` of any float dtype, in the order in which they are stored. uint16 is taken as
                the bits of bfloat16 in a bfloat16 store.
            token_id: (rows,) token of each row, -1 for none.
            doc_id: (rows,) document of each row, -1 for none.
            position: (rows,) place of each row in its sequence, -1 for none.

        Rows that are not finite are stored as they are and counted; readers leave them out.

        Raises:
            AtomsError: none of the rows of a site is finite; or the disk is full or cannot be written. Blocks written
                before are kept.
        """
        if span not in self.spec.spans:
            raise ValueError(f"{span} is not a block of this store")
        if rows.keys() != self.spec.sites.keys():
            raise ValueError(f"expected rows of sites {list(self.spec.sites)}, got {list(rows)}")
        columns: dict[str, NDArray[Any]] = {}
        nonfinite: dict[str, NonFinite] = {}
        for site, width in self.spec.sites.items():
            if tuple(rows[site].shape) != (span.rows, width):
                raise ValueError(f"{site}: expected {(span.rows, width)} rows, got {tuple(rows[site].shape)}")
            stored, norm, nonfinite[site] = self._stored(rows[site], site, span)
            columns[acts_path(span.split, site)] = stored
            columns[norm_path(span.split, site)] = norm
        for name, column in {"token_id": token_id, "doc_id": doc_id, "position": position}.items():
            if column.shape != (span.rows,):
                raise ValueError(f"{name}: expected {(span.rows,)} values, got {column.shape}")
            columns[tokens_path(span.split, name)] = column.astype(TOKENS[name], casting="same_kind", copy=False)

        self._committed.pop(span, None)
        with disk_errors(self.path, self.missing_bytes):
            (self.path / manifest_name(span)).delete()
            files = {
                name: record for path, column in columns.items() for name, record in self._shards(path, column, span)
            }
            record = BlockRecord(self.spec.identity_hash, span.rows, files, nonfinite)
            commit(self.path, self.spec, span, record)
        self._committed[span] = record
        self._last = (span, columns) if self.retain else None

    def finalise(self, extra: Mapping[str, Any] | None = None) -> Seal:
        """Verify every block and mark the store complete. One process calls it, after all have written.

        Args:
            extra: facts about the making that are no part of the store's identity (versions, durations, …).

        Returns:
            What was written to ``complete.json``.

        Raises:
            AtomsError: a block is missing or one of its shards is not as it was written.
        """
        records = self._whole_blocks()
        if len(records) < len(self.spec.spans):
            lost = next(span for span in self.spec.spans if span not in records)
            raise AtomsError(
                f"data.store={self.path}: block {lost.index} of {lost.split} is not whole; "
                "run `atoms cache` with the same config, it writes what is missing"
            )
        layout = metadata_files(self.spec)
        names = [*layout, *(manifest_name(span) for span in self.spec.spans), *sorted(self._beside_names())]
        small = dict(read_all(self.path, names))
        with disk_errors(self.path, 0):
            for name, data in layout.items():
                if name not in small or not same_metadata(small[name], data):
                    (self.path / name).write(data)
                    small[name] = data
            sealed = Seal(
                identity_hash=self.spec.identity_hash,
                blocks=len(records),
                rows=self.spec.splits,
                size=sum(record.size for record in records.values()),
                files={
                    **{name: FileRecord(len(data), sha256_of(data)) for name, data in small.items()},
                    **{name: file for record in records.values() for name, file in record.files.items()},
                },
                nonfinite={
                    split: {
                        site: sum(
                            (record.nonfinite[site] for span, record in records.items() if span.split == split),
                            NonFinite(),
                        )
                        for site in self.spec.sites
                    }
                    for split in self.spec.splits
                },
                extra=dict(extra or {}),
            )
            (self.path / COMPLETE).write(sealed.encode())
        return sealed

    def _whole_blocks(self) -> dict[Span, BlockRecord]:
        """Committed blocks whose shards are all there with their sizes."""
        records = read_blocks(self.path, self.spec)
        found = self.path.files() if records else {}
        assert found is not None  # what can be written can be listed
        return {span: record for span, record in records.items() if fault(record.files, found) is None}

    def _beside_names(self) -> set[str]:
        """Files of the store that are neither metadata, manifests nor shards."""
        return self._beside | {moments_name(site) for site in self.spec.sites}

    def _stored(self, rows: Rows, site: str, span: Span) -> tuple[NDArray[Any], NDArray[np.float32], NonFinite]:
        """Round to the storage dtype; return the stored rows, their norms, and what is no number among them."""
        if isinstance(rows, np.ndarray):
            given = torch.from_numpy(np.require(rows, requirements=["C", "W"]))  # torch warns of read-only memory
        else:
            given = rows.detach().cpu()
        if given.dtype == torch.uint16 and self.spec.dtype == "bfloat16":
            given = given.view(torch.bfloat16)
        if not given.is_floating_point():
            raise TypeError(f"{site}: rows must be floating point, got {given.dtype}")
        stored = given.to(STORAGE[self.spec.dtype][1]).contiguous()
        bits = (stored.view(torch.uint16) if stored.dtype == torch.bfloat16 else stored).numpy()
        with np.errstate(over="ignore"):  # rows near the top of float32 have an infinite float32 norm
            norms = _norms(bits).astype(np.float32)
        left_out = ~np.isfinite(norms)
        if not left_out.any():
            return bits, norms, NonFinite()
        if left_out.all() and span.rows >= _HOPELESS_ROWS:
            block = f"{span.rows} of {span.rows} rows of site {site} in block {span.index} of {span.split}"
            if bool(given.isfinite().all()):
                raise AtomsError(
                    f"data.harvest.dtype={self.spec.dtype}: {block} overflow it (largest value "
                    f"{float(given.abs().max()):.6g}); use bfloat16 or float32"
                )
            raise AtomsError(
                f"data.harvest.sites={site}: the model gives NaN or infinite values in {block}; "
                "run the model in float32 or bfloat16, or choose another site"
            )
        values = stored[torch.from_numpy(left_out)]
        counts = NonFinite(int(values.isinf().sum()), int(values.isnan().sum()), len(values))
        return bits, norms, counts

    def _shards(self, path: str, column: NDArray[Any], span: Span) -> Iterator[tuple[str, FileRecord]]:
        """Write the shards of a block's part of an array, one at a time."""
        grid, hole = self.spec.grid, self.spec.array(path).hole
        for start in range(0, span.rows, grid.shard_rows):
            rows = column[start : start + grid.shard_rows]
            data = encode(rows, grid, hole)
            name = shard_path(path, (span.start + start) // grid.shard_rows)
            (self.path / name).write(data)
            yield name, FileRecord(len(data), shard_digest(checksums(data, len(rows), rows[0].nbytes, grid)))


def _norms(stored: NDArray[Any]) -> NDArray[np.float64]:
    """Norms in float64: no storage dtype overflows in it, so a norm is finite exactly if its row is."""
    norms = np.empty(len(stored))
    wide = np.empty((_NORM_ROWS, stored.shape[1]))
    for start in range(0, len(stored), _NORM_ROWS):
        part = stored[start : start + _NORM_ROWS]
        if part.dtype == np.uint16:  # bfloat16 is the upper half of float32
            part = (part.astype(np.uint32) << 16).view(np.float32)
        wide[: len(part)] = part
        norms[start : start + len(part)] = np.einsum("nh,nh->n", wide[: len(part)], wide[: len(part)])
    return np.sqrt(norms)


def moments_name(site: str) -> str:
    """Return where the moments of a site belong, relative to the store."""
    return f"moments/{site_folder(site)}.safetensors"


def _check_space(place: Location, required: int) -> None:
    free = place.free()
    if free is not None and required > free:
        raise AtomsError(
            f"data.store={place}: needs {gigabytes(required)}, only {gigabytes(free)} are free; free some disk, choose "
            "another disk, or harvest fewer rows or sites"
        )


def _lay_out(place: Location, spec: StoreSpec) -> None:
    """Write what is missing of the metadata, the group's own last: a store is one by it."""
    layout = metadata_files(spec)
    there = dict(read_all(place, layout))
    for name, data in layout.items():
        if name not in there or not same_metadata(there[name], data):
            (place / name).write(data)
    if isinstance(place, LocalLocation):
        for folder in (FOLDER, "moments"):
            make_folder(place.path / folder)
