"""Forgetting at equal loss: where curves cross a level, and what differences over seeds say."""

import json
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atoms.tuning.comparison import (
    DEPTHS,
    common_level,
    compare,
    comparisons,
    forgetting_at,
    forgetting_by_rate,
    interval,
    pairs_of,
)
from atoms.tuning.curves import Curve

laws = settings(deadline=None, max_examples=60)


def curve(loss, general, axis="train"):
    points = list(range(len(loss)))
    other = "test" if axis == "train" else "train"
    return Curve(points, points, {axis: list(loss), other: list(loss), "val": list(loss), "general": list(general)})


DOWN = curve([4.0, 3.0, 2.0], [1.0, 1.2, 1.8])


@pytest.mark.parametrize(
    ("level", "forgotten"), [(4.0, 0.0), (3.5, 0.1), (3.0, 0.2), (2.25, 0.65), (2.0, 0.8), (5.0, 0.0)]
)
def test_forgetting_is_interpolated_on_the_way_down(level, forgotten):
    assert forgetting_at(DOWN, "train", level) == pytest.approx(forgotten)


def test_a_loss_that_is_never_reached_has_no_forgetting():
    assert math.isnan(forgetting_at(DOWN, "train", 1.9))


def test_the_first_crossing_counts_where_a_loss_rises_again():
    risen = curve([4.0, 2.0, 3.0, 1.0], [1.0, 1.5, 2.0, 3.0])
    assert forgetting_at(risen, "train", 2.5) == pytest.approx(0.375)
    assert forgetting_at(risen, "train", 1.5) == pytest.approx(1.25)  # from the lowest point before, not from the last


def test_the_common_level_is_what_the_slower_one_reaches():
    slow = curve([4.0, 3.6, 3.2], [1.0, 1.0, 1.0])
    assert common_level([DOWN, slow], "train", 1.0) == pytest.approx(3.2)
    assert common_level([DOWN, slow], "train", 0.5) == pytest.approx(3.6)


def test_a_fast_learner_is_not_charged_for_how_far_it_went():
    """Two arms on one curve of forgetting over loss: no difference, although one ends far lower."""
    fast = curve([4.0, 3.0, 2.0, 1.0], [1.0, 1.5, 2.0, 2.5])
    slow = curve([4.0, 3.5, 3.0], [1.0, 1.25, 1.5])
    found = compare("a", "b", {"a": {1: fast}, "b": {1: slow}}, "train", 1.0)
    assert found.level == 3.0
    assert found.difference == pytest.approx(0)
    assert (found.seeds, math.isnan(found.low), found.verdict) == (1, True, "not told apart")


def test_only_shared_seeds_are_paired():
    runs = {"a": {1: DOWN, 2: DOWN, 9: curve([4, 1], [1, 9])}, "b": {1: DOWN, 2: DOWN, 7: curve([4, 1], [1, 9])}}
    found = compare("a", "b", runs, "test", 1.0)
    assert (found.seeds, found.difference, found.level) == (2, 0.0, 2.0)
    assert compare("a", "b", {"a": {1: DOWN}, "b": {2: DOWN}}, "test", 1.0) is None


def test_an_arm_that_never_learns_is_compared_with_nothing():
    assert compare("a", "b", {"a": {1: DOWN}, "b": {1: curve([4.0, 4.1], [1, 1])}}, "train", 1.0) is None


@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_diverged_run_neither_wins_nor_ends_the_comparison(where):
    """A run whose losses turn to NaN counts as far as it got."""
    losses, general = [4.0, 3.0, 2.0], [1.0, 1.2, 1.8]
    losses[where:] = general[where:] = [math.nan] * (3 - where)
    found = compare("a", "b", {"a": {1: curve(losses, general)}, "b": {1: DOWN}}, "train", 1.0)
    if where < 2:
        assert found is None
    else:
        assert found.level == 3.0
        assert found.difference == pytest.approx(0)


@laws
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
def test_intervals_are_those_of_a_paired_t_test(values):
    mean, low, high = interval(np.array(values))
    if np.std(values) > 1e-6:
        expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (low, high) == pytest.approx((expected.low, expected.high))
    assert low <= mean <= high


