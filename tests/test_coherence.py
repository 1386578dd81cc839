import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments, coherence, largest_cosine, rms_cosine, welch


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(atoms: torch.Tensor, metric: torch.Tensor) -> np.ndarray:
    """|cos| of all pairs with the whole Gram matrix at once; diagonal zero."""
    gram = (atoms.double() @ metric @ atoms.double().T).numpy()
    norms = np.sqrt(np.diag(gram))
    return np.abs(gram / np.outer(norms, norms)) * (1 - np.eye(len(gram)))


@pytest.mark.parametrize("tile", [1, 7, 30, 64])
@pytest.mark.parametrize("metric", ["euclid", "data"])
def test_tiles_agree_with_the_whole_gram_matrix(tile, metric):
    atoms = normal(0, 30, 8)
    aip = None if metric == "euclid" else AtomicInnerProduct.from_moments(Moments.from_rows(normal(1, 200, 8) + 2))
    expected = reference(atoms, torch.eye(8, dtype=torch.float64) if aip is None else aip.matrix())
    pairs = expected[np.triu_indices(30, 1)]
    found = coherence(atoms, aip=aip, tile=tile, bins=128)
    np.testing.assert_allclose(found.per_atom, expected.max(1), rtol=0, atol=1e-12)
    assert found.maximum == pytest.approx(pairs.max(), abs=1e-12)
    assert found.rms == pytest.approx(np.sqrt(np.mean(pairs**2)), abs=1e-12)
    np.testing.assert_array_equal(found.histogram, np.histogram(pairs, 128, (0, 1))[0])
    assert found.n_zero == 0


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(2, 20), st.floats(0, 1))
def test_quantiles_bound_the_true_ones_from_above_by_less_than_a_bin(seed, count, q):
    atoms = normal(seed, count, 4)
    pairs = reference(atoms, torch.eye(4, dtype=torch.float64))[np.triu_indices(count, 1)]
    found = coherence(atoms, aip=None, bins=64)
    true = np.quantile(pairs, q, method="inverted_cdf") if q > 0 else 0.0
    assert true - 1e-12 <= found.quantile(q) <= true + 1 / 64
    assert found.quantile(1) == found.maximum


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(-60, 60))
def test_scale_and_sign_of_atoms_change_nothing(seed, exponent):
    atoms = normal(seed, 20, 6)
    factors = 2.0**exponent * torch.where(normal(seed + 1, 20, 1) > 0, 1.0, -1.0)
    plain, scaled = coherence(atoms, aip=None), coherence(atoms * factors, aip=None)
    assert torch.equal(plain.per_atom, scaled.per_atom)
    assert torch.equal(plain.histogram, scaled.histogram)
    assert (plain.maximum, plain.rms) == (scaled.maximum, scaled.rms)


def test_atoms_of_zero_norm_belong_to_no_pair():
    atoms = normal(5, 12, 6)
    padded = torch.cat([torch.zeros(1, 6), atoms[:7], torch.zeros(2, 6), atoms[7:]])
    plain, found = coherence(atoms, aip=None, tile=5), coherence(padded, aip=None, tile=5)
    assert found.n_zero == 3
    assert torch.equal(found.histogram, plain.histogram)
    assert (found.maximum, found.rms) == (plain.maximum, plain.rms)
    assert found.per_atom[[0, 8, 9]].tolist() == [0, 0, 0]
    assert torch.equal(found.per_atom[[1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14]], plain.per_atom)


@pytest.mark.parametrize("count", [0, 1])
def test_without_a_pair_everything_is_zero(count):
    found = coherence(torch.ones(count, 3), aip=None, babel=2)
    assert found.pair is None
    assert found.babel.tolist() == [0, 0]
    assert (found.maximum, found.rms, found.quantile(0.5), found.quantile(1)) == (0, 0, 0, 0)
    assert found.histogram.sum() == 0
    assert len(found.per_atom) == count


def test_duplicates_and_orthogonal_atoms():
    found = coherence(torch.tensor([[1.0, 0, 0], [0, -2, 0], [0, 7, 0]]), aip=None)
    assert found.maximum == 1
    assert found.per_atom.tolist() == [0, 1, 1]
    assert found.quantile(2 / 3) < 1e-4
    assert found.quantile(0.7) == 1


