"""Singular values against numpy's, and bounds that hold whatever the matrix is."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.linalg import LinAlgError

from atoms.conditioning import bounds, spectrum, survey
from atoms.conditioning.spectrum import _by_gram, _unit
from atoms.conditioning.weights import named_weight
from atoms.errors import AtomsError

laws = settings(deadline=None, max_examples=60)
SHAPES = [(40, 7), (7, 40), (12, 12), (24, 16), (23, 16), (1, 9), (9, 1), (1, 1)]  # 24 by 16: the Gram matrix just yet


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(seed: int, rows: int, columns: int) -> torch.Tensor:
    return torch.linalg.qr(normal(seed, rows, columns)).Q


def of_values(values: list[float], rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """A matrix of these singular values, in random bases."""
    return (
        orthonormal(seed, rows, len(values))
        * torch.tensor(values).double()
        @ orthonormal(seed + 1, columns, len(values)).T
    )


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    """Matrices of any rank and condition, repeated singular values and zeros among them."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    value = st.one_of(st.sampled_from([0.0, 1.0, 1.0, 2.0]), st.floats(-14, 0).map(lambda power: 10.0**power))
    values = draw(st.lists(value, min_size=min(rows, columns), max_size=min(rows, columns)).filter(any))
    return of_values(values, rows, columns, draw(st.integers(0, 1000)))


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_numpys(shape):
    matrix = normal(0, *shape)
    seen, expected = spectrum(matrix), np.linalg.svd(matrix.numpy(), compute_uv=False)
    np.testing.assert_allclose(seen.values.numpy(), expected, rtol=1e-9)
    assert seen.shape == shape
    assert seen.values.dtype == torch.float64
    assert (seen.highest, seen.lowest) == (seen.values[0].item(), seen.values[-1].item())
    assert seen.norm == pytest.approx(np.linalg.norm(matrix.numpy()), rel=1e-12)
    assert seen.condition == pytest.approx(np.linalg.cond(matrix.numpy()), rel=1e-9)
    assert seen.rank == min(shape)


@pytest.mark.parametrize("kappa", [1e2, 1e4, 1e6, 1e8, 1e10, 1e12])
@pytest.mark.parametrize("shape", [(300, 12), (12, 300), (20, 18)])
def test_ill_conditioned_matrices(shape, kappa):
    matrix = of_values(np.geomspace(1, 1 / kappa, min(shape)).tolist(), *shape)
    seen, expected = spectrum(matrix), np.linalg.svd(matrix.numpy(), compute_uv=False)
    np.testing.assert_allclose(seen.values.numpy(), expected, rtol=1e-6 + 1e-15 * kappa)
    assert seen.condition == pytest.approx(kappa, rel=1e-6 + 1e-14 * kappa)


def test_the_gram_matrix_is_believed_only_as_far_as_it_reaches():
    def believed(kappa: float) -> bool:
        matrix = of_values(np.geomspace(1, 1 / kappa, 12).tolist(), 300, 12)
        values = _by_gram(matrix, _unit(matrix))
        if values is not None:
            expected = np.linalg.svd(matrix.numpy(), compute_uv=False)
            np.testing.assert_allclose(values.numpy() * _unit(matrix), expected, rtol=1e-6)
        return values is not None

    assert [believed(kappa) for kappa in (1e1, 1e3, 1e4, 1e6, 1e9)] == [True, True, True, False, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(50, 8), (8, 9)])
def test_narrow_types_are_decomposed_in_float64(dtype, shape):
    matrix = normal(1, *shape).to(dtype)
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    for given_as in (matrix, matrix.mT.contiguous().mT, torch.nn.Parameter(matrix)):
        np.testing.assert_allclose(spectrum(given_as.detach()).values.numpy(), expected, rtol=1e-9)
        assert bounds(given_as.detach()).condition == pytest.approx(expected[0] / expected[-1], rel=1e-9)


@pytest.mark.parametrize("factor", [1e-307, 1e-30, -1.0, 3.0, 1e30, 1e300])
@pytest.mark.parametrize("shape", [(30, 5), (6, 6)])
def test_a_multiple_has_the_same_condition(factor, shape):
    matrix = normal(2, *shape)
    for measured in (spectrum, bounds):
        one, other = measured(matrix), measured(matrix * factor)
        assert other.condition == pytest.approx(one.condition, rel=1e-9)
        assert other.norm == pytest.approx(one.norm * abs(factor), rel=1e-12)
        assert other.highest == pytest.approx(one.highest * abs(factor), rel=1e-12)


