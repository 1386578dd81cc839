"""Load a model that `atoms.activations.model_source` has found, with its tokenizer, and make batches for it."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars  # type: ignore[attr-defined]
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging

from atoms.activations.model_source import ResolvedModel
from atoms.errors import AtomsError, first_line

_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text"}


def load_tokenizer(resolved: ResolvedModel) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to a resolved model.

    Raises:
        AtomsError: If there is none, or none with a vocabulary.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            resolved.path, **resolved.loading_arguments()
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AtomsError(
            f"data.harvest.model.name={resolved.path!r}: no usable tokenizer ({first_line(error)})"
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
                output_loading_info=True, **placed, **resolved.loading_arguments(),
            )  # fmt: skip
    except ImportError as error:  # of what quantised the weights
        raise AtomsError(
            f"data.harvest.model.name={resolved.path!r}: cannot load weights ({first_line(error)}): install it, or "
            "name the checkpoint that was quantised"
        ) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise AtomsError(
            f"data.harvest.model.name={resolved.path!r}: cannot load weights ({first_line(error)})"
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
    except Exception as error:  # code of any family
        raise AtomsError(
            f"data.harvest.model.name: no {config.model_type} can be built ({first_line(error)}); name another model"
        ) from error
    return _prepare(model)


def _prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Evaluation mode, frozen, and no key-value cache, which nothing here would read."""
    model.config.use_cache = False
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    return model


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
