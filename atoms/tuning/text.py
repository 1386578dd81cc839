"""Task text to learn from and to be judged on, and general text to be forgotten, as blocks of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from atoms.activations.corpus import Corpus
from atoms.activations.grouping import near_duplicate_groups
from atoms.activations.text import Splits, assign_splits, document_order
from atoms.activations.tokenised import Tokenised, tokenise
from atoms.errors import AtomsError

IGNORED = -100
"""Label of a token that is no target, as transformers has it."""


@dataclass(frozen=True)
class TaskText:
    """What is learnt."""

    corpus: Corpus
    """Documents of the task."""
    max_tokens: int | None = None
    """Read no further document once this many tokens were read."""
    val: float = 0.15
    """Share of the tokens, by whole documents, on which learning rates are chosen."""
    test: float = 0.15
    """Share on which what is reported was measured."""


@dataclass(frozen=True)
class GeneralText:
    """What may be forgotten: text like that the model was trained on, and itself unseen where that can be known."""

    corpus: Corpus
    """Documents."""
    max_tokens: int | None = None
    """Read no further document once this many tokens were read."""
    share: float = 1.0
    """Share of the tokens, by whole documents, that is asked. What is left is never read here, so that a model may be
    trained on it: `general_split` deals in the same way for whoever trains one."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Sequences of one length.

    Attributes:
        ids: (N, context) int64.
        labels: The same, with `IGNORED` where there is padding.
    """

    ids: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.ids)

    def take(self, most: int) -> Blocks:
        """As many sequences as hold at most so many tokens, evenly spread, and at least one.

        Args:
            most: Tokens.
        """
        count = min(len(self), max(1, most // self.ids.shape[1]))
        places = torch.arange(count) * len(self) // count
        return Blocks(self.ids[places], self.labels[places])

    @property
    def full(self) -> Blocks:
        """Without a padded one."""
        whole = (self.labels != IGNORED).all(1)
        return Blocks(self.ids[whole], self.labels[whole])

    @property
    def tokens(self) -> int:
        """Tokens that are no padding."""
        return int((self.labels != IGNORED).sum())

    @property
    def targets(self) -> int:
        """Tokens that are predicted: all but the first of each sequence."""
        return int((self.labels[:, 1:] != IGNORED).sum())


@dataclass(frozen=True, eq=False)
class Text:
    """All blocks of an experiment.

    Attributes:
        train: Task text to learn from.
        val: Task text to choose learning rates on.
        test: Task text to report on.
        general: General text.
        notes: What the user should be told.
    """

    train: Blocks
    val: Blocks
    test: Blocks
    general: Blocks
    notes: tuple[str, ...]


def read_text(
    task: TaskText,
    general: GeneralText,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int | None,
    context: int,
    seed: int,
) -> Text:
    """Tokenise both corpora, deal documents by groups of near-duplicates, and pack them.

    General documents that are near-duplicates of task documents are left out: to remember them is no memory of anything
    but the task.

    Args:
        task: Text of the task.
        general: General text.
        tokenizer: The model's.
        vocabulary: Number of the model's embeddings.
        context: Tokens of a block.
        seed: Of the deal and the order.

    Raises:
        AtomsError: If a corpus cannot be read or leaves a split without text.
    """
    shares = {"train": 1 - task.val - task.test, "val": task.val, "test": task.test}
    if not min(shares.values()) > 0:
        raise AtomsError(f"task.val is {task.val} and task.test {task.test}: give shares above 0 that leave some text")
    _require_share(general.share)
    learnt = _tokenised("task", task.corpus, tokenizer, task.max_tokens, vocabulary)
    known = _tokenised("general", general.corpus, tokenizer, general.max_tokens, vocabulary)
    asked = general_split(known, general.share, seed)["held_out"]

    count = len(learnt.ids)
    keys = np.concatenate([learnt.together, known.together[asked] + learnt.together.max(initial=0) + 1])
    both = near_duplicate_groups([*learnt.compared, *(known.compared[i] for i in asked.tolist())], together=keys)
    groups, tied = both[:count], np.isin(both[count:], both[:count])
    dealt = _dealt("task", groups, learnt.rows, shares, seed)
    kept = asked[~tied]
    if not len(kept):
        raise AtomsError("general.corpus: every document is a near-duplicate of a task document; name another corpus")
    notes = [
        *(_renamed(note, "task") for note in learnt.notes),
        *(_renamed(note, "general") for note in known.notes),
        *dealt.warnings,
    ]
    if tied.any():
        notes.append(f"{int(tied.sum()):,} general documents are near-duplicates of task documents and left out")

    def packed(text: Tokenised, documents: NDArray[np.int64]) -> Blocks:
        return pack(text, document_order(documents, seed), tokenizer.eos_token_id, context)

    splits = {name: packed(learnt, dealt.documents(name)) for name in shares}
    splits["train"] = splits["train"].full
    if not len(splits["train"]):
        raise AtomsError(f"context is {context}, and the task's training text fills not one block: set it lower")
    splits["general"] = packed(known, kept)
    for name, setting in (("val", "task.val"), ("test", "task.test"), ("general", "general.corpus")):
        if not splits[name].targets:
            raise AtomsError(f"{setting} leaves a single token, which tells no loss: give more text")
    return Text(**splits, notes=tuple(notes))


def general_split(text: Tokenised, share: float, seed: int) -> dict[str, NDArray[np.int64]]:
    """Deal general text into what a model may be trained on and what is held out.

    Args:
        text: The corpus, tokenised.
        share: Of the tokens that is held out; 1 for all.
        seed: Of the deal.

    Returns:
        Indices of documents, ascending, under ``train`` and ``held_out``.

    Raises:
        AtomsError: If ``share`` is none, or leaves nothing.
    """
    _require_share(share)
    if share == 1:
        return {"train": np.empty(0, np.int64), "held_out": np.arange(len(text.ids))}
    groups = near_duplicate_groups(text.compared, together=text.together)
    dealt = _dealt("general", groups, text.rows, {"train": 1 - share, "held_out": share}, seed)
    return {name: dealt.documents(name) for name in dealt.names}


def pack(text: Tokenised, documents: NDArray[np.int64], end: int | None, context: int) -> Blocks:
    """Documents one after the other, cut into blocks; the last one is padded.

    Args:
        text: The corpus, tokenised.
        documents: Which of its documents, in their order.
        end: Token that ends a document, where the tokenizer puts none there.
        context: Tokens of a block.
    """
    front, back = list(text.special.prefix), list(text.special.suffix)
    if not back and end is not None:
        back = [end]
    parts: list[Sequence[int] | NDArray[np.int32]] = []
    for document in documents.tolist():
        parts += [front, text.ids[document], back]
    flat = torch.from_numpy(np.concatenate([np.asarray(part, np.int64) for part in parts]))
    missing = -len(flat) % context
    labels = torch.cat([flat, flat.new_full((missing,), IGNORED)]).view(-1, context)
    return Blocks(labels.clamp_min(0), labels)


def _require_share(share: float) -> None:
    if not 0 < share <= 1:
        raise AtomsError(f"general.share is {share}: give a number above 0 and at most 1")


def _tokenised(
    setting: str,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int | None,
    vocabulary: int | None,
) -> Tokenised:
    try:
        return tokenise(corpus, tokenizer, max_tokens=max_tokens, vocabulary=vocabulary)
    except AtomsError as error:
        raise AtomsError(_renamed(str(error), setting)) from error


def _dealt(
    setting: str, groups: NDArray[np.int64], tokens: NDArray[np.int64], shares: dict[str, float], seed: int
) -> Splits:
    try:
        return assign_splits(groups, tokens, shares, seed)
    except AtomsError as error:
        raise AtomsError(_renamed(str(error), setting)) from error


def _renamed(said: str, setting: str) -> str:
    """What corpora say of the settings of a harvest, said of those of a task."""
    said = said.replace("data.harvest.val and data.harvest.test", "general.share") if setting == "general" else said
    return said.replace("data.harvest.model.", "model.").replace("data.harvest.", f"{setting}.")