def test_powers_of_two_change_nothing_but_the_size():
    matrix = normal(3, 30, 5).float()
    assert torch.equal(spectrum(matrix * 2.0**-90).values * 2.0**90, spectrum(matrix).values)
    assert spectrum(matrix * 2.0**-90).condition == spectrum(matrix).condition


def test_the_smallest_floats_have_a_condition():
    tiny = torch.diag(torch.tensor([3e-320, 2e-320, 1e-320], dtype=torch.float64))
    assert spectrum(tiny).condition == pytest.approx(3, rel=1e-2)
    assert 1 <= bounds(tiny).condition <= 3.05
    small = torch.diag(torch.tensor([2**-148.0, 2**-149.0], dtype=torch.float32))
    assert (spectrum(small).condition, bounds(small).condition) == pytest.approx((2, 2))


@laws
@given(matrices())
def test_transposition_changes_nothing(matrix):
    one, other = spectrum(matrix), spectrum(matrix.mT)
    torch.testing.assert_close(one.values, other.values, rtol=0, atol=1e-14 * one.highest)
    assert one.shape == other.shape[::-1]
    assert (bounds(matrix).highest, bounds(matrix).norm) == pytest.approx((bounds(matrix.mT).highest, one.norm))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 2), (60, 60), (400, 6), (6, 400), (48, 40), (1000, 2)])
def test_a_repeated_column_is_found_singular(shape, dtype):
    matrix = normal(4, max(shape), min(shape)).to(dtype)
    matrix[:, -1] = matrix[:, 0]
    if shape[0] < shape[1]:
        matrix = matrix.mT
    seen = spectrum(matrix)
    assert seen.lowest == 0
    assert math.isinf(seen.condition)
    assert seen.rank == min(shape) - 1
    assert seen.values[-2] > 0


@pytest.mark.parametrize("rank", [1, 3, 11])
@pytest.mark.parametrize("shape", [(12, 12), (80, 12), (12, 80)])
def test_rank_of_a_product(shape, rank):
    assert spectrum(normal(5, shape[0], rank) @ normal(6, rank, shape[1])).rank == rank


@laws
@given(matrices(), st.integers(1, 12), st.integers(0, 5))
def test_bounds_hold(matrix, steps, seed):
    known, seen = spectrum(matrix), bounds(matrix, steps, seed)
    assert seen.values is None
    assert seen.rank is None
    assert seen.highest <= known.highest * (1 + 1e-12)
    assert seen.lowest >= known.lowest * (1 - 2e-6) - 1e-14 * known.highest
    assert seen.highest >= seen.lowest
    assert seen.condition >= 1
    assert 1 / seen.condition >= (1 - 2e-6) / known.condition - 2e-14
    assert seen.norm == pytest.approx(known.norm, rel=1e-9)


@laws
@given(matrices())
def test_enough_steps_find_both_ends(matrix):
    known, seen = spectrum(matrix), bounds(matrix)
    assert seen.highest == pytest.approx(known.highest, rel=1e-9)
    # Several values at the noise are one to a start that can tell them no more than float64 can.
    assert 1 / seen.condition <= 1 / known.condition * (1 + 2e-6) + 1e-12


@pytest.mark.parametrize("steps", [1, 2, 5, 48])
@pytest.mark.parametrize(
    ("matrix", "kappa"),
    [
        (torch.eye(30).double(), 1),
        (orthonormal(7, 60, 30), 1),
        (of_values([2.0] * 10 + [1.0] * 10, 40, 20), 2),
        (of_values([1.0] + [0.0] * 19, 40, 20), math.inf),
        (of_values([3.0] * 5 + [0.0] * 15, 20, 40), math.inf),
        (torch.diag(torch.tensor([4.0, 1.0, 0.0])).double(), math.inf),
        (torch.full((9, 1), 3.0), 1),
        (torch.tensor([[0.0, -2.0]]), 1),
    ],
)
def test_a_start_that_soon_has_seen_everything_breaks_off_with_bounds(matrix, kappa, steps):
    seen = bounds(matrix, steps)
    assert 1 <= seen.condition <= kappa * (1 + 1e-12)
    assert seen.condition == pytest.approx(kappa) or steps < 3 or math.isinf(kappa)
    assert seen.condition > 1e12 or not math.isinf(kappa) or steps < 5
    assert seen.norm == pytest.approx(torch.linalg.norm(matrix.double()).item())


