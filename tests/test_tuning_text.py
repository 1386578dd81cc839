"""Blocks of text: nothing lost, nothing twice, nothing learnt that is asked."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import write_gpt2, write_llama
from transformers import AutoTokenizer

from atoms.activations import Corpus, Document, TextFiles
from atoms.activations.language_model import SpecialTokens
from atoms.activations.tokenised import Tokenised, tokenise
from atoms.errors import AtomsError
from atoms.tuning.text import IGNORED, GeneralText, TaskText, general_split, pack, read_text

laws = settings(deadline=None, max_examples=60)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(write_llama(tmp_path_factory.mktemp("llama")))


def folder(path, documents):
    path.mkdir()
    for number, words in enumerate(documents):
        (path / f"{number:03}.txt").write_text(" ".join(f"w{word}" for word in words))
    return TextFiles([str(path)])


def documents(seed, count, length=40):
    return np.random.default_rng(seed).integers(0, 200, (count, length))


def read(task, general, tokenizer, **settings):
    chosen = {"vocabulary": None, "context": 16, "seed": 0, **settings}
    return read_text(task, general, tokenizer, **chosen)


def test_blocks_hold_every_token_in_order_and_pad_the_last(tmp_path, tokenizer):
    corpus = folder(tmp_path / "a", [[1, 2, 3], [4, 5], [6]])
    text = tokenise(corpus, tokenizer)
    blocks = pack(text, np.array([2, 0, 1]), 0, 5)
    bos, word = 1, lambda n: n + 4  # [PAD] [BOS] [UNK] the w0 ...
    flat = [bos, word(6), 0, bos, word(1), word(2), word(3), 0, bos, word(4), word(5), 0]
    assert blocks.labels.flatten().tolist() == flat + [IGNORED] * 3
    assert blocks.ids.flatten().tolist() == flat + [0] * 3
    assert (blocks.tokens, len(blocks), len(blocks.full)) == (12, 3, 2)


def test_a_sample_is_spread_and_never_empty(tmp_path, tokenizer):
    blocks = pack(tokenise(folder(tmp_path / "a", documents(0, 10)), tokenizer), np.arange(10), 0, 8)
    few = blocks.take(5 * 8)
    assert len(few) == 5
    assert torch.equal(few.ids[0], blocks.ids[0])
    assert torch.equal(few.ids[3], blocks.ids[3 * len(blocks) // 5])
    assert len(blocks.take(1)) == 1
    assert len(blocks.take(10**9)) == len(blocks)


def test_no_document_is_in_two_splits(tmp_path, tokenizer):
    """Every document begins with a word of its own, found in one split alone."""
    marked = documents(1, 40) % 100
    marked[:, 0] = 100 + np.arange(40)
    corpus = folder(tmp_path / "task", marked)
    found = read(TaskText(corpus, val=0.2, test=0.2), GeneralText(folder(tmp_path / "g", documents(2, 5))), tokenizer)
    where = {
        name: {token for token in getattr(found, name).ids.flatten().tolist() if token >= 104}
        for name in ("train", "val", "test")
    }
    assert all(where.values())
    assert where["train"].isdisjoint(where["val"] | where["test"])
    assert where["val"].isdisjoint(where["test"])
    # a padded block of the training text is not learnt from, and its tokens are missing
    assert 38 <= len(set.union(*where.values())) <= 40


def test_near_duplicates_are_held_out_together(tmp_path, tokenizer):
    twins = documents(3, 20)
    corpus = folder(tmp_path / "task", [*twins, *(np.append(row, 7) for row in twins)])
    found = read(TaskText(corpus, val=0.25, test=0.25), GeneralText(folder(tmp_path / "g", documents(4, 5))), tokenizer)
    runs = {}
    for name in ("train", "val", "test"):
        ids = getattr(found, name).ids.flatten().tolist()
        runs[name] = {tuple(ids[at : at + 6]) for at in range(len(ids) - 5) if not {0, 1} & set(ids[at : at + 6])}
    assert runs["train"].isdisjoint(runs["val"] | runs["test"])
    assert runs["val"].isdisjoint(runs["test"])


def test_general_documents_that_are_task_documents_are_left_out(tmp_path, tokenizer):
    task, own = documents(5, 20), documents(6, 3)
    general = folder(tmp_path / "general", [*task[:4], *own])
    found = read(TaskText(folder(tmp_path / "task", task)), GeneralText(general), tokenizer)
    assert found.general.tokens == 3 * 41  # a token before each; this tokenizer has none for its end
    assert "4 general documents are near-duplicates of task documents and left out" in found.notes


def test_general_text_that_is_all_task_text_is_refused(tmp_path, tokenizer):
    task = documents(5, 20)
    with pytest.raises(AtomsError, match=r"general.corpus: every document is a near-duplicate of a task document"):
        read(TaskText(folder(tmp_path / "t", task)), GeneralText(folder(tmp_path / "g", task[:4])), tokenizer)


def test_what_is_asked_of_general_text_was_in_no_training(tmp_path, tokenizer):
    text = tokenise(folder(tmp_path / "g", documents(7, 30)), tokenizer)
    dealt = general_split(text, 0.2, 3)
    assert sorted([*dealt["train"], *dealt["held_out"]]) == list(range(30))
    assert len(dealt["held_out"]) == 6
    assert dealt["held_out"].tolist() == general_split(text, 0.2, 3)["held_out"].tolist()
    assert len(general_split(text, 1.0, 3)["held_out"]) == 30
    found = read(
        TaskText(folder(tmp_path / "t", documents(8, 20))),
        GeneralText(TextFiles([str(tmp_path / "g")]), share=0.2),
        tokenizer,
        seed=3,
    )
    asked = np.concatenate([text.ids[i] for i in dealt["held_out"]])
    assert sorted(token for token in found.general.ids.flatten().tolist() if token > 1) == sorted(asked.tolist())


@pytest.mark.parametrize(
    ("task", "general", "context", "said"),
    [
        ({"val": 0.6, "test": 0.5}, {}, 16, "task.val is 0.6 and task.test 0.5: give shares above 0"),
        ({"val": 0.0}, {}, 16, "task.val is 0.0 and task.test 0.15"),
        ({}, {"share": 0.0}, 16, "general.share is 0.0: give a number above 0 and at most 1"),
        ({}, {"share": 1.5}, 16, "general.share is 1.5"),
        ({}, {}, 10**6, "context is 1000000, and the task's training text fills not one block"),
    ],
)
def test_settings_that_leave_nothing(tmp_path, tokenizer, task, general, context, said):
    corpus, other = folder(tmp_path / "t", documents(9, 12)), folder(tmp_path / "g", documents(10, 12))
    with pytest.raises(AtomsError, match=said):
        read(TaskText(corpus, **task), GeneralText(other, **general), tokenizer, context=context)


def test_errors_of_corpora_name_the_settings_of_this_command(tmp_path, tokenizer):
    there = folder(tmp_path / "there", documents(11, 12))
    with pytest.raises(AtomsError, match=r"^task\.corpus\.paths: no \.txt file matches"):
        read(TaskText(TextFiles(["nowhere"])), GeneralText(there), tokenizer)
    with pytest.raises(AtomsError, match=r"^general\.corpus\.paths: no \.txt file matches"):
        read(TaskText(there), GeneralText(TextFiles(["nowhere"])), tokenizer)


def test_shares_are_looked_at_before_any_text_is(tokenizer):
    for task, general in (({"val": 0.9, "test": 0.1}, {}), ({"val": -0.1}, {}), ({}, {"share": -1.0})):
        with pytest.raises(AtomsError, match=r"^(task\.val|general\.share) is "):
            read(TaskText(TextFiles(["nowhere"]), **task), GeneralText(TextFiles(["nowhere"]), **general), tokenizer)


def test_notes_of_corpora_name_the_settings_of_this_command(tmp_path, tokenizer):
    task, general = folder(tmp_path / "t", documents(12, 30)), folder(tmp_path / "g", documents(13, 12))
    found = read(TaskText(task, max_tokens=700), GeneralText(general, max_tokens=90), tokenizer)
    assert found.notes[:2] == (
        "reading stopped after 18 documents with 720 tokens (task.max_tokens is 700)",
        "reading stopped after 3 documents with 120 tokens (general.max_tokens is 90)",
    )
    assert found.general.tokens == 3 * 41
    with pytest.raises(AtomsError, match=r"^general\.corpus: split 'held_out' .* or change general\.share$"):
        read(TaskText(task), GeneralText(general, share=0.001), tokenizer)
    with pytest.raises(AtomsError, match=r"^task\.corpus: split 'val' .* or change task\.val and task\.test$"):
        read(TaskText(task, max_tokens=1), GeneralText(general), tokenizer)


def test_a_tokenizer_that_cannot_be_used_is_the_models(tmp_path, tokenizer, monkeypatch):
    corpus = folder(tmp_path / "t", documents(14, 12))

    def confused(tokenizer):
        raise AtomsError("data.harvest.model.name: cannot tell the special tokens")

    monkeypatch.setattr("atoms.activations.tokenised.special_tokens", confused)
    with pytest.raises(AtomsError, match=r"^model\.name: cannot tell the special tokens$"):
        read(TaskText(corpus), GeneralText(corpus), tokenizer)


@pytest.mark.parametrize("short", ["val", "general"])
def test_a_text_of_one_token_tells_no_loss(short, tmp_path, tokenizer):
    """Where the tokenizer puts nothing around a text, a document may be a single token."""
    bare = AutoTokenizer.from_pretrained(write_gpt2(tmp_path))
    many = folder(tmp_path / "many", documents(15, 12))
    lone = folder(tmp_path / "lone", [*documents(16, 2, 90), [199]])
    one = folder(tmp_path / "one", [[7]])
    task, general = (TaskText(lone, val=0.01, test=0.49), many) if short == "val" else (TaskText(many), one)
    said = {"val": "task.val", "general": "general.corpus"}[short]
    with pytest.raises(AtomsError, match=rf"^{said} leaves a single token, which tells no loss: give more text$"):
        read(task, GeneralText(general), bare)


@pytest.mark.parametrize(
    ("around", "end", "expected"),
    [
        (((), ()), None, [7, 8, 9]),
        (((), ()), 3, [7, 8, 3, 9, 3]),
        (((1,), ()), 3, [1, 7, 8, 3, 1, 9, 3]),
        (((1,), (2,)), 3, [1, 7, 8, 2, 1, 9, 2]),
        (((1, 4), (2, 5)), None, [1, 4, 7, 8, 2, 5, 1, 4, 9, 2, 5]),
    ],
)
def test_documents_stand_between_the_tokenizers_own_tokens(around, end, expected):
    ids = [np.array([7, 8], np.int32), np.array([9], np.int32)]
    text = Tokenised(ids, None, ids, np.arange(2), SpecialTokens(*around), ())
    blocks = pack(text, np.array([0, 1]), end, len(expected))
    assert blocks.ids.tolist() == blocks.labels.tolist() == [expected]
    assert blocks.targets == len(expected) - 1
    wide = pack(text, np.array([0, 1]), end, len(expected) + 4)
    assert wide.labels.tolist() == [expected + [IGNORED] * 4]
    assert (wide.tokens, wide.targets, len(wide.full)) == (len(expected), len(expected) - 1, 0)


@laws
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(2, 9), st.integers(0, 3))
def test_no_token_is_lost_and_none_comes_twice(lengths, context, seed):
    """Whatever the lengths, the blocks read one after the other are the documents in the order asked for."""
    starts = np.cumsum([100, *lengths])
    ids = [np.arange(start, start + length, dtype=np.int32) for start, length in zip(starts, lengths, strict=False)]
    order = np.random.default_rng(seed).permutation(len(ids))
    blocks = pack(Tokenised(ids, None, ids, np.arange(len(ids)), SpecialTokens((1,), ()), ()), order, 2, context)
    expected = [token for place in order for token in (1, *ids[place], 2)]
    flat = blocks.labels.flatten()
    assert flat[: len(expected)].tolist() == expected
    assert (flat[len(expected) :] == IGNORED).all()
    assert flat.numel() - len(expected) < context
    assert blocks.tokens == len(expected)
    assert blocks.targets == len(expected) - -(-len(expected) // context)
    taken = blocks.take(3 * context)
    assert 1 <= len(taken) <= 3
    assert all(any(torch.equal(row, other) for other in blocks.ids) for row in taken.ids)


def test_another_seed_deals_and_orders_otherwise(tmp_path, tokenizer):
    task, general = folder(tmp_path / "t", documents(17, 30)), folder(tmp_path / "g", documents(18, 12))
    first, again, other = (
        read(TaskText(task), GeneralText(general, share=0.5), tokenizer, seed=seed) for seed in (0, 0, 1)
    )
    for name in ("train", "val", "test", "general"):
        assert torch.equal(getattr(first, name).ids, getattr(again, name).ids)
        assert sorted(getattr(first, name).ids.flatten()) != sorted(getattr(other, name).ids.flatten())


def test_what_belongs_together_is_dealt_together(tokenizer):
    """Documents of one key are in one split, and general ones of a key are not those of the task."""

    class Keyed(Corpus):
        def __init__(self, seed, keys):
            self.rows, self.keys = documents(seed, len(keys)), keys

        def documents(self):
            for row, key in zip(self.rows, self.keys, strict=True):
                yield Document(str(key), " ".join(f"w{word}" for word in row), group=key)

        def settings(self):
            return {}

    task, general = Keyed(19, [str(place % 10) for place in range(40)]), Keyed(20, ["0", "1", None])
    found = read(TaskText(task, val=0.3, test=0.3), GeneralText(general), tokenizer)
    assert not any("near-duplicates" in note for note in found.notes)  # keys of two corpora have nothing to do
    where = {}
    for name in ("val", "test"):
        ids = getattr(found, name).ids.flatten().tolist()
        for row, key in zip(task.rows.tolist(), task.keys, strict=True):
            inner = [word + 4 for word in row[10:16]]
            if any(ids[at : at + 6] == inner for at in range(len(ids))):
                where.setdefault(key, []).append(name)
    assert where
    assert all(len(names) == 4 and len(set(names)) == 1 for names in where.values())
