"""Checkpoint files that are whole or absent, and hold a digest of themselves.

A torch checkpoint is a zip archive, whose checksums torch does not look at when it reads. The archive's comment, which
no reader minds, takes the sha256 of everything before it.
"""

import errno
import hashlib
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from atoms.activations.files import fsync
from atoms.errors import AtomsError

_NAME = b"atoms sha256 "
_SEAL = len(_NAME) + 64


class SealedCheckpointIO(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoints, made safe against kills, full disks and damage.

    Lightning writes to the temporary directory and moves the file, which is a copy where that lies on another disk,
    and leaves it to chance when the bytes reach the disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """Write beside the destination, flush, and rename.

        Raises:
            AtomsError: If the disk is full or the directory cannot be written; nothing is left then.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        partial = partial_path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("w+b") as file:
                    _write(checkpoint, file)
                os.replace(partial, path)
                fsync(path.parent)
            finally:
                partial.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:
            # torch complains of a position and keeps what the disk said as the context
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise AtomsError(_unwritable(path, cause)) from error

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint after comparing it with its digest.

        Raises:
            AtomsError: If it is damaged.
        """
        if "://" not in str(path):
            require_whole(path)
        return super().load_checkpoint(path, *args, **kwargs)


def partial_path(path: Path) -> Path:
    """Where a checkpoint is written before it has its name; a kill may leave this file."""
    return path.with_name(f".{path.name}.partial")


def require_whole(path: _PATH) -> None:
    """Compare a checkpoint with the digest it holds.

    Raises:
        AtomsError: If it cannot be read, holds no digest, or another one.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2) - _SEAL
            file.seek(max(size, 0))
            seal = file.read()
            file.seek(0)
            found = _digest(file, size) if seal.startswith(_NAME) else None
            file.seek(0)
            is_archive = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise AtomsError(f"ckpt_path is {path}, which cannot be read ({error.strerror})") from error
    if found is None and not is_archive:
        raise AtomsError(
            f"ckpt_path is {path}, which is not a checkpoint of atoms: give the .ckpt file that `atoms fit` named"
        )
    if found is None or seal != _NAME + found:
        raise AtomsError(
            f"ckpt_path is {path}, which is damaged or was not written by `atoms fit` (its sha256 is not the one at "
            "its end): use an earlier checkpoint"
        )


def _write(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    torch.save(checkpoint, file)
    file.seek(-2, 2)  # the archive ends with the length of its comment
    file.write(struct.pack("<H", _SEAL))
    file.flush()
    size = file.tell()
    file.seek(0)
    digest = _digest(file, size)
    file.seek(size)
    file.write(_NAME + digest)
    file.flush()
    os.fsync(file.fileno())


def _digest(file: BinaryIO, size: int) -> bytes:
    """Hexadecimal sha256 of the next ``size`` bytes."""
    digest = hashlib.sha256()
    while size > 0 and (part := file.read(min(size, 2**20))):
        digest.update(part)
        size -= len(part)
    return digest.hexdigest().encode()


def _unwritable(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"checkpoint {path}: disk full; checkpoints before it are whole: free some space and run the same command "
            "with --ckpt_path=last"
        )
    return (
        f"checkpoint {path}: cannot be written ({error.strerror}); set checkpoint.dirpath or trainer.default_root_dir "
        "to a directory you may write to, and go on with --ckpt_path=last"
    )
