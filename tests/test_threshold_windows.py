import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoms.checks.threshold_windows import best_threshold


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=30))
def test_the_best_threshold_is_in_most_windows(windows):
    low, high = torch.tensor(windows, dtype=torch.float64).T
    tau, share = best_threshold(low, high)
    ends = sorted({*low.tolist(), *high.tolist()})
    middles = [(a + b) / 2 for a, b in pairwise(ends) if a < (a + b) / 2 < b]
    most = max((((low < t) & (t < high)).double().mean().item() for t in middles), default=0.0)
    if low.lt(high).any():
        assert share >= most - 1e-12
    else:
        assert math.isnan(tau)
    if middles and (high - low)[low < high].gt(1e-9).any() and np.diff(ends).min() > 1e-9:
        assert ((low < tau) & (tau < high)).double().mean().item() == pytest.approx(share)
        assert share == pytest.approx(most)


def test_windows_of_nothing():
    nan = torch.full((3,), math.nan, dtype=torch.float64)
    tau, share = best_threshold(nan, nan)
    assert math.isnan(tau)
    assert share == 0
