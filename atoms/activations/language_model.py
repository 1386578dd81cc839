"""Find, check and load a Hugging Face model and its tokenizer.

`resolve` turns what the user wrote into a model whose content is known: a folder whose files are hashed, or a hub
repository pinned to a commit. Everything else takes the result, so nothing unchecked is ever run. Weights are read
from safetensors alone and no code from a repository is executed.
"""

import difflib
import fnmatch
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars  # type: ignore[attr-defined]
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging
from transformers.utils.hub import cached_file

from atoms.errors import AtomsError

_PACKAGE = "package:"
_WEIGHTS = "model.safetensors"
_DECISIVE = (
    "*.safetensors", "config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "chat_template*",
)  # fmt: skip
_HUB_TIMEOUT = 10.0  # seconds
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text"}


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


def load_tokenizer(resolved: ResolvedModel) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to a resolved model.

    Raises:
        AtomsError: If there is none, or none with a vocabulary.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolved.path, **_source(resolved))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AtomsError(
            f"data.harvest.model.name={resolved.path!r}: no usable tokenizer ({_first_line(error)})"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of absent files
        raise AtomsError(
            f"data.harvest.model.name={resolved.path!r}: no usable tokenizer (its vocabulary is empty); "
            "save the tokenizer beside the model"
        )
    return tokenizer


def load_model(resolved: ResolvedModel) -> PreTrainedModel:
    """Load the model without its head, in evaluation mode and frozen, on the CPU or where its device map says.

    Raises:
        AtomsError: If the weights cannot be read, or do not fill the whole model.
    """
    return _prepare(_load(AutoModel, resolved))


def load_causal_model(resolved: ResolvedModel) -> PreTrainedModel:
    """Load the model with its causal head, to be trained.

    Raises:
        AtomsError: If it has no such head, or the weights cannot be read, or do not fill the whole model.
    """
    require_causal(resolved.config, resolved.path)
    model = _load(AutoModelForCausalLM, resolved)
    model.config.use_cache = False
    model.train()
    return model


def require_causal(config: PretrainedConfig, name: str) -> None:
    """Refuse a model that does not predict the next token.

    Args:
        config: Its configuration.
        name: What to call it.

    Raises:
        AtomsError: If it was saved without a causal head, or its family has none.
    """
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    saved = list(config.architectures or [])
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or not causal.intersection(saved):
        said = ", ".join(saved) or config.model_type
        raise AtomsError(
            f"data.harvest.model.name={name!r} has no causal head ({said}), so it predicts no next token: name "
            "a causal language model"
        )


def _load(kind: type[AutoModel | AutoModelForCausalLM], resolved: ResolvedModel) -> PreTrainedModel:
    placed = {}
    if resolved.device_map is not None:
        if importlib.util.find_spec("accelerate") is None:
            raise AtomsError(
                f"data.harvest.model.device_map is {resolved.device_map}, which needs accelerate: "
                "pip install 'atoms[device-map]', or leave it out"
            )
        placed["device_map"] = resolved.device_map
    try:
        with quiet_transformers():
            loaded: Any = kind.from_pretrained(
                resolved.path, config=deepcopy(resolved.config), dtype=resolved.dtype, use_safetensors=True,
                output_loading_info=True, **placed, **_source(resolved),
            )  # fmt: skip
    except ImportError as error:  # of what quantised the weights
        raise AtomsError(
            f"data.harvest.model.name={resolved.path!r}: cannot load weights ({_first_line(error)}): install it, or "
            "name the checkpoint that was quantised"
        ) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise AtomsError(
            f"data.harvest.model.name={resolved.path!r}: cannot load weights ({_first_line(error)})"
        ) from error
    model, info = loaded
    # A pooler reads the last hidden state and is not part of the language model; many checkpoints lack it.
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise AtomsError(
            f"data.harvest.model.name={resolved.path!r}: the checkpoint lacks {len(missing)} weights, "
            f"e.g. {missing[0]!r}, which would be random; name a complete checkpoint"
        )
    return cast("PreTrainedModel", model)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bar for reading weights and no report on them, which `_load` checks; downloads keep their bar."""
    bar, hub_bar = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if hub_bar:
        enable_progress_bars()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar and hub_bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


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
            f"data.harvest.model.name={resolved.path!r}: cannot read weights ({_first_line(error)})"
        ) from error
    return found


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
    folder = Path(resolved.path)
    index = folder / f"{_WEIGHTS}.index.json"
    if (folder / _WEIGHTS).exists():
        return [folder / _WEIGHTS]
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    try:
        return [folder / file for file in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AtomsError(
            f"data.harvest.model.name={resolved.path!r}: {index.name} is no index of weights ({_first_line(error)}); "
            "fetch or save the model again"
        ) from error


def find_config(spec: ModelSpec) -> PretrainedConfig:
    """Find a model and read its configuration; weights are neither needed nor looked at.

    Args:
        spec: What to look for; a digest is not checked.

    Raises:
        AtomsError: If there is no such model, or it is of a kind that cannot be read.
    """
    folder = _find_folder(spec)
    return _config(spec, str(folder or _hub_config(spec).parent))


def meta_model(config: PretrainedConfig) -> PreTrainedModel:
    """Build a model on the meta device: every module and shape, no weights.

    Attention and experts are computed in the ways that look at no values, so that a forward goes through.

    Raises:
        AtomsError: If transformers cannot build a model of this kind here.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModel.from_config(  # type: ignore[no-untyped-call]
                deepcopy(config), attn_implementation="eager", experts_implementation="batched_mm"
            )
    except (ImportError, ValueError) as error:
        raise AtomsError(
            f"data.harvest.model.name: no {config.model_type} can be built ({_first_line(error)}); name another model"
        ) from error
    return _prepare(model)


@dataclass(frozen=True)
class SpecialTokens:
    """What a model expects around a chunk of text: ``[CLS] … [SEP]`` for BERT, a leading BOS for Llama."""

    prefix: tuple[int, ...]
    """Ids before the chunk."""
    suffix: tuple[int, ...]
    """Ids after the chunk."""

    def __len__(self) -> int:
        return len(self.prefix) + len(self.suffix)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """Learn a tokenizer's special tokens from what it puts around a plain word.

    Raises:
        AtomsError: If the word's own tokens cannot be told from what surrounds them.
    """
    bare = list(tokenizer("the", add_special_tokens=False)["input_ids"])
    dressed = list(tokenizer("the", add_special_tokens=True)["input_ids"])
    starts = [at for at in range(len(dressed)) if dressed[at : at + len(bare)] == bare]
    if not bare or len(starts) != 1:
        raise AtomsError(
            f"data.harvest.model.name: cannot tell the special tokens of {type(tokenizer).__name__} from text: "
            f"'the' is {bare} without them and {dressed} with them"
        )
    start = starts[0]
    return SpecialTokens(tuple(dressed[:start]), tuple(dressed[start + len(bare) :]))


def pad_batch(sequences: Sequence[NDArray[np.int32]], pad_id: int | None) -> dict[str, torch.Tensor]:
    """Stack sequences into one batch, padded on the right.

    Args:
        sequences: Token ids, special ones included, arrays of shape (tokens,).
        pad_id: The tokenizer's padding id; without one, 0 is used and masked like any other padding.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 of shape (batch, sequence).
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    width = int(lengths.max())
    input_ids = torch.full((len(sequences), width), pad_id or 0)
    for row, sequence in zip(input_ids, sequences, strict=True):
        row[: len(sequence)] = torch.from_numpy(sequence)
    return {"input_ids": input_ids, "attention_mask": (torch.arange(width) < lengths[:, None]).long()}


def max_context(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Most tokens of text that fit one sequence, special tokens taken off; None where the model sets no limit."""
    text_config = config.get_text_config()
    limits = []
    if (positions := getattr(text_config, "max_position_embeddings", None)) is not None:
        # These families number positions from the padding id on, and waste the rows before.
        wasted = text_config.pad_token_id + 1 if text_config.model_type in _OFFSET_POSITIONS else 0
        limits.append(positions - wasted)
    if tokenizer.model_max_length < 2**31:  # a tokenizer that does not know says 1e30
        limits.append(tokenizer.model_max_length)
    return min(limits) - len(special_tokens(tokenizer)) if limits else None


def _prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Evaluation mode, frozen, and no key-value cache, which nothing here would read."""
    model.config.use_cache = False
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    return model


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


def _hub_config(spec: ModelSpec) -> Path:
    """The configuration of a hub id in the cache: what is there already, otherwise what the hub serves now."""
    try:
        return _hub_file(spec, "config.json", spec.revision, local_files_only=True)
    except AtomsError:
        if is_offline_mode():
            raise
        return _hub_file(spec, "config.json", _hub_commit(spec), local_files_only=False)


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
    files = {file for key, file in json.loads(index.read_text())["weight_map"].items() if key.endswith(tuple(names))}
    return [_hub_file(spec, file, resolved.revision, local_files_only=offline) for file in sorted(files)]


def _config(spec: ModelSpec, folder: str) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise AtomsError(
            f"data.harvest.model.name={spec.name!r}: config.json is missing or not understood ({_first_line(error)})"
        ) from error
    if config.is_encoder_decoder:
        raise AtomsError(
            f"data.harvest.model.name={spec.name!r} is an encoder-decoder ({config.model_type}); "
            "name an encoder or a causal language model"
        )
    return config


def _not_found(spec: ModelSpec, error: Exception) -> AtomsError:
    where = spec.name if spec.revision is None else f"{spec.name} at revision {spec.revision}"
    return AtomsError(
        f"data.harvest.model.name: no model {where!r} as a folder, in the local cache or on the hub "
        f"({_first_line(error)}); check the name, or name a local folder"
    )


def _source(resolved: ResolvedModel) -> dict[str, Any]:
    """Arguments that make `from_pretrained` read exactly the resolved model."""
    local = resolved.revision is None or is_offline_mode()
    return {"revision": resolved.revision, "trust_remote_code": False, "local_files_only": local}


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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
