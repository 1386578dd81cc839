"""YAML from strangers: what would break a machine is refused before it is built, what is plain passes."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from atoms.commands.yaml_text import DEPTH, NODES, check

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdef", min_size=1), inner, max_size=4),
    max_leaves=30,
)


@given(PLAIN)
def test_whatever_is_dumped_passes(value):
    check(yaml.safe_dump(value))
    check(yaml.safe_dump([value, value]))  # with aliases


def bomb(levels: int) -> str:
    lines = ["l0: &l0 [x, x]"] + [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


def test_aliases_are_counted_as_often_as_they_stand():
    check(bomb(4))
    with pytest.raises(yaml.YAMLError, match=f"more than {NODES:,} values"):
        check(bomb(6))
    with pytest.raises(yaml.YAMLError, match=f"more than {NODES:,} values"):
        check(bomb(60))  # in no time


def test_depth():
    check("[" * DEPTH + "]" * DEPTH)
    for depth in (DEPTH + 1, 200_000):
        with pytest.raises(yaml.YAMLError, match="deep"):
            check("[" * depth + "]" * depth)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]", r"\*a refers to itself"),
        ("a: &a {b: {c: *a}}", r"\*a refers to itself"),
        ("a: 1\nb: 2\na: 3", "a is set twice"),
        ("x: {a: 1, b: [{a: 1}], a: 3}", "a is set twice"),
    ],
)
def test_refused(text, said):
    with pytest.raises(yaml.YAMLError, match=said):
        check(text)


@pytest.mark.parametrize(
    "text",
    ["a: 1\nb: {a: 2}", "[{a: 1}, {a: 1}]", "a: a", "{? [a, a] : a, b: a}", "", "x", "b: &b {x: 1}\nc: {<<: *b, x: 2}"],
)
def test_keys_are_compared_within_their_mapping(text):
    check(text)
