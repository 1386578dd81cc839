"""Blocks of text: nothing lost, nothing twice, nothing learnt that is asked."""

import numpy as np
import pytest
import torch
from tiny_models import write_llama
from transformers import AutoTokenizer

from atoms.activations import TextFiles
from atoms.activations.tokenised import tokenise
from atoms.errors import AtomsError
from atoms.tuning.text import IGNORED, GeneralText, TaskText, general_split, pack, read_text


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
