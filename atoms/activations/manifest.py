"""The record of which blocks are whole: one small file per block, written after its shards are on the disk."""

from pathlib import Path
from typing import Any

from atoms.activations.files import read_json, write_json
from atoms.activations.grid import Span
from atoms.activations.spec import StoreSpec

COMPLETE = "complete.json"


def manifest_path(root: Path, span: Span) -> Path:
    """Return where the block's manifest lies. Deleting that file makes the writer rewrite the block on resume."""
    return root / "manifest" / f"{span.split}-{span.index:06d}.json"


def commit(root: Path, spec: StoreSpec, span: Span) -> None:
    """Record a block whose shards are on the disk."""
    files = {name: (root / name).stat().st_size for name in spec.shard_files(span)}
    write_json(manifest_path(root, span), {"rows": span.rows, "files": files})


def committed_bytes(root: Path, span: Span) -> int | None:
    """Bytes of a committed block's shards, or None if it is not committed."""
    content = _read(root, span)
    return None if content is None else sum(content["files"].values())


def is_complete(root: Path, spec: StoreSpec) -> bool:
    """Whether every block is committed and the store was marked complete; does not look at the shards."""
    return (root / COMPLETE).exists() and all(committed_bytes(root, span) is not None for span in spec.spans)


def fault(root: Path, span: Span) -> str | None:
    """Check the shards of a committed block.

    Returns:
        The first shard that is missing or has the wrong size, with expected and found bytes; None if all is well.
    """
    content = _read(root, span)
    assert content is not None, "ask committed_bytes first"
    for name, expected in content["files"].items():
        try:
            found = (root / name).stat().st_size
        except FileNotFoundError:
            return f"{name} is missing (expected {expected} bytes)"
        if found != expected:
            return f"{name} is damaged (expected {expected} bytes, found {found})"
    return None


def _read(root: Path, span: Span) -> Any:
    try:
        content = read_json(manifest_path(root, span))
    except (FileNotFoundError, ValueError):
        return None
    return content if content.get("rows") == span.rows else None
