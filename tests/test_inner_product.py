import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uneven_rows(seed: int, count: int = 400, width: int = 12) -> torch.Tensor:
    """Correlated rows with a strong mean and one massive coordinate."""
    rows = normal(seed, count, width) @ normal(seed + 1, width, width) + 3
    rows[:, 0] *= 200
    return rows


def from_rows(rows: torch.Tensor, **options) -> AtomicInnerProduct:
    return AtomicInnerProduct.from_moments(Moments.from_rows(rows), **options)


@pytest.mark.parametrize("kind", ["second_moment", "covariance"])
def test_the_matrix_is_the_inverse_of_the_ridged_moment(kind):
    moments = Moments.from_rows(uneven_rows(0))
    aip = AtomicInnerProduct.from_moments(moments, kind=kind, ridge=0.1)
    ridged = getattr(moments, kind) + aip.ridge_value * torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(aip.matrix() @ ridged, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(aip.matrix(-1), ridged, rtol=1e-10, atol=0)
    eigenvalues = torch.linalg.eigvalsh(getattr(moments, kind))
    assert aip.ridge_value == pytest.approx(0.1 * eigenvalues.median().item(), rel=1e-9)
    assert aip.ridge_share == pytest.approx((aip.ridge_value / (eigenvalues + aip.ridge_value)).mean().item())
    assert aip.condition == pytest.approx(torch.linalg.cond(ridged).item(), rel=1e-6)
    torch.testing.assert_close(aip.mean, moments.mean)


def test_whitened_rows_have_identity_second_moment():
    rows = uneven_rows(2)
    white = from_rows(rows, ridge=0.0).whiten(rows)
    torch.testing.assert_close(white.T @ white / len(rows), torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-9)


@settings(deadline=None)
@given(st.floats(-1.5, 1.5), st.integers(0, 1000))
def test_the_metric_path_composes_and_inverts(power, seed):
    aip, x = from_rows(uneven_rows(seed)), normal(seed, 7, 12)
    torch.testing.assert_close(aip.unwhiten(aip.whiten(x, power), power), x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(aip.map(power) @ aip.map(power), aip.matrix(power), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(aip.unmap(power), aip.map(-power), rtol=0, atol=0)
    assert torch.equal(aip.map(power), aip.map(power).T)


def test_power_zero_is_exactly_euclid():
    aip, x = from_rows(uneven_rows(3)), normal(3, 7, 12)
    assert torch.equal(aip.whiten(x, 0), x)
    assert torch.equal(aip.matrix(0), torch.eye(12, dtype=torch.float64))


def test_inner_norm_and_cos_agree_with_the_matrix():
    aip, u, v = from_rows(uneven_rows(4)), normal(4, 5, 12), normal(5, 5, 12)
    gram = u @ aip.matrix() @ v.T
    norms = [(w @ aip.matrix() @ w.T).diagonal().sqrt() for w in (u, v)]
    torch.testing.assert_close(aip.inner(u, v), gram.diagonal())
    torch.testing.assert_close(aip.norm(u), norms[0])
    torch.testing.assert_close(aip.cos(u[:, None], v), gram / torch.outer(*norms))
    assert aip.cos(u, torch.zeros(12)).tolist() == [0] * 5


def test_float64_stays_and_all_else_becomes_float32():
    aip, x = from_rows(uneven_rows(5)), normal(5, 7, 12)
    assert aip.whiten(x).dtype == torch.float64
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        white = aip.whiten(x.to(dtype))
        assert white.dtype == torch.float32
        assert torch.equal(white, aip.whiten(x.to(dtype).double()).float())


@settings(deadline=None)
@given(st.integers(-40, 40), st.integers(0, 1000), st.sampled_from(["second_moment", "covariance"]))
def test_a_power_of_two_changes_no_bit_of_anything_dimensionless(exponent, seed, kind):
    rows, factor = uneven_rows(seed), 2.0**exponent
    plain, scaled = from_rows(rows, kind=kind), from_rows(rows * factor, kind=kind)
    u, v = normal(seed, 6, 12), normal(seed + 1, 6, 12)
    assert scaled.unit == plain.unit * factor
    assert (scaled.rank, scaled.condition, scaled.ridge_share) == (plain.rank, plain.condition, plain.ridge_share)
    assert torch.equal(scaled.cos(u, v), plain.cos(u * factor, v * factor))
    assert torch.equal(scaled.whiten(u * factor), plain.whiten(u))
    assert torch.equal(scaled.inner(u * factor, v * factor), plain.inner(u, v))
    assert torch.equal(scaled.map(0.5, unitless=True), plain.map(0.5, unitless=True))
    assert torch.equal(scaled.unmap(0.5, unitless=True), plain.unmap(0.5, unitless=True))


def test_unitless_maps_act_on_rows_in_units():
    aip, x = from_rows(uneven_rows(6) * 1000), normal(6, 5, 12)
    torch.testing.assert_close((x / aip.unit) @ aip.map(1, unitless=True), aip.whiten(x))
    aip.map(1, unitless=True).zero_()  # a copy: the object cannot be changed through it
    assert aip.norm(x).min() > 0


def test_fewer_rows_than_dimensions_still_give_a_metric():
    rows = normal(7, 5, 12)
    aip = from_rows(rows)
    assert aip.rank == 5
    assert (aip.eigenvalues >= 0).all()
    positive = torch.linalg.eigvalsh(rows @ rows.T / 5)
    assert aip.ridge_value == pytest.approx(1e-3 * positive.median().item())
    assert math.isfinite(aip.condition)
    assert aip.whiten(normal(8, 3, 12)).isfinite().all()


@pytest.mark.parametrize("scale", [1.0, 3e-7])
def test_another_ridge_is_that_of_the_same_moments(scale):
    moments = Moments.from_rows(uneven_rows(0) * scale)
    for ridge in (1e-6, 1e-3, 0.1):
        assert AtomicInnerProduct.from_moments(moments).with_ridge(ridge) == AtomicInnerProduct.from_moments(
            moments, ridge=ridge
        )


def test_one_massive_coordinate_does_not_turn_the_metric_into_euclid():
    rows = normal(9, 4000, 32)
    rows[:, 0] *= 1e4
    variances = from_rows(rows).whiten(rows).square().mean(0)
    assert variances.median().item() == pytest.approx(1, abs=0.01)


def test_leverages_sum_to_the_width_and_the_gram_matrix_is_a_projector():
    atoms = normal(10, 60, 12)
    projector = atoms @ AtomicInnerProduct.from_atoms(atoms).matrix() @ atoms.T
    assert projector.trace().item() == pytest.approx(12, abs=1e-6)
    torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=1e-10)
    assert AtomicInnerProduct.from_atoms(atoms).norm(atoms).square().sum().item() == pytest.approx(12, abs=1e-6)
    assert not AtomicInnerProduct.from_atoms(atoms).mean.any()


def test_a_linear_change_of_coordinates_leaves_every_angle():
    atoms, rows, change = normal(11, 40, 12), uneven_rows(11), normal(12, 12, 12)
    u, v = atoms[:20], atoms[20:]
    definition, moved = AtomicInnerProduct.from_atoms(atoms), AtomicInnerProduct.from_atoms(atoms @ change)
    torch.testing.assert_close(moved.cos(u @ change, v @ change), definition.cos(u, v), rtol=0, atol=1e-8)
    estimate, moved = from_rows(rows, ridge=0.0), from_rows(rows @ change, ridge=0.0)
    torch.testing.assert_close(moved.cos(u @ change, v @ change), estimate.cos(u, v), rtol=0, atol=1e-6)
    # and Euclid's do not stay
    moved_euclid = torch.nn.functional.cosine_similarity(u @ change, v @ change)
    assert (moved_euclid - torch.nn.functional.cosine_similarity(u, v)).abs().max() > 0.1


def test_rows_are_orthogonal_on_average_in_the_metric_of_their_own_second_moment():
    rows = normal(13, 300, 24) + 10  # a mean far larger than the spread: Euclid's angles are near zero
    gram = from_rows(rows, ridge=0.0).whiten(rows)
    gram = gram @ gram.T
    between = (gram.sum() - gram.trace()) / (300 * 299)
    assert (between / gram.diagonal().mean()).item() <= 1 / 24
    assert torch.nn.functional.cosine_similarity(rows[:150], rows[150:]).mean() > 0.9


def test_a_threshold_recovers_supports_exactly_and_amplitudes_only_after_a_refit():
    """Identifiability of threshold codes: nearly orthogonal atoms, positive coefficients, encoder d S."""
    width, count, sparsity = 512, 2048, 3
    atoms = normal(14, count, width)
    aip = AtomicInnerProduct.from_atoms(atoms)
    atoms = atoms / aip.norm(atoms)[:, None]
    white = aip.whiten(atoms)
    generator = torch.Generator().manual_seed(15)
    raw_errors, refit_errors = [], []
    for _ in range(100):
        support = torch.randperm(count, generator=generator)[:sparsity].sort().values
        delta = 0.85 + 0.15 * torch.rand(sparsity, generator=generator, dtype=torch.float64)
        row = delta @ atoms[support]
        pre_activations = aip.whiten(row) @ white.T
        found = (pre_activations > 0.6).nonzero().squeeze(1)
        assert torch.equal(found, support)
        raw_errors.append(aip.norm(pre_activations[found] @ atoms[found] - row) / aip.norm(row))
        gram = white[found] @ white[found].T
        refit = torch.linalg.solve(gram, pre_activations[found])
        refit_errors.append(aip.norm(refit @ atoms[found] - row) / aip.norm(row))
    assert torch.stack(refit_errors).max() < 1e-10
    assert torch.stack(raw_errors).median() > 1e-2


def test_state_round_trips_bit_for_bit(tmp_path):
    aip = from_rows(uneven_rows(16), kind="covariance")
    torch.save(aip.state(), tmp_path / "aip.pt")
    back = AtomicInnerProduct.from_state(torch.load(tmp_path / "aip.pt", weights_only=True))
    assert back == aip
    assert hash(back) == hash(aip)
    assert back.kind == "covariance"
    x = normal(16, 5, 12)
    assert torch.equal(back.whiten(x, 0.5), aip.whiten(x, 0.5))


def test_equality_follows_content():
    rows = uneven_rows(17)
    aip = from_rows(rows)
    others = [from_rows(rows, kind="covariance"), from_rows(rows, ridge=0.01), from_rows(rows * 2)]
    assert aip == from_rows(rows) == copy.deepcopy(aip)
    assert len({aip, from_rows(rows), *others}) == 4
    assert aip != "an inner product"
    assert aip.digest[:12] in repr(aip)


def test_faulty_data_and_settings_are_the_users_to_mend():
    good = Moments.from_rows(uneven_rows(18))
    with pytest.raises(AtomsError, match="at least 2 activation rows, not 1"):
        from_rows(normal(18, 1, 4))
    with pytest.raises(AtomsError, match="NaN"):
        from_rows(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))
    with pytest.raises(AtomsError, match="constant"):
        from_rows(torch.zeros(5, 3))
    with pytest.raises(AtomsError, match="constant"):
        from_rows(torch.full((50, 3), 0.1), kind="covariance")
    with pytest.raises(AtomsError, match="ridge is -1"):
        AtomicInnerProduct.from_moments(good, ridge=-1)
    with pytest.raises(AtomsError, match="rank 5 of 12: set ridge"):
        from_rows(normal(18, 5, 12), ridge=0.0)
    with pytest.raises(AtomsError, match="rank 3 of 4"):
        AtomicInnerProduct.from_atoms(normal(18, 3, 4))
    with pytest.raises(AtomsError, match="zero"):
        AtomicInnerProduct.from_atoms(torch.zeros(3, 4))
    assert AtomicInnerProduct.from_atoms(normal(18, 3, 4), ridge=0.1).rank == 3


def test_programming_errors_are_refused():
    aip = from_rows(uneven_rows(19))
    with pytest.raises(ValueError, match="kind is 'atoms'"):
        AtomicInnerProduct.from_moments(Moments.from_rows(uneven_rows(19)), kind="atoms")
    with pytest.raises(ValueError, match=r"\(A, H\)"):
        AtomicInnerProduct.from_atoms(torch.zeros(3))
    with pytest.raises(ValueError, match=r"not \(\.\.\., 12\)"):
        aip.whiten(torch.zeros(3, 11))
    state = aip.state()
    for broken in (
        {"mean": state["mean"][:3]},
        {"eigenvectors": state["eigenvectors"].float()},
        {"kind": torch.tensor(7)},
        {"ridge_value": torch.tensor(math.nan)},
    ):
        with pytest.raises(ValueError, match=r"mean|kind|ridge_value"):
            AtomicInnerProduct.from_state({**state, **broken})
