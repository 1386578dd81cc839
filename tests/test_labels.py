"""Values of any kind as labels, held against dictionaries and numpy's sorting."""

import datetime
from collections.abc import Hashable, Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from atoms.errors import AtomsError
from atoms.information.labels import as_array, combine, dense, distinct_pairs, join_labels, label, masses, weigh

SMALL, WIDE = 3, 2**9  # two parts of WIDE labels have more combinations than are counted in a table


def partition(values: Iterable[Hashable]) -> list[int]:
    """Values numbered in order of appearance."""
    known: dict[Hashable, int] = {}
    return [known.setdefault(value, len(known)) for value in values]


PATTERN = np.array([2, 0, 2, 5, 0, 1])
ARRAYS = [
    "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "g", "c8", "c16", "?", "U3", "S3", "O", "M8[D]",
    "m8[s]", ">i4", ">f8",
]  # fmt: skip
TENSORS = [
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool,
]  # fmt: skip


@pytest.mark.parametrize("dtype", ARRAYS)
def test_arrays_of_every_type(dtype):
    values = PATTERN.astype(dtype)
    for given_ in (values, values[::-1][::-1], values.tolist(), list(values), tuple(values)):
        labels, size = label(given_, "x")
        assert partition(labels.tolist()) == partition(values.tolist())
        assert size == len(set(values.tolist())) == labels.max() + 1
    pairs = np.stack([values, values[::-1]], 1)
    labels, size = label(pairs, "x")
    assert partition(labels.tolist()) == partition(map(tuple, pairs.tolist()))


@pytest.mark.parametrize("dtype", TENSORS, ids=str)
def test_tensors_of_every_type(dtype):
    values = torch.tensor(PATTERN).to(dtype)
    assert np.array_equal(label(values, "x")[0], np.unique(values.tolist(), return_inverse=True)[1])
    assert partition(label(list(values), "x")[0].tolist()) == partition(values.tolist())  # a list of tensors of none
    rows = torch.stack([values, values[[3, 0, 4, 1, 5, 2]]], 1)
    assert partition(label(rows, "x")[0].tolist()) == partition(map(tuple, rows.tolist()))


def test_tensors_that_learn_and_views_of_them():
    values = torch.tensor([0.5, 0.25, 0.5, -0.0, 0.0], requires_grad=True)
    assert label(values, "x")[0].tolist() == [2, 1, 2, 0, 0]
    assert label(values[::2], "x")[0].tolist() == [1, 1, 0]
    assert label(values.to(torch.bfloat16)[:, None], "x")[0].tolist() == [2, 1, 2, 0, 0]


