import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoms.checks.support_refit import refit


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(10, 14))
def test_both_refits_solve_what_they_say(seed, k, width):
    draw = np.random.default_rng(seed)
    atoms, codes, row = draw.standard_normal((k, width)), draw.uniform(0.1, 1, k), draw.standard_normal(width)
    found = refit(atoms, codes, row)
    assert found["synthetic_ls"] < 1e-6
    assert found["synthetic_nnls"] < 1e-6
    expected = np.linalg.pinv(atoms.T) @ row
    assert found["error_ls"] == pytest.approx(np.square(row - expected @ atoms).sum() / (row @ row), abs=1e-9)
    assert found["error_unit"] == pytest.approx(np.square(row - codes @ atoms).sum() / (row @ row))
    assert found["error_ls"] <= found["error_nnls"] + 1e-9
    assert found["error_nnls"] <= min(found["error_unit"], 1) + 1e-9
    if (expected > 0).all():
        assert found["error_nnls"] == pytest.approx(found["error_ls"], abs=1e-9)
        assert found["real_ls"] == pytest.approx(np.linalg.norm(codes - expected) / np.linalg.norm(expected), rel=1e-6)


def test_dependent_atoms_and_more_than_dimensions_have_a_solution():
    atoms = np.array([[1.0, 0], [1, 0], [0, 1]])
    found = refit(atoms, np.array([1.0, 0.5, 2]), np.array([3.0, 4]))
    assert found["error_ls"] == pytest.approx(0, abs=1e-12)
    assert found["error_nnls"] == pytest.approx(0, abs=1e-12)
    assert found["synthetic_ls"] > 0.1  # amplitudes of equal atoms cannot be told apart


def test_codes_that_are_all_negative_are_infinitely_far_from_non_negative_ones():
    atoms, codes = np.eye(3)[:2], np.array([-1.0, -2.0])
    found = refit(atoms, codes, codes @ atoms)
    assert found["real_nnls"] == np.inf
    assert found["synthetic_nnls"] == 1
    assert refit(atoms, 0 * codes, codes @ atoms)["real_nnls"] == 0
