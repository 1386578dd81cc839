"""What a decoder tells of a label: all of it, nothing of it, and never more than the channel lets through."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from atoms.information import decoding
from atoms.information.decoding import BLIND, STRENGTHS, Decoding, Split, class_shares, costs, decode, fano_error

FIT, SELECT, SCORE = 1200, 400, 800


def one_hot(symbols: np.ndarray, size: int) -> np.ndarray:
    return np.eye(size, dtype=np.float32)[symbols]


def split(features, labels) -> list[Split]:
    """Rows to fit to, to select by and to score on."""
    edges = (slice(0, FIT), slice(FIT, FIT + SELECT), slice(FIT + SELECT, None))
    return [Split(features[own], labels[own]) for own in edges]


def decoded(features, labels, classes: int) -> Decoding:
    return decode(*split(features, labels), classes)


def channel(seed: int, classes: int, erased: float = 0.0, flipped: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Uniform labels, and what arrives of them one-hot: nothing on some rows, another label on others."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, FIT + SELECT + SCORE)
    other = (labels + generator.integers(1, classes, len(labels))) % classes
    features = one_hot(np.where(generator.random(len(labels)) < flipped, other, labels), classes)
    features[generator.random(len(labels)) < erased] = 0
    return features, labels


def known_of(fitted: np.ndarray, scored: np.ndarray, classes: int) -> float:
    """Bits of labels to one who knows the shares of the classes alone."""
    return costs(np.broadcast_to(class_shares(fitted, classes), (len(scored), classes)), scored).mean()


def bit(p: float) -> float:
    return -sum(x * math.log2(x) for x in (p, 1 - p) if x > 0)


# ------------------------------------------------------------------------------------------ what is told


@pytest.mark.parametrize(
    ("classes", "features"),
    [
        (2, lambda labels: 2.0 * labels[:, None] - 1),
        (3, lambda labels: labels[:, None] - 1.0),  # negative, absent and positive
        (5, lambda labels: one_hot(labels, 5)),
    ],
)
def test_a_function_of_the_features_is_told_fully(classes, features):
    """But for what regularisation costs, which more rows to fit to make less."""
    left = []
    for rows in (1000, 8000):
        labels = np.random.default_rng(classes).integers(0, classes, rows + SELECT + SCORE)
        read = features(labels).astype(np.float32)
        parts = [Split(read[own], labels[own]) for own in np.split(np.arange(len(labels)), [rows, rows + SELECT])]
        found = decode(*parts, classes)
        assert found.error == 0
        assert found.blind == BLIND[0]
        left.append(found.bits)
    assert left[1] < 0.05  # of up to 2.32
    assert left[1] < left[0] / 3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [3, 200])
def test_of_independent_labels_nothing_is_told(seed, width):
    generator = np.random.default_rng(seed)
    labels = generator.choice(4, FIT + SELECT + SCORE, p=[0.5, 0.25, 0.15, 0.1])
    features = generator.standard_normal((len(labels), width)).astype(np.float32)
    found = decoded(features, labels, 4)
    known = known_of(labels[:FIT], labels[-SCORE:], 4)
    assert known - 0.02 < found.bits < known + 0.02
    assert found.error == pytest.approx((labels[-SCORE:] != 0).mean(), abs=0.04)


@pytest.mark.parametrize("seed", range(3))
def test_of_rows_learnt_by_heart_nothing_is_believed(seed):
    """With more features than rows to fit to, a decoder that trusted itself would lose half a bit."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, FIT + SELECT + SCORE)
    features = generator.standard_normal((len(labels), 300)).astype(np.float32)
    parts = split(features, labels)
    few = Split(parts[0].features[:100], parts[0].labels[:100])
    assert decode(few, few, parts[2], 4).bits > 2.5  # chosen by the rows that it was fitted to
    found = decode(few, *parts[1:], 4)
    assert found.bits < known_of(few.labels, labels[-SCORE:], 4) + 0.02


def test_a_decoder_that_may_trust_nothing_is_blind():
    """Where the rows to select by contradict the rows to fit to, the shares of the classes are all there is."""
    features, labels = channel(0, 4)
    parts = split(features, labels)
    contrary = Split(parts[1].features, (parts[1].labels + 1) % 4)
    found = decode(parts[0], contrary, parts[2], 4)
    assert (found.blind, found.strength) == (1.0, STRENGTHS[0])
    assert found.bits == pytest.approx(2, abs=0.01)


