"""Writing a store block by block, so that a kill or a full disk costs one block at most."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import Crc32cCodec

from atoms.activations.files import disk_errors, free_bytes, fsync, fsync_tree, gigabytes, write_json
from atoms.activations.grid import Span
from atoms.activations.manifest import COMPLETE, commit, committed_bytes, fault, manifest_path
from atoms.activations.spec import (
    ATTRIBUTE,
    NORM,
    STORAGE,
    TOKENS,
    StoreSpec,
    acts_path,
    norm_path,
    site_folder,
    stored_spec,
    tokens_path,
)
from atoms.errors import AtomsError

Rows = Tensor | NDArray[Any]

# other pipelines may leave a truncated shard under its final name when killed; and a chunk that happens to hold the
# fill value must be on the disk all the same, else it could not be told from a lost one
_ZARR_CONFIG = {
    "codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "array.write_empty_chunks": True,
}


_NORM_ROWS = 64  # keeps the float64 copy in the cache


class StoreWriter:
    """Writes a store in blocks. Use one of the constructors.

    One process (rank 0, holding the :class:`~atoms.activations.lock.StoreLock`) calls :meth:`open`; after a barrier
    every other process calls :meth:`attach`. Processes may then write different blocks at the same time: blocks share
    no file, and no metadata is written until one process calls :meth:`finalise`.
    """

    def __init__(self, path: Path, spec: StoreSpec) -> None:
        self.path = path
        self.spec = spec
        self._arrays: dict[str, Any] = {}
        self._committed = {
            span: size
            for span in spec.spans
            if (size := committed_bytes(path, span)) is not None and fault(path, span) is None
        }

    @classmethod
    def open(cls, path: str | os.PathLike[str], spec: StoreSpec) -> Self:
        """Resume the store at ``path`` if there is one, else create it. See :meth:`resume` and :meth:`create`."""
        return cls.create(path, spec) if stored_spec(Path(path)) is None else cls.resume(path, spec)

    @classmethod
    def create(cls, path: str | os.PathLike[str], spec: StoreSpec) -> Self:
        """Create an empty store; it appears under its name with all its metadata at once.

        Raises:
            AtomsError: the path is taken or cannot be written, or the disk is too small.
        """
        path = Path(path)
        with disk_errors(path, spec.disk_bytes):
            if stored_spec(path) is not None:
                raise AtomsError(f"data.store={path}: exists; resume it, delete it, or choose another path")
            _check_space(path, spec.disk_bytes)
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep_staged(path)
            staged = path.with_name(f"{path.name}.{uuid4().hex}.partial")
            _lay_out(staged, spec)
            fsync_tree(staged)
            os.rename(staged, path)
            fsync(path.parent)
        return cls(path, spec)

    @classmethod
    def resume(cls, path: str | os.PathLike[str], spec: StoreSpec) -> Self:
        """Take up the store at ``path``: keep its whole blocks, sweep away what a kill left behind.

        Raises:
            AtomsError: there is no store, it was made by other settings, or the disk is too small for the rest.
        """
        path = Path(path)
        writer = cls.attach(path, spec)
        missing = spec.disk_bytes - sum(writer._committed.values())
        with disk_errors(path, missing):
            _sweep_staged(path)
            for partial in path.rglob("*.partial"):
                partial.unlink(missing_ok=True)
            if writer.pending:
                (path / COMPLETE).unlink(missing_ok=True)  # whole no longer
            _check_space(path, missing)
        return writer

    @classmethod
    def attach(cls, path: str | os.PathLike[str], spec: StoreSpec) -> Self:
        """Join a store that another process has opened; changes nothing on the disk.

        Raises:
            AtomsError: there is no store, or it was made by other settings.
        """
        path = Path(path)
        stored = stored_spec(path)
        if stored is None:
            raise AtomsError(f"data.store={path}: no store to resume; run `atoms cache` to make it")
        stored.require_equal(spec, path)
        return cls(path, stored)

    @property
    def pending(self) -> list[Span]:
        """Blocks still to be written, as this process knows; other processes' commits do not show."""
        return [span for span in self.spec.spans if span not in self._committed]

    def moments_path(self, site: str) -> Path:
        """Return where the moments of a site belong; the caller writes the file."""
        return moments_path(self.path, site)

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

        Raises:
            AtomsError: a row is not finite, also after rounding to the store's dtype; or the disk is full or cannot
                be written. Blocks written before are kept.
        """
        if span not in self.spec.spans:
            raise ValueError(f"{span} is not a block of this store")
        if rows.keys() != self.spec.sites.keys():
            raise ValueError(f"expected rows of sites {list(self.spec.sites)}, got {list(rows)}")
        columns: dict[str, NDArray[Any]] = {}
        for site, width in self.spec.sites.items():
            if tuple(rows[site].shape) != (span.rows, width):
                raise ValueError(f"{site}: expected {(span.rows, width)} rows, got {tuple(rows[site].shape)}")
            stored, norm = self._checked(rows[site], site, span)
            columns[acts_path(span.split, site)] = stored
            columns[norm_path(span.split, site)] = norm
        for name, column in {"token_id": token_id, "doc_id": doc_id, "position": position}.items():
            if column.shape != (span.rows,):
                raise ValueError(f"{name}: expected {(span.rows,)} values, got {column.shape}")
            columns[tokens_path(span.split, name)] = column.astype(TOKENS[name], casting="same_kind", copy=False)

        self._committed.pop(span, None)
        missing = self.spec.disk_bytes - sum(self._committed.values())
        with disk_errors(self.path, missing):
            manifest_path(self.path, span).unlink(missing_ok=True)
            for name in self.spec.shard_files(span):  # what a kill left; zarr would read a partial last shard first
                (self.path / name).unlink(missing_ok=True)
            for path, column in columns.items():
                self._write_shards(path, column, span)
            self._flush(span)
            commit(self.path, self.spec, span)
        size = committed_bytes(self.path, span)
        assert size is not None
        self._committed[span] = size

    def finalise(self, extra: Mapping[str, Any] | None = None) -> None:
        """Verify every block on the disk and mark the store complete. One process calls it, after all have written.

        Args:
            extra: facts about the making that are no part of the store's identity (versions, durations, …).

        Raises:
            AtomsError: a block is missing or one of its shards is not as it was written.
        """
        spans, total = self.spec.spans, 0
        for span in spans:
            size = committed_bytes(self.path, span)
            problem = "the block was never committed" if size is None else fault(self.path, span)
            if size is None or problem:
                raise AtomsError(
                    f"data.store={self.path}: block {span.index} of {span.split} is not whole ({problem}); "
                    "run `atoms cache` with the same config, it writes what is missing"
                )
            total += size
        with disk_errors(self.path, 0):
            write_json(
                self.path / COMPLETE,
                {
                    "identity_hash": self.spec.identity_hash,
                    "blocks": len(spans),
                    "rows": self.spec.splits,
                    "bytes": total,
                    "extra": dict(extra or {}),
                },
            )

    def _checked(self, rows: Rows, site: str, span: Span) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Round to the storage dtype; return the stored rows and their norms, both as numpy."""
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
        norms = _norms(bits)
        if bad := int((~np.isfinite(norms)).sum()):
            block = f"{bad} of {span.rows} rows of site {site} in block {span.index} of {span.split}"
            if bool(given.isfinite().all()):
                raise AtomsError(
                    f"data.harvest.dtype={self.spec.dtype}: {block} overflow it (largest value "
                    f"{float(given.abs().max()):.6g}); use bfloat16 or float32"
                )
            raise AtomsError(
                f"data.harvest.sites={site}: the model gives NaN or infinite values in {block}; "
                "run the model in float32 or bfloat16, or choose another site"
            )
        with np.errstate(over="ignore"):  # rows near the top of float32 have an infinite float32 norm
            return bits, norms.astype(np.float32)

    def _write_shards(self, path: str, column: NDArray[Any], span: Span) -> None:
        step = self.spec.grid.shard_rows
        if path not in self._arrays:
            with zarr.config.set(_ZARR_CONFIG):
                self._arrays[path] = zarr.open_array(self.path / path, mode="r+")
        for start in range(span.start, span.stop, step):
            stop = min(start + step, span.stop)
            # one call per whole shard: a partial one would read, modify and rewrite it
            self._arrays[path][start:stop] = column[start - span.start : stop - span.start]

    def _flush(self, span: Span) -> None:
        """Zarr renames shards into place but leaves it to chance when they reach the disk."""
        folders = set()
        for name in self.spec.shard_files(span):
            file = self.path / name
            fsync(file)
            folders |= {file.parent, file.parent.parent}
        for folder in folders:
            fsync(folder)


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


