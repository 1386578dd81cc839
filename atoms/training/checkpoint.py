"""What a checkpoint says of its run, so that it can be judged and resumed without the config that made it."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from atoms.errors import AtomsError

KEY = "atoms"


@dataclass(frozen=True)
class Record:
    """Kept in every checkpoint under ``"atoms"``; plain values only.

    Attributes:
        store: Directory of the store the run learnt from.
        identity: Identity hash of that store.
        data: Settings of the datamodule that fix which rows make up a batch.
        run_id: MLflow run, or None.
        tracking_uri: Where that run is kept, or None.
    """

    store: str
    identity: str
    data: dict[str, Any]
    run_id: str | None = None
    tracking_uri: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return asdict(self)


def read(path: str | Path) -> tuple[dict[str, Any], Record]:
    """Load a checkpoint without running code from it.

    Args:
        path: The ``.ckpt`` file.

    Returns:
        The checkpoint on the CPU, and its record.

    Raises:
        AtomsError: If there is no such file, or it is not a checkpoint of atoms.
    """
    if not Path(path).is_file():
        raise AtomsError(f"ckpt_path is {path}, which is not a file: give the .ckpt file that `atoms fit` named")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content, Record(**content[KEY])
    except Exception as error:  # torch raises many kinds for a file that is not what it should be
        raise AtomsError(
            f"ckpt_path is {path}, which is not a checkpoint of atoms ({type(error).__name__}): "
            "give the .ckpt file that `atoms fit` named"
        ) from error


def digest(path: str | Path) -> str:
    """First 16 hexadecimal digits of the file's sha256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