def test_a_decoder_is_trusted_as_far_as_it_is_right(monkeypatch):
    """One who never saw an error is sure of itself; rows to select by say how often it errs."""
    monkeypatch.setattr(decoding, "STRENGTHS", (10.0,))
    clean, noisy = split(*channel(5, 4)), split(*channel(6, 4, flipped=0.3))
    found = decode(clean[0], *noisy[1:], 4)
    assert found.blind in BLIND[1:4]
    truth = bit(0.3) + 0.3 * math.log2(3)
    assert truth - 0.2 < found.bits < truth + 0.2


@pytest.mark.parametrize(("classes", "flipped"), [(2, 0.11), (4, 0.2), (8, 0.05)])
def test_what_is_left_bounds_what_a_noisy_channel_leaves(classes, flipped):
    features, labels = channel(classes, classes, flipped=flipped)
    found = decoded(features, labels, classes)
    truth = bit(flipped) + flipped * math.log2(classes - 1)
    sampling = 4 * found.costs.std() / math.sqrt(SCORE)
    assert truth - sampling < found.bits < truth + sampling + 0.1
    assert found.error == pytest.approx(flipped, abs=0.04)


@pytest.mark.parametrize(("classes", "erased"), [(2, 0.5), (4, 0.5), (8, 0.25)])
def test_errors_of_a_calibrated_decoder_are_no_fewer_than_fano_allows(classes, erased):
    """Of an erased label nothing is known, which costs more errors than the bits alone would."""
    features, labels = channel(classes, classes, erased=erased)
    found = decoded(features, labels, classes)
    assert found.bits == pytest.approx(erased * math.log2(classes), abs=0.15)
    assert found.error == pytest.approx(erased * (1 - 1 / classes), abs=0.05)
    assert 0 < found.fano <= found.error
    assert found.fano == fano_error(found.bits, classes)


def test_costs_are_of_the_rows_scored():
    features, labels = channel(1, 3, flipped=0.1)
    found = decoded(features, labels, 3)
    assert found.costs.shape == (SCORE,)
    assert found.bits == found.costs.mean()
    wrong = features[-SCORE:].argmax(1) != labels[-SCORE:]
    assert found.error == pytest.approx(wrong.mean())
    assert found.costs[wrong].min() > found.costs[~wrong].max()


def test_rows_to_score_on_change_nothing_of_what_is_chosen():
    features, labels = channel(2, 3, flipped=0.3)
    parts = split(features, labels)
    first, second = (decode(parts[0], parts[1], Split(parts[2].features[own], parts[2].labels[own]), 3)
                     for own in (slice(0, 400), slice(400, None)))  # fmt: skip
    whole = decode(*parts, 3)
    assert np.allclose(np.concatenate([first.costs, second.costs]), whole.costs)
    assert (first.strength, first.blind) == (second.strength, second.blind) == (whole.strength, whole.blind)


# ------------------------------------------------------------------------------------------ features of any kind


def codes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A label of three, codes of six atoms of either sign that tell some of it, and one that never fires."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, FIT + SELECT + SCORE)
    found = generator.standard_normal((len(labels), 7)) + 2 * one_hot(labels, 7)
    found = np.where(np.abs(found) > 1, found, 0)
    found[:, 6] = 0
    return found.astype(np.float32), labels


def test_dense_and_sparse_features_tell_the_same():
    features, labels = codes(0)
    dense, by_rows = decoded(features, labels, 3), decoded(sparse.csr_matrix(features), labels, 3)
    assert dense.bits == pytest.approx(by_rows.bits, abs=0.02)  # sparse ones are not centred
    full = features + 0.1
    dense, by_rows = decoded(full, labels, 3), decoded(sparse.csr_matrix(full), labels, 3)
    assert np.array_equal(dense.costs, by_rows.costs)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_an_offset_tells_nothing_and_takes_nothing(form):
    features, labels = codes(1)
    own, far = decoded(form(features + 0.1), labels, 3), decoded(form(features + 100), labels, 3)
    assert far.bits == pytest.approx(own.bits, abs=0.01)
    assert far.error == own.error