def moments_path(store: str | os.PathLike[str], site: str) -> Path:
    """Return where the moments of a site belong inside a store."""
    return Path(store) / "moments" / f"{site_folder(site)}.safetensors"


def _check_space(path: Path, required: int) -> None:
    free = free_bytes(path)
    if required > free:
        raise AtomsError(
            f"data.store={path}: needs {gigabytes(required)}, only {gigabytes(free)} are free; free some disk, choose "
            "another disk, or harvest fewer rows or sites"
        )


def _sweep_staged(path: Path) -> None:
    for left in path.parent.glob(f"{path.name}.*.partial"):
        if left.is_dir():
            shutil.rmtree(left)


def _lay_out(path: Path, spec: StoreSpec) -> None:
    """Create the group, its empty arrays and the directories beside them."""
    group = zarr.create_group(path, attributes={ATTRIBUTE: spec.to_dict()})
    (path / "manifest").mkdir()
    (path / "moments").mkdir()
    bits = {"logical_dtype": spec.dtype} if spec.dtype == "bfloat16" else {}
    for split, n in spec.splits.items():
        for site, width in spec.sites.items():
            hole = 0xFFFF if spec.dtype == "bfloat16" else float("nan")  # 0xFFFF are the bits of a NaN
            attributes = {"site": site, **bits}
            _create_array(group, acts_path(split, site), (n, width), spec.storage_dtype, hole, attributes, spec)
            _create_array(group, norm_path(split, site), (n,), NORM, float("nan"), {"site": site}, spec)
        for name, dtype in TOKENS.items():
            _create_array(group, tokens_path(split, name), (n,), dtype, -1, {}, spec)


def _create_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    hole: float,
    attributes: dict[str, Any],
    spec: StoreSpec,
) -> None:
    group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(spec.grid.chunk_rows, *shape[1:]),
        shards=(spec.grid.shard_rows, *shape[1:]),
        filters=None,
        compressors=[Crc32cCodec()],
        fill_value=hole,
        attributes=attributes,
        dimension_names=("token", "hidden")[: len(shape)],
    )
