"""Labels of rows, and which rows serve which purpose: no row, group or stretch serves two."""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.checks.information.row_labels import DOCUMENTS, LEAST, POSITIONS, TOKENS, Purpose, Question, questions
from atoms.checks.row_sample import Sampled, lots

LENGTH, PER_DOCUMENT = 20, 60


@dataclass
class About:
    """What a split knows of its rows."""

    token_id: np.ndarray
    position: np.ndarray
    doc_id: np.ndarray
    group: np.ndarray | None = None

    def tokens(self):
        return {name: getattr(self, name) for name in ("token_id", "position", "doc_id")}

    def groups(self):
        return self.doc_id if self.group is None else self.group


def about(rows: int, first: int, kinds: int = 6, seed: int = 0) -> About:
    """Documents of three sequences of 20 tokens."""
    index = np.arange(rows)
    token = np.random.default_rng(seed).integers(0, kinds, rows)
    return About(100 + token, index % LENGTH, first + index // PER_DOCUMENT)


def sampled(index) -> Sampled:
    index = np.asarray(index)
    return Sampled(index, np.zeros((len(index), 2), np.float32), None)


def asked(train: About, held_out: About, seed: int = 0, step: int = 1) -> dict[str, Question]:
    """By name; of every so many rows of either split."""
    samples = [sampled(np.arange(0, len(split.position), step)) for split in (train, held_out)]
    found = list(questions(train, held_out, *samples, seed))  # type: ignore[arg-type]
    assert len({question.name for question in found}) == len(found)
    return {question.name: question for question in found}


def places(part: Purpose) -> np.ndarray:
    return part.sample.index[part.chosen]


@pytest.fixture(scope="module")
def known() -> dict[str, Question]:
    return asked(about(3000, 0), about(1500, 1000, seed=1), step=2)


# ------------------------------------------------------------------------------------------ purposes


def test_rows_serve_one_purpose_each(known):
    assert known.keys() == {"token", "position", "document"}
    for name, question in known.items():
        parts = (question.fit, question.select, question.score)
        for part in parts:
            assert len(np.unique(part.chosen)) == len(part.chosen) == len(part.labels)
            assert set(part.labels.tolist()) <= set(range(question.classes))
        if name == "document":
            for one, other in combinations(parts, 2):
                assert set(places(one)).isdisjoint(places(other))
                assert one.sample is other.sample
        else:
            assert question.fit.sample is question.select.sample
            assert set(places(question.fit)).isdisjoint(places(question.select))
            assert set(places(question.fit)) | set(places(question.select)) == set(range(0, 3000, 2))
            assert places(question.score).tolist() == list(range(0, 1500, 2))


@pytest.mark.parametrize("seed", range(3))
def test_rows_to_select_by_are_of_other_groups_and_a_quarter(seed):
    train = about(30_000, 0)
    train.group = train.doc_id // 2 + 7
    known = np.unique(train.group)
    lowest = known[np.argsort(lots(known, seed))][: math.ceil(len(known) / 4)]
    for name in ("token", "position"):
        question = asked(train, about(1500, 1000, seed=1), seed)[name]
        fit, select = (np.unique(train.group[places(part)]) for part in (question.fit, question.select))
        assert set(fit).isdisjoint(select)
        assert (len(select), len(select) + len(fit)) == (63, 250)
        assert set(select) == set(lowest)


@pytest.mark.parametrize(("groups", "aside"), [(2, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3), (40, 10)])
@pytest.mark.parametrize("seed", range(2))
def test_of_few_groups_some_are_set_aside_and_some_are_not(groups, aside, seed):
    train = about(groups * 50, 0)
    train.group = np.arange(groups * 50) % groups * 3 - 1  # one may stand for documents that are not known
    question = asked(train, about(1500, 1000, seed=1), seed)["position"]
    fit, select = (np.unique(train.group[places(part)]) for part in (question.fit, question.select))
    assert (len(select), len(fit)) == (aside, groups - aside)
    assert set(fit).isdisjoint(select)


@pytest.mark.parametrize("group", [-1, 0, 17])
@pytest.mark.parametrize("seed", range(2))
def test_of_one_group_a_quarter_of_the_rows_is_set_aside(group, seed):
    """Whether it is one document or documents that are not known; by the lots of rows, whichever are sampled."""
    train = about(3000, 0)
    train.group = np.full(3000, group)
    found = asked(train, about(1500, 1000, seed=1), seed, step=2)
    index = np.arange(0, 3000, 2)
    lowest = index[np.argsort(lots(index, seed))][:375]
    for name in ("token", "position"):
        assert found[name].sound
        assert places(found[name].select).tolist() == sorted(lowest)
        assert places(found[name].fit).tolist() == sorted({*index} - {*lowest})


def test_classes_that_are_groups_say_so(known):
    """There are no others to draw in their place."""
    assert {name: question.of_groups for name, question in known.items()} == {
        "token": False, "position": False, "document": True,
    }  # fmt: skip


def test_another_seed_sets_other_groups_aside():
    chosen = [asked(about(3000, 0), about(1500, 1000), seed)["token"].select.chosen.tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_document_is_fitted_chosen_and_scored_on_stretches_of_its_own(known):
    held_out = about(1500, 1000, seed=1)
    question = known["document"]
    assert question.classes == DOCUMENTS
    for number in range(DOCUMENTS):
        stretches, documents = [], set()
        for part in (question.fit, question.select, question.score):
            own = places(part)[part.labels == number]
            documents |= set(held_out.doc_id[own])
            stretches.append(set(held_out.position[own]))
        assert len(documents) == 1
        for one, other in combinations(stretches, 2):
            assert one.isdisjoint(other)  # no position of it serves two purposes
        fit, select, score = stretches
        assert max(fit) > min(score)  # and none has one end of it alone
        assert max(score) > min(fit)
        assert len(fit) >= len(select) > 0


def test_positions_of_rows_scored_lie_between_positions_fitted_to():
    """Of a single long document, all of whose positions differ: in turn, not an earlier and a later half."""
    held_out = about(1600, 0)
    held_out.position, held_out.doc_id = np.arange(1600) % 800, np.arange(1600) // 800
    question = asked(about(3000, 5000), held_out)["document"]
    assert question.classes == 2
    for number in range(2):
        own = [held_out.position[places(part)[part.labels == number]]
               for part in (question.fit, question.select, question.score)]  # fmt: skip
        assert [len(part) for part in own] == [300, 100, 400]
        assert abs(own[0].mean() - own[2].mean()) < 200  # halves would lie 400 apart


# ------------------------------------------------------------------------------------------ labels


def test_labels_are_those_of_the_rows(known):
    train, held_out = about(3000, 0), about(1500, 1000, seed=1)
    for about_rows, parts in ((train, ("fit", "select")), (held_out, ("score",))):
        for part in (getattr(known["token"], name) for name in parts):
            pairs = {*zip(about_rows.token_id[places(part)].tolist(), part.labels.tolist(), strict=True)}
            assert len(pairs) == 6  # a label a token
        for part in (getattr(known["position"], name) for name in parts):
            order = np.argsort(about_rows.position[places(part)], kind="stable")
            assert (np.diff(part.labels[order]) >= 0).all()
    assert known["token"].classes == 7  # and one for any other token
    assert known["token"].score.labels.max() == 5


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 60))
def test_tokens_are_the_most_frequent_of_training_rows(seed, kinds):
    generator = np.random.default_rng(seed)
    share = generator.dirichlet(np.full(kinds, 0.5))
    train, held_out = about(600, 0), about(600, 1000)
    for split in (train, held_out):
        split.token_id = generator.choice(kinds + 5, 600, p=[*share * 0.9, *[0.02] * 5])
    question = asked(train, held_out)["token"]
    frequency = np.bincount(train.token_id, minlength=kinds + 5)
    first = [token for token in np.lexsort((np.arange(kinds + 5), -frequency)) if frequency[token]][:TOKENS]
    assert question.classes == len(first) + 1
    expected = [first.index(token) if token in first else len(first) for token in held_out.token_id]
    assert question.score.labels.tolist() == expected
    number = {token: place for place, token in enumerate(first)}
    for part in (question.fit, question.select):
        assert part.labels.tolist() == [number.get(token, len(first)) for token in train.token_id[places(part)]]


