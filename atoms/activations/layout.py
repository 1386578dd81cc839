"""The zarr metadata of a store, as bytes that follow from its spec alone."""

import json
from typing import Any

import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from atoms.activations.spec import ATTRIBUTE, IDENTITY, StoreSpec


def metadata_files(spec: StoreSpec) -> dict[str, bytes]:
    """Every ``zarr.json`` of a store, by its path relative to the store; the group's own is the last."""
    held: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(held), attributes={ATTRIBUTE: spec.to_dict(), IDENTITY: spec.identity_hash})
    for split in spec.splits:
        for array in spec.arrays(split):
            rest = array.shape[1:]
            group.create_array(
                array.path,
                shape=array.shape,
                dtype=array.dtype,
                chunks=(spec.grid.chunk_rows, *rest),
                shards=(spec.grid.shard_rows, *rest),
                filters=None,
                compressors=[Crc32cCodec()],
                fill_value=array.hole,
                attributes=dict(array.attributes),
                dimension_names=("token", "hidden")[: len(array.shape)],
            )
    files = {name: bytes(buffer.to_bytes()) for name, buffer in held.items()}
    root = files.pop("zarr.json")
    return {**files, "zarr.json": root}


def same_metadata(one: bytes, other: bytes) -> bool:
    """Whether two ``zarr.json`` say the same; versions of zarr write it with other spaces."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False