def test_a_whitening_basis_is_orthogonal_to_rounding_and_its_quantiles_say_so():
    aip = AtomicInnerProduct.from_moments(Moments.from_rows(normal(6, 500, 16) * torch.arange(1, 17)), ridge=0.0)
    assert coherence(aip.unmap(), aip=aip).quantile(0.9) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_float_type_is_measured_in_float64(dtype):
    atoms = normal(7, 20, 6).to(dtype)
    assert coherence(atoms, aip=None).maximum == coherence(atoms.double(), aip=None).maximum


def test_bad_input_is_refused():
    with pytest.raises(AtomsError, match="NaN"):
        coherence(torch.tensor([[1.0, math.nan], [0, 1]]), aip=None)
    with pytest.raises(ValueError, match=r"\(A, H\)"):
        coherence(torch.ones(3), aip=None)
    with pytest.raises(ValueError, match="positive"):
        coherence(torch.ones(3, 2), aip=None, tile=0)
    with pytest.raises(ValueError, match="outside"):
        coherence(torch.ones(3, 2), aip=None).quantile(1.5)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(2, 30), st.integers(1, 12), st.sampled_from([1, 7, 64]), st.booleans())
def test_babel_function_and_pair_are_those_of_the_whole_gram_matrix(seed, count, length, tile, padded):
    atoms = normal(seed, count, 5)
    expected = reference(atoms, torch.eye(5, dtype=torch.float64))
    if padded:
        atoms = torch.cat([torch.zeros(2, 5), atoms])
    found = coherence(atoms, aip=None, tile=tile, babel=length)
    descending = -np.sort(-np.pad(expected, ((0, 0), (0, length))), 1)
    sums = descending.cumsum(1).max(0)[:length]
    np.testing.assert_allclose(found.babel, sums, atol=1e-12)
    i, j = found.pair
    assert i < j
    assert expected[i - 2 * padded, j - 2 * padded] == pytest.approx(found.maximum, abs=1e-12)
    assert found.babel[0] == found.maximum
    assert (found.babel <= found.maximum * torch.arange(1, length + 1, dtype=torch.float64) + 1e-12).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 30), st.sampled_from([0.0, 0.5, 1.0]))
def test_shortcuts_agree_with_the_full_measurement(seed, count, power):
    aip = AtomicInnerProduct.from_moments(Moments.from_rows(normal(seed, 50, 4) * torch.arange(1, 5)))
    atoms = torch.cat([normal(seed + 1, count, 4), torch.zeros(1, 4)])
    full = coherence(atoms, aip=aip, power=power, tile=8)
    assert largest_cosine(atoms, aip=aip, power=power, tile=7) == pytest.approx(full.maximum, abs=1e-12)
    assert coherence(aip.whiten(atoms, power), aip=None).maximum == pytest.approx(full.maximum, abs=1e-12)
    assert rms_cosine(atoms, aip=aip) == pytest.approx(coherence(atoms, aip=aip).rms, abs=1e-7)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 40), st.integers(2, 8))
def test_no_dictionary_is_below_the_welch_bound(seed, count, width):
    found = coherence(normal(seed, count, width), aip=None)
    assert welch(width, count) <= found.rms + 1e-12
    assert found.rms <= found.maximum + 1e-12


def test_an_orthoplex_and_a_simplex_reach_the_welch_bound():
    simplex = torch.eye(5, dtype=torch.float64) - 1 / 5  # five vectors in four dimensions
    assert coherence(simplex, aip=None).maximum == pytest.approx(welch(4, 5))
    assert welch(4, 4) == welch(4, 1) == 0


def test_atoms_of_zero_norm_before_others_leave_pair_in_place():
    atoms = torch.zeros(20_000, 2)
    atoms[9_000], atoms[19_999] = torch.tensor([1.0, 0]), torch.tensor([1.0, 1])
    found = coherence(atoms, aip=None)
    assert found.pair == (9_000, 19_999)
    assert found.maximum == pytest.approx(math.sqrt(0.5))
