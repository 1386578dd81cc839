"""Sample spaces and variables on them: what is left out, what values are called, what is refused."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from atoms.errors import AtomsError
from atoms.information import SampleSpace, Variable, determines, entropy, equivalent, from_samples, from_table
from atoms.information.variable import common_space, compressed


@st.composite
def variables(draw: st.DrawFn, count: int, outcomes: int = 8) -> tuple[Variable, ...]:
    """Variables on one space of a few outcomes, known or sampled, some without probability."""
    n = draw(st.integers(1, outcomes))
    columns = [draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)) for _ in range(count)]
    weights = draw(st.just([1] * n) | st.lists(st.integers(0, 5), min_size=n, max_size=n).filter(any))
    if draw(st.booleans()):
        return from_samples(*columns, counts=weights)
    space = SampleSpace.of(np.array(weights) / sum(weights))
    return tuple(space.variable(column, f"X{number}") for number, column in enumerate(columns, 1))


def tables() -> st.SearchStrategy[np.ndarray]:
    shapes = st.lists(st.integers(1, 3), min_size=1, max_size=3)
    counts = shapes.flatmap(
        lambda shape: (
            st.lists(st.integers(0, 5), min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))
            .filter(any)
            .map(lambda cells: np.reshape(cells, shape))
        )
    )
    return counts.map(lambda table: table / table.sum())


def test_outcomes_without_probability_are_left_out():
    space = SampleSpace.of([0.5, 0, 0.25, 0.25], ["a", "b", "c", "d"])
    assert len(space) == 3
    assert space.kept.tolist() == [True, False, True, True]
    assert space.outcomes.tolist() == ["a", "c", "d"]
    assert space.draws is None
    x = space.variable([1, None, 1, 2])  # what is missing there is not missed
    assert x.labels.tolist() == [0, 0, 1]
    assert x.probabilities.tolist() == [0.75, 0.25]
    assert space.variable(lambda outcomes: outcomes == "a").labels.tolist() == [1, 0, 0]
    counted = SampleSpace.of_samples(4, [2, 0, 1, 1])
    assert (len(counted), counted.draws) == (3, 4)
    assert np.array_equal(counted.probabilities, space.probabilities)
    assert counted.variable([1, float("nan"), 1, 2]).labels.tolist() == [0, 0, 1]


def test_spaces_of_equal_outcomes():
    for given_ in (3, np.int64(3), range(3), [0, 1, 2], np.arange(3), torch.arange(3), iter(range(3))):
        space = SampleSpace.uniform(given_)
        assert space.outcomes.tolist() == [0, 1, 2]
        assert space.probabilities == pytest.approx([1 / 3] * 3)
        assert space.alike
        assert space.draws is None
    assert not SampleSpace.of([0.5, 0.25, 0.25]).alike
    assert not SampleSpace.of_samples(2, [1, 2]).alike
    assert SampleSpace.of_samples(2).alike


def test_probabilities_are_as_exact_as_their_type_allows():
    for dtype in (np.float16, np.float32, np.float64):
        given_ = np.random.default_rng(0).random(1000).astype(dtype)
        space = SampleSpace.of(given_ / given_.sum())
        assert space.probabilities.sum() == pytest.approx(1, abs=1e-14)
    near = np.array([0.5, 0.50001])
    assert SampleSpace.of(near.astype(np.float32)).probabilities.sum() == 1
    for wrong in (near, np.array([0.5, 0.501], np.float32)):
        with pytest.raises(AtomsError, match=r"^probabilities sum to 1\.00\d*, not to 1: divide them by their sum"):
            SampleSpace.of(wrong)
    with pytest.raises(AtomsError, match=r"^probabilities sum to 0\.9999999, not to 1: divide them by their sum"):
        SampleSpace.of([0.5, 0.4999999])
    assert len(SampleSpace.of([0, 1])) == 1


def test_a_symbol_is_the_value_that_was_given_as_python_has_it():
    x, y, z = from_samples(np.array([7, 5, 7]), ["b", "a", "b"], [(1, 2), (3,), (1, 2)])
    assert [x.symbol(0), x.symbol(1)] == [5, 7]
    assert type(x.symbol(0)) is int
    assert [y.symbol(0), y.symbol(1)] == ["b", "a"]
    assert [z.symbol(0), z.symbol(1)] == [(1, 2), (3,)]
    (rows,) = from_samples(np.array([[1.0, 2.0], [0.0, 3.0], [1.0, 2.0]]), names=["rows"])
    assert rows.labels.tolist() == [1, 0, 1]
    assert [rows.symbol(0), rows.symbol(1)] == [(0.0, 3.0), (1.0, 2.0)]
    assert repr(rows) == "Variable(rows: 2 values on 3 outcomes)"
    assert rows.named("other").name == "other"
    assert equivalent(rows.named("other"), rows)
    assert [variable.name for variable in (x, y, z)] == ["X1", "X2", "X3"]


@settings(deadline=None, max_examples=50)
@given(variables(1))
def test_every_label_occurs_and_firsts_are_where_it_does_first(found):
    (x,) = found
    labels = x.labels.tolist()
    assert sorted(set(labels)) == list(range(x.size))
    assert x.firsts.tolist() == [labels.index(label) for label in range(x.size)]
    assert x.probabilities.sum() == pytest.approx(1)
    weights = x.space.weights / x.space.weights.sum()
    assert x.probabilities == pytest.approx([weights[x.labels == label].sum() for label in range(x.size)])


@settings(deadline=None, max_examples=50)
@given(tables())
def test_variables_of_a_table_have_its_marginals(table):
    found = from_table(table)
    assert [variable.name for variable in found] == [f"X{axis + 1}" for axis in range(table.ndim)]
    for axis, variable in enumerate(found):
        marginal = table.sum(tuple(other for other in range(table.ndim) if other != axis))
        assert variable.probabilities == pytest.approx(marginal[marginal > 0])
        assert [variable.symbol(at) for at in range(variable.size)] == np.flatnonzero(marginal).tolist()
    assert entropy(*found) == pytest.approx(stats.entropy(table.ravel(), base=2))
    assert entropy(*from_table(torch.tensor(table, requires_grad=True))) == entropy(*found)


def test_symbols_of_a_table_are_values_and_equal_ones_are_one():
    table = np.array([[0.5, 0.125], [0.0, 0.125], [0.25, 0.0]])
    x, y = from_table(table, names=["x", "y"], symbols=[["low", "high", "low"], [10, 20]])
    assert [x.symbol(0), x.symbol(1)] == ["low", "high"]
    assert x.probabilities.tolist() == [0.875, 0.125]
    assert [y.symbol(0), y.symbol(1)] == [10, 20]
    exact = torch.tensor([[0.5, 0.25], [0.25, 0.0]])
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert from_table(exact.to(dtype))[0].probabilities.tolist() == [0.75, 0.25]
    assert from_table([[1, 0], [0, 0]])[0].size == 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=8))
def test_counts_are_rows_given_so_often(rows):
    a, b, counts = (np.array(column) for column in zip(*rows, strict=True))
    if not counts.any():
        counts[0] = 1
    x, y = from_samples(a, b, counts=counts)
    again, other = from_samples(np.repeat(a, counts), np.repeat(b, counts))
    assert x.space.draws == again.space.draws == counts.sum()
    assert x.probabilities == pytest.approx(again.probabilities)
    assert entropy(x, y) == pytest.approx(entropy(again, other))
    assert determines(x, y) == determines(again, other)


@settings(deadline=None, max_examples=50)
@given(variables(3))
def test_the_smallest_space_carries_the_same(found):
    small = compressed(found)
    rows = np.unique(np.stack([variable.labels for variable in found], 1), axis=0)
    assert len(small[0].space) == len(rows)
    assert small[0].space.draws == found[0].space.draws
    assert small[0].space.weights.sum() == pytest.approx(found[0].space.weights.sum())
    for before, after in zip(found, small, strict=True):
        assert after.space is small[0].space
        assert after.name == before.name
        assert after.probabilities == pytest.approx(before.probabilities)
        assert [after.symbol(at) for at in range(after.size)] == [before.symbol(at) for at in range(before.size)]
    for (one, two), (first, second) in zip(
        itertools.permutations(found, 2), itertools.permutations(small, 2), strict=True
    ):
        assert determines(one, two) == determines(first, second)
        assert entropy(one, two) == pytest.approx(entropy(first, second))


FAIR = [[0.25, 0.25], [0.25, 0.25]]
BAD = {
    "no column": (lambda: from_samples(), "no column is given: give at least one"),
    "no sample": (lambda: from_samples([]), "there are no samples: give at least one"),
    "no rows": (lambda: from_samples(np.zeros((0, 3))), "there are no samples: give at least one"),
    "no columns of a row": (lambda: from_samples(np.zeros((3, 0))), "variable X1 has no values: give at least one"),
    "lengths": (
        lambda: from_samples([1, 2], [1], names=["a", "b"]),
        r"columns have different lengths \(a 2, b 1\): give one value of each a sample",
    ),
    "a number": (lambda: from_samples(3), "variable X1 is the single value 3: give one for each outcome"),
    "an array of none": (lambda: from_samples(np.array(3)), "variable X1 is the single value 3: give one for each"),
    "a tensor of none": (lambda: from_samples(torch.tensor(3)), "variable X1 is the single value 3: give one for each"),
    "nothing": (lambda: from_samples(None), "variable X1 is the single value None: give one for each"),
    "NaN": (
        lambda: from_samples([0.0, float("nan"), float("nan")]),
        r"variable X1 has 2 missing values \(NaN or null\) among 3: fill them or leave these samples out",
    ),
    "null": (lambda: from_samples(["a", None]), r"variable X1 has 1 missing values \(NaN or null\) among 2"),
    "lists": (
        lambda: from_samples([[1], [2]]),
        r"variable X1 holds what cannot be compared \(unhashable type: 'list'\): give numbers, text or tuples",
    ),
    "three axes": (
        lambda: from_samples(np.zeros((2, 2, 2))),
        r"variable X1 has shape \(2, 2, 2\): give one value a sample, or a row of them",
    ),
    "few names": (lambda: from_samples([1], [1], names=["a"]), "names has 1 entries for 2 variables: give one each"),
    "many names": (lambda: from_table(FAIR, ["a", "b", "c"]), "names has 3 entries for 2 variables: give one each"),
    "few counts": (lambda: from_samples([1, 2], counts=[1]), "there are 1 counts for 2 samples: give one each"),
    "broken counts": (lambda: from_samples([1, 2], counts=[0.5, 1.5]), "counts are not whole numbers: give prob"),
    "negative counts": (lambda: from_samples([1, 2], counts=[-1, 1]), "counts hold -1: give numbers that are not neg"),
    "zero counts": (lambda: from_samples([1, 2], counts=[0, 0]), "counts are all zero: give at least one that is"),
    "NaN counts": (lambda: from_samples([1], counts=[float("nan")]), "counts hold 1 NaN or infinite: give finite"),
    "text as counts": (
        lambda: from_samples([1], counts=["one"]),
        r"counts are an array of shape \(1,\) and type object: give numbers, one each",
    ),
    "NaN in a table": (
        lambda: from_table([0.5, float("nan")]),
        "probabilities hold 1 NaN or infinite: give finite num",
    ),
    "infinite": (lambda: from_table([0.5, float("inf")]), "probabilities hold 1 NaN or infinite: give finite numbers"),
    "negative": (lambda: from_table([1.5, -0.5]), "probabilities hold -0.5: give numbers that are not negative"),
    "all zero": (lambda: from_table([0.0, 0.0]), "probabilities are all zero: give at least one that is positive"),
    "too much": (
        lambda: from_table([[0.5, 0.25], [0.5, 0.0]]),
        "probabilities sum to 1.25, not to 1: divide them by their sum, or give counts as samples",
    ),
    "text": (lambda: from_table(["a", "b"]), r"probabilities are an array of shape \(2,\) and type <U1: give numbers"),
    "a table of none": (lambda: from_table(1.0), r"the table has shape \(\): give a probability for each combination"),
    "an empty table": (lambda: from_table([[], []]), r"the table has shape \(2, 0\): give a probability for each comb"),
    "ragged": (lambda: from_table([[0.5], [0.25, 0.25]]), "the table has rows of different lengths: give a probabil"),
    "few symbols": (
        lambda: from_table(FAIR, symbols=[["a"], ["b", "c"]]),
        r"symbols are \[1, 2\] in number and the table has shape \(2, 2\): give one for each place along each axis",
    ),
    "symbols of an axis": (lambda: from_table(FAIR, symbols=[["a", "b"]]), r"symbols are \[2\] in number and the"),
    "missing symbol": (lambda: from_table(FAIR, symbols=[["a", None], [1, 2]]), "variable X1 has 2 missing values"),
    "other outcomes": (lambda: SampleSpace.of([0.5, 0.5], [1, 2, 3]), "there are 3 outcomes and 2 probabilities: give"),
    "one outcome": (lambda: SampleSpace.of([0.5, 0.5], 3), "there are 1 outcomes and 2 probabilities: give one each"),
    "one probability": (
        lambda: SampleSpace.of(1.0),
        r"probabilities are an array of shape \(\) and type float64: give",
    ),
    "square": (lambda: SampleSpace.of(FAIR), "probabilities are an array of shape"),
    "no outcome": (lambda: SampleSpace.uniform(0), "a sample space of 0 outcomes: give at least one"),
    "none of them": (lambda: SampleSpace.uniform([]), "a sample space of 0 outcomes: give at least one"),
    "half an outcome": (
        lambda: SampleSpace.uniform(0.5),
        "outcomes is 0.5: give a whole number of them, or a sequence",
    ),
    "too many": (
        lambda: SampleSpace.uniform(10**15),
        "a sample space of 1,000,000,000,000,000 outcomes takes .* of memory: make the alphabet smaller",
    ),
    "values": (
        lambda: SampleSpace.uniform(3).variable([1, 2], "y"),
        "variable y has 2 values and the sample space 3 outcomes: give one each",
    ),
    "values of a function": (
        lambda: SampleSpace.of([0.5, 0.5, 0]).variable(lambda outcomes: outcomes[:1], "y"),
        "variable y has 1 values and the sample space 2 outcomes: give one each",
    ),
    "value of a function": (
        lambda: SampleSpace.uniform(3).variable(lambda outcomes: 0),
        "variable X is the single value 0: give one for each outcome",
    ),
    "no variable": (lambda: common_space([]), "no variable is given: give at least one"),
    "different spaces": (
        lambda: common_space([*from_samples([1, 2], names=["a"]), *from_samples([1, 2], names=["b"])]),
        "variables a and b are on different sample spaces: make both with one call of from_samples or from_table",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused_is_said_in_one_line(case):
    make, message = BAD[case]
    with pytest.raises(AtomsError, match=f"^{message}") as caught:
        make()
    assert "\n" not in str(caught.value)