@laws
@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=2, max_size=5), st.floats(-3, 3))
def test_differences_change_their_sign_with_the_order_and_not_with_the_start(ends, shift):
    runs = {
        name: {seed: curve([4, 3], [1, 1 + pair[side]]) for seed, pair in enumerate(ends)}
        for side, name in enumerate("ab")
    }
    there, back = compare("a", "b", runs, "train", 1.0), compare("b", "a", runs, "train", 1.0)
    assert there.difference == pytest.approx(-back.difference)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    moved = {
        name: {
            seed: curve(each.losses["train"], [value + shift for value in each.losses["general"]])
            for seed, each in group.items()
        }
        for name, group in runs.items()
    }
    assert compare("a", "b", moved, "train", 1.0).difference == pytest.approx(there.difference, abs=1e-9)


def test_verdicts():
    less = {seed: curve([4, 3], [1, 1.1 + seed / 1000]) for seed in range(5)}
    more = {seed: curve([4, 3], [1, 1.9 - seed / 700]) for seed in range(5)}
    runs = {"a": less, "b": more}
    assert compare("a", "b", runs, "train", 1.0).verdict == "forgets less"
    assert compare("b", "a", runs, "train", 1.0).verdict == "forgets more"
    assert (compare("a", "b", runs, "train", 1.0).fewer, compare("b", "a", runs, "train", 1.0).fewer) == (5, 0)
    assert compare("a", "a", runs, "train", 1.0).verdict == "not told apart"


def test_what_hangs_on_the_rate_is_asked_at_a_loss_that_all_reach_at_theirs():
    slow, fast = curve([4.0, 3.5, 3.0], [1.0, 1.2, 1.4]), curve([4.0, 2.0], [1.0, 3.0])
    searched = {"a": {1e-3: slow, 1e-2: fast}, "b": {1e-3: curve([4.0, 3.8], [1.0, 1.0]), 1e-2: DOWN}}
    level, found = forgetting_by_rate(searched, {"a": 1e-3, "b": 1e-2})
    assert level == 3.0
    assert found["a"] == pytest.approx({1e-3: 0.4, 1e-2: 1.0})
    assert found["b"][1e-2] == pytest.approx(0.2)
    assert math.isnan(found["b"][1e-3])


def test_arms_that_learn_nothing_say_nothing_of_rates():
    idle = {1e-3: curve([4.0, 4.1], [1.0, 1.0])}
    level, found = forgetting_by_rate({"a": {1e-3: DOWN}, "b": idle}, {"a": 1e-3, "b": 1e-3})
    assert (level, found) == (2.0, {"a": {1e-3: pytest.approx(0.8)}})
    level, found = forgetting_by_rate({"b": idle}, {"b": 1e-3})
    assert (math.isnan(level), found) == (True, {})


def test_every_arm_meets_every_reference_once():
    runs = {name: {1: DOWN, 2: DOWN} for name in ("full", "lora", "kappa")}
    found = comparisons(runs, ["full", "lora", "random"])
    pairs = [(each.arm, each.reference) for each in found]
    assert set(pairs) == {("lora", "full"), ("kappa", "full"), ("kappa", "lora")}
    assert len(pairs) == 3 * 2 * len(DEPTHS)


def falling(rate, cost, steps=9):
    """A loss that falls from 4 at a rate, and forgetting that grows with what was learnt: where it crosses is known."""
    losses = [4 - rate * step for step in range(steps)]
    return curve(losses, [2 + cost * (4 - loss) for loss in losses])


@laws
@given(
    st.lists(st.tuples(st.floats(0.05, 0.4), st.floats(-1, 1)), min_size=2, max_size=5),
    st.lists(st.tuples(st.floats(0.05, 0.4), st.floats(-1, 1)), min_size=2, max_size=5),
    st.sampled_from(["train", "test"]),
)
def test_curves_whose_crossing_is_known(ours, theirs, axis):
    """The level is set by the slowest run; there every run has forgotten its own cost of the same descent."""
    count = min(len(ours), len(theirs))
    runs = {
        name: {seed: falling(*pair) for seed, pair in enumerate(pairs[:count])}
        for name, pairs in (("a", ours), ("b", theirs))
    }
    slowest = min(rate for pairs in (ours, theirs) for rate, _ in pairs[:count])
    for depth in DEPTHS:
        found = compare("a", "b", runs, axis, depth)
        descent = depth * 8 * slowest
        assert found.level == pytest.approx(4 - descent)
        costs = [np.array([cost for _, cost in pairs[:count]]) for pairs in (ours, theirs)]
        assert found.forgetting == pytest.approx(descent * costs[0].mean(), abs=1e-9)
        assert found.forgetting_reference == pytest.approx(descent * costs[1].mean(), abs=1e-9)
        expected = interval(descent * (costs[0] - costs[1]))
        assert (found.difference, found.low, found.high) == pytest.approx(expected, abs=1e-9)