def test_positions_are_cut_into_parts_of_as_many_rows():
    train, held_out = about(8000, 0), about(4000, 1000)
    for split in (train, held_out):
        split.position = np.arange(len(split.position)) % 64
    question = asked(train, held_out)["position"]
    assert question.classes == POSITIONS
    assert np.bincount(question.score.labels) == pytest.approx(np.full(POSITIONS, 500), abs=70)
    held_out.position = np.full(4000, 63)  # edges are of training rows
    assert set(asked(train, held_out)["position"].score.labels) == {POSITIONS - 1}


def test_documents_are_the_groups_with_most_rows():
    held_out = about(2000, 0)
    held_out.group = np.repeat([5, 3, 9, 7, 4, 1, 2, 8, 6, 0], [40, 60, 80, 100, 120, 140, 160, 180, 200, 920])
    held_out.position = np.arange(2000) % 40
    question = asked(about(3000, 5000), held_out)["document"]
    parts = (question.fit, question.select, question.score)
    rows = np.concatenate([places(part) for part in parts])
    assert set(held_out.group[rows]) == {0, 6, 8, 2, 1, 4, 7, 9}
    counts = np.bincount(np.concatenate([part.labels for part in parts]))
    assert counts.tolist() == [920, 200, 180, 160, 140, 120, 100, 80]


