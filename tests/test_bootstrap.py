import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.checks.bootstrap import Interval, bootstrap_interval, interval, resampled_sums


def test_sums_are_of_whole_groups_drawn_as_often_as_there_are():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    columns = {"x": values, "both": torch.stack([values, -values], 1)}
    sums = resampled_sums(columns, torch.tensor([5, 5, -1, 9, 9]), resamples=500, seed=3)
    assert sums["x"].shape == sums["rows"].shape == (501,)
    assert (sums["x"][0], sums["rows"][0]) == (31, 5)
    assert torch.equal(sums["both"], torch.stack([sums["x"], -sums["x"]], 1))
    drawn = {(a * 4 + b * 3 + c * 24, a + b * 2 + c * 2) for a in range(4) for b in range(4 - a) for c in [3 - a - b]}
    assert set(zip(sums["x"].tolist(), sums["rows"].tolist(), strict=True)) == drawn


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-9, 9)), min_size=1, max_size=30), st.randoms())
def test_order_of_rows_and_names_of_groups_do_not_matter(rows, random):
    groups, values = (np.array(column) for column in zip(*rows, strict=True))
    first = resampled_sums({"x": torch.tensor(values)}, groups, resamples=7, seed=1)
    order = list(range(len(rows)))
    random.shuffle(order)
    again = resampled_sums({"x": torch.tensor(values[order])}, groups[order] * 10 - 3, resamples=7, seed=1)
    torch.testing.assert_close(again, first)


def test_interval_is_the_sampling_error_of_a_cluster_mean():
    """Rows of one group are equal: the interval is that of the groups, five times wider than that of the rows."""
    by_group = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, groups = by_group.repeat_interleave(25), torch.arange(400).repeat_interleave(25)
    found = bootstrap_interval({"x": rows}, groups, lambda s: s["x"] / s["rows"], resamples=4000, seed=0)
    error = by_group.std().item() / math.sqrt(400)
    assert found.value == pytest.approx(by_group.mean().item())
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.06)
    alone = bootstrap_interval({"x": rows}, torch.arange(10_000), lambda s: s["x"] / s["rows"], resamples=500, seed=0)
    assert (found.high - found.low) / (alone.high - alone.low) == pytest.approx(5, rel=0.15)


def test_nothing_is_said_of_fewer_than_two_groups():
    one = bootstrap_interval({"x": torch.ones(3)}, torch.zeros(3), lambda s: s["x"] / s["rows"], resamples=9, seed=0)
    assert one.value == 1
    assert math.isnan(one.low)
    none = bootstrap_interval({"x": torch.ones(0)}, torch.zeros(0), lambda s: s["x"] / s["rows"], resamples=9, seed=0)
    assert all(map(math.isnan, none))
    assert interval(torch.tensor([2.0]), 9)[0] == 2
    assert math.isnan(interval(torch.tensor([2.0]), 9).high)
    broken = interval(torch.tensor([2.0, math.nan, 3.0]), 9)
    assert isinstance(broken, Interval)
    assert math.isnan(broken.low)


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="column x has 2 rows and groups are of 3"):
        resampled_sums({"x": torch.ones(2)}, torch.zeros(3), resamples=1, seed=0)


def test_many_groups_are_drawn_in_pieces(monkeypatch):
    values = torch.arange(40.0)
    whole = resampled_sums({"x": values}, torch.arange(40), resamples=20, seed=5)
    monkeypatch.setattr("atoms.checks.bootstrap._WEIGHTS", 100)
    pieces = resampled_sums({"x": values}, torch.arange(40), resamples=20, seed=5)
    assert all(torch.equal(pieces[name], whole[name]) for name in whole)