@laws
@given(st.integers(2, 30), st.integers(2, 30), st.floats(0.1, 1.0))
def test_points_in_between_change_nothing(few, many, level):
    """On a straight line between loss and forgetting it does not matter where it was measured."""
    coarse, fine = (
        curve(np.linspace(4, 3, count).tolist(), np.linspace(1, 2, count).tolist()) for count in (few, many)
    )
    expected = level
    for each in (coarse, fine):
        assert forgetting_at(each, "test", 4 - level) == pytest.approx(expected, abs=1e-9)


@laws
@given(st.floats(0.1, 4.9))
@example(0.11286857373929429)
def test_the_lowest_common_loss_is_one_that_was_measured(lowest):
    made = curve([5.0, lowest], [1.0, 2.0])
    assert common_level([made], "train", 1.0) == lowest
    assert forgetting_at(made, "train", common_level([made], "train", 1.0)) == 1.0


@laws
@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=12), st.floats(0, 1), st.floats(0, 1))
def test_a_deeper_level_is_reached_later(losses, one, other):
    """Where forgetting only grows, it is no less at a lower loss, and it lies between what was measured."""
    made = curve([5.0, *losses], [float(place) for place in range(len(losses) + 1)])
    high, low = (max(min(losses), 5 - share * (5 - min(losses))) for share in sorted((one, other)))
    first, last = forgetting_at(made, "train", high), forgetting_at(made, "train", low)
    assert 0 <= first <= last + 1e-9 <= len(losses) + 1e-9


@laws
@given(st.floats(-2, 2), st.integers(2, 6))
def test_what_all_seeds_share_has_an_interval_of_no_width(shift, seeds):
    runs = {
        name: {seed: curve([4, 3], [1, 2 + seed + more]) for seed in range(seeds)}
        for name, more in (("a", shift), ("b", 0.0))
    }
    found = compare("a", "b", runs, "train", 1.0)
    assert (found.difference, found.low, found.high) == pytest.approx((shift, shift, shift), abs=1e-9)


def test_levels_are_of_the_pair_and_not_of_the_experiment():
    """A third arm that learns nothing takes nothing from the others."""
    runs = {"a": {1: DOWN, 2: DOWN}, "b": {1: DOWN, 2: DOWN}, "c": {1: curve([4, 4], [1, 1]), 2: DOWN}}
    found = comparisons(runs, ["b", "c"])
    assert {(each.arm, each.reference) for each in found} == {("a", "b")}
    assert all(each.level in (2.0, 3.0) for each in found)


def test_pairs():
    arms = ["full", "lora", "kappa", "random"]
    assert pairs_of(arms, ["lora", "random", "lora", "unheard-of"]) == [
        ("full", "lora"), ("kappa", "lora"), ("random", "lora"), ("full", "random"), ("kappa", "random"),
    ]  # fmt: skip
    assert pairs_of(arms, []) == pairs_of(["kappa"], ["kappa", "lora"]) == pairs_of(arms, ["unheard-of"]) == []


@pytest.mark.parametrize("seeds", [1, 3])
def test_general_text_alone_may_cease_to_be_told(seeds):
    """Then the run is compared as far as it got, and plain values hold no NaN."""
    good = {seed: curve([4, 3, 2], [1, 1.5, 2 + seed]) for seed in range(seeds)}
    bad = good | {0: curve([4, 3, 2], [1, 1.5, math.nan])}
    found = compare("a", "b", {"a": bad, "b": good}, "train", 1.0)
    assert (found.level, found.difference, found.verdict) == (3.0, 0.0, "not told apart")
    plain = found.to_json()
    assert (plain["low"] is None, plain["high"] is None, plain["seeds"]) == (seeds == 1, seeds == 1, seeds)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_diverging_on_one_seed_is_no_advantage():
    """An arm that forgets more at every loss does not win by stopping early on one seed."""
    ours = {seed: curve([4.0, 3.5, 3.0, 2.0], [1.0, 1.4, 1.9 + seed / 99, 3.0]) for seed in range(4)}
    theirs = {seed: curve([4.0, 3.5, 3.0, 2.0], [1.0, 1.2, 1.5 + seed / 77, 2.0]) for seed in range(4)}
    ours[2] = curve([4.0, 3.5, math.nan, math.nan], [1.0, 1.4, math.nan, math.nan])
    found = compare("a", "b", {"a": ours, "b": theirs}, "train", 1.0)
    assert found.level == 3.5
    assert found.difference == pytest.approx(0.2)
    assert found.verdict == "forgets more"
