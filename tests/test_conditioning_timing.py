"""What a survey is said to take, before it begins."""

import time

import pytest
import torch

from atoms.conditioning import survey
from atoms.conditioning.timing import survey_seconds, working_memory
from atoms.conditioning.weights import named_weight

CPU = torch.device("cpu")


def weight(*shape, name="w.weight"):
    return named_weight(name, shape, lambda: torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


def test_the_estimate_is_of_the_right_order():
    """Loose on purpose: other processes may be at work."""
    weights = [weight(600, 600, name=f"w{n}.weight") for n in range(6)]
    expected = survey_seconds(weights, 16_384, CPU)
    begun = time.perf_counter()
    survey(weights)
    taken = time.perf_counter() - begun
    assert taken / 10 < expected < taken * 10


def test_more_takes_longer():
    few, many = ([weight(400, 300, name=f"w{n}.weight") for n in range(count)] for count in (10, 1000))
    assert survey_seconds(few, 16_384, CPU) < survey_seconds(many, 16_384, CPU) / 5


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
