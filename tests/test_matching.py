"""Matching two dictionaries: the best of all, or mutual nearest neighbours where that is too large."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special

from atoms.geometry import match
from atoms.geometry.inner_product import unit_rows


def directions(seed: int, count: int, width: int) -> torch.Tensor:
    return unit_rows(torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


BLOCKS = [None, 24 * 7 * 30, 24 * 7]  # all at once, blocks of some rows, blocks of one


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 5))
def test_the_best_matching_lies_between_mutual_and_nearest_neighbours(seed, count, others):
    first, second = directions(seed, count, 4), directions(seed + 1, others, 4)
    cosines = (first @ second.T).abs()
    short, long = sorted((count, others))
    table = cosines if count <= others else cosines.T
    best = max(sum(table[i, j].item() for i, j in enumerate(choice)) for choice in permutations(range(long), short))
    found, mutual = match(first, second), match(first, second, memory=0)
    assert found.optimal
    assert not mutual.optimal
    assert found.cosine.abs().sum().item() == pytest.approx(best, abs=1e-6)
    assert mutual.cosine.abs().sum() <= best + 1e-6
    assert best <= found.nearest.sum() + 1e-6
    assert torch.equal(mutual.nearest, found.nearest)
    assert torch.allclose(found.nearest, cosines.amax(1), atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.sampled_from(BLOCKS))
def test_permuted_turned_and_blurred_copies_are_found(seed, memory):
    generator = torch.Generator().manual_seed(seed)
    first = directions(seed, 40, 24)
    order = torch.randperm(40, generator=generator)
    signs = torch.randint(2, (40, 1), generator=generator) * 2.0 - 1
    blurred = unit_rows(first[order] * signs + 0.02 * directions(seed + 1, 40, 24))
    found = match(first, blurred, memory)
    assert torch.equal(order[found.partner], torch.arange(40))
    assert torch.equal(found.cosine.sign(), signs[found.partner, 0].double())
    assert (found.cosine.abs() > 0.999).all()
    assert torch.allclose(found.nearest, found.cosine.abs(), atol=1e-12)


@pytest.mark.parametrize("memory", BLOCKS)
def test_every_partner_is_nobody_elses(memory):
    found = match(directions(0, 50, 6), directions(1, 30, 6), memory)
    paired = found.partner[found.partner >= 0]
    assert len(paired.unique()) == len(paired) <= 30
    assert (found.cosine[found.partner < 0] == 0).all()
    assert memory is not None or len(paired) == 30


def test_blocks_change_nothing():
    first, second = directions(0, 50, 6), directions(1, 30, 6)
    whole = match(first, second, memory=24 * 50 * 30 - 1)
    for memory in (0, 24 * 30 * 3, 24 * 30 * 49):
        part = match(first, second, memory)
        assert torch.equal(part.partner, whole.partner)
        assert torch.equal(part.cosine, whole.cosine)
    assert not whole.optimal
    assert match(first, second, memory=24 * 50 * 30).optimal


@pytest.mark.parametrize(("first", "second"), [(3, 0), (0, 3), (0, 0)])
def test_nothing_matches_nothing(first, second):
    found = match(directions(0, first, 4), directions(0, second, 4))
    assert found.partner.tolist() == [-1] * first
    assert found.cosine.tolist() == found.nearest.tolist() == [0.0] * first


def test_random_directions_are_as_near_as_theory_says():
    """cos² of a random pair follows Beta(1/2, (H-1)/2); of several, the largest."""
    width, atoms = 64, 600
    found = match(directions(0, 1000, width), directions(1, atoms, width))
    expected, _ = integrate.quad(lambda t: 1 - special.betainc(0.5, (width - 1) / 2, t * t) ** atoms, 0, 1)
    assert found.nearest.mean().item() == pytest.approx(expected, abs=0.005)
