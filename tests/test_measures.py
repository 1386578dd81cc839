"""Entropies and distances: against scipy, scikit-learn and their definitions, and as the metrics they are."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import mutual_info_score
from test_variable import variables

from atoms.errors import AtomsError
from atoms.information import (
    SampleSpace,
    Variable,
    bottom,
    conditional_entropy,
    dependency_coefficient,
    determines,
    entropy,
    equivalent,
    from_samples,
    from_table,
    independent,
    join,
    meet,
    mutual_information,
    rajski_distance,
    redundancy,
    shannon_distance,
)
from atoms.information.measures import entropy_of

DISTANCES = [shannon_distance, rajski_distance]


def table(*found: Variable) -> np.ndarray:
    """Joint probabilities, an axis for each variable."""
    joint = np.zeros([variable.size for variable in found])
    np.add.at(joint, tuple(variable.labels for variable in found), found[0].space.probabilities)
    return joint


@settings(deadline=None)
@given(variables(3))
def test_entropies_are_scipys(found):
    x, y, z = found
    for some in ([x], [x, y], [x, y, z], [x, x]):
        assert entropy(*some) == pytest.approx(stats.entropy(table(*some).ravel(), base=2), abs=1e-12)
    joint = table(x, y)
    given_y = sum(joint[:, at].sum() * stats.entropy(joint[:, at], base=2) for at in range(y.size))
    assert conditional_entropy(x, y) == pytest.approx(given_y, abs=1e-12)
    assert conditional_entropy(x) == entropy(x)
    assert entropy(x, y, z) == pytest.approx(
        entropy(x) + conditional_entropy(y, x) + conditional_entropy(z, x, y), abs=1e-12
    )


@settings(deadline=None)
@given(variables(3))
def test_information_and_redundancy_are_divergences_from_independence(found):
    x, y, _ = found
    for value, some in ((mutual_information(x, y), (x, y)), (redundancy(x, y), (x, y)), (redundancy(*found), found)):
        product = np.ones(())
        for variable in some:
            product = np.multiply.outer(product, variable.probabilities)
        assert value == pytest.approx(stats.entropy(table(*some).ravel(), product.ravel(), base=2), abs=1e-12)
        assert (value < 1e-9) == independent(*some)
    assert redundancy(x) == 0


def test_information_of_samples_is_scikit_learns():
    generator = np.random.default_rng(0)
    a = generator.integers(0, 7, 500)
    b = (a + generator.integers(0, 3, 500)) % 5
    x, y = from_samples(a, b)
    assert mutual_information(x, y) == pytest.approx(mutual_info_score(a, b) / math.log(2))


@pytest.mark.parametrize("error", [0, 0.01, 0.11, 0.5, 1])
def test_a_bit_through_a_noisy_channel(error):
    x, y = from_table([[(1 - error) / 2, error / 2], [error / 2, (1 - error) / 2]])
    lost = stats.entropy([error, 1 - error], base=2)
    assert mutual_information(x, y) == pytest.approx(1 - lost, abs=1e-12)
    assert conditional_entropy(x, y) == pytest.approx(lost, abs=1e-12)
    assert shannon_distance(x, y) == pytest.approx(2 * lost, abs=1e-12)
    assert rajski_distance(x, y) == pytest.approx(2 * lost / (1 + lost), abs=1e-12)
    assert dependency_coefficient(x, y) == pytest.approx((1 - lost) / (1 + lost), abs=1e-12)


@settings(deadline=None)
@given(variables(2))
def test_distances_are_what_each_does_not_know_of_the_other(found):
    x, y = found
    joint, shannon = entropy(x, y), shannon_distance(x, y)
    assert shannon == pytest.approx(conditional_entropy(x, y) + conditional_entropy(y, x), abs=1e-12)
    assert 0 <= shannon <= joint + 1e-12
    assert rajski_distance(x, y) * joint == pytest.approx(shannon, abs=1e-12)
    assert dependency_coefficient(x, y) * joint == pytest.approx(mutual_information(x, y), abs=1e-12)
    assert dependency_coefficient(x, y) == 1 - rajski_distance(x, y)
    assert (rajski_distance(x, y) > 1 - 1e-9) == (independent(x, y) and joint > 0)
    zero = bottom(x.space)
    assert shannon_distance(x, zero) == pytest.approx(entropy(x), abs=1e-12)
    assert rajski_distance(x, zero) == (1 if x.size > 1 else 0)
    if determines(x, y):
        assert shannon == pytest.approx(entropy(x) - entropy(y), abs=1e-12)
        assert x.size == 1 or rajski_distance(x, y) == pytest.approx(1 - entropy(y) / entropy(x), abs=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
@settings(deadline=None)
@given(found=variables(3))
def test_distances_are_metrics(distance, found):
    x, y, z = found
    assert distance(x, y) == pytest.approx(distance(y, x), abs=1e-12)
    assert (distance(x, y) < 1e-9) == equivalent(x, y)
    assert distance(x, x) < 1e-12
    assert distance(x, z) <= distance(x, y) + distance(y, z) + 1e-12


@settings(deadline=None)
@given(variables(2))
def test_what_lies_between_two_variables(found):
    x, y = found

    def detour(distance, first, through, last):
        return distance(first, through) + distance(through, last) - distance(first, last)

    both = join(x, y)
    for distance in DISTANCES:
        assert detour(distance, x, both, y) == pytest.approx(0, abs=1e-12)
    assert shannon_distance(x, both) == pytest.approx(conditional_entropy(y, x), abs=1e-12)
    assert detour(shannon_distance, bottom(x.space), x, both) == pytest.approx(0, abs=1e-12)
    common = meet(x, y)
    assert detour(shannon_distance, bottom(x.space), common, y) == pytest.approx(0, abs=1e-12)
    over = detour(shannon_distance, x, common, y)
    assert over == pytest.approx(2 * (mutual_information(x, y) - entropy(common)), abs=1e-12)
    assert over >= -1e-12


@settings(deadline=None, max_examples=50)
@given(variables(2), st.permutations(range(4)))
def test_only_the_partition_matters(found, names):
    x, y = found
    renamed = x.space.variable(
        lambda outcomes: np.array(["abcd"[names[label]] for label in x.labels.tolist()], object), "renamed"
    )
    assert equivalent(x, renamed)
    for measure in (conditional_entropy, mutual_information, shannon_distance, rajski_distance, redundancy):
        assert measure(renamed, y) == pytest.approx(measure(x, y), abs=1e-12)
        assert measure(y, renamed) == pytest.approx(measure(y, x), abs=1e-12)
    assert entropy(renamed) == pytest.approx(entropy(x), abs=1e-12)


def test_extremes():
    constant, bit, same = from_table([[[0.5, 0.0], [0.0, 0.5]]])
    assert entropy(constant) == 0
    assert str(entropy(constant)) == "0.0"  # not -0.0
    assert rajski_distance(constant, constant) == 0
    assert dependency_coefficient(constant, constant) == 1
    assert rajski_distance(bit, same) == 0
    assert rajski_distance(bit, constant) == 1
    assert mutual_information(bit, same) == 1
    assert redundancy(bit, same, bit) == 2
    assert entropy_of(np.array([3.0, 0.0, 3.0, 6.0])) == 1.5
    assert entropy_of(np.array([1e-300, 1.0])) < 1e-290
    uniform = SampleSpace.uniform(1000).variable(lambda outcomes: outcomes)
    assert entropy(uniform) == pytest.approx(math.log2(1000), abs=1e-12)


def test_measures_are_made_of_the_joint_entropies_they_are_given():
    """With the number of variables for an entropy, sums of entropies can be counted."""
    x, y, z = from_samples([0, 1], [0, 1], [1, 1])

    def count(*some: Variable) -> float:
        return float(len(some))

    assert entropy(x, y, entropy=count) == 2
    assert conditional_entropy(x, y, z, entropy=count) == 1
    assert conditional_entropy(x, entropy=count) == 1
    assert mutual_information(x, y, entropy=count) == 0
    assert shannon_distance(x, y, entropy=count) == 2
    assert rajski_distance(x, y, entropy=count) == 1
    assert dependency_coefficient(x, y, entropy=count) == 0
    assert redundancy(x, y, z, entropy=lambda *some: 1.0) == 2


@pytest.mark.parametrize("measure", [entropy, conditional_entropy, mutual_information, *DISTANCES, redundancy])
def test_variables_of_different_spaces_are_not_compared(measure):
    (x,), (y,) = from_samples([0, 1], names=["x"]), from_samples([0, 1], names=["y"])
    with pytest.raises(AtomsError, match=r"^variables x and y are on different sample spaces: make both with one call"):
        measure(x, y)
    with pytest.raises(AtomsError, match=r"^no variable is given: give at least one"):
        redundancy()


def test_a_million_samples_over_a_hundred_thousand_symbols():
    generator = np.random.default_rng(0)
    a = (generator.integers(0, 100_000, 10**6).astype(np.uint64) + 1) * np.uint64(184_467_440_737_095)  # beyond int64
    b = (a // np.uint64(3)).astype(np.float64) % 1009
    x, y = from_samples(a, b)

    def reference(*columns: np.ndarray) -> float:
        rows = np.stack([np.unique(column, return_inverse=True)[1] for column in columns])
        keys = rows[0] if len(rows) == 1 else rows[0] * 2000 + rows[1]
        return float(stats.entropy(np.unique(keys, return_counts=True)[1], base=2))

    assert a.max() > 2**63
    assert x.size == len(np.unique(a)) > 99_000
    assert entropy(x) == pytest.approx(reference(a))
    assert entropy(y) == pytest.approx(reference(b))
    assert entropy(x, y) == pytest.approx(reference(a, b))
    assert conditional_entropy(y, x) == pytest.approx(0, abs=1e-9)
    noise = generator.integers(0, 1500, 10**6)
    (x, z) = from_samples(a, noise)
    assert entropy(x, z) == pytest.approx(reference(a, noise))
