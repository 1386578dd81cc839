"""The lattice of partitions: its axioms, and joins and meets against all partitions there are."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_variable import variables

from atoms.errors import AtomsError
from atoms.information import (
    SampleSpace,
    bottom,
    complement,
    conditional_entropy,
    determines,
    entropy,
    equivalent,
    from_samples,
    from_table,
    independent,
    join,
    meet,
    mutual_information,
    top,
)
from atoms.information.lattice import two_values
from atoms.information.variable import compressed

laws = settings(deadline=None, max_examples=60)


def finer(x: list[int], y: list[int]) -> bool:
    """Whether what is alike in x is in y, by comparing all pairs."""
    return all(y[i] == y[j] for i in range(len(x)) for j in range(i) if x[i] == x[j])


def partitions(count: int) -> Iterator[list[int]]:
    """All partitions of so many outcomes."""
    if not count:
        yield []
        return
    for rest in partitions(count - 1):
        for block in range(max(rest, default=-1) + 2):
            yield [*rest, block]


@laws
@given(variables(3))
def test_order(found):
    x, y, z = found
    assert determines(x, y) == finer(x.labels.tolist(), y.labels.tolist())
    assert determines(x, y, z) == (determines(x, y) and determines(x, z))
    assert determines(x, y) == (conditional_entropy(y, x) < 1e-9)
    assert determines(x, x)
    assert determines(x)
    assert equivalent(x, y) == (determines(x, y) and determines(y, x))
    assert not (determines(x, y) and determines(y, z)) or determines(x, z)
    assert determines(x, y) == equivalent(join(x, y), x) == equivalent(meet(x, y), y)


@laws
@given(variables(2, outcomes=6))
def test_join_and_meet_are_the_bounds_among_all_partitions(found):
    x, y = (variable.labels.tolist() for variable in found)
    both, common = join(*found), meet(*found)
    every = list(partitions(len(x)))
    above = [each for each in every if finer(each, x) and finer(each, y)]
    below = [each for each in every if finer(x, each) and finer(y, each)]
    (coarsest,) = [each for each in above if all(finer(other, each) for other in above)]
    (finest,) = [each for each in below if all(finer(each, other) for other in below)]
    assert finer(both.labels.tolist(), coarsest)
    assert finer(coarsest, both.labels.tolist())
    assert finer(common.labels.tolist(), finest)
    assert finer(finest, common.labels.tolist())
    assert (both.size, common.size) == (max(coarsest) + 1, max(finest) + 1)


@laws
@given(variables(3))
def test_axioms_of_a_lattice(found):
    x, y, z = found
    for operation, other in ((join, meet), (meet, join)):
        assert equivalent(operation(x, x), x)
        assert equivalent(operation(x), x)
        assert equivalent(operation(x, y), operation(y, x))
        assert equivalent(operation(x, operation(y, z)), operation(operation(x, y), z))
        assert equivalent(operation(x, y, z), operation(operation(x, y), z))
        assert equivalent(operation(x, other(x, y)), x)
    assert determines(join(x, y), x, y)
    assert determines(x, meet(x, y))
    assert determines(y, meet(x, y))
    assert determines(meet(x, join(y, z)), join(meet(x, y), meet(x, z)))
    assert determines(meet(join(x, y), join(x, z)), join(x, meet(y, z)))


@laws
@given(variables(1))
def test_bounds(found):
    (x,) = found
    zero, one = bottom(x.space), top(x.space)
    assert determines(x, zero)
    assert determines(one, x)
    assert equivalent(join(x, zero), x)
    assert equivalent(meet(x, one), x)
    assert equivalent(join(x, one), one)
    assert equivalent(meet(x, zero), zero)
    assert (zero.size, one.size) == (1, len(x.space))


def test_bounds_are_called_by_their_outcomes():
    space = SampleSpace.uniform(np.array([5, 7]))
    assert [top(space).symbol(0), top(space).symbol(1)] == [5, 7]
    assert repr(top(space).symbol(0)) == "5"
    assert bottom(space).symbol(0) == 0
    pairs = SampleSpace.uniform(np.array([[5, 7], [7, 5]]))
    assert top(pairs).symbol(1) == (7, 5)


@laws
@given(variables(2))
def test_common_information_is_no_more_than_mutual_information(found):
    x, y = found
    common = meet(x, y)
    assert entropy(common) <= mutual_information(x, y) + 1e-12
    conditionally_independent = entropy(x, common) + entropy(y, common) - entropy(x, y, common) - entropy(common)
    assert mutual_information(x, y) - entropy(common) == pytest.approx(conditionally_independent, abs=1e-12)
    assert entropy(join(x, y)) == pytest.approx(entropy(x, y), abs=1e-12)


def test_a_lattice_that_is_not_distributive():
    """Three ways to single out one of three outcomes: any two tell all, and nothing is common to any two."""
    space = SampleSpace.uniform(3)
    x, y, z = (space.variable(np.arange(3) == one, "xyz"[one]) for one in range(3))
    assert equivalent(meet(x, join(y, z)), x)
    assert equivalent(join(meet(x, y), meet(x, z)), bottom(space))
    assert equivalent(join(x, meet(y, z)), x)
    assert equivalent(meet(join(x, y), join(x, z)), top(space))
    assert not equivalent(y, z)  # two complements of x
    assert equivalent(join(x, y), join(x, z))
    assert equivalent(meet(x, y), meet(x, z))


def test_what_has_no_probability_is_ignored():
    x, y = from_table([[0.5, 0.0], [0.0, 0.5]])
    assert equivalent(x, y)
    assert equivalent(meet(x, y), x)
    assert join(x, y).size == 2
    noisy, other = from_table([[0.5, 1e-12], [0.0, 0.5 - 1e-12]])
    assert not determines(noisy, other)
    assert meet(noisy, other).size == 1
    assert join(noisy, other).size == 3


def test_one_noisy_sample_joins_two_components():
    x, y = from_samples([0, 0, 1, 1, 2] * 20, "aabbc" * 20)
    assert meet(x, y).size == 3
    x, y = from_samples([0, 0, 1, 1, 2] * 20 + [0], list("aabbc" * 20 + "b"))
    common = meet(x, y)
    assert common.size == 2
    assert determines(x, common)
    assert common.probabilities.tolist() == pytest.approx([81 / 101, 20 / 101])


def test_a_long_chain_is_one_component():
    steps = np.arange(10_000)
    x, y = from_samples(steps // 2, (steps + 1) // 2)
    assert meet(x, y).size == 1
    assert join(x, y).size == 10_000
    x, y = from_samples(np.delete(steps, 5000) // 2, (np.delete(steps, 5000) + 1) // 2)
    assert meet(x, y).size == 2


def test_names_and_symbols():
    x, y = from_samples([1, 1, 2], ["a", "b", "b"], names=["x", "y"])
    assert join(x, y).name == "x ∨ y"
    assert meet(x, y).name == "x ∧ y"
    assert join(x, y, name="both").name == "both"
    assert meet(x, y, name="common").name == "common"
    assert [join(x, y).symbol(at) for at in range(3)] == [(1, "a"), (1, "b"), (2, "b")]
    assert [meet(x, x).symbol(at) for at in range(2)] == [0, 1]
    assert complement(x, join(x, y)).name == "x complemented in x ∨ y"
    assert complement(x, join(x, y), "rest").name == "rest"


@laws
@given(variables(2))
def test_a_complement_tells_the_rest_and_nothing_else(found):
    x, other = found
    y = meet(x, other)
    z = complement(y, x)
    assert determines(x, z)
    assert equivalent(join(y, z), x)
    assert meet(y, z).size == 1
    assert z.size == max(np.bincount(y.labels[x.firsts]))
    assert [z.symbol(at) for at in range(z.size)] == list(range(z.size))
    assert complement(x, x).size == 1
    assert equivalent(complement(bottom(x.space), x), x)
    both = join(x, other)
    assert equivalent(join(x, complement(x, both)), both)


def test_what_is_no_function_has_no_complement():
    x, y = from_samples(["a", "b", "a"], [1, 2, 3], names=["x", "y"])
    with pytest.raises(AtomsError, match=r"^y is no function of x: x = 'a' has y = 1 and 3; a complement is of a func"):
        complement(y, x)
    assert complement(x, y).size == 2
    x, y = from_samples(["a\nb", "a\nb"], ["\x1b", "c"], names=["x", "y"])
    with pytest.raises(AtomsError) as caught:
        complement(y, x)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@laws
@given(variables(2))
def test_a_witness_is_one(found):
    x, y = found
    clash = two_values(x, y)
    assert (clash is None) == determines(x, y)
    if clash is not None:
        value, (one, other) = clash
        seen = {(x.symbol(a), y.symbol(b)) for a, b in zip(x.labels.tolist(), y.labels.tolist(), strict=True)}
        assert one != other
        assert {(value, one), (value, other)} <= seen


@laws
@given(variables(3))
def test_independence_is_that_of_every_combination(found):
    for some in (found[:2], found):
        joint = np.zeros([variable.size for variable in some])
        np.add.at(joint, tuple(variable.labels for variable in some), some[0].space.probabilities)
        product = np.ones(())
        for variable in some:
            product = np.multiply.outer(product, variable.probabilities)
        assert independent(*some) == np.allclose(joint, product, rtol=0, atol=1e-12)
    x = found[0]
    assert independent(x)
    assert independent(x, bottom(x.space))
    assert independent(x, x) == (x.size == 1)


marginals = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(lambda cells: np.array(cells) / sum(cells))


@laws
@given(marginals, marginals, marginals)
def test_products_are_independent_until_one_cell_is_moved(p, q, r):
    x, y, z = from_table(np.multiply.outer(np.multiply.outer(p, q), r))
    assert independent(x, y, z)
    assert meet(x, y).size == 1
    assert independent(join(x, y), z)
    if min(len(p), len(q)) > 1:
        table = np.multiply.outer(p, q)
        table[:2, :2] += 1e-6 * np.array([[1, -1], [-1, 1]])  # marginals stay
        assert not independent(*from_table(table))


def test_each_two_may_be_independent_and_not_all_three():
    x, y = from_table([[0.25, 0.25], [0.25, 0.25]])
    parity = x.space.variable(x.labels ^ y.labels, "parity")
    assert independent(x, y)
    assert independent(x, parity)
    assert independent(y, parity)
    assert not independent(x, y, parity)
    assert independent(*from_samples([0, 0, 1, 1], [0, 1, 0, 1]))  # as samples hardly ever are
    assert not independent(*from_samples([0, 0, 1, 1, 1], [0, 1, 0, 1, 1]))


def test_many_constants_and_many_bits():
    space = SampleSpace.uniform(4)
    assert independent(*[bottom(space)] * 200)
    bits = [space.variable([0, 1, 0, 1])] * 200  # 2^200 combinations
    assert not independent(*bits)
    assert join(*bits).size == 2
    assert meet(*bits).size == 2


@pytest.mark.parametrize("function", [determines, equivalent, join, meet, complement, independent, two_values])
@pytest.mark.parametrize("values", [[0, 1], [0, 0]])
def test_variables_of_different_spaces_are_not_compared(function, values):
    (x,), (y,) = from_samples([0, 1], names=["x"]), from_samples(values, names=["y"])
    with pytest.raises(AtomsError, match=r"^variables . and . are on different sample spaces: make both with one call"):
        function(x, y)


@pytest.mark.parametrize("function", [join, meet, independent])
def test_nothing_is_said_of_no_variable(function):
    with pytest.raises(AtomsError, match=r"^no variable is given: give at least one"):
        function()


@laws
@given(variables(2))
def test_of_what_is_made_all_labels_occur(found):
    x, y = found
    for made in (join(x, y), meet(x, y), meet(x), top(x.space), bottom(x.space), complement(meet(x, y), x)):
        assert sorted(set(made.labels.tolist())) == list(range(made.size))


def test_products_in_single_precision_are_independent():
    generator = np.random.default_rng(0)
    p, q, r = (generator.dirichlet(np.ones(n)).astype(np.float32) for n in (3, 4, 5))
    outer = from_table(np.einsum("i,j,k->ijk", p, q, r))
    assert independent(*outer)
    assert independent(*compressed(outer))
    assert not independent(*from_table(np.diag(p)))
