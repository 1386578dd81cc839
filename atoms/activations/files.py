"""Files that are either whole or absent, also after a power cut."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from atoms.errors import AtomsError

PARTIAL = ".partial"  # what is being written under another name; whatever bears it after a kill is swept away


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a directory, and those above it, so that they outlive a power cut."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        fsync(path.parent)


def write_file(path: Path, content: Any) -> None:
    """Write bytes so that a reader sees the old file or the new one, never a part.

    Args:
        path: File to write; its directory is made if need be.
        content: Anything with the buffer protocol.
    """
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb", buffering=0) as file:
            left = memoryview(content).cast("B")
            while left:  # a raw write may take less than it is given
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that holds ``path`` or will hold it."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def gigabytes(size: int) -> str:
    """Write a number of bytes for people."""
    return f"{size / 1e9:,.3f} GB"


@contextmanager
def disk_errors(path: object, needed: int) -> Iterator[None]:
    """Turn what can go wrong with a disk into one line.

    Args:
        path: the store, as the user named it.
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
