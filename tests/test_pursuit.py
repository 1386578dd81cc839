"""Greedy and thresholded sparse codes, against scikit-learn, scipy and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp

from atoms.units.pursuit import (
    nonnegative_least_squares,
    orthogonal_matching_pursuit,
    top_k_least_squares,
)


def unit_directions(atoms, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(atoms, width, generator=generator, dtype=torch.float64)
    return drawn / drawn.norm(dim=1, keepdim=True)


def rows_of(count, width, seed=1):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(found, atoms):
    codes = torch.zeros(len(found.support), atoms + 1, dtype=torch.float64)
    return codes.scatter_add(1, found.support % (atoms + 1), found.coefficients)[:, :atoms]


# Fixed cases: of two correlations within 1e-6 either may come first, and scikit-learn now and then ends early.
@pytest.mark.parametrize(
    ("width", "atoms", "rows", "k"),
    [(4, 3, 50, 1), (8, 8, 100, 4), (12, 30, 300, 6), (24, 60, 65, 12), (48, 20, 64, 8)],
)
def test_matching_pursuit_is_that_of_scikit_learn(width, atoms, rows, k):
    x, directions = rows_of(rows, width, rows), unit_directions(atoms, width, atoms)
    found = orthogonal_matching_pursuit(x, directions, k)
    reference = orthogonal_mp(directions.numpy().T, x.numpy().T, n_nonzero_coefs=k, precompute=False)
    reference = np.atleast_2d(reference.T).reshape(rows, atoms)
    np.testing.assert_allclose(dense(found, atoms).numpy(), reference, atol=1e-9)


def test_residual_energies_are_those_of_the_best_fit_on_each_prefix():
    x, directions = rows_of(40, 12), unit_directions(30, 12)
    for found in (orthogonal_matching_pursuit(x, directions, 6), top_k_least_squares(x, directions, 6)):
        for row in (0, 7, 39):
            for step in range(6):
                chosen = directions[found.support[row, : step + 1]].numpy()
                error = np.linalg.lstsq(chosen.T, x[row].numpy(), rcond=None)[1].sum()
                assert found.residual_energy[row, step].item() == pytest.approx(error, rel=1e-10)
        rebuilt = dense(found, 30) @ directions
        torch.testing.assert_close((x - rebuilt).square().sum(1), found.residual_energy[:, -1])


def test_orthonormal_directions_give_the_largest_coordinates():
    turn = torch.linalg.qr(rows_of(9, 9)).Q
    x = rows_of(200, 9, 5)
    for code in (orthogonal_matching_pursuit, top_k_least_squares):
        found = code(x, turn, 4)
        size, order = (x @ turn.T).abs().sort(descending=True)
        assert torch.equal(found.support, order[:, :4])
        torch.testing.assert_close(found.coefficients.abs(), size[:, :4])
        torch.testing.assert_close(
            found.residual_energy, x.square().sum(1, keepdim=True) - size[:, :4].square().cumsum(1)
        )


def test_a_row_stops_when_nothing_is_left():
    directions = unit_directions(40, 20)
    x = torch.stack([torch.zeros(20, dtype=torch.float64), -3 * directions[4], 2 * directions[5] + directions[9]])
    found = orthogonal_matching_pursuit(x, directions, 8)
    assert found.support.tolist()[0] == [-1] * 8
    assert found.support.tolist()[1] == [4] + [-1] * 7
    assert set(found.support.tolist()[2][:2]) == {5, 9}
    assert found.support.tolist()[2][2:] == [-1] * 6
    torch.testing.assert_close(dense(found, 40) @ directions, x, rtol=0, atol=1e-12)
    assert (found.coefficients[found.support < 0] == 0).all()
    assert found.residual_energy[:, -1].max() < 1e-24


def test_a_row_stops_where_no_direction_reaches():
    directions = torch.eye(6, dtype=torch.float64)[:3]
    found = orthogonal_matching_pursuit(torch.ones(1, 6, dtype=torch.float64), directions, 3)
    assert found.residual_energy.tolist() == [[5, 4, 3]]
    found = orthogonal_matching_pursuit(torch.tensor([[1.0, 0, 0, 2, 0, 0]]).double(), directions, 3)
    assert found.support.tolist() == [[0, -1, -1]]
    assert found.residual_energy.tolist() == [[4, 4, 4]]


def test_dependent_directions_are_left_out():
    directions = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 2]]
    x = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).double()
    found = top_k_least_squares(x, directions, 4)
    assert sorted(found.support[0].tolist()) == [-1, 0, 2, 3] or sorted(found.support[0].tolist()) == [-1, 1, 2, 3]
    assert found.residual_energy[0, -1] == 0
    found = orthogonal_matching_pursuit(x, directions, 4)
    assert found.support[0].tolist()[1:] == [2, 3, -1]


def test_directions_of_zeros_are_never_chosen():
    directions = torch.zeros(3, 3, dtype=torch.float64)
    directions[1, 1] = 1
    x = rows_of(5, 3)
    for code in (orthogonal_matching_pursuit, top_k_least_squares):
        found = code(x, directions, 2)
        assert found.support.tolist() == [[1, -1]] * 5 or found.support.unique().tolist() == [-1, 1]
        torch.testing.assert_close(found.coefficients.sum(1), x[:, 1])


def test_the_unit_of_the_rows_does_not_matter():
    x, directions = rows_of(30, 16), unit_directions(40, 16)
    found = orthogonal_matching_pursuit(x, directions, 5)
    scaled = orthogonal_matching_pursuit(x * 2.0**-60, directions, 5)
    assert torch.equal(found.support, scaled.support)
    assert torch.equal(found.coefficients * 2.0**-60, scaled.coefficients)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 10), st.integers(2, 25), st.integers(0, 1000))
def test_nonnegative_pursuit_solves_its_support(width, atoms, seed):
    x, directions = rows_of(60, width, seed), unit_directions(atoms, width, seed + 1)
    k = min(width, atoms)
    found = orthogonal_matching_pursuit(x, directions, k, nonnegative=True)
    assert (found.coefficients >= 0).all()
    assert (found.residual_energy.diff(dim=1) <= 0).all()
    for row in range(0, 60, 7):
        support = found.support[row][found.support[row] >= 0]
        if len(support):
            solution, error = nnls(directions[support].numpy().T, x[row].numpy())
            np.testing.assert_allclose(found.coefficients[row, : len(support)], solution, atol=1e-8)
            assert found.residual_energy[row, -1].item() == pytest.approx(error**2, rel=1e-8, abs=1e-18)
        else:
            assert (directions @ x[row]).max() <= 1e-6 * x[row].norm()


def test_nonnegative_least_squares_is_that_of_scipy():
    generator = torch.Generator().manual_seed(0)
    for size, width in ((1, 1), (5, 9), (12, 12), (12, 6)):
        matrices = torch.randn(80, size, width, generator=generator, dtype=torch.float64)
        targets = torch.randn(80, width, generator=generator, dtype=torch.float64)
        found = nonnegative_least_squares(matrices @ matrices.mT, (matrices @ targets.unsqueeze(2)).squeeze(2))
        assert (found >= 0).all()
        for matrix, target, solution in zip(matrices, targets, found, strict=True):
            best = nnls(matrix.numpy().T, target.numpy())[1]
            assert (target - solution @ matrix).norm().item() == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_what_does_not_fit_is_refused():
    x, directions = rows_of(3, 4), unit_directions(6, 4)
    for k in (0, 5):
        with pytest.raises(ValueError, match=rf"k is {k}, not from 1 to min\(A, H\) = 4"):
            orthogonal_matching_pursuit(x, directions, k)
    with pytest.raises(ValueError, match="not float64"):
        top_k_least_squares(x.float(), directions, 2)
    with pytest.raises(ValueError, match=r"rows \(3, 4\) and directions \(6, 5\)"):
        top_k_least_squares(x, unit_directions(6, 5), 2)
