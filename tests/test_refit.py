import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from atoms.checks import refit as module
from atoms.checks.refit import refit
from atoms.sae import SparseCodes

H, A = 7, 20


def case(seed: int, rows: int, density: float, *, copies: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors, unit directions, and codes of either sign; with copies, some atoms are equal and one is zero."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(A, H, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    if copies:
        directions[1], directions[2], directions[3] = directions[0], -directions[0], 0
    codes = torch.randn(rows, A, generator=generator)
    codes *= torch.rand(rows, A, generator=generator) < density
    return torch.randn(rows, H, generator=generator, dtype=torch.float64), directions, codes


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(0, 1), st.booleans())
def test_least_squares_is_the_projection_on_the_support(seed, rows, density, copies):
    vectors, directions, codes = case(seed, rows, density, copies=copies)
    found = refit(vectors, directions, SparseCodes.from_dense(codes))
    for row in range(rows):
        support = directions[codes[row] != 0].numpy().T
        expected = support @ np.linalg.lstsq(support, vectors[row].numpy(), rcond=1e-10)[0] if support.size else 0
        np.testing.assert_allclose(found[row].numpy(), np.broadcast_to(expected, H), atol=1e-7)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(0, 1), st.booleans())
def test_with_signs_kept_it_is_non_negative_least_squares_of_the_signed_atoms(seed, rows, density, copies):
    vectors, directions, codes = case(seed, rows, density, copies=copies)
    found = refit(vectors, directions, SparseCodes.from_dense(codes), keep_signs=True)
    for row in range(rows):
        on = codes[row] != 0
        support = (directions[on] * codes[row][on].sign()[:, None]).numpy().T
        expected = support @ nnls(support, vectors[row].numpy())[0] if support.size else 0
        np.testing.assert_allclose(found[row].numpy(), np.broadcast_to(expected, H), atol=1e-7)


def test_true_codes_on_their_support_are_found_again_whatever_amplitudes_were_said():
    """Planted rows: a support that is right and amplitudes that are not are rebuilt without error."""
    _, directions, codes = case(0, 50, 0.15, copies=False)
    codes = codes.abs()
    vectors = codes.double() @ directions
    said = SparseCodes.from_dense(codes.sign() * 3)
    for keep_signs in (False, True):
        assert (refit(vectors, directions, said, keep_signs=keep_signs) - vectors).abs().max() < 1e-10


@pytest.mark.parametrize("keep_signs", [False, True])
def test_blocks_change_nothing(monkeypatch, keep_signs):
    vectors, directions, codes = case(1, 9, 0.4, copies=True)
    whole = refit(vectors, directions, SparseCodes.from_dense(codes), keep_signs=keep_signs)
    monkeypatch.setattr(module, "_BYTES", 1)
    parts = refit(vectors, directions, SparseCodes.from_dense(codes), keep_signs=keep_signs)
    torch.testing.assert_close(parts, whole, atol=1e-9, rtol=0)


def test_what_pivoting_does_not_settle_goes_to_the_reference(monkeypatch):
    vectors, directions, codes = case(2, 30, 0.5, copies=False)
    expected = refit(vectors, directions, SparseCodes.from_dense(codes), keep_signs=True)
    monkeypatch.setattr(module, "_EXCHANGES", 1)
    found = refit(vectors, directions, SparseCodes.from_dense(codes), keep_signs=True)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_without_codes_nothing_is_rebuilt():
    vectors, directions, codes = case(3, 4, 0, copies=False)
    assert not refit(vectors, directions, SparseCodes.from_dense(codes)).any()
