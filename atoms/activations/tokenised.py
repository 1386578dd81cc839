"""From a corpus and a tokenizer to token ids, and which of them are to leave a row."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from atoms.activations.corpus import Corpus, Document, Message
from atoms.activations.language_model import SpecialTokens, special_tokens
from atoms.errors import AtomsError

Selection = Literal["all", "last", "subject_last", "subject_first"]
"""Which tokens of a document leave a row."""

_DOCUMENTS_AT_ONCE = 1000
_NOWHERE = -1


@dataclass(frozen=True)
class Tokenised:
    """A corpus as the model reads it."""

    ids: Sequence[NDArray[np.int32]]
    """Token ids of every document, without the special tokens around a sequence."""
    keep: Sequence[NDArray[np.bool_]] | None
    """Which of them leave a row; None if all do."""
    compared: Sequence[NDArray[np.int32]]
    """What near-duplicates are told by: the words, without what a chat template says around them."""
    together: NDArray[np.int64]
    """Key of each document, shape (documents,); documents of equal key are held out together."""
    special: SpecialTokens
    """What the model is given around a sequence."""
    notes: tuple[str, ...]
    """What the user should be told."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows that each document's own tokens leave, shape (documents,)."""
        counted = map(len, self.ids) if self.keep is None else map(np.count_nonzero, self.keep)
        return np.fromiter(counted, np.int64, len(self.ids))

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents."""
        return sum(map(len, self.ids))


class _Read(NamedTuple):
    """What the tokenizer makes of one document."""

    ids: NDArray[np.int32]
    special: NDArray[np.bool_] | None
    """Which ids are special tokens; None if none is."""
    compared: NDArray[np.int32]
    subject: tuple[int, int]
    """First and last token of the subject, or twice ``_NOWHERE``."""


def tokenise(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: Selection = "all",
    keep_special: bool = False,
    max_tokens: int | None = None,
    vocabulary: int | None = None,
) -> Tokenised:
    """Read a whole corpus.

    Text is tokenised without special tokens; those that it spells are taken out, since their rows would be special
    tokens' all the same. Conversations are rendered with the tokenizer's chat template; they and token ids are run as
    they are, and the special tokens inside them leave no row unless ``keep_special``. Special tokens around a sequence
    are those of the tokenizer for text; for conversations and ids, those with which every one of them begins and ends.

    Args:
        corpus: What to read.
        tokenizer: The model's tokenizer.
        tokens: Which tokens leave a row: all, the last of each document, or the last or first of its subject.
        keep_special: Whether special tokens inside conversations and ids leave rows.
        max_tokens: Read no further document once this many tokens were read.
        vocabulary: Number of the model's embeddings; ids must lie below it and below the tokenizer's size.

    Raises:
        AtomsError: If the corpus cannot be read, or not with this tokenizer, or holds nothing to keep.
    """
    reader = _Reader(tokenizer, tokens, vocabulary)
    read: list[_Read] = []
    groups: list[str | None] = []
    notes: list[str] = []
    total = 0
    for document, one in reader.read(corpus.documents()):
        read.append(one)
        groups.append(document.group)
        total += len(one.ids)
        if max_tokens is not None and total >= max_tokens:
            notes.append(
                f"reading stopped after {len(read):,} documents with {total:,} tokens (data.harvest.max_tokens is "
                f"{max_tokens:,})"
            )
            break
    read, special = reader.unwrap(read)
    keep, left_out = _select(read, tokens, keep_special, type(corpus).__name__)
    if not any(len(one.ids) for one in read) or (keep is not None and not any(mask.any() for mask in keep)):
        raise AtomsError(
            f"data.harvest.corpus: the tokenizer of {tokenizer.name_or_path} makes no tokens of these {len(read)} "
            "texts but special ones: check the text"
        )
    return Tokenised(
        ids=[one.ids for one in read],
        keep=keep,
        compared=[one.compared for one in read],
        together=_keys(groups),
        special=special,
        notes=(*notes, *left_out),
    )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int32]:
    """Ids that stand for no text, ascending.

    They are the tokenizer's named special tokens and those it was given beside them, such as role markers of a chat.
    The unknown token does stand for text, unless it plays another part too, as in GPT-2.
    """
    roles = tokenizer.special_tokens_map
    unknown = roles.get("unk_token")
    parts = [token for role, token in roles.items() if role != "unk_token"]
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    names = [token for token in {*tokenizer.all_special_tokens, *added} if token != unknown or token in parts]
    return np.unique(np.array(tokenizer.convert_tokens_to_ids(names), np.int32))


class _Reader:
    """Turns documents into ids; all documents of a corpus are of one kind."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: Selection, vocabulary: int | None) -> None:
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.special_ids = special_ids(tokenizer)
        self.around = special_tokens(tokenizer)
        known = max(tokenizer.get_vocab().values()) + 1
        self.vocabulary = known if vocabulary is None else min(known, vocabulary)
        self.kind = "text"

    def read(self, documents: Iterator[Document]) -> Iterator[tuple[Document, _Read]]:
        """Yield every document with what the tokenizer makes of it."""
        first = True
        while batch := list(islice(documents, _DOCUMENTS_AT_ONCE)):
            kinds = [_kind(document) for document in batch]
            if first:
                self.kind, first = kinds[0], False
            for document, kind in zip(batch, kinds, strict=True):
                if kind != self.kind:
                    raise AtomsError(
                        f"data.harvest.corpus: {document.name} holds {kind} and those before {self.kind}; "
                        "keep one kind in a corpus"
                    )
            if self.tokens.startswith("subject") and self.kind != "text":
                raise AtomsError(
                    f"data.harvest.tokens={self.tokens} needs text with a subject, and this corpus holds {self.kind}; "
                    "use all or last"
                )
            of_kind = {"text": self._texts, "conversations": self._conversations, "token ids": self._ids}[self.kind]
            yield from zip(batch, of_kind(batch), strict=True)

    def unwrap(self, read: list[_Read]) -> tuple[list[_Read], SpecialTokens]:
        """Take the special tokens off that stand around every document; a sequence gets them back when it is run."""
        if self.kind == "text":
            return read, self.around
        front, back = np.array(self.around.prefix, np.int32), np.array(self.around.suffix, np.int32)
        least = len(front) + len(back)
        whole = [one.ids for one in read if len(one.ids)]
        if not all(len(ids) >= least and np.array_equal(ids[: len(front)], front) for ids in whole):
            front = front[:0]
        if not all(len(ids) >= least and np.array_equal(ids[len(ids) - len(back) :], back) for ids in whole):
            back = back[:0]

        def inner(values: NDArray[Any]) -> NDArray[Any]:
            return values[len(front) : max(len(values) - len(back), 0)]

        taken = [
            one._replace(ids=inner(one.ids), special=None if one.special is None else inner(one.special))
            for one in read
        ]
        return taken, SpecialTokens(tuple(front.tolist()), tuple(back.tolist()))

    def _texts(self, batch: list[Document]) -> Iterator[_Read]:
        subjects = self.tokens.startswith("subject")
        if subjects and not self.tokenizer.is_fast:
            raise AtomsError(
                f"data.harvest.tokens={self.tokens} needs to know which characters a token covers, which "
                f"{type(self.tokenizer).__name__} does not tell; use a model with a fast tokenizer (tokenizer.json)"
            )
        # verbose=False: documents longer than the model's context are cut later, so the warning does not apply
        encoded = self.tokenizer(
            [document.text for document in batch],
            add_special_tokens=False, truncation=False, verbose=False, return_offsets_mapping=subjects,
        )  # fmt: skip
        for number, document in enumerate(batch):
            ids = np.array(encoded["input_ids"][number], np.int32)
            own = ~np.isin(ids, self.special_ids)
            subject = (_NOWHERE, _NOWHERE)
            if subjects and document.subject is not None:
                subject = self._span(document, ids, own, np.array(encoded["offset_mapping"][number]).reshape(-1, 2))
            text = ids[own]
            yield _Read(text, None, text, subject)

    def _span(
        self, document: Document, ids: NDArray[np.int32], own: NDArray[np.bool_], offsets: NDArray[np.int64]
    ) -> tuple[int, int]:
        """First and last token, special ones not counted, that share a character with the subject."""
        assert document.subject is not None
        begin, end = document.subject
        inside = own & (offsets[:, 0] < end) & (offsets[:, 1] > begin) & (offsets[:, 0] < offsets[:, 1])
        places = np.flatnonzero(inside)
        # A token that is nothing but the mark of a word's beginning may lay claim to the word's first character.
        marks = [not name.strip("\u2581\u0120 ") for name in self.tokenizer.convert_ids_to_tokens(ids[places].tolist())]
        places = places[~np.array(marks, bool)]
        if not len(places):
            return _NOWHERE, _NOWHERE
        counted = np.cumsum(own) - 1
        return int(counted[places[0]]), int(counted[places[-1]])

    def _conversations(self, batch: list[Document]) -> Iterator[_Read]:
        if not self.tokenizer.chat_template:
            raise AtomsError(
                f"data.harvest.corpus holds conversations, and the tokenizer of {self.tokenizer.name_or_path} has no "
                "chat template; use the model's instruction-tuned version, or a column of text"
            )
        rendered = [self._render(document) for document in batch]
        spoken = ["\n".join(_words(document.messages or ())) for document in batch]
        whole = self.tokenizer(rendered, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        words = self.tokenizer(spoken, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        for ids, compared in zip(whole, words, strict=True):
            array = np.array(ids, np.int32)
            special = np.isin(array, self.special_ids)
            said = np.array(compared, np.int32) if compared else array[~special]
            yield _Read(array, special, said, (_NOWHERE, _NOWHERE))

    def _render(self, document: Document) -> str:
        from jinja2 import TemplateError  # transformers asks for it only where there are templates

        try:
            text = self.tokenizer.apply_chat_template(list(document.messages or ()), tokenize=False)
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise AtomsError(
                f"data.harvest.corpus: {document.name} does not fit the chat template of "
                f"{self.tokenizer.name_or_path} ({reason}); mend its messages"
            ) from error
        assert isinstance(text, str)
        return text

    def _ids(self, batch: list[Document]) -> Iterator[_Read]:
        for document in batch:
            ids = document.ids
            assert ids is not None
            outside = ids[(ids < 0) | (ids >= self.vocabulary)]
            if len(outside):
                raise AtomsError(
                    f"data.harvest.corpus: {document.name} holds token id {outside[0]}, and the vocabulary of "
                    f"{self.tokenizer.name_or_path} has {self.vocabulary:,}; tokenise with this model's tokenizer"
                )
            ids = self._without_padding(ids)
            special = np.isin(ids, self.special_ids)
            yield _Read(ids, special, ids[~special], (_NOWHERE, _NOWHERE))

    def _without_padding(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Take padding off both ends, unless the padding id has another meaning there."""
        pad = self.tokenizer.pad_token_id
        if pad is None:
            return ids
        content = np.flatnonzero(ids != pad)
        first, stop = (int(content[0]), int(content[-1]) + 1) if len(content) else (0, 0)
        begins = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.cls_token_id}
        ends = {self.tokenizer.eos_token_id, self.tokenizer.sep_token_id}
        return ids[0 if pad in begins else first : len(ids) if pad in ends else stop]


def _kind(document: Document) -> str:
    if document.ids is not None:
        return "token ids"
    return "text" if document.messages is None else "conversations"


def _words(messages: Iterable[Message]) -> Iterator[str]:
    """What is said in a conversation; instructions that all of them share would make them one group."""
    for message in messages:
        if message.get("role") not in ("system", "developer"):
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            yield from (part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _select(
    read: list[_Read], tokens: Selection, keep_special: bool, corpus: str
) -> tuple[list[NDArray[np.bool_]] | None, list[str]]:
    """Masks of the tokens that leave a row, and what to say about documents that have none."""
    if tokens in ("all", "last"):
        if tokens == "all" and (keep_special or all(one.special is None or not one.special.any() for one in read)):
            return None, []
        masks = [np.ones(len(one.ids), bool) if keep_special or one.special is None else ~one.special for one in read]
        if tokens == "all":
            return masks, []
        ends = [int(np.flatnonzero(mask)[-1]) if mask.any() else _NOWHERE for mask in masks]
        return [_only(one, end) for one, end in zip(read, ends, strict=True)], []
    chosen = [one.subject[-1 if tokens == "subject_last" else 0] for one in read]
    lacking = chosen.count(_NOWHERE)
    if lacking == len(chosen):
        raise AtomsError(
            f"data.harvest.tokens={tokens} needs documents with a subject, and {corpus} gives none; use CounterFact, "
            "or data.harvest.tokens=last"
        )
    said = [f"{lacking:,} of {len(chosen):,} documents do not hold their subject and leave no row"] if lacking else []
    return [_only(one, place) for one, place in zip(read, chosen, strict=True)], said


def _only(one: _Read, place: int) -> NDArray[np.bool_]:
    """A mask of one token, or of none."""
    mask = np.zeros(len(one.ids), bool)
    if place != _NOWHERE:
        mask[place] = True
    return mask


def _keys(groups: list[str | None]) -> NDArray[np.int64]:
    """A number for each key; a document without one has its own."""
    numbers: dict[str, int] = {}
    keys = (index if key is None else numbers.setdefault(key, index) for index, key in enumerate(groups))
    return np.fromiter(keys, np.int64, len(groups))
