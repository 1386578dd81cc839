"""What a survey is said to take, before it begins."""

import sys
import time

import pytest
import torch

from atoms.conditioning import shape_null, survey, timing
from atoms.conditioning.timing import survey_seconds, working_memory
from atoms.conditioning.weights import named_weight

CPU = torch.device("cpu")


def weight(*shape, name="w.weight"):
    return named_weight(name, shape, lambda: torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


def bytes_of(weights):
    return 4 * sum(each.numel for each in weights)


def test_the_estimate_is_of_the_right_order():
    """Loose on purpose: other processes may be at work."""
    weights = [weight(600, 600, name=f"w{n}.weight") for n in range(6)]
    expected = survey_seconds(weights, bytes_of(weights), 16_384, CPU)
    begun = time.perf_counter()
    survey(weights)
    taken = time.perf_counter() - begun
    assert taken / 10 < expected < taken * 10


def test_more_takes_longer():
    few, many = ([weight(400, 300, name=f"w{n}.weight") for n in range(count)] for count in (10, 1000))
    short, long = (survey_seconds(weights, bytes_of(weights), 16_384, CPU) for weights in (few, many))
    assert short < long / 5


@pytest.mark.parametrize(
    ("shape", "max_dim", "sample", "threads"),
    [
        ((400, 400), 16_384, (512, 512), 1),
        ((2000, 400), 16_384, (2048, 512), 1),
        ((400, 300), 100, (512, 512), 1),  # bounded, and small all the same
        ((600, 600), 16_384, (768, 768), 3),
        ((8000, 400), 16_384, (3072, 768), 3),  # small on one side alone
        ((600, 600), 100, (1024, 1024), 3),
    ],
)
def test_samples_go_on_as_many_threads_as_the_survey(shape, max_dim, sample, threads, monkeypatch):
    seen, spectrum = [], timing.spectrum

    def noted(matrix, limit):
        seen.append((tuple(matrix.shape), limit < min(matrix.shape), torch.get_num_threads()))
        return spectrum(matrix, limit)

    before = torch.get_num_threads()
    monkeypatch.setattr(timing, "spectrum", noted)
    torch.set_num_threads(3)
    try:
        survey_seconds([weight(*shape)], 4, max_dim, CPU)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {(sample, max_dim < min(shape), threads), ((2**17, 8), False, 1)}


def test_hashing_goes_by_bytes_and_all_else_by_values(monkeypatch):
    monkeypatch.setattr(timing, "_look", lambda _: (1e6, 1e4))
    narrow, wide = (survey_seconds([weight(10, 8)], stored, 16_384, CPU) for stored in (160, 320))
    assert narrow == pytest.approx(160 * 1e6 + 80 * 1e4, rel=1e-3)
    assert wide == pytest.approx(320 * 1e6 + 80 * 1e4, rel=1e-3)


def test_what_gaussian_matrices_take_is_no_memory_of_the_last_time(monkeypatch):
    drawn, module = [], sys.modules[shape_null.__module__]
    extremes = module._extremes
    monkeypatch.setattr(module, "_extremes", lambda *given: drawn.append(1) or extremes(*given))
    shape_null(256, 256)
    drawn.clear()
    survey_seconds([weight(10, 8)], 4, 16_384, CPU)
    assert drawn


@pytest.mark.parametrize(
    ("shape", "max_dim", "least", "most"),
    [
        ((1000, 1000), 2000, 3 * 8, 6 * 8),  # decomposed in float64, with copies
        ((1000, 1000), 100, 0, 3 * 8),  # bounded, by parts
        ((10_000, 10), 100, 0, 3 * 8),  # squared, by parts
        ((8, 500, 500), 2000, 0, 8),  # experts, one after the other
    ],
)
def test_memory(shape, max_dim, least, most):
    """In bytes a value; a tensor as it is stored comes on top."""
    name = "experts.down_proj" if len(shape) == 3 else "w.weight"
    each = weight(*shape, name=name)
    stored = 2 * each.numel
    assert least * each.numel <= working_memory(each, stored, max_dim) - stored <= most * each.numel


def test_large_oblong_matrices_are_never_converted_as_a_whole():
    """An embedding of 128,000 tokens in bfloat16: itself twice, and little more."""
    each = named_weight("embed.weight", (128_000, 4096), lambda: torch.empty(0))
    stored = 2 * each.numel
    assert working_memory(each, stored, 16_384) < 2 * stored + 1e9


def test_a_triangular_factor_fits_into_what_was_announced():
    """Rounding may force it on an oblong matrix: itself, a block of as many rows, both again, and what comes out."""
    n = 8192
    each = named_weight("w.weight", (10 * n, n), lambda: torch.empty(0))
    assert working_memory(each, 0, 16_384) == 8 * 5 * n**2