def test_more_steps_and_other_starts():
    matrix = normal(8, 120, 100)
    found = [bounds(matrix, steps).condition for steps in (1, 5, 20, 60, 100)]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(spectrum(matrix).condition, rel=1e-9)
    assert found[2] < 0.7 * found[-1]
    assert bounds(matrix, 5, seed=1).condition == bounds(matrix, 5, seed=1).condition != found[1]


def test_max_dim_decides_by_the_smaller_side():
    matrix = normal(9, 30, 8)
    assert spectrum(matrix, 8).values is not None
    assert spectrum(matrix.mT, 8).values is not None
    for given_as in (matrix, matrix.mT):
        seen = spectrum(given_as, 7, seed=3)
        assert seen.values is None
        assert seen.condition == bounds(given_as, seed=3).condition
        assert seen.shape == tuple(given_as.shape)


@pytest.mark.parametrize("measured", [spectrum, bounds])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(30, 5), (6, 6)])
def test_the_matrix_stays_as_it_was(measured, dtype, shape):
    matrix = normal(10, *shape).to(dtype)
    before = matrix.clone()
    measured(matrix)
    assert torch.equal(matrix, before)


def test_a_long_table_is_read_in_parts(monkeypatch):
    table = normal(11, 30_000, 64).float()
    whole = spectrum(table)
    monkeypatch.setattr(sys.modules[spectrum.__module__], "_BLOCK", 64 * 1000 + 1)
    parts = spectrum(table)
    torch.testing.assert_close(parts.values, whole.values, rtol=1e-12, atol=0)
    assert parts.condition == pytest.approx(np.linalg.cond(table.double().numpy()), rel=1e-9)
    assert bounds(table).condition == pytest.approx(parts.condition, rel=0.2)
    assert bounds(table).norm == pytest.approx(parts.norm, rel=1e-12)


@pytest.mark.parametrize("measured", [spectrum, bounds, lambda matrix: spectrum(matrix, 1)])
@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (torch.zeros(3, 4), "all weights are zero"),
        (torch.tensor([[1.0, math.nan], [math.inf, 1.0]]), "2 of 4 weights are not finite"),
        (torch.full((40, 30), -math.inf), "1,200 of 1,200 weights are not finite"),
        (torch.ones(5), r"shape \(5,\) is no matrix"),
        (torch.ones(2, 3, 4), r"shape \(2, 3, 4\) is no matrix"),
        (torch.tensor(1.0), r"shape \(\) is no matrix"),
        (torch.ones(3, 3, dtype=torch.int8), "int8 has no singular values: dequantise it"),
        (torch.ones(3, 3).to(torch.float8_e4m3fn), "float8_e4m3fn has no singular values: dequantise it"),
        (torch.empty(0, 4), r"shape \(0, 4\) is empty"),
        (torch.empty(4, 0), r"shape \(4, 0\) is empty"),
    ],
)
def test_what_has_no_condition_is_refused(measured, matrix, said):
    with pytest.raises(AtomsError, match=said):
        measured(matrix)


def fails(*_args, **_settings):
    raise LinAlgError("linalg: The algorithm failed to converge.\nmore")


def test_where_the_gram_matrix_is_not_decomposed_its_triangular_factor_is(monkeypatch):
    matrix = normal(12, 40, 7)
    expected = spectrum(matrix).values
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    torch.testing.assert_close(spectrum(matrix).values, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", [(40, 7), (7, 7)])
def test_a_decomposition_that_does_not_converge(monkeypatch, shape):
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    monkeypatch.setattr(torch.linalg, "svdvals", fails)
    said = r"its singular values were not found \(linalg: The algorithm failed to converge\.\)$"
    with pytest.raises(AtomsError, match=f"^{said}"):
        spectrum(normal(13, *shape))
    with pytest.raises(AtomsError, match=rf"^layers\.0\.fc\.weight: {said}"):
        survey([named_weight("layers.0.fc.weight", shape, lambda: normal(13, *shape))])


def test_a_triangular_factor_takes_as_many_rows_as_it_has(monkeypatch):
    """Fewer would cost as much each time."""
    seen, qr = [], torch.linalg.qr

    def noted(matrix, mode):
        seen.append(len(matrix))
        return qr(matrix, mode=mode)

    matrix = of_values(np.geomspace(1, 1e-8, 64).tolist(), 1000, 64)
    monkeypatch.setattr(sys.modules[spectrum.__module__], "_BLOCK", 64 * 3)
    monkeypatch.setattr(torch.linalg, "qr", noted)
    assert spectrum(matrix).condition == pytest.approx(1e8, rel=1e-5)
    assert seen == [64, *[128] * 14, 64 + 1000 % 64]
