"""Near-duplicate groups against a brute-force reference."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.activations import grouping
from atoms.activations.grouping import near_duplicate_groups


def as_documents(lists):
    return [np.array(ids, dtype=np.int32) for ids in lists]


def brute_force(documents, shingle):
    """Partition of the documents by comparing every pair of windows."""

    def windows(tokens):
        if len(tokens) < shingle:
            return {("whole", *tokens)}
        return {tuple(tokens[i : i + shingle]) for i in range(len(tokens) - shingle + 1)}

    label = list(range(len(documents)))
    sets = [windows(tokens.tolist()) for tokens in documents]
    for i in range(len(documents)):
        for j in range(i):
            if sets[i] & sets[j]:
                old, new = label[i], label[j]
                label = [new if value == old else value for value in label]
    return label


def partition(ids):
    ids = list(ids)
    return {frozenset(i for i, other in enumerate(ids) if other == value) for value in ids}


small_corpora = st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=8).map(as_documents)


@settings(deadline=None, max_examples=150)
@given(small_corpora, st.integers(1, 7))
def test_equals_brute_force(documents, shingle):
    assert partition(near_duplicate_groups(documents, shingle=shingle)) == partition(brute_force(documents, shingle))


@settings(deadline=None, max_examples=50)
@given(small_corpora, st.integers(1, 7), st.integers(1, 20))
def test_does_not_depend_on_memory(documents, shingle, at_once):
    whole = near_duplicate_groups(documents, shingle=shingle)
    np.testing.assert_array_equal(near_duplicate_groups(documents, shingle=shingle, shingles_at_once=at_once), whole)


def test_does_not_depend_on_how_documents_are_chunked(monkeypatch):
    rng = np.random.default_rng(0)
    documents = as_documents([rng.integers(0, 3, size) for size in rng.integers(0, 40, 30)])
    whole = near_duplicate_groups(documents, shingle=9)
    monkeypatch.setattr(grouping, "_TOKENS_AT_ONCE", 16)
    np.testing.assert_array_equal(near_duplicate_groups(documents, shingle=9), whole)


@settings(deadline=None, max_examples=50)
@given(small_corpora, st.randoms(use_true_random=False))
def test_ids_follow_content_and_not_order(documents, random):
    order = list(range(len(documents)))
    random.shuffle(order)
    ids = near_duplicate_groups(documents, shingle=3)
    shuffled = near_duplicate_groups([documents[i] for i in order], shingle=3)
    np.testing.assert_array_equal(shuffled, ids[order])


@pytest.mark.parametrize("shingle", [1, 2, 3, 8, 15, 16, 17, 31, 32])
def test_exactly_the_shared_run_decides(shingle):
    rng = np.random.default_rng(shingle)
    run = rng.integers(0, 1000, shingle)
    left, right = rng.integers(1000, 2000, 50), rng.integers(2000, 3000, 50)
    sharing = as_documents([[*left, *run], [*run, *right]])
    one_short = as_documents([[*left, *run[1:]], [*run[1:], *right]])
    assert len(set(near_duplicate_groups(sharing, shingle=shingle))) == 1
    assert len(set(near_duplicate_groups(one_short, shingle=shingle))) == 2


def test_run_across_two_documents_is_no_run():
    documents = as_documents([[1, 2, 9, 9, 9], [3, 4, 8, 8, 8], [7, 7, 7, 1, 2], [3, 4, 6, 6, 6], [1, 2, 3, 4]])
    assert len(set(near_duplicate_groups(documents, shingle=4))) == 5


def test_chain_of_neighbours_is_one_group():
    line = np.arange(400)
    documents = as_documents([line[start : start + 40] for start in range(0, 360, 20)])
    assert len(set(near_duplicate_groups(documents, shingle=16))) == 1
    assert len(set(near_duplicate_groups(documents, shingle=21))) == len(documents)


def test_short_documents_are_compared_whole():
    documents = as_documents([[1, 2], [1, 2], [1, 2, 3], [2, 1], []])
    assert partition(near_duplicate_groups(documents, shingle=8)) == {
        frozenset({0, 1}), frozenset({2}), frozenset({3}), frozenset({4}),
    }  # fmt: skip


def test_every_order_of_tokens_is_told_apart():
    documents = as_documents(itertools.permutations(range(6)))
    assert len(set(near_duplicate_groups(documents, shingle=6))) == 720


def test_words_that_fool_polynomial_hashes():
    """A Thue-Morse word and its complement collide modulo 2^64 under any linear rolling hash."""
    word = np.array([i.bit_count() % 2 for i in range(4096)])
    assert len(set(near_duplicate_groups(as_documents([word, 1 - word]), shingle=4096))) == 2


def test_ids_are_the_same_everywhere():
    """A store names its splits by them, so a change of these numbers is a change of format."""
    ids = near_duplicate_groups(as_documents([[1, 2, 3], [4, 5, 6, 7]]), shingle=3)
    assert ids.tolist() == [5701193394889117291, 2727877799968391518]
    assert ids.dtype == np.int64


def test_no_documents():
    assert near_duplicate_groups([]).shape == (0,)


def test_rejects_empty_shingle():
    with pytest.raises(ValueError, match="shingle must be at least 1, got 0"):
        near_duplicate_groups(as_documents([[1]]), shingle=0)
