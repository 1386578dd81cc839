"""Classes of rows: clusters that are there are found, and atoms that are clusters determine them."""

import math
import warnings

import numpy as np
import pytest
from scipy import sparse

from atoms.checks.information import row_classes as module
from atoms.checks.information.row_classes import RowClasses, classes_told, row_classes
from atoms.checks.row_sample import Sampled
from atoms.information.reconstruction import Verdict

WIDTH, LEARNT, JUDGED = 8, 600, 400


def sampled(rows, codes=None) -> Sampled:
    rows = np.asarray(rows, np.float32)
    codes = np.zeros((len(rows), 3)) if codes is None else codes
    return Sampled(np.arange(len(rows)), rows, sparse.csr_matrix(np.asarray(codes, np.float32)))


def clusters(rows: int, count: int, seed: int, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Which cluster each row is of, and the rows; clusters of equal size, the same for every seed."""
    centres = 3 * np.random.default_rng(99).standard_normal((count, WIDTH))
    generator = np.random.default_rng(seed)
    which = generator.permutation(rows) % count
    return which, centres[which] + noise * generator.standard_normal((rows, WIDTH))


def judged_by(count: int, codes) -> tuple[RowClasses, module.ClassesTold]:
    """What codes, a function of which cluster a row is of, tell of as many classes."""
    (learnt, near), (judged, far) = clusters(LEARNT, count, 1), clusters(JUDGED, count, 2)
    classes = row_classes(sampled(near), sampled(far), count, seed=0)
    assert classes is not None
    assert classes.count == count
    return classes, classes_told(classes, signs_of(classes, codes(learnt)), on_rows(codes(judged)))


def signs_of(classes: RowClasses, codes) -> np.ndarray:
    """Signs on the representatives, of codes of the training rows."""
    return np.sign(np.asarray(codes, float)[classes.representatives]).astype(np.int8)


def on_rows(codes):
    return sparse.csr_matrix(np.asarray(codes, np.float32))


# ------------------------------------------------------------------------------------------ classes


@pytest.mark.parametrize("count", [2, 5, 12])
@pytest.mark.parametrize("seed", range(3))
def test_clusters_that_are_there_are_the_classes(count, seed):
    (near, learnt), (far, judged) = clusters(LEARNT, count, 1), clusters(JUDGED, count, 2)
    found = row_classes(sampled(learnt), sampled(judged), count, seed)
    assert found.count == count
    assert len({*zip(far.tolist(), found.of_held_out.tolist(), strict=True)}) == count
    assert (near[found.representatives][found.of_held_out] == far).all()


@pytest.mark.parametrize(("factor", "shift"), [(1e25, 0), (1e-25, 0), (1, 1000), (1e-3, -50)])
def test_units_and_origin_of_rows_change_nothing(factor, shift):
    (near, learnt), (far, judged) = clusters(LEARNT, 5, 1), clusters(JUDGED, 5, 2)
    found = row_classes(sampled(factor * learnt + shift), sampled(factor * judged + shift), 5, 0)
    assert (near[found.representatives][found.of_held_out] == far).all()


def test_a_row_is_of_the_class_whose_representative_is_nearest(monkeypatch):
    generator = np.random.default_rng(0)
    learnt, judged = generator.standard_normal((300, WIDTH)), generator.standard_normal((260, WIDTH))
    found = row_classes(sampled(learnt), sampled(judged), 9, 0)
    assert (np.diff(found.representatives) > 0).all()
    distances = np.linalg.norm(judged[:, None] - learnt[found.representatives], axis=2)
    assert (found.of_held_out == distances.argmin(1)).all()
    monkeypatch.setattr(module, "_STEPS", 50)
    again = row_classes(sampled(learnt), sampled(judged), 9, 0)
    assert (again.of_held_out == found.of_held_out).all()
    assert (again.representatives == found.representatives).all()


def test_a_representative_is_a_training_row_of_its_own_class():
    learnt = np.random.default_rng(1).standard_normal((300, WIDTH))
    found = row_classes(sampled(learnt), sampled(learnt), 10, 0)
    assert (found.of_held_out[found.representatives] == np.arange(found.count)).all()


@pytest.mark.parametrize(
    ("learnt", "judged", "most", "count"),
    [(400, 400, 7, 7), (100, 400, 7, 5), (400, 79, 7, 3), (40, 40, 7, 2), (39, 400, 7, None), (400, 39, 7, None),
     (400, 400, 1, None)],
)  # fmt: skip
def test_no_more_classes_than_rows_are_enough_for(learnt, judged, most, count):
    (_, near), (_, far) = clusters(learnt, 30, 1, noise=0.5), clusters(judged, 30, 2, noise=0.5)
    found = row_classes(sampled(near), sampled(far), most, 0)
    assert (found and found.count) == count


@pytest.mark.parametrize("different", [1, 2])
def test_rows_that_are_all_alike(different):
    """No more classes than there are different rows, and nothing is said beside."""
    rows = np.arange(200)[:, None] % different + np.ones(WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = row_classes(sampled(rows), sampled(rows), 6, 0)
    assert found is None or found.count == different


# ------------------------------------------------------------------------------------------ what is told


def test_an_atom_a_cluster_determines_the_class():
    classes, told = judged_by(5, lambda which: np.eye(5)[which])
    found = told.found
    assert found.verdict is Verdict.PERFECT
    assert (found.gap, found.confused, told.searched) == (0, 0, 5)
    assert found.entropy == pytest.approx(math.log2(5), abs=1e-9)
    alone = -0.2 * math.log2(0.2) - 0.8 * math.log2(0.8)
    assert found.slack == pytest.approx(5 * alone - math.log2(5))
    assert found.redundancy == pytest.approx(found.slack)  # nothing is left
    assert sorted(map(len, found.subsets.minimal)) == [4] * 5  # the fifth follows from the others
    assert told.rows.function.all()
    assert told.rows.information == pytest.approx(told.rows.entropy)
    assert classes.of_held_out.shape == (JUDGED,)


def test_atoms_in_code_determine_it_with_fewer():
    _, told = judged_by(8, lambda which: (which[:, None] >> np.arange(3)) & 1)
    assert told.found.verdict is Verdict.PERFECT
    assert told.found.subsets.minimal == ((0, 1, 2),)
    assert told.found.slack == pytest.approx(0, abs=1e-9)
    assert told.found.independent


def test_signs_of_either_kind_are_told_apart():
    _, told = judged_by(3, lambda which: (which - 1.0)[:, None])
    assert told.found.verdict is Verdict.PERFECT
    assert [part.size for part in told.found.components] == [3]
    _, folded = judged_by(3, lambda which: np.abs(which - 1.0)[:, None])
    assert folded.found.verdict is Verdict.RULED_OUT


def test_one_atom_is_too_far_from_many_classes():
    _, told = judged_by(5, lambda which: (which == 3)[:, None])
    assert told.found.verdict is Verdict.RULED_OUT
    assert told.found.gap == pytest.approx(0.8 * 2)
    assert told.found.confused == 4


def test_the_same_atom_twice_meets_the_condition_and_does_not_determine():
    _, told = judged_by(4, lambda which: np.stack([which >= 2, which < 2], 1))
    assert told.found.verdict is Verdict.NOT_PERFECT
    assert told.found.slack == pytest.approx(0, abs=1e-9)
    assert (told.found.gap, told.found.redundancy) == pytest.approx((1, 1))


@pytest.mark.parametrize("codes", [np.zeros((LEARNT, 4)), np.ones((LEARNT, 4))])
def test_atoms_that_never_change_tell_nothing(codes):
    _, told = judged_by(5, lambda which: codes[: len(which)])
    assert told.found is None
    assert told.searched == 0
    assert np.isnan(told.rows.rajski).all()
    assert np.abs(told.rows.information).max() < 1e-12


def test_atoms_of_the_row_are_no_functions_of_its_class():
    """What fires on the representative is one; what fires on rows is not, and is looked at apart from it."""
    generator = np.random.default_rng(3)
    _, told = judged_by(5, lambda which: generator.random((len(which), 60)) < 0.5)
    assert told.found.verdict is Verdict.PERFECT  # sixty coins tell five rows apart, whatever they are
    assert not told.rows.function.any()
    deviation = math.sqrt(2 * 4) / (2 * JUDGED * math.log(2))  # half a chi-square of four degrees of freedom, in bits
    assert abs(told.rows.information.mean()) < 4 * deviation / math.sqrt(60)
    assert told.rows.information.min() < 0  # not cut off at none


def test_only_the_atoms_that_divide_most_evenly_are_searched_among(monkeypatch):
    monkeypatch.setattr(module, "MOST_ATOMS", 3)
    _, told = judged_by(8, lambda which: np.stack([which == 0, which < 4, which % 2, which > 6, which < 3], 1))
    assert told.searched == 3
    assert [part.name for part in told.found.components] == ["1", "2", "4"]


@pytest.mark.parametrize("most", range(1, 7))
def test_atoms_are_ranked_by_the_entropy_of_their_signs(monkeypatch, most):
    """Of three signs, and of held-out rows, not of classes: one in eight classes may hold half of them."""
    (learnt, _), (judged, _) = clusters(LEARNT, 8, 1), clusters(JUDGED, 8, 2)
    kept = (judged == 0) | (np.cumsum(judged != 0) <= 50)
    classes = RowClasses(judged[kept], np.array([np.flatnonzero(learnt == each)[0] for each in range(8)]))
    codes = np.stack([learnt < 4, np.sign(learnt - 3), learnt == 0, learnt == 7, learnt % 2, learnt >= 0], 1)
    weights = np.bincount(classes.of_held_out, minlength=classes.count) / kept.sum()
    entropies = []
    for column in signs_of(classes, codes).T:
        shares = [weights[column == sign].sum() for sign in (-1, 0, 1)]
        entropies.append(-sum(share * math.log2(share) for share in shares if share > 0))
    best = sorted(range(6), key=lambda atom: -entropies[atom])
    monkeypatch.setattr(module, "MOST_ATOMS", most)
    told = classes_told(classes, signs_of(classes, codes), on_rows(np.zeros((kept.sum(), 6))))
    expected = sorted(atom for atom in best[:most] if entropies[atom] > 0)
    assert [int(part.name) for part in told.found.components] == expected
    assert told.searched == len(expected)


def test_classes_without_held_out_rows_are_left_out():
    learnt, near = clusters(LEARNT, 6, 1)
    judged, far = clusters(JUDGED, 6, 2)
    kept = judged < 4
    classes = row_classes(sampled(near), sampled(far[kept]), 6, 0)
    told = classes_told(classes, signs_of(classes, np.eye(6)[learnt]), on_rows(np.eye(6)[judged[kept]]))
    assert classes.count == 6
    assert told.found.size == 4
    assert told.searched == 4
    assert told.found.verdict is Verdict.PERFECT


def test_held_out_rows_of_one_class_alone():
    learnt, near = clusters(LEARNT, 6, 1)
    judged, far = clusters(JUDGED, 6, 2)
    kept = judged == 4
    classes = row_classes(sampled(near), sampled(far[kept]), 3, 0)
    told = classes_told(classes, signs_of(classes, np.eye(6)[learnt]), on_rows(np.eye(6)[judged[kept]]))
    assert told.found is None


def test_classes_weigh_as_much_as_held_out_rows_fall_in_them():
    learnt, near = clusters(LEARNT, 2, 1)
    judged, far = clusters(JUDGED, 2, 2)
    kept = (judged == 0) | (np.cumsum(judged == 1) <= 50)
    classes = row_classes(sampled(near), sampled(far[kept]), 2, 0)
    told = classes_told(classes, signs_of(classes, np.eye(2)[learnt]), on_rows(np.eye(2)[judged[kept]]))
    assert told.found.entropy == pytest.approx(-0.2 * math.log2(0.2) - 0.8 * math.log2(0.8))
    assert told.found.draws == 250
