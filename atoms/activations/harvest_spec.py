"""What to harvest: model, corpus, places; and the store that follows from it."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import torch

from atoms.activations.corpus import Corpus
from atoms.activations.grouping import SHINGLE
from atoms.activations.identity import digest_of
from atoms.activations.language_model import meta_model
from atoms.activations.location import Location, locate
from atoms.activations.model_source import ModelSpec, ResolvedModel, resolve
from atoms.activations.site_reader import site_widths
from atoms.activations.spec import STORAGE
from atoms.activations.tokenised import Selection
from atoms.errors import AtomsError

PLACE = ("accelerator", "devices", "num_nodes", "strategy")
"""Trainer settings that say where to run; no other may change what is harvested."""


@dataclass
class HarvestSpec:
    """Run a language model over a corpus and keep what its sites show, one row per chosen token.

    Special tokens are run as the model expects them, and padding is masked; neither leaves a row by default.
    """

    model: ModelSpec
    """The language model."""
    corpus: Corpus
    """The text."""
    sites: list[str]
    """Places in the model: ``resid_post.3`` (after block 3, counted from 0), ``mlp_out.3``, or any module's path;
    ``atoms sites`` lists them."""
    root: str = "activations"
    """Directory, or URL of a prefix, under which stores are kept."""
    context: int = 128
    """Longest sequence in tokens, special tokens not counted."""
    tokens: Selection = "all"
    """Tokens of a document that leave a row: all, the last, or the last or first of its subject. A document too long
    for the context is then cut to the part that ends with that token."""
    special: Literal["drop", "bos", "all"] = "drop"
    """Special tokens that leave rows: none; bos, those in front of every sequence; or all, role markers too."""
    packing: bool = False
    """Fill sequences with several documents of a split, an end-of-text token between them. Causal models only."""
    max_tokens: int | None = None
    """Read no further document of the corpus once this many tokens were read; null reads all."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Type rows are stored in; auto is the type the model computes in."""
    val: float = 0.1
    """Share of tokens held out for validation, by groups of near-duplicate documents."""
    test: float = 0.1
    """Share of tokens held out for test."""
    seed: int = 0
    """Seed of splits and of the order of rows."""
    memory_mib: int = 512
    """Memory of one block of rows per rank, in MiB: the window in which rows are shuffled when written."""
    batch_tokens: int = 16384
    """Tokens of one forward pass, padding included."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Trainer settings that differ from the fit's: accelerator, devices, strategy, num_nodes."""

    def __post_init__(self) -> None:
        """Check what cannot work."""
        if not self.sites:
            raise AtomsError("data.harvest.sites is empty: name at least one place, for example resid_post.3")
        if len(set(self.sites)) < len(self.sites):
            raise AtomsError(f"data.harvest.sites names a place twice: {', '.join(self.sites)}")
        for name in ("context", "batch_tokens", "memory_mib"):
            if getattr(self, name) < 1:
                raise AtomsError(f"data.harvest.{name} is {getattr(self, name)}: give at least 1")
        if self.dtype not in ("auto", *STORAGE):
            raise AtomsError(f"data.harvest.dtype is {self.dtype}: give auto or one of {', '.join(STORAGE)}")
        if self.tokens not in get_args(Selection):
            raise AtomsError(f"data.harvest.tokens is {self.tokens}: give one of {', '.join(get_args(Selection))}")
        if self.special not in ("drop", "bos", "all"):
            raise AtomsError(f"data.harvest.special is {self.special}: give drop, bos or all")
        if self.tokens != "all" and (self.packing or self.special != "drop"):
            other = "packing=True" if self.packing else f"special={self.special}"
            raise AtomsError(
                f"data.harvest.tokens={self.tokens} keeps one token of each document, and {other} needs all: "
                "set data.harvest.tokens to all, or leave the other out"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise AtomsError(
                f"data.harvest.max_tokens is {self.max_tokens}: give at least 1, or null for the whole corpus"
            )
        if unknown := sorted(self.trainer.keys() - set(PLACE)):
            raise AtomsError(f"data.harvest.trainer sets {', '.join(unknown)}: it may only set {', '.join(PLACE)}")
        if not (0 < self.val < 1 and 0 < self.test < 1 and self.val + self.test < 1):
            raise AtomsError(
                f"data.harvest.val={self.val} and test={self.test}: give shares above 0 that leave some for training"
            )

    # ------------------------------------------------------------------------------------------ who it is

    @cached_property
    def resolved(self) -> ResolvedModel:
        """The model, found and checked."""
        return resolve(self.model)

    @property
    def compute_dtype(self) -> str:
        """Type the model computes in."""
        if self.resolved.dtype != "auto":
            return self.resolved.dtype
        declared = self.resolved.config.dtype
        return str(declared).removeprefix("torch.") if isinstance(declared, torch.dtype) else "float32"

    @property
    def storage(self) -> str:
        """Type rows are stored in."""
        if self.dtype != "auto":
            return self.dtype
        return self.compute_dtype if self.compute_dtype in STORAGE else "float32"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything the rows' values depend on; two harvests with equal identities have equal rows."""
        return {
            "kind": "harvest",
            "model": self.resolved.identity,
            "model_name": self.model.name,
            "compute_dtype": self.compute_dtype,
            "corpus": self.corpus.digest(),
            "corpus_settings": self.corpus.describe(),
            "sites": self.sites,
            "context": self.context,
            "tokens": self.tokens,
            "special": self.special,
            "packing": self.packing,
            "max_tokens": self.max_tokens,
            "dtype": self.storage,
            "shares": {"val": self.val, "test": self.test},
            "shingle": SHINGLE,
            "seed": self.seed,
        }

    def directory(self) -> Location:
        """Where the store is kept: a name that carries the identity's digest."""
        name = "".join(c if c.isalnum() or c in "-_" else "-" for c in self.model.name.removeprefix("package:"))
        return locate(self.root) / f"{name.strip('-')[-80:]}-{digest_of(self.identity)[:12]}"

    def widths(self) -> dict[str, int]:
        """Width of every site, from a model without weights."""
        return site_widths(meta_model(self.resolved.config), self.sites)
