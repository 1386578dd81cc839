"""What is told of one label: all of it by atoms that are its values, nothing by codes that know nothing."""

import math

import numpy as np
import pytest
from scipy import sparse

from atoms.checks.information.label_told import CODES, RANDOM, ROW, SHUFFLED, STEPS, LabelTold, label_told
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


def told(question, codes=oracle, random=noise, rows=dense, groups=None, seed=0, resamples=30) -> LabelTold:
    groups = np.arange(600) // 10 if groups is None else groups
    return label_told(question, codes, random, rows, groups, resamples=resamples, seed=seed)


@pytest.fixture(scope="module")
def found(question) -> LabelTold:
    return told(question)


def test_atoms_that_are_the_classes_tell_all_bits(found):
    assert found.bits == pytest.approx(BITS, abs=1e-3)
    assert found.told.value == pytest.approx(BITS, abs=0.1)
    assert found.told_by(CODES) == found.told.value
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
    assert own.told.value == pytest.approx(found.told_random.value, abs=0.02)
    assert own.told_random.value == pytest.approx(found.told.value, abs=0.02)


def test_shuffled_labels_are_not_told(found):
    assert abs(found.told_by(SHUFFLED)) < 0.03
    assert abs(found.told_greedily(SHUFFLED, STEPS)) < 0.05
    atoms = found.atoms[SHUFFLED]
    assert not atoms.function[:CLASSES].any()
    assert np.nanmin(atoms.rajski) > 0.98


def test_all_of_the_row_is_a_reference_without_atoms(found):
    assert found.decoded.keys() == {CODES, RANDOM, SHUFFLED, ROW}
    assert found.greedy.keys() == found.atoms.keys() == {CODES, RANDOM, SHUFFLED}
    assert 0.2 < found.told_by(ROW) < found.told_by(CODES)


def test_every_atom_beside_the_label(found):
    atoms = found.atoms[CODES]
    assert atoms.rate == pytest.approx([1 / CLASSES] * CLASSES + [0] * (ATOMS - CLASSES))
    alone = -sum(p * math.log2(p) for p in (1 / CLASSES, 1 - 1 / CLASSES))
    assert atoms.information[:CLASSES] == pytest.approx(alone, abs=0.01)
    assert atoms.rajski[:CLASSES] == pytest.approx(1 - alone / BITS, abs=0.01)
    assert np.isnan(atoms.rajski[CLASSES:]).all()
    assert atoms.function.all()
    assert not found.atoms[RANDOM].function.any()


def test_negative_codes_tell_as_much(question, found):
    own = told(question, codes=lambda part: oracle(part, signed=True))
    assert own.told.value == pytest.approx(found.told.value, abs=1e-3)
    assert own.told_greedily(CODES, 3) == pytest.approx(found.told_greedily(CODES, 3), abs=1e-9)


def test_none_taken_is_none_told(question):
    own = told(question, codes=lambda part: sparse.csr_matrix((len(part.labels), ATOMS), dtype=np.float32))
    assert own.greedy[CODES] == []
    assert own.told_greedily(CODES, 1) == 0
    assert own.told.value == pytest.approx(0, abs=1e-4)
    assert np.isnan(own.atoms[CODES].rajski).all()


# ------------------------------------------------------------------------------------------ numbers


def test_bits_are_the_cost_of_knowing_the_shares_alone(question, found):
    shares = class_shares(question.fit.labels, CLASSES)
    assert found.bits == pytest.approx(-np.log2(shares[question.score.labels]).mean())
    assert found.told.value == pytest.approx(found.bits - found.decoded[CODES].bits)
    assert found.told_random.value == pytest.approx(found.bits - found.decoded[RANDOM].bits)


def test_intervals_are_of_groups(question):
    """Where each group is of one class, there are few independent rows; where all are mixed, many."""
    mixed = told(question, codes=dense_codes)
    by_class = told(question, codes=dense_codes, groups=question.score.labels)
    for each in (mixed, by_class):
        assert each.told.low <= each.told.value <= each.told.high
    assert mixed.told.value == pytest.approx(by_class.told.value)
    width = mixed.told.high - mixed.told.low
    standard = (-np.log2(class_shares(question.fit.labels, CLASSES))[question.score.labels]
                - mixed.decoded[CODES].costs).std() / math.sqrt(600)  # fmt: skip
    assert width == pytest.approx(4 * standard, rel=0.6)


def test_one_group_has_no_interval(question):
    own = told(question, groups=np.zeros(600, int))
    assert math.isnan(own.told.low)
    assert math.isnan(own.told.high)
    assert own.told.value == pytest.approx(BITS, abs=0.1)


def test_the_same_twice_and_otherwise_shuffled_with_another_seed(question, found):
    again, other = told(question), told(question, seed=1)
    assert again.told == found.told
    assert again.greedy == found.greedy
    assert again.told_by(SHUFFLED) == found.told_by(SHUFFLED)
    assert other.told.value == found.told.value
    assert np.isfinite(other.told_by(SHUFFLED))
    assert not np.array_equal(other.atoms[SHUFFLED].information, found.atoms[SHUFFLED].information)


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
