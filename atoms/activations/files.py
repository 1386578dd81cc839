"""Files that are either whole or absent, also after a power cut."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from atoms.errors import AtomsError


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Flush a directory with everything below it."""
    for folder, _, names in os.walk(path):
        for name in names:
            fsync(Path(folder, name))
        fsync(Path(folder))


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    fsync(path.parent)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that holds ``path`` or will hold it."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def gigabytes(size: int) -> str:
    """Write a number of bytes for people."""
    return f"{size / 1e9:,.3f} GB"


@contextmanager
def disk_errors(path: Path, needed: int) -> Iterator[None]:
    """Turn what can go wrong with a disk into one line.

    Args:
        path: the store.
        needed: bytes still to be written, for the message.

    Raises:
        AtomsError: the disk is full or the directory cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AtomsError(
                f"data.store={path}: disk full, {gigabytes(needed)} still to be written; free that much and run "
                "`atoms cache` with the same config, it resumes after the last whole block"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise AtomsError(
                f"data.store={path}: cannot be written ({error.strerror}: {error.filename}); "
                "choose a directory you may write to"
            ) from error
        raise
