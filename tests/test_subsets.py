"""Sets of components that are enough, against all sets there are."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.information import SampleSpace, Variable, entropy
from atoms.information.subsets import sufficient_subsets


def problem(columns: list, weights: list[int] | None = None) -> tuple[Variable, list[Variable]]:
    """A variable with an outcome for each of its values, and functions of it."""
    weights = [1] * len(columns[0]) if weights is None else weights
    space = SampleSpace.of(np.array(weights) / sum(weights))
    return space.variable(range(len(space))), [space.variable(column) for column in columns]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Variable, list[Variable]]:
    values, count = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    columns = draw(
        st.lists(st.lists(st.integers(0, 2), min_size=values, max_size=values), min_size=count, max_size=count)
    )
    return problem(columns, draw(st.lists(st.integers(1, 5), min_size=values, max_size=values)))


def enough(x: Variable, components: list[Variable], places: tuple[int, ...]) -> bool:
    return len({tuple(components[place].labels[at] for place in places) for at in range(x.size)}) == x.size


def smallest(x: Variable, components: list[Variable]) -> list[tuple[int, ...]]:
    """All minimal sets, by looking at all sets."""
    every = range(len(components))
    sets = [
        places
        for size in range(len(components) + 1)
        for places in itertools.combinations(every, size)
        if enough(x, components, places)
    ]
    return [places for places in sets if not any(set(other) < set(places) for other in sets)]


@settings(deadline=None, max_examples=150)
@given(problems())
def test_minimal_sets_are_found_as_by_looking_at_all(found):
    x, components = found
    assert list(sufficient_subsets(x, components).minimal) == smallest(x, components)


@settings(deadline=None)
@given(problems())
def test_the_greedy_set_is_enough_and_no_component_too_many(found):
    x, components = found
    subsets = sufficient_subsets(x, components)
    if enough(x, components, tuple(range(len(components)))):
        assert enough(x, components, subsets.greedy)
        for place in subsets.greedy:
            assert not enough(x, components, tuple(other for other in subsets.greedy if other != place))
        assert tuple(sorted(subsets.greedy)) in subsets.minimal
        assert [place for place in subsets.order if place in subsets.greedy] == list(subsets.greedy)
    else:
        assert subsets.greedy == subsets.minimal == ()


@settings(deadline=None)
@given(problems())
def test_each_step_tells_most(found):
    x, components = found
    subsets = sufficient_subsets(x, components)
    assert len(set(subsets.order)) == len(subsets.order) == len(subsets.told)
    chosen: list[Variable] = []
    for place, told in zip(subsets.order, subsets.told, strict=True):
        assert told == pytest.approx(max(entropy(*chosen, component) for component in components), abs=1e-9)
        chosen.append(components[place])
        assert told == pytest.approx(entropy(*chosen), abs=1e-9)
    everything = entropy(*components)
    assert (subsets.told[-1] if subsets.told else 0) == pytest.approx(everything, abs=1e-9)


def test_two_bits_and_their_parity():
    first, second = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    found = sufficient_subsets(*problem([first, second, first ^ second]))
    assert found.minimal == ((0, 1), (0, 2), (1, 2))
    assert found.order == found.greedy == (0, 1)
    assert found.told == (1, 2)


def test_what_was_taken_first_may_be_left_out_in_the_end():
    """The first component tells most of nine places, and not all; row and column do."""
    row, column = np.repeat(np.arange(3), 3), np.tile(np.arange(3), 3)
    found = sufficient_subsets(*problem([[0, 0, 1, 2, 3, 4, 5, 6, 4], row, column]))
    assert found.order == (0, 1, 2)
    assert found.greedy == (1, 2)
    assert found.minimal == ((1, 2),)


def test_a_constant_needs_nothing():
    found = sufficient_subsets(*problem([[0], [0]]))
    assert (found.greedy, found.told, found.order, found.minimal) == ((), (), (), ((),))


def test_constants_tell_nothing():
    found = sufficient_subsets(*problem([[0, 0], [1, 1]]))
    assert (found.greedy, found.told, found.order, found.minimal) == ((), (), (), ())
    found = sufficient_subsets(*problem([[0, 0], [0, 1], [1, 1]]))
    assert (found.greedy, found.told, found.order, found.minimal) == ((1,), (1,), (1,), ((1,),))


@pytest.mark.parametrize(("values", "count"), [(4, 4), (4, 18), (8, 16), (8, 18)])
def test_copies_may_stand_for_each_other(values, count):
    """Each component singles out one value; all values but one must be singled out, by any copy."""
    columns = [np.arange(values) == place % values for place in range(count)]
    found = sufficient_subsets(*problem(columns))
    of_each = [len(range(value, count, values)) for value in range(values)]
    expected = sum(math.prod(of_each) // left_out for left_out in of_each)
    assert len(found.minimal) == len(set(found.minimal)) == expected
    assert {len(each) for each in found.minimal} == {values - 1}
    assert all(len({place % values for place in each}) == values - 1 for each in found.minimal)


def test_of_many_components_one_set_is_found():
    values = np.arange(1024)
    columns = [values >> place & 1 for place in range(10)]
    x, components = problem([*columns, *columns, *columns])
    found = sufficient_subsets(x, components)
    assert found.minimal is None
    assert found.greedy == tuple(range(10))
    assert found.told == pytest.approx(list(range(1, 11)))
    assert sufficient_subsets(x, components[:9] * 3).greedy == ()
    assert sufficient_subsets(x, components[:9] * 3).minimal is None
    assert sufficient_subsets(x, components[:10]).minimal == (tuple(range(10)),)
