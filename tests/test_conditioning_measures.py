"""Information in singular values: closed forms, and the one inequality between a condition number and entropy."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from atoms.conditioning import (
    channel_information,
    channel_share,
    condition_number,
    effective_rank,
    entropy_loss,
    entropy_loss_bound,
    log_volume,
    max_log_volume,
    spectral_entropy,
)
from atoms.conditioning.measures import tight_spectrum

laws = settings(deadline=None, max_examples=100)
RELATIVE = [condition_number, entropy_loss, spectral_entropy, effective_rank, lambda sigma: channel_share(sigma, 10)]

positive = st.floats(1e-6, 1e6)
spectra = st.lists(positive, min_size=1, max_size=12).map(lambda found: torch.tensor(found, dtype=torch.float64))


def values(*found: float) -> torch.Tensor:
    return torch.tensor(found, dtype=torch.float64)


def test_closed_forms():
    sigma = values(4, 2, 1)
    assert condition_number(sigma) == 4
    assert log_volume(sigma) == pytest.approx(math.log(8))
    assert max_log_volume(math.sqrt(21), 3) == pytest.approx(1.5 * math.log(7))
    assert entropy_loss(sigma) == pytest.approx(1.5 * math.log(7) - math.log(8))
    assert spectral_entropy(sigma) == pytest.approx(stats.entropy([4, 2, 1]))
    assert effective_rank(sigma) == pytest.approx(math.exp(stats.entropy([4, 2, 1])))
    assert channel_information(sigma) == pytest.approx(math.log(17 * 5 * 2) / 2)
    assert channel_information(sigma, signal=3, noise=2) == pytest.approx(math.log(25 * 7 * 2.5) / 2)
    expected = sum(math.log1p(100 * value**2 / 7) for value in (4, 2, 1)) / (3 * math.log1p(100))
    assert channel_share(sigma, 100) == pytest.approx(expected)


@pytest.mark.parametrize("measure", [*RELATIVE, log_volume, channel_information])
def test_order_and_precision_do_not_matter(measure):
    sigma = values(8, 2, 1, 0.25)
    for other in (sigma.flip(0), sigma[[2, 0, 3, 1]], sigma.float(), sigma.bfloat16()):
        assert measure(other) == pytest.approx(measure(sigma), rel=1e-12)


@laws
@given(spectra, st.floats(1e-100, 1e100))
def test_relative_measures_do_not_see_the_scale(sigma, factor):
    for measure in RELATIVE:
        assert measure(sigma * factor) == pytest.approx(measure(sigma), rel=1e-9, abs=1e-9)
    shift = log_volume(sigma * factor) - log_volume(sigma)
    assert shift == pytest.approx(len(sigma) * math.log(factor), rel=1e-9, abs=1e-9)


@laws
@given(spectra)
def test_loss_is_what_the_volume_lacks(sigma):
    lacking = max_log_volume(sigma.square().sum().sqrt().item(), len(sigma)) - log_volume(sigma)
    assert entropy_loss(sigma) == pytest.approx(lacking, abs=1e-9)
    assert entropy_loss(sigma) >= 0
    assert lacking >= -1e-9


@laws
@given(positive, st.integers(1, 300))
def test_equal_values_lose_nothing(value, rank):
    sigma = torch.full((rank,), value, dtype=torch.float64)
    assert condition_number(sigma) == 1
    assert entropy_loss(sigma) == pytest.approx(0, abs=1e-9)
    assert log_volume(sigma) == pytest.approx(max_log_volume(value * math.sqrt(rank), rank), abs=1e-9)
    assert effective_rank(sigma) == pytest.approx(rank)
    assert spectral_entropy(sigma) == pytest.approx(math.log(rank), abs=1e-12)
    assert channel_share(sigma, 100) == pytest.approx(1)


@laws
@given(st.integers(2, 100), st.floats(0.01, 0.99), positive)
def test_unequal_values_lose_something(rank, factor, value):
    sigma = torch.full((rank,), value, dtype=torch.float64)
    sigma[rank // 2] *= factor
    assert entropy_loss(sigma) > 0
    assert log_volume(sigma) < max_log_volume(sigma.norm().item(), rank)
    assert effective_rank(sigma) < rank
    assert channel_share(sigma, 100) < 1


def test_loss_is_at_least_what_the_condition_number_says_in_20_000_spectra():
    generator = torch.Generator().manual_seed(0)
    slack = []
    for case in range(20_000):
        rank = 2 + case % 30
        spread = 10 ** (2 * torch.rand(1, generator=generator, dtype=torch.float64) - 1)
        sigma = (spread * torch.randn(rank, generator=generator, dtype=torch.float64)).exp()
        slack.append(entropy_loss(sigma) - entropy_loss_bound(condition_number(sigma)))
    assert min(slack) > -1e-9
    assert sum(each < 1e-9 for each in slack) < 1000 + 20_000 / 30  # tight for two values only


@laws
@given(st.floats(1, 1e9), st.integers(2, 50), positive)
def test_the_bound_is_attained(kappa, rank, norm):
    sigma = tight_spectrum(kappa, rank, norm)
    assert sigma.dtype == torch.float64
    assert sigma.shape == (rank,)
    assert torch.equal(sigma, sigma.sort(descending=True).values)
    assert condition_number(sigma) == pytest.approx(kappa)
    assert sigma.square().sum().sqrt().item() == pytest.approx(norm)
    assert entropy_loss(sigma) == pytest.approx(entropy_loss_bound(kappa), rel=1e-9, abs=1e-9)


@laws
@given(st.floats(1, 1e6), st.floats(0.01, 0.49), st.integers(3, 20))
def test_nothing_near_the_tight_spectrum_is_below_it(kappa, share, rank):
    sigma = tight_spectrum(kappa, rank)
    sigma[1] = sigma[0] ** share * sigma[1] ** (1 - share)
    assert condition_number(sigma) == pytest.approx(kappa)
    assert entropy_loss(sigma) >= entropy_loss_bound(kappa) - 1e-9


@pytest.mark.parametrize(("kappa", "nats"), [(10, 1.62), (100, 3.91), (1e4, 8.52)])
def test_losses_that_condition_numbers_guarantee(kappa, nats):
    assert entropy_loss_bound(kappa) == pytest.approx(nats, abs=0.005)


@laws
@given(st.floats(1, 1e300), st.floats(1, 10))
def test_the_bound_grows_from_zero(kappa, factor):
    assert 0 <= entropy_loss_bound(kappa) <= entropy_loss_bound(kappa * factor)
    assert entropy_loss_bound(1 + 1e-9) >= entropy_loss_bound(1) == 0
    if kappa < 1e100:
        assert entropy_loss_bound(kappa) == pytest.approx(math.log((kappa + 1 / kappa) / 2), abs=1e-12)


def test_singular_matrices():
    sigma = values(3, 1, 0)
    assert condition_number(sigma) == math.inf
    assert log_volume(sigma) == -math.inf
    assert entropy_loss(sigma) == math.inf
    assert entropy_loss_bound(math.inf) == math.inf
    assert spectral_entropy(sigma) == pytest.approx(stats.entropy([3, 1]))
    assert channel_information(sigma) == pytest.approx(math.log(10 * 2) / 2)
    assert 0 < channel_share(sigma, 10) < 1


def test_a_loss_beyond_the_range_of_squares_is_known():
    assert entropy_loss(values(1, 1e-200)) == pytest.approx(entropy_loss_bound(1e200))
    assert entropy_loss(values(1e200, 1)) == pytest.approx(entropy_loss_bound(1e200))


@pytest.mark.parametrize("rank", [1, 2, 50])
def test_effective_rank_of_rank_one_and_of_the_identity(rank):
    generator = torch.Generator().manual_seed(rank)
    one = torch.outer(torch.randn(60, generator=generator), torch.randn(rank, generator=generator)).double()
    assert effective_rank(torch.linalg.svdvals(one)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.ones(rank)) == pytest.approx(rank)


@laws
@given(spectra)
def test_effective_rank_lies_between_one_and_the_rank(sigma):
    assert 1 - 1e-12 <= effective_rank(sigma) <= len(sigma) * (1 + 1e-12)


@pytest.mark.parametrize("shape", [(5, 5), (9, 4), (4, 9)])
def test_channel_information_is_the_determinants(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigma = torch.linalg.svdvals(weight)
    for signal, noise in [(1, 1), (3, 0.25), (1e-3, 7)]:
        both = torch.eye(shape[0], dtype=torch.float64) + weight @ weight.T * (signal / noise)
        expected = torch.linalg.slogdet(both).logabsdet.item() / 2
        assert channel_information(sigma, signal, noise) == pytest.approx(expected, rel=1e-9)


@laws
@given(spectra, st.floats(1e-3, 1e6))
def test_a_channel_is_at_most_as_good_as_an_even_one(sigma, snr):
    assert 0 < channel_share(sigma, snr) <= 1 + 1e-12
    assert channel_share(sigma, 1e-9) == pytest.approx(1, abs=1e-5)  # noise drowns what tells them apart
