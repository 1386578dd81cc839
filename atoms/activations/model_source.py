"""Find a Hugging Face model, know its content and read its files.

`resolve` turns what the user wrote into a model whose content is known: a folder whose files are hashed, or a hub
repository pinned to a commit. Everything else takes the result, so nothing unchecked is ever run. Weights are read
from safetensors alone and no code from a repository is executed.
"""

import difflib
import fnmatch
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import HfApi, is_offline_mode
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig
from transformers.utils.hub import cached_file

from atoms.errors import AtomsError, first_line

_PACKAGE = "package:"
_WEIGHTS = "model.safetensors"
_DECISIVE = (
    "*.safetensors", "config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "chat_template*",
)  # fmt: skip
_HUB_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class ModelSpec:
    """Which language model to read."""

    name: str
    """Hub id (``openai-community/gpt2``), local folder, or ``package:NAME/FOLDER`` inside an installed package."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    sha256: str | None = None
    """Expected digest of ``model.safetensors``, checked before the weights are used."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights in memory; ``auto`` keeps the checkpoint's own."""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """How to spread the model over the devices of one process (needs ``accelerate``); None keeps it on one."""


@dataclass(frozen=True)
class ResolvedModel:
    """A model that was found and whose content is known."""

    path: str
    """Local folder or hub id."""
    revision: str | None
    """Commit of the hub repository; None for a folder."""
    config: PretrainedConfig
    """The model's configuration; nothing else has been loaded yet."""
    identity: str
    """Digest that changes with the weights, configuration or tokenizer, and with nothing else."""
    dtype: str
    """Precision to load the weights in."""
    device_map: str | None = None
    """How to spread the weights over devices; it changes no row's meaning and is no part of the identity."""

    def loading_arguments(self) -> dict[str, Any]:
        """Arguments that make `from_pretrained` read exactly this model, and run no code that comes with it."""
        local = self.revision is None or is_offline_mode()
        return {"revision": self.revision, "trust_remote_code": False, "local_files_only": local}


def resolve(spec: ModelSpec) -> ResolvedModel:
    """Find the model a user named, check its digest and read its configuration.

    A folder's files are hashed. A hub id is looked up in the local cache first, then online unless
    ``HF_HUB_OFFLINE`` is set, and pinned to a commit.

    Args:
        spec: What to look for.

    Returns:
        The model, with weights neither loaded nor, for the hub, downloaded (unless a digest is to be checked).

    Raises:
        AtomsError: If there is no such model, its digest differs, or it is of a kind that cannot be read.
    """
    folder = _find_folder(spec)
    return _resolve_hub(spec) if folder is None else _resolve_folder(spec, folder)


def find_config(spec: ModelSpec) -> PretrainedConfig:
    """Find a model and read its configuration; weights are neither needed nor looked at.

    Args:
        spec: What to look for; a digest is not checked.

    Raises:
        AtomsError: If there is no such model, or it is of a kind that cannot be read.
    """
    folder = _find_folder(spec)
    return _config(spec, str(folder or _hub_config(spec).parent))


def weight_files(resolved: ResolvedModel) -> list[Path]:
    """Safetensors files of a model, fetched from the hub where the cache lacks them; no tensor is read.

    Args:
        resolved: The model.

    Returns:
        The files that transformers would load; of a folder without any of the usual names, all.

    Raises:
        AtomsError: If there is no such file, or an index cannot be understood.
    """
    if resolved.revision is not None:
        return _weight_files(resolved, ("",))  # every name ends in nothing
    return folder_files(Path(resolved.path))


def folder_files(folder: Path) -> list[Path]:
    """Safetensors files of a folder that transformers would load; without any of the usual names, all.

    Args:
        folder: It.

    Raises:
        AtomsError: If its index cannot be understood.
    """
    index = folder / f"{_WEIGHTS}.index.json"
    if (folder / _WEIGHTS).exists():
        return [folder / _WEIGHTS]
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    return [folder / file for file in sorted(set(_weight_map(index).values()))]


def names_folder(name: str) -> bool:
    """Whether a model's name stands for a folder, there or not, rather than for a hub repository.

    Args:
        name: As the user gave it.
    """
    return name.startswith(_PACKAGE) or Path(name).expanduser().is_dir()


