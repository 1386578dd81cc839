"""SAEs on the Hugging Face hub: fetch the few files of one, leave the rest of the repository where it is."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from atoms.errors import AtomsError, first_line, printable
from atoms.units.pretrained.formats import FILES

PREFIX = "hf:"
_SUFFIXES = (".pt", ".pth", ".npz", ".safetensors", ".json")


def fetch(address: str) -> Path:
    """The local path of an SAE on the hub, fetched unless it is there already.

    Args:
        address: ``hf:org/repo[@revision]/path/inside``; the path is a directory, or a file of it.

    Raises:
        AtomsError: If the address is not so made, huggingface_hub is missing, or nothing could be fetched.
    """
    org, _, rest = address.removeprefix(PREFIX).partition("/")
    repo, _, inside = rest.partition("/")
    repo, _, revision = repo.partition("@")
    parts = PurePosixPath(inside).parts
    if not org or not repo or ".." in parts or inside.startswith("/"):
        raise AtomsError(f"path={address}: write hf:org/repo/path/inside, or hf:org/repo@revision/path/inside")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise AtomsError(
            f"path={address}: huggingface_hub is not installed; pip install huggingface_hub, or download the files and "
            "give their directory"
        ) from None
    where = "/".join(parts)
    folders = [where, *("/".join(parts[:up]) for up in (-1, -2) if len(parts) >= -up)]
    # the settings of a checkpoint lie a directory or two above it
    wanted = [where, *(f"{where}/{name}" for name in FILES), *(f"{folder}/config.json" for folder in folders[1:])]
    wanted += [f"{folders[1]}/{name}" for name in FILES] if PurePosixPath(where).suffix in _SUFFIXES else []
    patterns = list(dict.fromkeys(pattern.removeprefix("/") for pattern in wanted if pattern))
    try:
        root = Path(snapshot_download(repo_id=f"{org}/{repo}", revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # whatever network, hub and credentials may raise
        why = printable(first_line(error))
        raise AtomsError(
            f"path={address}: cannot be fetched ({why}); check the name, the network and HF_TOKEN, or download it and "
            "give its directory"
        ) from None
    if not (root / where).exists():
        raise AtomsError(f"path={address}: {org}/{repo} has no SAE at {where or 'its root'}; look at its list of files")
    return root / where