DAY = datetime.date(2024, 1, 1)
LISTS = {
    "strings": ["b", "a", "b", "", "a"],
    "bytes": [b"b", b"a", b"b", b"", b"a"],
    "tuples": [(1, 2), (1, 3), (1, 2), (), (1, 3)],
    "tuples of one length": [(1, 2), (1, 3), (1, 2), (0, 0), (1, 3)],
    "sets": [frozenset("ab"), frozenset(), frozenset("ba")],
    "mixed": ["1", 1, b"1", (1,), 1, "1", 1.5, DAY, DAY],
    "numbers alike": [1, 1.0, True, np.int8(1), np.float32(1), 0, False, -0.0],
    "near 2^53": [2**53, 2**53 + 1, 2.0**53, 0.5],
    "beyond int64": [2**63, 2**63 + 1, -1, 2**63],
    "beyond uint64": [2**64, 2**64 + 1, 2**64],
    "complex": [1j, 0, 1j, 1],
    "infinite": [float("inf"), 1.0, float("-inf"), float("inf")],
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_every_kind(kind):
    values = LISTS[kind]
    labels, size = label(values, "x")
    assert partition(labels.tolist()) == partition(values)
    assert size == len(set(values))


def test_other_containers():
    assert label(range(3), "x")[0].tolist() == [0, 1, 2]
    assert label((letter for letter in "abca"), "x")[0].tolist() == [0, 1, 2, 0]
    assert label("abca", "x")[0].tolist() == [0, 1, 2, 0]
    assert label({"a": 1, "b": 2}.keys(), "x")[0].tolist() == [0, 1]
    records = np.array([(1, 0.5), (1, 0.25), (1, 0.5)], [("a", int), ("b", float)])
    assert label(records, "x")[0].tolist() == [0, 1, 0]
    assert label(np.array(["b", "a", "b"], np.dtypes.StringDType()), "x")[1] == 2
    assert label(np.array([["b", 1], ["a", 1], ["b", 1]], object), "x")[0].tolist() == [0, 1, 0]
    assert as_array([(1, 2), (3, 4)]).shape == (2,)
    assert as_array([1, 2.5]).dtype == np.float64


numbers = arrays.arrays(
    arrays.integer_dtypes() | arrays.unsigned_integer_dtypes() | arrays.floating_dtypes() | arrays.boolean_dtypes(),
    st.integers(1, 12),
    elements={"allow_nan": False},
)


@settings(deadline=None, max_examples=200)
@given(numbers)
def test_numbers_are_numbered_in_ascending_order(values):
    labels, size = label(values, "x")
    distinct, expected = np.unique(values, return_inverse=True)
    assert np.array_equal(labels, expected)
    assert size == len(distinct)


@pytest.mark.parametrize(
    "values",
    [
        np.array([2**63 - 1, -(2**63), 0, 2**63 - 1]),
        np.array([-(2**63), -(2**63) + 1, -(2**63)]),
        np.array([2**64 - 1, 2**63, 0, 2**64 - 1], np.uint64),
        np.array([2**64 - 1, 2**64 - 2, 2**64 - 1], np.uint64),
        np.array([2**61, -(2**61), 2**61 - 1]),
        np.array([2**62, 0, 2**62 - 1]),
    ],
)
def test_numbers_near_the_ends_of_their_type(values):
    assert np.array_equal(label(values, "x")[0], np.unique(values, return_inverse=True)[1])
    assert partition(label(values.tolist(), "x")[0].tolist()) == partition(values.tolist())


def test_zeros_of_either_sign_are_one_value():
    for dtype in (np.float16, np.float32, np.float64, np.complex128):
        assert label(np.array([-0.0, 0.0, 1.0], dtype), "x")[0].tolist() == [0, 0, 1]
    assert label([-0.0, 0.0, 1.0], "x")[0].tolist() == [0, 0, 1]


def test_values_may_be_told_apart_by_no_more_than_their_last_bit():
    near = np.nextafter(np.float32(1), np.float32(2))
    assert label(np.array([1, near, 1], np.float32), "x")[0].tolist() == [0, 1, 0]


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "where", "count"),
    [
        ([0.0, NAN, NAN], "x", 2),
        (np.array([0, NAN], np.float16), "x", 1),
        (np.array([NAN + 0j, 1]), "x", 1),
        (np.array(["2024-01-01", "NaT", "NaT"], "M8[D]"), "x", 2),
        (np.array([1, "NaT"], "m8[s]"), "x", 1),
        (torch.tensor([NAN, 1.0]).bfloat16(), "x", 1),
        (["a", None, NAN], "x", 2),
        (np.array(["a", None, None, 1.0], object), "x", 2),
        ([(1, NAN), (1, 2), (1, NAN)], "x", 2),
        ([(1, (None, 2)), (1, 2)], "x", 1),
        (np.array([(1, NAN), (1, 2)], [("a", int), ("b", float)]), "x", 1),
        (np.array([[1, 2], [3, NAN]]), r"x\[1\]", 1),
        (np.array([[1, None], [3, "a"]], object), r"x\[1\]", 1),
        ([None], "x", 1),
    ],
)
def test_missing_values_are_counted_and_refused(values, where, count):
    with pytest.raises(AtomsError, match=rf"^variable {where} has {count} missing values .* among {len(values)}: fill"):
        label(values, "x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "has no values: give at least one sample"),
        (np.zeros((0, 2)), "has no values: give at least one sample"),
        (np.zeros((2, 0)), "has no values: give at least one sample"),
        (np.zeros((1, 1, 1)), r"has shape \(1, 1, 1\): give one value a sample, or a row of them"),
        (torch.zeros(1, 1, 1, 1), r"has shape \(1, 1, 1, 1\): give one value a sample, or a row of them"),
        (np.float64(1), r"has shape \(\): give one value a sample, or a row of them"),
        (7, r"has shape \(\): give one value a sample, or a row of them"),
        ([{}], r"holds what cannot be compared \(unhashable type: 'dict'\): give numbers, text or tuples"),
        ([np.zeros(2), np.ones(2)], r"holds what cannot be compared \(unhashable type: 'list'\): give numbers, text"),
        ([torch.zeros(2), torch.ones(2)], r"holds what cannot be compared \(unhashable type: 'list'\): give numbers"),
        ([torch.zeros(2), 1], r"holds what cannot be compared \(unhashable type: 'list'\): give numbers, text"),
    ],
)
def test_what_has_no_values_is_refused(values, message):
    with pytest.raises(AtomsError, match=f"^variable x {message}"):
        label(values, "x")