# ------------------------------------------------------------------------------------------ what can be asked


def unknown(rows: int) -> np.ndarray:
    return np.full(rows, -1)


def test_what_a_store_does_not_know_is_not_asked():
    train, held_out = about(3000, 0), about(1500, 1000)
    assert asked(About(*[unknown(3000)] * 3), About(*[unknown(1500)] * 3)) == {}
    for split in (train, held_out):
        split.token_id = unknown(len(split.position))
    assert asked(train, held_out).keys() == {"position", "document"}
    train.position = unknown(3000)
    assert asked(train, held_out).keys() == set()
    assert asked(about(3000, 0), held_out).keys() == {"position", "document"}
    held_out.token_id, held_out.position = about(1500, 0).token_id, unknown(1500)
    assert asked(about(3000, 0), held_out).keys() == {"token"}


def test_documents_that_are_not_known_are_not_asked_for():
    train, held_out = about(3000, 0), about(1500, 1000)
    held_out.doc_id = unknown(1500)
    assert "document" not in {name for name, question in asked(train, held_out).items() if question.sound}


def test_tokens_known_of_some_rows_alone():
    """The others are one class with the rare ones."""
    train, held_out = about(3000, 0), about(1500, 1000)
    for split in (train, held_out):
        split.token_id[::3] = -1
    question = asked(train, held_out)["token"]
    assert question.classes == 7
    assert (question.score.labels[::3] == 6).all()
    assert (question.score.labels[1::3] < 6).all()


def purpose(labels) -> Purpose:
    return Purpose(sampled(np.arange(len(labels))), np.arange(len(labels)), np.asarray(labels, np.int64))


@pytest.mark.parametrize(
    ("fit", "select", "score", "sound"),
    [
        ([LEAST, LEAST], [LEAST, 0], [LEAST, LEAST], True),
        ([LEAST, LEAST - 1], [LEAST, LEAST], [LEAST, LEAST], False),
        ([LEAST, LEAST], [LEAST, LEAST], [LEAST, LEAST - 1], False),
        ([LEAST, LEAST, 0], [LEAST, 0], [0, LEAST, LEAST], False),  # not the same classes
        ([LEAST, LEAST], [LEAST - 1, 0], [LEAST, LEAST], False),
        ([99, 0, 0], [99, 0, 0], [99, 0, 0], False),
    ],
)
def test_a_question_is_sound_where_two_classes_have_rows_enough(fit, select, score, sound):
    parts = [purpose(np.repeat(np.arange(len(counts)), counts)) for counts in (fit, select, score)]
    assert Question("token", len(fit), *parts).sound is sound


def test_few_rows_are_no_question():
    found = asked(about(40, 0), about(40, 1000))
    assert not any(question.sound for question in found.values())


def test_entropy_of_planted_tokens(known):
    """What is asked is as hard as what was planted."""
    share = np.bincount(known["token"].score.labels) / len(known["token"].score.labels)
    assert -(share @ np.log2(share)) == pytest.approx(math.log2(6), abs=0.02)