def read_tensors(resolved: ResolvedModel, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Read single tensors of a checkpoint, and nothing else of it.

    Args:
        resolved: The model.
        names: Parameters as the model without its head names them; a checkpoint may put its head's prefix before.

    Returns:
        Tensors by name, as stored, on the CPU; what the checkpoint does not hold under such a name is left out.

    Raises:
        AtomsError: If the weights cannot be read.
    """
    found = {}
    try:
        for file in _weight_files(resolved, names):
            with safe_open(file, "pt") as weights:
                for key in weights.keys():  # noqa: SIM118  # no mapping, only its keys
                    for name in names:
                        if key == name or key.endswith(f".{name}"):
                            found[name] = weights.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise AtomsError(
            f"data.harvest.model.name={resolved.path!r}: cannot read weights ({first_line(error)})"
        ) from error
    return found


def _weight_files(resolved: ResolvedModel, names: Sequence[str]) -> list[Path]:
    """Files that may hold some parameters: a folder's all, of a hub repository's only those its index names."""
    if resolved.revision is None:
        return sorted(Path(resolved.path).glob("*.safetensors"))
    spec = ModelSpec(resolved.path, resolved.revision)
    offline = is_offline_mode()
    try:
        index = _hub_file(spec, f"{_WEIGHTS}.index.json", resolved.revision, local_files_only=offline)
    except AtomsError:  # small checkpoints are one file and have none
        return [_hub_file(spec, _WEIGHTS, resolved.revision, local_files_only=offline)]
    files = {file for key, file in _weight_map(index).items() if key.endswith(tuple(names))}
    return [_hub_file(spec, file, resolved.revision, local_files_only=offline) for file in sorted(files)]


def _weight_map(index: Path) -> dict[str, str]:
    """File of every tensor, by what an index says."""
    try:
        return {str(key): str(file) for key, file in json.loads(index.read_text())["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AtomsError(
            f"{index} is no index of weights ({first_line(error)}): fetch or save the model again"
        ) from error


def _find_folder(spec: ModelSpec) -> Path | None:
    """The folder a model's name stands for, or None for a hub id."""
    return _package_folder(spec.name) if spec.name.startswith(_PACKAGE) else _local_folder(spec.name)


def _package_folder(name: str) -> Path:
    """The folder inside an installed package, found without importing the package."""
    package, _, inside = name.removeprefix(_PACKAGE).partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        install = "atoms[demo]" if package.startswith("gt_") else package
        raise AtomsError(
            f"data.harvest.model.name={name!r}: package {package!r} is not installed; pip install {install!r}"
        )
    folder = Path(found.submodule_search_locations[0]) / inside
    if not folder.is_dir():
        raise AtomsError(f"data.harvest.model.name={name!r}: the package holds no folder {inside!r}{_nearest(folder)}")
    return folder


def _local_folder(name: str) -> Path | None:
    """The folder a name stands for, or None for a hub id."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    meant_as_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or ("/" in name and folder.parent.is_dir())
    if meant_as_path:
        raise AtomsError(f"data.harvest.model.name={name!r} is not a folder{_nearest(folder)}")
    return None


def _nearest(folder: Path) -> str:
    """A hint at the sibling that was probably meant."""
    siblings = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()] if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, siblings, n=1)
    return f"; did you mean {str(folder.parent / near[0])!r}?" if near else "; check the path"


def _resolve_folder(spec: ModelSpec, folder: Path) -> ResolvedModel:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise AtomsError(
            f"data.harvest.model.name={spec.name!r}: {folder} holds no *.safetensors weights; convert the model once "
            "with model.save_pretrained(folder), pickled weights are not read"
        )
    files = sorted(file for file in folder.iterdir() if any(fnmatch.fnmatch(file.name, like) for like in _DECISIVE))
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock; large models come in many shards
        digests = dict(zip((file.name for file in files), pool.map(_sha256, files), strict=True))
    if spec.sha256 is not None:
        _check_sha256(spec, digests.get(_WEIGHTS))
    identity = hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()
    return ResolvedModel(str(folder), None, _config(spec, str(folder)), identity, spec.dtype, spec.device_map)


def _resolve_hub(spec: ModelSpec) -> ResolvedModel:
    """Pin a hub id to a commit."""
    file = _hub_config(spec)
    commit = file.parent.name  # the cache keeps each commit's files in a folder of that name
    if spec.sha256 is not None:
        try:
            found = _sha256(_hub_file(spec, _WEIGHTS, commit, local_files_only=is_offline_mode()))
        except AtomsError:
            found = None
        _check_sha256(spec, found)
    identity = hashlib.sha256(f"{spec.name}@{commit}".encode()).hexdigest()
    return ResolvedModel(spec.name, commit, _config(spec, str(file.parent)), identity, spec.dtype, spec.device_map)


def _hub_config(spec: ModelSpec) -> Path:
    """The configuration of a hub id in the cache: what is there already, otherwise what the hub serves now."""
    try:
        return _hub_file(spec, "config.json", spec.revision, local_files_only=True)
    except AtomsError:
        if is_offline_mode():
            raise
        return _hub_file(spec, "config.json", _hub_commit(spec), local_files_only=False)


def _hub_file(spec: ModelSpec, file: str, revision: str | None, *, local_files_only: bool) -> Path:
    """Path in the cache of one file of a hub repository, fetched if need be."""
    try:
        return Path(str(cached_file(spec.name, file, revision=revision, local_files_only=local_files_only)))
    except OSError as error:
        raise _not_found(spec, error) from error


def _hub_commit(spec: ModelSpec) -> str:
    try:
        commit = HfApi().model_info(spec.name, revision=spec.revision, timeout=_HUB_TIMEOUT).sha
    except Exception as error:  # the HTTP client and its exceptions differ between versions of huggingface_hub
        raise _not_found(spec, error) from error
    assert commit is not None  # only absent from listings
    return commit


def _not_found(spec: ModelSpec, error: Exception) -> AtomsError:
    where = spec.name if spec.revision is None else f"{spec.name} at revision {spec.revision}"
    return AtomsError(
        f"data.harvest.model.name: no model {where!r} as a folder, in the local cache or on the hub "
        f"({first_line(error)}); check the name, or name a local folder"
    )


def _config(spec: ModelSpec, folder: str) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # code of any family, which checks its settings as it likes
        raise AtomsError(
            f"data.harvest.model.name={spec.name!r}: config.json is missing or not understood ({first_line(error)})"
        ) from error
    if config.is_encoder_decoder:
        raise AtomsError(
            f"data.harvest.model.name={spec.name!r} is an encoder-decoder ({config.model_type}); "
            "name an encoder or a causal language model"
        )
    return config


def _check_sha256(spec: ModelSpec, found: str | None) -> None:
    if found is None:
        raise AtomsError(
            f"data.harvest.model.sha256={spec.sha256} is the digest of {_WEIGHTS}, which {spec.name!r} does not hold; "
            "leave it out for a model in several shards, and set data.harvest.model.revision instead"
        )
    if found != str(spec.sha256).lower():
        raise AtomsError(
            f"data.harvest.model.sha256={spec.sha256} but {_WEIGHTS} of {spec.name!r} has {found}; "
            "fetch the weights again, or set the new value if they were meant to change"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
