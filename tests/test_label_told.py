"""What is told of one label: all of it by atoms that are its values, nothing by codes that know nothing."""

import math

import numpy as np
import pytest
from scipy import sparse

from atoms.checks.information.label_told import (
    CODES,
    COORDINATES,
    RANDOM,
    ROWS,
    SHUFFLED,
    STEPS,
    WHOLE,
    LabelTold,
    label_told,
)
from atoms.checks.information.row_labels import Purpose, Question
from atoms.checks.row_sample import Sampled
from atoms.information.decoding import class_shares

CLASSES, ATOMS = 5, 12
SIZES = {"fit": 900, "select": 300, "score": 600}
BITS = math.log2(CLASSES)


@pytest.fixture(scope="module")
def question() -> Question:
    """Classes of equal size, which rows are; fit and select are of one sample."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(1200) % CLASSES, generator.permutation(600) % CLASSES
    learnt, judged = (Sampled(np.arange(len(own)), own[:, None].astype(np.float32), None) for own in labels)
    aside = np.arange(1200) % 4 == 0
    parts = (Purpose(learnt, np.flatnonzero(mask), labels[0][mask]) for mask in (~aside, aside))
    return Question("token", CLASSES, *parts, Purpose(judged, np.arange(600), labels[1]))


def truth(part: Purpose) -> np.ndarray:
    """Class of every row, whatever it is called."""
    return part.sample.rows[part.chosen, 0].astype(int)


def oracle(part: Purpose, signed: bool = False):
    """An atom a class, and others that never fire."""
    codes = np.eye(CLASSES, ATOMS)[truth(part)]
    return sparse.csr_matrix((-codes if signed else codes).astype(np.float32))


def noise(part: Purpose):
    generator = np.random.default_rng(len(part.labels))
    return sparse.csr_matrix(((generator.random((len(part.labels), ATOMS)) - 0.8).clip(0)).astype(np.float32))


def dense(part: Purpose) -> np.ndarray:
    """Classes beneath as much noise."""
    generator = np.random.default_rng(1 + len(part.labels))
    return (np.eye(CLASSES)[truth(part)] + generator.standard_normal((len(part.labels), CLASSES))).astype(np.float32)


def dense_codes(part: Purpose):
    return sparse.csr_matrix(dense(part))


def silent(part: Purpose):
    return sparse.csr_matrix((len(part.labels), ATOMS), dtype=np.float32)


def coordinates(part: Purpose) -> np.ndarray:
    """Of either sign and never 0; positive where the class is theirs."""
    return (np.eye(CLASSES)[truth(part)] - 0.5).astype(np.float32)


def told(
    question, codes=oracle, random=noise, rows=dense_codes, single=coordinates, groups=None, seed=0, resamples=30
) -> LabelTold:
    groups = np.arange(600) // 10 if groups is None else groups
    features = {CODES: codes, RANDOM: random, ROWS: rows, COORDINATES: single, WHOLE: dense}
    return label_told(question, features, groups, resamples=resamples, seed=seed)


@pytest.fixture(scope="module")
def found(question) -> LabelTold:
    return told(question)


def test_atoms_that_are_the_classes_tell_all_bits(found):
    assert found.bits == pytest.approx(BITS, abs=1e-3)
    assert found.told[CODES].value == pytest.approx(BITS, abs=0.1)
    assert found.told_by(CODES) == pytest.approx(found.told[CODES].value, abs=1e-12)
    assert found.decoded[CODES].error == 0


def test_with_as_few_atoms_as_there_are_classes(found):
    steps = found.greedy[CODES]
    assert sorted(step.feature for step in steps) == sorted({step.feature for step in steps})
    assert {step.feature for step in steps} <= set(range(CLASSES))
    for k in range(1, CLASSES):
        left = (CLASSES - k) / CLASSES * math.log2(CLASSES - k)
        assert found.told_greedily(CODES, k) == pytest.approx(BITS - left, abs=0.03)
    assert found.told_greedily(CODES, STEPS) == found.told_greedily(CODES, 99)


def test_codes_that_know_nothing_tell_nothing(question, found):
    own = told(question, codes=noise, random=oracle)
    for each, arm in ((own, CODES), (found, RANDOM)):
        assert abs(each.told_by(arm)) < 0.03
        assert abs(each.told_greedily(arm, STEPS)) < 0.05
    assert own.told[CODES].value == pytest.approx(found.told[RANDOM].value, abs=0.02)
    assert own.told[RANDOM].value == pytest.approx(found.told[CODES].value, abs=0.02)


def test_shuffled_labels_are_not_told(found):
    assert abs(found.told_by(SHUFFLED)) < 0.03
    assert abs(found.told_greedily(SHUFFLED, STEPS)) < 0.05
    signs = found.signs[SHUFFLED]
    assert not signs.function[:CLASSES].any()
    assert np.nanmin(signs.rajski) > 0.98
    deviation = math.sqrt(2 * (CLASSES - 1)) / (2 * 600 * math.log(2))  # half a chi-square, in bits
    assert np.abs(signs.information[:CLASSES]).max() < 5 * deviation
    assert signs.rate == pytest.approx(found.signs[CODES].rate)


def test_all_of_the_row_is_a_reference_without_atoms(found):
    assert found.decoded.keys() == {CODES, RANDOM, ROWS, SHUFFLED, WHOLE}
    assert found.greedy.keys() == found.signs.keys() == {CODES, RANDOM, ROWS, COORDINATES, SHUFFLED}
    assert found.told.keys() == {CODES, RANDOM}
    assert 0.2 < found.told_by(WHOLE) < found.told_by(CODES)
    assert found.told_by(ROWS) == pytest.approx(found.told_by(WHOLE), abs=0.02)  # the same features, here


def test_coordinates_are_taken_one_by_one_by_their_signs(found):
    """Those that are positive where an atom of the unit fires tell as much as it does."""
    for steps in range(1, STEPS + 1):
        assert found.told_greedily(COORDINATES, steps) == pytest.approx(found.told_greedily(CODES, steps), abs=1e-9)
    assert [step.feature for step in found.greedy[COORDINATES]] == [step.feature for step in found.greedy[CODES]]
    alone, own = found.signs[COORDINATES], found.signs[CODES]
    assert alone.rate == pytest.approx([1] * CLASSES)
    assert alone.rajski == pytest.approx(own.rajski[:CLASSES], abs=1e-9)
    assert alone.function.all()


def test_coordinates_do_as_well_as_their_signs_and_no_better(question):
    """Of coordinates that say it by their size alone nothing is told."""
    own = told(question, single=lambda part: np.eye(CLASSES)[truth(part)].astype(np.float32) + 1)
    assert own.greedy[COORDINATES] == []
    assert own.told_greedily(COORDINATES, STEPS) == 0
    assert np.isnan(own.signs[COORDINATES].rajski).all()


def test_every_atom_beside_the_label(found):
    signs = found.signs[CODES]
    assert signs.rate == pytest.approx([1 / CLASSES] * CLASSES + [0] * (ATOMS - CLASSES))
    alone = -sum(p * math.log2(p) for p in (1 / CLASSES, 1 - 1 / CLASSES))
    assert signs.information[:CLASSES] == pytest.approx(alone, abs=0.01)
    assert signs.rajski[:CLASSES] == pytest.approx(1 - alone / BITS, abs=0.01)
    assert np.isnan(signs.rajski[CLASSES:]).all()
    assert signs.function.all()
    assert not found.signs[RANDOM].function.any()


def test_negative_codes_tell_as_much(question, found):
    own = told(question, codes=lambda part: oracle(part, signed=True))
    assert own.told[CODES].value == pytest.approx(found.told[CODES].value, abs=1e-3)
    assert own.told_greedily(CODES, 3) == pytest.approx(found.told_greedily(CODES, 3), abs=1e-9)


def test_none_taken_is_none_told(question):
    own = told(question, codes=silent)
    assert own.greedy[CODES] == []
    assert own.told_greedily(CODES, 1) == 0
    assert -1e-3 < own.told[CODES].value <= 0
    assert np.isnan(own.signs[CODES].rajski).all()


# ------------------------------------------------------------------------------------------ numbers


def entropy(labels) -> float:
    share = np.bincount(labels) / len(labels)
    return -sum(p * math.log2(p) for p in share if p > 0)


def skewed(question: Question) -> Question:
    """The same, but half of the rows scored are of the first class, and those of the last few."""
    labels, chosen = question.score.labels, question.score.chosen
    kept = (labels == 0) | (chosen % (3 + labels) == 0)
    score = Purpose(question.score.sample, chosen[kept], labels[kept])
    return Question("token", CLASSES, question.fit, question.select, score)


def test_bits_are_the_entropy_of_the_labels_scored(question, found):
    own = skewed(question)
    there = told(own, groups=np.arange(len(own.score.labels)) // 10)
    assert entropy(own.score.labels) < BITS - 0.1
    for each, asked in ((found, question), (there, own)):
        assert each.bits == pytest.approx(entropy(asked.score.labels), abs=1e-12)
        for arm in (CODES, RANDOM):
            assert each.told[arm].value == pytest.approx(each.bits - each.decoded[arm].costs.mean(), abs=1e-9)
            assert each.told[arm].value == pytest.approx(each.told_by(arm), abs=1e-9)


@pytest.mark.parametrize("other", [False, True])
def test_who_knows_the_shares_alone_is_below_none_by_their_divergence(question, other):
    """Shares of the rows fitted to are not those of the rows scored."""
    own = skewed(question) if other else question
    found = told(own, codes=silent, groups=np.arange(len(own.score.labels)) // 10)
    share = np.bincount(own.score.labels) / len(own.score.labels)
    costs = [np.unique(found.decoded[CODES].costs[own.score.labels == label]) for label in range(CLASSES)]
    assert [len(each) for each in costs] == [1] * CLASSES  # it says the same of every row
    known = 2.0 ** -np.concatenate(costs)
    assert known.sum() == pytest.approx(1, abs=1e-6)
    assert known == pytest.approx(class_shares(own.fit.labels, CLASSES), abs=0.005)
    divergence = float(share @ np.log2(share / known))
    assert found.told_by(CODES) == pytest.approx(-divergence, abs=1e-9)
    assert found.told[CODES].value == pytest.approx(-divergence, abs=1e-9)
    assert divergence > 0.1 if other else 1e-4 < divergence < 1e-3


def channel(error: float, part: Purpose):
    """The class is said, and with that probability another one at random."""
    generator = np.random.default_rng(2 + len(part.labels))
    other = (truth(part) + generator.integers(1, CLASSES, len(part.labels))) % CLASSES
    said = np.where(generator.random(len(part.labels)) < error, other, truth(part))
    return sparse.csr_matrix(np.eye(CLASSES, ATOMS)[said].astype(np.float32))


@pytest.mark.parametrize("error", [0.05, 0.3, 0.6])
def test_what_a_channel_carries_is_told_and_no_more(question, error):
    found = told(question, codes=lambda part: channel(error, part))
    carried = BITS + (1 - error) * math.log2(1 - error) + error * math.log2(error / (CLASSES - 1))
    costs = [-math.log2(1 - error), -math.log2(error / (CLASSES - 1))]
    deviation = abs(costs[1] - costs[0]) * math.sqrt(error * (1 - error) / 600)
    assert carried - 3 * deviation - 0.06 < found.told_by(CODES) < carried + 3 * deviation
    assert found.decoded[CODES].error == pytest.approx(error, abs=0.06)


@pytest.mark.parametrize("codes", [oracle, noise, dense_codes, silent])
@pytest.mark.parametrize("other", [False, True])
def test_no_more_is_told_than_there_is_to_tell(question, codes, other):
    own = skewed(question) if other else question
    found = told(own, codes=codes, random=oracle, rows=oracle, groups=np.arange(len(own.score.labels)) // 10)
    for name in found.decoded:
        assert found.told_by(name) <= found.bits
        assert (found.decoded[name].costs >= 0).all()
    for name in found.greedy:
        assert all(found.told_greedily(name, steps) <= found.bits for steps in range(STEPS + 1))
    assert all(interval.value <= found.bits for interval in found.told.values())


def test_classes_that_are_groups_have_no_interval(question, found):
    own = told(Question("document", CLASSES, question.fit, question.select, question.score, of_groups=True))
    for arm in (CODES, RANDOM):
        assert own.told[arm].value == found.told[arm].value
        assert math.isnan(own.told[arm].low)
        assert math.isnan(own.told[arm].high)
        assert found.told[arm].low < found.told[arm].high


def test_intervals_are_of_groups(question):
    """Where each group is of one class, there are few independent rows; where all are mixed, many."""
    mixed = told(question, codes=dense_codes)
    by_class = told(question, codes=dense_codes, groups=question.score.labels)
    for each in (mixed, by_class):
        assert each.told[CODES].low <= each.told[CODES].value <= each.told[CODES].high
    assert mixed.told[CODES].value == pytest.approx(by_class.told[CODES].value)
    width = mixed.told[CODES].high - mixed.told[CODES].low
    share = np.bincount(question.score.labels) / 600
    standard = (-np.log2(share[question.score.labels]) - mixed.decoded[CODES].costs).std() / math.sqrt(600)
    assert width == pytest.approx(4 * standard, rel=0.6)


def test_one_group_has_no_interval(question):
    own = told(question, groups=np.zeros(600, int))
    assert math.isnan(own.told[CODES].low)
    assert math.isnan(own.told[CODES].high)
    assert own.told[CODES].value == pytest.approx(BITS, abs=0.1)


def test_the_same_twice_and_otherwise_shuffled_with_another_seed(question, found):
    again, other = told(question), told(question, seed=1)
    assert again.told == found.told
    assert again.greedy == found.greedy
    assert again.told_by(SHUFFLED) == found.told_by(SHUFFLED)
    assert other.told[CODES].value == found.told[CODES].value
    assert np.isfinite(other.told_by(SHUFFLED))
    assert not np.array_equal(other.signs[SHUFFLED].information, found.signs[SHUFFLED].information)


def test_shuffled_labels_are_learnt_from_and_real_ones_scored(question):
    seen = []

    def spying(part: Purpose):
        seen.append(part.labels.copy())
        return noise(part)

    told(question, codes=spying)
    by_length = {600: question.score.labels, 900: question.fit.labels, 300: question.select.labels}
    unshuffled = [np.array_equal(labels, by_length[len(labels)]) for labels in seen]
    assert unshuffled == [True, True, True, False, False, True]
    for labels in seen:
        assert np.array_equal(np.bincount(labels), np.bincount(by_length[len(labels)]))
