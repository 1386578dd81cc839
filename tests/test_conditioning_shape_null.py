"""Random matrices that are never made, against ones that are."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy import special

from atoms.conditioning import effective_rank, entropy_loss, shape_null
from atoms.conditioning.shape_null import _all, _bidiagonal, _drawn, _extremes


def sampled(m: int, n: int, count: int) -> torch.Tensor:
    """Singular values of Gaussian matrices, (count, min(m, n))."""
    generator = torch.Generator().manual_seed(m * 1000 + n)
    return torch.linalg.svdvals(torch.randn(count, m, n, generator=generator, dtype=torch.float64))


def drawn(m: int, n: int, count: int) -> torch.Tensor:
    """The same from bidiagonal matrices."""
    rng = np.random.default_rng(m * 1000 + n)
    return torch.stack([torch.from_numpy(_all(*_bidiagonal(m, n, rng)).copy()) for _ in range(count)])


@pytest.mark.parametrize(("m", "n"), [(2, 2), (5, 5), (12, 5), (40, 3), (30, 30), (3, 1)])
def test_bidiagonal_draws_have_the_law_of_the_matrices(m, n):
    ours, theirs = drawn(m, n, 1000), sampled(m, n, 1000)
    for measure in (
        lambda found: found[:, 0],
        lambda found: found[:, -1].log(),
        lambda found: (found[:, 0] / found[:, -1]).log(),
        lambda found: torch.tensor([effective_rank(each) for each in found]),
        lambda found: torch.tensor([entropy_loss(each) for each in found]),
        lambda found: found.square().sum(1),
    ):
        one, other = measure(ours), measure(theirs)
        error = math.sqrt((one.var() + other.var()).item() / 1000)
        assert abs(one.mean() - other.mean()).item() <= 4 * error + 1e-12


@pytest.mark.parametrize(("m", "n"), [(8, 8), (20, 6), (9, 1), (6, 2)])
def test_mean_log_determinant_is_exact(m, n):
    found = 2 * drawn(m, n, 2000).log().sum(1)
    expected = sum(special.digamma((m - i) / 2) + math.log(2) for i in range(n))
    assert found.mean().item() == pytest.approx(expected, abs=4 * found.std().item() / math.sqrt(2000))


@pytest.mark.parametrize(("m", "n"), [(2, 2), (7, 4), (50, 50), (200, 20)])
def test_values_and_extremes_are_the_bidiagonal_matrixs(m, n):
    rng = np.random.default_rng(0)
    for _ in range(10):
        diagonal, beside = _bidiagonal(m, n, rng)
        expected = scipy.linalg.svdvals(np.diag(diagonal) + np.diag(beside, 1))
        np.testing.assert_allclose(_all(diagonal, beside), expected, rtol=1e-8)
        assert _extremes(diagonal, beside) == pytest.approx(expected[0] / expected[-1], rel=1e-8)


@pytest.mark.parametrize(("m", "n"), [(2, 2), (16, 16), (40, 16), (16, 40), (9, 8)])
def test_the_null_is_that_of_the_shape(m, n):
    null = shape_null(m, n)
    values = sampled(m, n, 1000)
    kappas = (values[:, 0] / values[:, -1]).sort().values
    # The median of 99 is the 50th: within 4 deviations of the rank it has among others.
    assert kappas[300] < null.kappa < kappas[700]
    assert kappas[5] < null.kappa_low < kappas[150] < kappas[850] < null.kappa_high <= kappas[-1] * 10
    ranks = torch.tensor([effective_rank(each) for each in values])
    losses = torch.tensor([entropy_loss(each) for each in values])
    draws = math.ceil(2048 / min(m, n))
    for found, of in ((null.effective_rank, ranks), (null.entropy_loss, losses)):
        error = of.std().item() * math.sqrt(1 / draws + 1 / len(of))
        assert found == pytest.approx(of.mean().item(), abs=4 * error)


def test_squares_and_rectangles():
    assert shape_null(512, 2048).kappa == pytest.approx(3.0, abs=0.1)
    # Edelman 1988: the condition number of large squares over n has the distribution function exp(-2/x - 2/x²).
    median = 4 / (math.sqrt(4 + 8 * math.log(2)) - 2)
    assert 0.6 * median * 512 < shape_null(512, 512).kappa < 1.6 * median * 512
    assert 700 < shape_null(512, 512).kappa < 3000
    assert shape_null(512, 512).kappa_high > 10 * shape_null(512, 512).kappa_low


@pytest.mark.parametrize(("m", "n"), [(2048, 512), (4000, 100), (1000, 800)])
def test_large_rectangles_have_the_limits_condition(m, n):
    edge = math.sqrt(n / m)
    null = shape_null(m, n)
    assert null.kappa == pytest.approx((1 + edge) / (1 - edge), rel=0.05)
    assert null.kappa_low < null.kappa < null.kappa_high < 1.2 * null.kappa


def test_the_mean_loss_of_a_large_matrix_is_the_determinants():
    m, n = 600, 300
    log_determinant = sum(special.digamma((m - i) / 2) + math.log(2) for i in range(n))
    assert shape_null(m, n).entropy_loss == pytest.approx(n / 2 * math.log(m) - log_determinant / 2, rel=0.02)


def test_a_transpose_has_the_same_null():
    assert shape_null(30, 70) == shape_null(70, 30)


def test_a_seed_fixes_the_draws():
    first = shape_null(12, 9, seed=1)
    _drawn.cache_clear()
    assert shape_null(12, 9, seed=1) == first != shape_null(12, 9, seed=2)
    assert shape_null(12, 9) == shape_null(12, 9, 0)


@pytest.mark.parametrize("length", [1, 7, 500])
def test_a_vector_is_as_even_as_can_be(length):
    null = shape_null(length, 1)
    assert (null.kappa, null.kappa_low, null.kappa_high) == (1, 1, 1)
    assert null.effective_rank == pytest.approx(1)
    assert null.entropy_loss == pytest.approx(0, abs=1e-9)
    assert shape_null(1, length) == null


def test_numbers_are_plain():
    assert {type(value) for value in vars(shape_null(6, 4)).values()} == {float}
