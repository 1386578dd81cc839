"""Features taken one after the other, against the same taken by plain loops over rows."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from atoms.information import gain
from atoms.information.decoding import class_shares
from atoms.information.gain import Signs, Step, greedy_gain

ROWS = 900  # of each purpose


def signs_of(codes, labels) -> Signs:
    return Signs.of(sparse.csr_matrix(np.asarray(codes, np.float32)), np.asarray(labels, np.int64))


def parts_of(codes, labels) -> list[Signs]:
    """Rows to fit to, to select by and to score on: a third each."""
    return [signs_of(codes[first::3], labels[first::3]) for first in range(3)]


def taken(parts: list[Signs], classes: int, steps: int = 5) -> list[Step]:
    return greedy_gain(*parts, classes, steps)


# ------------------------------------------------------------------------------------------ signs


def test_signs_are_those_of_the_codes():
    codes = np.array([[0.0, 2.0, -1.0], [3.0, 0.0, 0.0], [-1e-9, 0.0, 5.0]])
    found = signs_of(codes, [0, 1, 1])
    assert (found.positive.toarray() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]).all()
    assert (found.negative.toarray() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]).all()
    assert [found.column(feature).tolist() for feature in range(3)] == np.sign(codes).T.tolist()
    assert found.labels.tolist() == [0, 1, 1]


def test_codes_that_are_never_negative_have_no_negative_part():
    found = signs_of([[0.0, 2.0], [3.0, 0.0]], [0, 1])
    assert found.negative is None
    assert found.column(0).tolist() == [0, 1]


def test_zeros_that_are_stored_are_zeros():
    codes = sparse.csr_matrix((np.array([0.0, 1.0, -0.0]), (np.arange(3), np.zeros(3, int))), shape=(3, 1))
    found = Signs.of(codes, np.zeros(3, np.int64))
    assert found.column(0).tolist() == [0, 1, 0]
    assert found.negative is None


# ------------------------------------------------------------------------------------------ by hand


def by_hand(parts: list[Signs], classes: int, steps: int) -> list[tuple[int, float, float]]:
    """The same by loops: features, bits saved on the rows to select by, bits left on the rows scored."""
    fit, select, score = (
        [(tuple(signs), int(label)) for signs, label in zip(every_sign(part), part.labels, strict=True)]
        for part in parts
    )
    start = class_shares(parts[0].labels, classes)
    chosen: tuple[int, ...] = ()

    def told(features: tuple[int, ...], signs: tuple[int, ...]) -> list[float]:
        """Shares of the classes where these features have these signs; what their first ones tell counts as a row."""
        if not features:
            return list(start)
        before = told(features[:-1], signs)
        pattern = [signs[feature] for feature in features]
        counts = Counter(label for own, label in fit if [own[feature] for feature in features] == pattern)
        return [(counts[each] + before[each]) / (counts.total() + 1) for each in range(classes)]

    def follows(feature: int) -> bool:
        known = {tuple(own[each] for each in chosen): own[feature] for own, _ in fit}
        return all(known[tuple(own[each] for each in chosen)] == own[feature] for own, _ in fit)

    def left(features: tuple[int, ...], rows) -> float:
        known = {signs: told(features, signs) for signs, _ in rows}
        return math.fsum(-math.log2(known[signs][label]) for signs, label in rows) / len(rows)

    def surely(best: int, gain: float) -> bool:
        """Whether it saves more than the best of as many useless ones would."""
        now = [math.log2(told((*chosen, best), signs)[label]) for signs, label in select]
        saved = [one - math.log2(told(chosen, signs)[label]) for one, (signs, label) in zip(now, select, strict=True)]
        return gain > math.sqrt(2 * math.log(parts[0].positive.shape[1]) / len(select)) * np.std(saved)

    found = []
    for _ in range(steps):
        before = left(chosen, select)
        features = range(parts[0].positive.shape[1])
        saved = [0 if follows(each) else before - left((*chosen, each), select) for each in features]
        best = int(np.argmax(np.round(saved, 12)))
        if saved[best] <= 1e-12 or not surely(best, saved[best]):
            break
        chosen = (*chosen, best)
        found.append((best, saved[best], left(chosen, score)))
    return found


def every_sign(part: Signs) -> list[list[int]]:
    return np.stack([part.column(feature) for feature in range(part.positive.shape[1])], 1).tolist()


def agree(steps: list[Step], expected: list[tuple[int, float, float]]) -> None:
    assert [step.feature for step in steps] == [feature for feature, _, _ in expected]
    for step, (_, saved, left) in zip(steps, expected, strict=True):
        assert step.gain == pytest.approx(saved, abs=1e-9)
        assert step.left == pytest.approx(left, abs=1e-9)


def planted(seed: int, rows: int, features: int, classes: int, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and features of which some lean to a label; of either sign where asked for."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    lean = generator.standard_normal((classes, features)) * (generator.random(features) < 0.5)
    codes = generator.standard_normal((rows, features)) + lean[labels]
    codes = np.where(np.abs(codes) > 0.8, codes, 0)
    return codes if signed else np.maximum(codes, 0), labels


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 1000), st.integers(2, 4), st.booleans())
def test_steps_are_those_of_plain_counting(seed, classes, signed):
    parts = parts_of(*planted(seed, 240, 5, classes, signed))
    agree(taken(parts, classes, 3), by_hand(parts, classes, 3))


@pytest.mark.parametrize("without", range(3))
def test_signs_that_only_some_rows_have(without):
    """No code of the rows of one purpose is negative."""
    codes, labels = planted(3, 300, 5, 3, signed=True)
    codes[without::3] = np.maximum(codes[without::3], 0)
    parts = parts_of(codes, labels)
    assert [part.negative is None for part in parts] == [place == without for place in range(3)]
    agree(taken(parts, 3, 3), by_hand(parts, 3, 3))


@pytest.mark.parametrize("cells", [1, 40, 200])
@pytest.mark.parametrize("signed", [True, False])
def test_blocks_change_nothing(cells, signed, monkeypatch):
    parts = parts_of(*planted(5, 300, 11, 3, signed))
    whole = taken(parts, 3)
    assert len(whole) > 1
    monkeypatch.setattr(gain, "_CELLS", cells)
    agree(taken(parts, 3), [(step.feature, step.gain, step.left) for step in whole])


# ------------------------------------------------------------------------------------------ what is taken


def test_one_feature_a_class_is_taken_one_after_the_other():
    """Of K equal classes k features that are classes leave (K - k)/K of the rows log2(K - k) bits."""
    classes = 6
    labels = np.arange(3 * ROWS) // 3 % classes
    codes = np.eye(classes)[labels]
    noise = np.random.default_rng(0).random((len(labels), 30)) < 0.2
    steps = taken(parts_of(np.hstack([noise, codes]), labels), classes)
    assert sorted(step.feature for step in steps) == list(range(30, 35))
    left = [(classes - k) / classes * math.log2(classes - k) for k in range(1, 6)]
    assert [step.left for step in steps] == pytest.approx(left, abs=0.02)
    gains = -np.diff([math.log2(classes), *left])
    assert [step.gain for step in steps] == pytest.approx(gains, abs=0.02)


def test_the_more_telling_feature_is_taken_first():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 8, 3 * ROWS)
    bits = np.stack([labels >> place & 1 for place in range(3)], 1)
    flips = generator.random(bits.shape) < [0.2, 0.01, 0.08]
    noise = generator.integers(0, 2, (len(labels), 40))
    steps = taken(parts_of(np.hstack([noise, bits ^ flips]), labels), 8)
    assert [step.feature for step in steps[:3]] == [41, 42, 40]
    told = [1 - sum(-p * math.log2(p) for p in (flip, 1 - flip)) for flip in (0.01, 0.08, 0.2)]
    assert [step.gain for step in steps[:3]] == pytest.approx(told, abs=0.07)
    assert all(step.gain < 0.02 for step in steps[3:])


def test_what_is_told_already_is_not_taken_again():
    labels = np.arange(3 * ROWS) // 3 % 2
    steps = taken(parts_of(np.stack([labels, labels, 1 - labels], 1), labels), 2)
    assert [step.feature for step in steps] == [0]
    assert steps[0].left == pytest.approx(0, abs=0.01)


def test_a_label_of_two_features_together_is_not_found():
    """The limit of taking one at a time: neither tells anything alone."""
    places = np.arange(3 * 400) // 3 % 4
    one, other = places % 2, places // 2
    codes = np.stack([one, other], 1)
    assert taken(parts_of(codes, one ^ other), 2) == []
    steps = taken(parts_of(np.hstack([codes, (one & other)[:, None]]), one ^ other), 2)
    assert steps[0].feature == 2  # from what they have in common it goes on
    assert steps[-1].left == pytest.approx(0, abs=0.02)


def test_having_many_to_choose_from_is_no_merit():
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 4, 3 * ROWS)
    codes = sparse.random(len(labels), 5000, 0.1, format="csr", random_state=3)
    parts = [Signs.of(codes[first::3], labels[first::3]) for first in range(3)]
    assert taken(parts, 4) == []
    told = sparse.csr_matrix(labels[:, None] == 2, dtype=float)
    parts = [Signs.of(sparse.hstack([codes, told], format="csr")[first::3], labels[first::3]) for first in range(3)]
    assert [step.feature for step in taken(parts, 4)] == [5000]


def test_a_negative_code_is_another_sign_than_none():
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 3, 3 * ROWS)
    ternary = (labels - 1)[:, None] * generator.uniform(1, 2, (len(labels), 1))
    told = taken(parts_of(ternary, labels), 3)
    assert [step.feature for step in told] == [0]
    assert told[0].left == pytest.approx(0, abs=0.02)
    folded = taken(parts_of(np.abs(ternary), labels), 3)
    assert folded[0].left == pytest.approx(2 / 3, abs=0.03)


def test_what_cannot_be_taken():
    labels = np.arange(90) // 3 % 3
    assert taken(parts_of(np.ones((90, 4)), labels), 3) == []  # every feature always
    assert taken(parts_of(np.zeros((90, 4)), labels), 3) == []
    assert taken(parts_of(np.eye(3)[labels], labels), 3, steps=0) == []
    assert len(taken(parts_of(np.eye(3)[labels], labels), 3, steps=1)) == 1


def test_a_class_and_a_sign_that_were_never_fitted_to_cost_finitely():
    labels = np.arange(3 * ROWS) // 3 % 2
    codes = np.eye(3)[labels]
    parts = parts_of(codes, labels)
    score = signs_of([[-1.0, 1.0, -1.0], [1.0, 0.0, 0.0]], [2, 0])
    (step,) = greedy_gain(parts[0], parts[1], score, 3, 1)
    assert math.isfinite(step.left)
    assert step.left > 4
