"""Information of each feature's sign and a label, against the measures of two variables."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from atoms.information import (
    conditional_entropy,
    determines,
    entropy,
    from_samples,
    miller_madow,
    mutual_information,
    rajski_distance,
    signs,
)
from atoms.information.gain import Signs
from atoms.information.signs import SignInformation, least_rajski, sign_information

CLASSES = 4
ternary = st.lists(st.tuples(*[st.integers(-1, 1)] * 3, st.integers(0, CLASSES - 1)), min_size=1, max_size=40)


def informed(codes, labels, classes: int = CLASSES) -> SignInformation:
    codes = sparse.csr_matrix(np.asarray(codes, np.float32))
    return sign_information(Signs.of(codes, np.asarray(labels, np.int64)), classes)


def bit(p):
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p) if 0 < p < 1 else 0.0


def agree(found: SignInformation, codes: np.ndarray, labels: np.ndarray) -> None:
    """Feature by feature what two variables say."""
    for place, column in enumerate(codes.T):
        sign, label = from_samples(np.sign(column).astype(int), labels, names=["sign", "label"])
        own = {"entropy": miller_madow}
        assert found.rate[place] == pytest.approx((column != 0).mean())
        assert found.entropy[place] == pytest.approx(miller_madow(sign), abs=1e-12)
        joint = miller_madow(sign, label)
        told = miller_madow(sign) + miller_madow(label) - joint
        assert found.information[place] == pytest.approx(told, abs=1e-12)
        assert max(found.information[place], 0) == pytest.approx(mutual_information(sign, label, **own), abs=1e-12)
        assert found.function[place] == determines(label, sign)
        if sign.size == 1:
            assert math.isnan(found.rajski[place])
            continue
        assert found.rajski[place] == pytest.approx(min(max(1 - told / joint, 0), 1), abs=1e-12)
        if miller_madow(sign, label) >= max(miller_madow(sign), miller_madow(label)):  # else entropies are no such
            assert found.rajski[place] == pytest.approx(rajski_distance(sign, label, **own), abs=1e-12)


@given(ternary)
def test_it_is_what_two_variables_say(rows):
    table = np.array(rows)
    agree(informed(table[:, :3], table[:, 3]), table[:, :3], table[:, 3])


@given(ternary)
def test_signs_on_one_side_alone(rows):
    table = np.array(rows)
    codes = np.maximum(table[:, :3], 0)
    agree(informed(codes, table[:, 3]), codes, table[:, 3])


def test_more_features_than_are_looked_at_at_once(monkeypatch):
    generator = np.random.default_rng(0)
    codes = generator.standard_normal((200, 11)) * (generator.random((200, 11)) < 0.3)
    labels = generator.integers(0, CLASSES, 200)
    whole = informed(codes, labels)
    monkeypatch.setattr(signs, "_BLOCK", 4)
    parts = informed(codes, labels)
    for name in ("rate", "entropy", "information", "rajski", "function"):
        assert np.allclose(getattr(whole, name), getattr(parts, name), atol=1e-12)
        assert getattr(parts, name).shape == (11,)
    agree(parts, codes, labels)


def test_by_hand():
    """Four classes of 250 rows: one told apart, two of them, none, all by two signs, and by nothing but chance."""
    labels = np.arange(1000) % 4
    chance = np.arange(1000) // 4 % 2
    codes = np.stack([labels == 0, labels < 2, np.ones(1000), (labels == 0) * 1 - (labels == 1), chance], 1)
    found = informed(codes, labels)
    corrected = [1 / (2000 * math.log(2)) * extra for extra in (1, 1, 0, 2, 1)]
    plain = np.array([bit(0.25), 1, 0, 1.5, 1])
    assert found.rate == pytest.approx([0.25, 0.5, 1, 0.5, 0.5])
    assert found.entropy == pytest.approx(plain + corrected)
    assert found.information[:4] == pytest.approx((plain + corrected)[:4])
    assert found.information[4] == pytest.approx(-3 / (2000 * math.log(2)))  # less than what is expected of chance
    label = 2 + 3 / (2000 * math.log(2))
    assert found.rajski[[0, 1, 3]] == pytest.approx(1 - (plain + corrected)[[0, 1, 3]] / label)
    assert found.rajski[4] == 1
    assert found.function.tolist() == [True, True, True, True, False]
    assert np.isnan(found.rajski).tolist() == [False, False, True, False, False]


def test_features_that_never_change():
    labels = np.arange(30) % CLASSES
    found = informed(np.stack([np.zeros(30), np.ones(30), -np.ones(30)], 1), labels)
    assert found.rate.tolist() == [0, 1, 1]
    assert np.isnan(found.rajski).all()
    assert found.function.all()
    assert (found.entropy == 0).all()
    assert (found.information == 0).all()


def test_one_class_has_nothing_to_tell():
    found = informed(np.eye(5), np.zeros(5, int))
    assert (found.information == 0).all()
    assert (found.rajski == 1).all()
    assert not found.function.any()


def test_classes_without_rows_change_nothing():
    generator = np.random.default_rng(1)
    codes, labels = generator.integers(-1, 2, (50, 6)), generator.integers(0, 3, 50)
    few, many = informed(codes, labels, 3), informed(codes, labels, 9)
    assert np.allclose(few.information, many.information, atol=1e-12)
    assert np.allclose(few.rajski, many.rajski, atol=1e-12)
    assert np.array_equal(few.function, many.function)


# ------------------------------------------------------------------------------------------ the least distance


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=2, max_size=60))
def test_no_feature_of_a_rate_comes_nearer(rows):
    sign, label = from_samples(*zip(*rows, strict=True), names=["sign", "label"])
    if sign.size < 2:
        return
    rate = np.array([np.mean([fires for fires, _ in rows])])
    (least,) = least_rajski(rate, entropy(label))
    distance = rajski_distance(sign, label)
    assert distance >= least - 1e-12
    if determines(label, sign):
        assert distance == pytest.approx(least, abs=1e-12)
    elif entropy(label) >= entropy(sign) and conditional_entropy(sign, label) > 1e-9:
        assert distance > least


@given(st.integers(0, 1000), st.one_of(st.just(0.0), st.floats(1e-6, 8)))
def test_least_distance_is_a_distance_whether_a_feature_fires_or_is_silent(firing, label_entropy):
    low, high = least_rajski(np.array([firing, 1000 - firing]) / 1000, label_entropy)
    assert low == pytest.approx(high, abs=1e-9)
    assert 0 <= low <= 1


def test_least_distance_by_hand():
    found = least_rajski(np.array([0.5, 0.25, 0.0, 1.0]), 2.0)
    assert found == pytest.approx([0.5, 1 - bit(0.25) / 2, 1, 1], abs=1e-9)
    assert least_rajski(np.array([0.5]), 1.0) == pytest.approx([0], abs=1e-12)
    assert least_rajski(np.array([0.5]), 0.5) == pytest.approx([0.5])  # a label of less entropy than the feature
    assert least_rajski(np.array([0.5, 0.0]), 0.0) == pytest.approx([1, 1])


@given(st.integers(1, 200), st.integers(1, 3))
def test_corrected_distances_of_functions_lie_on_the_curve(rows, told):
    """With as many rows as a label needs, the correction moves feature and label alike, and little."""
    labels = np.arange(rows * 8) % CLASSES
    found = informed((labels < told)[:, None], labels)
    assert found.function.all()
    (least,) = least_rajski(found.rate, 2.0)
    assert found.rajski[0] == pytest.approx(least, abs=3 / (2 * len(labels) * math.log(2)))
