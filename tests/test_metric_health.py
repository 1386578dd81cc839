"""The metric's own health: what moves when nothing but the estimate of the metric does."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import Given, Projections, dead, judge, subject_of

from atoms.activations.datamodule import ActivationDataModule
from atoms.checks.claim import Verdict
from atoms.checks.folds import Folds, joined
from atoms.checks.metric_health import MetricHealth, Reading, _jackknife, frame_distance
from atoms.checks.sampling import judged_places, spread
from atoms.cli import main
from atoms.conditioning import effective_rank
from atoms.geometry import Moments, coherence


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_effective_rank_counts_equal_values():
    assert effective_rank(torch.tensor([3.0, 3.0, 0.0, 3.0], dtype=torch.float64)) == pytest.approx(3)
    assert effective_rank(torch.tensor([1.0, 0.0], dtype=torch.float64)) == pytest.approx(1)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(6, 12))
def test_distance_is_zero_for_tight_frames_and_that_of_the_nearest_multiple(seed, width, atoms):
    vectors = normal(seed, atoms, width)
    frame = vectors.T @ vectors
    scale = (frame.trace() / frame.square().sum()).item()
    expected = ((scale * frame - torch.eye(width)).norm() / math.sqrt(width)).item()
    assert frame_distance(vectors) == pytest.approx(expected, abs=1e-7)
    tight = torch.linalg.qr(vectors)[0]
    assert frame_distance(tight) == pytest.approx(0, abs=1e-7)


def test_jackknife_of_a_mean_is_its_standard_error():
    values = normal(0, 9)
    left_out = [(values.sum() - value).item() / 8 for value in values]
    found = _jackknife([Reading(value, 0.0, 2 * value, 0.0) for value in left_out])
    assert found == pytest.approx(Reading(values.std().item() / 3, 0.0, 2 * values.std().item() / 3, 0.0))


def test_folds_are_the_moments_of_whole_groups(planted_data, monkeypatch):
    monkeypatch.setattr("atoms.checks.metric_health._FOLDS", 3)
    subject = subject_of(dead(16), planted_data())
    check = MetricHealth(subject)
    judge(check)
    rows = subject.train.data.store.read_rows("train", "planted", 0, 600).double()
    parts = check.folds.pooled()
    fold = check.folds.fold[:600]
    for number, part in enumerate(parts):
        expected = Moments.from_rows(rows[fold == number])
        assert part.count == expected.count > 150
        torch.testing.assert_close(part.outer, expected.outer)
    assert joined(parts).count == 600
    again = Folds(subject, 3)
    assert torch.equal(again.fold, check.folds.fold)
    groups = subject.train.groups()
    groups[:] = groups // 7
    assert all(len(set(row)) == 1 for row in Folds(subject, 3).fold[:4795].reshape(-1, 7).tolist())


def test_readings_are_those_of_the_geometry_module(planted_data):
    atoms = normal(1, 24, 16)
    subject = subject_of(Projections(atoms, 1.0), planted_data())
    found, section = judge(MetricHealth(subject))
    numbers, strip = section.numbers, section.tables["strip"]
    assert numbers["condition"] == strip["condition"][3] == pytest.approx(subject.geometry.condition)
    assert strip["mu"][3] == coherence(subject.unit.atoms, aip=subject.geometry).maximum
    assert strip["ridge_share"] == sorted(strip["ridge_share"])
    assert (numbers["rank"], numbers["strip_mu_low"]) == (16, min(strip["mu"]))
    assert 0 < numbers["halves_angle"] < 20
    assert numbers["halves_mu_change"] == abs(found.halves[0].mu - found.halves[1].mu)
    assert 0 < numbers["mu_error"] < 0.2
    assert len(section.tables["metrics"]["metric"]) == 8
    assert section.tables["spectrum"]["eigenvalue_share"] == sorted(
        section.tables["spectrum"]["eigenvalue_share"], reverse=True
    )


def test_data_and_definition_agree_where_coefficients_are_isotropic():
    """Codes of independent signs of one size on every atom: the second moment of rows is that of the atoms."""
    settings = "width: 8, atoms: 8, active: 1.0, rows: 60000, offset: 0, noise: 0.3, seed: 3"
    main(["cache", f"--data.planted={{{settings}}}", "--data.store=s"])
    data = ActivationDataModule(store="s")
    truth = data.truth
    _, isotropic = judge(MetricHealth(subject_of(Given(torch.eye(8), lambda rows: rows), data, rows=3000)))
    _, coherent = judge(MetricHealth(subject_of(Projections(truth, 0.4), data, rows=3000)))
    root = torch.linalg.cholesky(data.moments("planted").second_moment)
    _, whitening = judge(MetricHealth(subject_of(Given(root.T, lambda rows: rows), data, rows=3000)))
    assert whitening.numbers["atoms_distance"] < 1e-3  # Σ dᵀd is the second moment, up to the ridge
    assert whitening.numbers["atoms_angle"] < 0.5
    assert isotropic.numbers["atoms_distance"] > 0.1
    assert coherent.numbers["code_mean_share"] > 0.05


def test_code_moments_are_those_of_the_matrix_of_all_atoms(planted_data):
    unit = Projections(normal(2, 6, 16), 0.5)
    subject = subject_of(unit, planted_data(), batch_rows=120)
    found, _ = judge(MetricHealth(subject))
    rows = subject.held_out.data.store.read_rows("val", "planted", 0, 600)
    codes = unit.encode(rows).to_dense().double() * subject.norms
    second = codes.T @ codes / 600
    isotropy = (second.trace().square() / second.square().sum() / 6).item()
    assert found.isotropy == pytest.approx(isotropy, rel=0.1)  # of pairs within batches
    assert found.diagonal_isotropy == pytest.approx(effective_rank(second.diagonal()) / 6)
    assert found.mean_share == pytest.approx((codes.mean(0).square().sum() / second.trace()).item())


def test_conditions_that_depend_on_the_ridge_are_named(planted_data):
    """Two atoms that differ in the two directions of least variance alone: the ridge decides how far apart they are."""
    base = planted_data()
    geometry = subject_of(dead(16), base).geometry
    least, most = geometry.eigenvectors[:, 0], geometry.eigenvectors[:, -1]
    # in S the small direction is long, and the larger the ridge the less so
    slope = 0.6 * (geometry.eigenvalues[0] / geometry.eigenvalues[-1]).sqrt()
    atoms = torch.stack([most + slope * least, most - slope * least])
    unit = Given(atoms, lambda rows: torch.tensor([[1.0, 0.0]]).repeat(len(rows), 1))
    found, section = judge(MetricHealth(subject_of(unit, base)))
    mu = section.tables["strip"]["mu"]
    assert max(mu) - min(mu) > 0.005
    assert found.sparsities == {"median": 1, "q95": 1, "max": 1}
    assert section.claims[0].verdict is Verdict.NOT_REFUTED  # with one atom a row nothing can flip
    middle = (min(mu) + max(mu)) / 2
    threes = [Reading(value / middle / 2.999, 1.0, 1.0, 1.0) for value in mu]
    from atoms.checks.metric_health import _flips

    assert _flips(threes, {"median": 2}) == ["T3 at K = 2 (median)"]
    assert _flips(threes, {"median": 9}) == []


def test_dead_units_and_few_rows(planted_data):
    found, section = judge(MetricHealth(subject_of(dead(16), planted_data(), rows=40)), splits={"val"})
    assert math.isnan(found.isotropy)
    assert math.isnan(section.numbers["halves_angle"])
    assert math.isnan(section.numbers["mu_error"])
    assert section.claims[0].verdict is Verdict.NOT_APPLICABLE
    assert math.isfinite(section.numbers["condition"])


def test_rows_looked_at_more_closely_are_spread_and_always_the_same(planted_data):
    subject = subject_of(dead(16), planted_data(max_norm=1.1), rows=100, train_rows=30)
    held_out, train = judged_places(subject, "val"), judged_places(subject, "train")
    assert held_out.tolist() == subject.held_out.places[:100].tolist()
    assert train.tolist() == subject.train.places[:30].tolist()
    assert spread(held_out, 10).tolist() == held_out[::10].tolist()
    assert spread(held_out, 1000).tolist() == held_out.tolist()
    assert spread(held_out[:0], 5).tolist() == []