@settings(deadline=None, max_examples=50)
@given(st.sampled_from([1, 7, 2**16, 2**16 + 1, 2**40, 2**62]), st.data())
def test_keys_are_numbered_in_ascending_order_few_or_many(bound, data):
    keys = np.array(data.draw(st.lists(st.integers(0, bound - 1), min_size=1, max_size=9)), np.int64)
    labels, size = dense(keys, bound)
    distinct, expected = np.unique(keys, return_inverse=True)
    assert np.array_equal(labels, expected)
    assert size == len(distinct)


@st.composite
def parts(draw: st.DrawFn, sizes: st.SearchStrategy[int], most: int = 4) -> list[tuple[np.ndarray, int]]:
    """Labels of a few outcomes; not all of the numbers need occur."""
    count, width = draw(st.integers(1, 12)), draw(st.integers(1, most))
    bounds = [draw(sizes) for _ in range(width)]
    few = [st.lists(st.integers(0, bound - 1) | st.just(bound - 1), min_size=count, max_size=count) for bound in bounds]
    return [(np.array(draw(labels), np.int32), bound) for labels, bound in zip(few, bounds, strict=True)]


@settings(deadline=None)
@given(parts(st.sampled_from([1, 2, 3, 2**16, 2**31 - 1]), most=9))
def test_combinations_are_numbered_in_ascending_order_of_their_parts(found):
    keys, bound = combine(found)
    assert bound < 2**63
    assert ((keys >= 0) & (keys < bound)).all()
    rows = np.stack([labels for labels, _ in found], 1)
    distinct, expected = np.unique(rows, axis=0, return_inverse=True)
    assert np.array_equal(np.unique(keys, return_inverse=True)[1], expected.ravel())
    if len(found) > 1:
        labels, size = join_labels(found)
        assert np.array_equal(labels, expected.ravel())
        assert size == len(distinct)
    else:
        assert join_labels(found) is found[0]


def test_a_hundred_columns_are_one():
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 5, (300, 100))[generator.integers(0, 300, 1000)]  # 5^100 combinations
    labels, size = label(rows, "x")
    distinct, expected = np.unique(rows, axis=0, return_inverse=True)
    assert np.array_equal(labels, expected.ravel())
    assert size == len(distinct)
    spread = rows * 10**17 - 2 * 10**17
    assert np.array_equal(label(spread, "x")[0], labels)


@settings(deadline=None)
@given(parts(st.sampled_from([1, SMALL, WIDE])), st.data())
def test_masses_are_the_same_counted_sorted_or_numbered(found, data):
    count = len(found[0][0])
    uneven = np.array(data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count)), float)
    for weights, alike in ((np.full(count, 0.5), True), (np.full(count, 0.5), False), (uneven, False)):
        expected: dict[tuple[int, ...], float] = {}
        for row, weight in zip(zip(*(labels.tolist() for labels, _ in found), strict=True), weights, strict=True):
            expected[row] = expected.get(row, 0.0) + float(weight)
        mass = masses(found, weights, alike)
        assert mass[mass > 0].tolist() == [expected[row] for row in sorted(expected)]
        assert mass.dtype == np.float64


def test_labels_without_outcome_weigh_nothing():
    one = np.array([0, 2, 0], np.int32), 4
    assert weigh(one, np.array([1.0, 2.0, 4.0])).tolist() == [5, 0, 2, 0]
    assert masses([one], np.array([1.0, 2.0, 4.0]), False).tolist() == [5, 0, 2, 0]


@settings(deadline=None)
@given(parts(st.sampled_from([1, SMALL, WIDE]), most=2).filter(lambda found: len(found) == 2))
def test_pairs_that_occur_are_found_once_in_ascending_order(found):
    left, right = distinct_pairs(*found)
    expected = sorted(set(zip(found[0][0].tolist(), found[1][0].tolist(), strict=True)))
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == expected


def test_masked_values_are_missing():
    masked = np.ma.array([1, 2, 3], mask=[False, True, False])
    with pytest.raises(AtomsError, match="variable X has 1 missing values"):
        label(masked, "X")
    assert label(np.ma.array([1, 1, 3]), "X")[0].tolist() == [0, 0, 1]