@pytest.mark.parametrize("factor", [1e-30, 1e20])
def test_tiny_and_huge_codes_are_decoded(factor):
    features, labels = codes(1)
    own = decoded(sparse.csr_matrix(features.astype(np.float32)), labels, 3)
    other = decoded(sparse.csr_matrix((features * factor).astype(np.float32)), labels, 3)
    assert other.bits == pytest.approx(own.bits, abs=0.01)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_scale_of_a_feature_tells_nothing(factor, form):
    features, labels = codes(1)
    scaled = features.copy()
    scaled[:, 0] *= factor
    own, other = decoded(form(features), labels, 3), decoded(form(scaled), labels, 3)
    assert own.bits < 1.2
    assert other.bits == pytest.approx(own.bits, abs=2e-3)


def test_order_of_the_features_tells_nothing():
    features, labels = codes(2)
    own, other = decoded(features, labels, 3), decoded(features[:, ::-1], labels, 3)
    assert other.bits == pytest.approx(own.bits, abs=2e-3)


# ------------------------------------------------------------------------------------------ labels of any kind


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_a_class_that_nothing_was_fitted_to_costs_finitely(form):
    features, labels = channel(3, 3)
    labels[-10:] = 3
    found = decoded(form(features), labels, 5)  # nor is the last class ever seen
    assert np.isfinite(found.costs).all()
    assert found.costs[-10:].min() > 10
    assert found.costs[:-10].max() < 1
    assert found.error == pytest.approx(10 / SCORE)


def test_classes_keep_their_numbers_where_one_between_them_is_never_seen():
    features, labels = channel(7, 3)
    labels = np.array([0, 2, 3])[labels]
    found = decoded(features, labels, 5)
    assert found.error == 0
    assert found.bits < 0.2


def test_a_single_class_to_fit_to():
    features, labels = channel(4, 3)
    labels[:FIT] = 1
    found = decoded(features, labels, 3)
    assert found.blind == 1
    assert found.costs == pytest.approx(-np.log2(np.array([1, FIT + 1, 1]) / (FIT + 3))[labels[-SCORE:]])
    assert found.error == pytest.approx((labels[-SCORE:] != 1).mean())


def test_one_class_alone():
    found = decoded(np.ones((FIT + SELECT + SCORE, 2), np.float32), np.zeros(FIT + SELECT + SCORE, np.int64), 1)
    assert (found.bits, found.error, found.fano) == (0, 0, 0)


def test_features_that_are_never_there():
    labels = np.arange(FIT + SELECT + SCORE) % 2
    found = decoded(sparse.csr_matrix((len(labels), 3), dtype=np.float32), labels, 2)
    assert found.bits == pytest.approx(1, abs=1e-3)


@given(st.lists(st.integers(0, 4), max_size=50))
def test_shares_are_as_if_each_class_had_been_seen_once_more(labels):
    found = class_shares(np.array(labels, np.int64), 5)
    assert found == pytest.approx([(labels.count(each) + 1) / (len(labels) + 5) for each in range(5)])


# ------------------------------------------------------------------------------------------ Fano


@given(st.integers(2, 5000), st.floats(0, 1))
def test_fano_inverts_its_inequality(classes, place):
    p = place * (1 - 1 / classes)
    assert fano_error(bit(p) + p * math.log2(classes - 1), classes) == pytest.approx(p, abs=1e-6)


@given(st.integers(2, 500), st.lists(st.floats(0, 20), min_size=2, max_size=8))
def test_fano_is_monotone_and_bounded(classes, bits):
    found = [fano_error(each, classes) for each in sorted(bits)]
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] <= 1 - 1 / classes


@pytest.mark.parametrize(
    ("bits", "classes", "error"),
    [
        (0, 7, 0), (-1, 7, 0), (1, 2, 0.5), (3, 8, 7 / 8), (99, 8, 7 / 8), (0, 1, 0), (2, 1, 0),
        (bit(0.25), 2, 0.25), (bit(0.5) + 0.5 * math.log2(3), 4, 0.5),
    ],
)  # fmt: skip
def test_fano_by_hand(bits, classes, error):
    assert fano_error(bits, classes) == pytest.approx(error, abs=1e-7)
