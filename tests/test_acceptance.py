"""What must hold of any implementation of atoms and their inner product, whatever it was trained on."""

import math

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from atoms.checks.identifiability import IdentifiabilityCheck
from atoms.geometry import AtomicInnerProduct, Moments, coherence, directions, rms_cosine, welch
from atoms.metrics import q_star, q_star_null


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def poisson(rate: float, atoms: int) -> torch.Tensor:
    return torch.tensor(np.rint(1e6 * stats.poisson.pmf(np.arange(atoms + 1), rate)).astype(np.int64))


def dictionary(kind: str, atoms: int, width: int) -> torch.Tensor:
    made = normal(2, atoms, width)
    if kind == "duplicates":
        made[atoms // 2 : 3 * atoms // 4] = 0.8 * made[: atoms // 4] + 0.6 * normal(3, atoms // 4, width)
    if kind == "shifted":
        made += 2 * normal(4, width)
    return made


@pytest.mark.parametrize("kind", ["gaussian", "duplicates", "shifted"])
def test_1_leverages_sum_to_the_width_and_the_gram_matrix_is_a_projector(kind):
    atoms = dictionary(kind, 512, 128)
    own = AtomicInnerProduct.from_atoms(atoms)
    assert own.norm(atoms).square().sum().item() == pytest.approx(128, abs=1e-6)
    gram = atoms @ own.matrix() @ atoms.T
    torch.testing.assert_close(gram @ gram, gram, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["gaussian", "duplicates", "shifted"])
def test_2_in_its_own_inner_product_any_dictionary_has_the_welch_rms(kind):
    atoms = dictionary(kind, 512, 128)
    own = AtomicInnerProduct.from_atoms(atoms)
    assert rms_cosine(atoms, aip=own) == pytest.approx(welch(128, 512), rel=3e-3)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(2, 12), st.integers(0, 20))
def test_3_angles_do_not_change_with_the_coordinates_of_the_space(seed, width, more):
    atoms, change = normal(seed, width + more, width), normal(seed + 1, width, width)
    if torch.linalg.cond(change) > 1e3:
        return
    before, after = (directions(d, aip=AtomicInnerProduct.from_atoms(d)) for d in (atoms, atoms @ change))
    torch.testing.assert_close(before @ before.T, after @ after.T, rtol=0, atol=1e-6)


def test_4_the_theorem_s_encoder_finds_supports_and_not_amplitudes():
    atoms = normal(5, 2048, 512)
    judged = oracle.subject(atoms, AtomicInnerProduct.from_atoms(atoms), 500, solved_rows=64)
    check = IdentifiabilityCheck(judged)
    check.update(oracle.encoded(judged, oracle.codes(2048, 3, 0.8, 500)))
    found = check.compute()
    assert (found.k == 3).all()
    assert (found.synthetic_off < found.synthetic_on).all()
    assert found.synthetic_error.min() > 0
    assert 0.01 < found.synthetic_error.mean() < found.synthetic_error.max() < 0.3
    assert len(found.refits["index"]) == 500
    assert found.refits["synthetic_ls"].max() < 1e-10
    assert found.refits["synthetic_nnls"].max() < 1e-10


def test_5_the_identity_dictionary_of_neurons_is_hardly_stable():
    """D = I with every neuron firing, in the inner product of correlated activations."""
    width, rows = 512, 640
    aip = AtomicInnerProduct.from_moments(Moments.from_rows(normal(1, rows, width)), ridge=0.0)
    found = coherence(torch.eye(width, dtype=torch.float64), aip=aip)
    every = torch.eye(width + 1, dtype=torch.int64)[width]
    score = q_star(found, every)
    assert 0.005 < score.q < 0.01
    expected = 2 * stats.norm.cdf(1 / (2 * width - 1), scale=found.rms) - 1
    assert score.q == pytest.approx(expected, rel=0.1)
    assert q_star(found, every, "atoms").q == 0
    # by definition, S = (D Dᵀ)^-1, the same neurons would be perfect
    own = coherence(torch.eye(width), aip=AtomicInnerProduct.from_atoms(torch.eye(width)))
    assert q_star(own, every).q == 1


# q* of a random Gaussian dictionary with H = 512, A = 2048 and Poisson(rate) sparsity
TABLE = {
    "pairs": {1: 0.997, 2: 0.985, 4: 0.918, 8: 0.766, 16: 0.534, 32: 0.308, 64: 0.161},
    "atoms": {1: 0.981, 2: 0.859, 4: 0.435, 8: 0.100, 16: 0.0, 32: 0.0, 64: 0.0},
}


@pytest.mark.parametrize("reading", ["pairs", "atoms"])
def test_5_the_null_matches_its_table_and_a_random_dictionary(reading):
    found = coherence(normal(0, 2048, 512), aip=None)
    for rate, expected in TABLE[reading].items():
        histogram = poisson(rate, 2048)
        null = q_star_null(512, 2048, histogram, reading)
        assert null.q == pytest.approx(expected, abs=0.02)
        assert q_star(found, histogram, reading).q == pytest.approx(null.q, abs=0.01)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(2, 10), st.integers(2, 60), st.floats(0, 30), st.floats(0, 3))
def test_7_in_the_inner_product_of_the_same_rows_no_data_meet_at_an_angle_on_average(seed, width, more, shift, weight):
    rows = normal(seed, width + more, width) * torch.exp(weight * normal(seed + 1, width + more, 1))
    rows = rows + shift * normal(seed + 2, width)
    white = AtomicInnerProduct.from_moments(Moments.from_rows(rows), ridge=0.0).whiten(rows)
    gram, count = white @ white.T, len(rows)
    across = (gram.sum() - gram.trace()) / (count * (count - 1))
    length = gram.trace() / count
    assert length.item() == pytest.approx(width, rel=1e-6)
    assert across.item() / length.item() <= 1 / width + 1e-9
    assert math.isfinite(across.item())
