import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from atoms.geometry import AtomicInnerProduct, Coherence, Moments, coherence
from atoms.metrics import q_star, q_star_null, quantile_curve, random_cosine_density

READINGS = ["pairs", "atoms", "max"]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def constant(k: int, atoms: int) -> torch.Tensor:
    return torch.eye(atoms + 1, dtype=torch.int64)[k]


def on_a_grid(found: Coherence, l0_histogram: torch.Tensor, reading: str, steps: int = 4000) -> float:
    """The definition, literally: walk q upwards until the condition fails."""
    k_values = np.repeat(np.maximum(np.arange(len(l0_histogram)), 1), l0_histogram.numpy())
    last = 0.0
    for q in np.arange(1, steps + 1) / steps:
        mu = {
            "pairs": lambda q: found.quantile(q),
            "atoms": lambda q: np.quantile(found.per_atom.numpy(), q, method="inverted_cdf"),
            "max": lambda _: found.maximum,
        }[reading](q)
        if mu * (2 * np.quantile(k_values, q, method="inverted_cdf") - 1) >= 1:
            break
        last = q
    return last


@pytest.mark.parametrize("reading", READINGS)
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.integers(2, 40), st.lists(st.integers(0, 5), min_size=41, max_size=41))
def test_q_star_is_the_grid_walk_without_a_grid(reading, seed, count, histogram):
    histogram = torch.tensor(histogram)
    histogram[1] += 1
    found = coherence(normal(seed, count, 16), aip=None, bins=4096)
    exact = q_star(found, histogram, reading)
    assert 0 <= exact.q - on_a_grid(found, histogram, reading) <= 1 / 4000 + 1e-9
    assert exact.q == 0 or exact.mu * (2 * exact.k - 1) < 1


def test_the_null_of_the_maximum_is_its_median():
    maxima = [coherence(normal(seed, 60, 24), aip=None, bins=64).maximum for seed in range(400)]
    assert q_star_null(24, 60, constant(1, 60), "max").mu == pytest.approx(np.median(maxima), rel=0.02)
    assert q_star_null(24, 60, constant(1, 60), "max").q == 1
    assert q_star_null(24, 60, constant(2, 60), "max") == (0, q_star_null(24, 60, constant(1, 60), "max").mu, 2)


@pytest.mark.parametrize("width", [2, 3, 24, 4096])
def test_the_density_integrates_to_the_null_distribution(width):
    upper = 0.9 / math.sqrt(width)
    grid = np.linspace(0, upper, 2001)
    share = np.trapezoid(random_cosine_density(grid, width), grid)
    assert share == pytest.approx(stats.beta.cdf(upper**2, 0.5, (width - 1) / 2), rel=1e-6)


def test_the_null_reaches_the_published_widths():
    assert q_star_null(2304, 9216, constant(24, 9216)).q == pytest.approx(0.69, abs=0.02)
    assert q_star_null(2304, 9216, constant(5, 9216), "atoms").q >= 0.998
    assert q_star_null(2304, 9216, constant(6, 9216), "atoms").q < 0.998


@settings(deadline=None)
@given(st.integers(2, 600), st.integers(2, 3000), st.integers(1, 60), st.sampled_from(READINGS))
def test_the_null_falls_with_sparsity_and_with_strictness(width, atoms, k, reading):
    looser, tighter = (q_star_null(width, atoms, constant(k + i, 100), reading).q for i in (0, 1))
    assert 0 <= tighter <= looser <= 1
    pairs, per_atom = (q_star_null(width, atoms, constant(k, 100), r).q for r in ("pairs", "atoms"))
    assert per_atom <= pairs


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 30), st.sampled_from(READINGS))
def test_q_star_falls_with_sparsity_and_with_strictness(seed, k, reading):
    found = coherence(normal(seed, 30, 12), aip=None)
    assert q_star(found, constant(k + 1, 40), reading).q <= q_star(found, constant(k, 40), reading).q
    strict = [q_star(found, constant(k, 40), r).q for r in READINGS]
    assert strict == sorted(strict, reverse=True)


def test_degenerate_optima_score_one():
    whitening = AtomicInnerProduct.from_moments(Moments.from_rows(normal(2, 300, 16)), ridge=0.0)
    basis = coherence(whitening.unmap(), aip=whitening)
    assert [q_star(basis, constant(16, 16), reading).q for reading in READINGS] == [1, 1, 1]
    memorising = coherence(normal(3, 40, 16), aip=None)
    assert [q_star(memorising, constant(1, 40), reading).q for reading in READINGS] == [1, 1, 1]


def test_silent_rows_count_as_one_atom_and_dead_atoms_not_at_all():
    found = coherence(normal(4, 30, 12), aip=None)
    assert q_star(found, constant(0, 30)) == q_star(found, constant(1, 30))
    padded = coherence(torch.cat([normal(4, 30, 12), torch.zeros(20, 12)]), aip=None)
    for reading in READINGS:
        assert q_star(padded, constant(2, 30), reading) == q_star(found, constant(2, 30), reading)


def test_a_duplicate_pair_stops_at_the_share_without_it():
    atoms = torch.cat([torch.eye(5), torch.eye(5)[:1]])
    score = q_star(coherence(atoms, aip=None), constant(2, 6))
    assert score.q == pytest.approx(14 / 15)
    assert score.k == 2
    assert q_star(coherence(atoms, aip=None), constant(2, 6), "atoms").q == pytest.approx(4 / 6)


@pytest.mark.parametrize("count", [0, 1])
def test_a_dictionary_without_pairs_has_nothing_to_confuse(count):
    lonely = coherence(torch.ones(count, 3), aip=None)
    assert [q_star(lonely, constant(1, 1), reading).q for reading in READINGS] == [1, 1, 1]


def test_bad_input_is_refused():
    found = coherence(normal(5, 4, 3), aip=None)
    for reading in READINGS:
        with pytest.raises(ValueError, match="no row"):
            q_star(found, torch.zeros(5, dtype=torch.int64), reading)
    with pytest.raises(ValueError, match="reading"):
        q_star(found, constant(1, 4), "mean")
    with pytest.raises(ValueError, match="reading"):
        q_star_null(3, 4, constant(1, 4), "mean")
    with pytest.raises(ValueError, match="at least 2"):
        q_star_null(1, 4, constant(1, 4))
    assert math.isfinite(q_star_null(2, 2, constant(1, 4)).mu)


@pytest.mark.parametrize("reading", READINGS)
def test_the_curve_crosses_where_q_star_is(reading):
    found, histogram = coherence(normal(6, 40, 12), aip=None), torch.tensor([3, 9, 40, 20, 5])
    q, mu, k = quantile_curve(found, histogram, reading, points=1000)
    star = q_star(found, histogram, reading).q
    holds = mu * (2 * k - 1) < 1
    assert holds[q <= star].all()
    assert not holds[q > star + 1e-3].any()
    assert q[-1] == 1
    assert mu[-1] == found.maximum
    assert k[-1] == 4
