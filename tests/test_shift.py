"""What angles say, and what no data could have avoided."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import Projections, judge, subject_of

from atoms.checks.claim import Verdict
from atoms.checks.shift import WAYS, Shift, angles, automatic_ratio, controls
from atoms.geometry import AtomicInnerProduct, Moments


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def own_metric(rows: torch.Tensor, ridge: float = 0.0) -> AtomicInnerProduct:
    return AtomicInnerProduct.from_moments(Moments.from_rows(rows), ridge=ridge)


def test_statistics_are_those_of_all_pairs():
    vectors = normal(0, 40, 5)
    vectors[7] = 0
    found = angles(vectors)
    kept = np.delete(vectors.numpy(), 7, 0)
    cosines, products = [], []
    for i in range(39):
        for j in range(i):
            products.append(kept[i] @ kept[j])
            cosines.append(products[-1] / np.linalg.norm(kept[i]) / np.linalg.norm(kept[j]))
    degrees = np.degrees(np.arccos(cosines))
    assert found.mean == pytest.approx(degrees.mean())
    assert found.spread == pytest.approx(degrees.std())
    assert found.mean_cosine == pytest.approx(np.mean(cosines))
    assert found.ratio == pytest.approx(np.mean(products) / np.square(kept).sum(1).mean())
    assert found.quantiles["q99"] == pytest.approx(np.quantile(degrees, 0.99, method="higher"), abs=0.5)
    assert found.histogram.tolist() == np.histogram(degrees, 180, (0, 180))[0].tolist()
    assert angles(torch.zeros(9, 5)) is None
    assert angles(vectors[:1]) is None


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000),
    st.integers(10, 60),
    st.integers(2, 8),
    st.floats(0, 50),
    st.floats(0, 1000),
    st.integers(0, 3),
)
def test_ratio_in_the_rows_own_metric_is_at_most_one_over_the_width(seed, count, width, shift, massive, kind):
    """Whatever the rows: shifted, correlated, with massive ones among them, of one sign, or with repetition."""
    rows = normal(seed, count, width) @ normal(seed + 1, width, width) + shift * normal(seed + 2, width)
    rows[0] *= 1 + massive
    if kind == 1:
        rows = rows.abs()
    if kind == 2:
        rows[count // 2 :] = rows[: count - count // 2].clone()
    moments = Moments.from_rows(rows)
    metric = own_metric(rows, ridge=1e-4)  # dimensions without variance are rounding, divided by it
    found = angles(metric.whiten(rows))
    bound = 1 / (width * (1 - metric.ridge_share))
    assert found.ratio <= bound + 1e-6
    assert automatic_ratio(moments, metric) == pytest.approx((found.ratio, bound), abs=1e-6)


def test_a_bulk_and_one_percent_massive_rows_keep_the_ratio_and_not_the_cosine():
    """The identity bounds the ratio of expectations; mean cosine and angle are free where norms are uneven."""
    bulk = normal(0, 25_344, 256)
    bulk[:, 0] += 1000
    massive = 16 * 79.4 * torch.eye(256, dtype=torch.float64)  # as long in every direction
    moments = Moments.from_rows(torch.cat([bulk, massive]))
    metric = AtomicInnerProduct.from_moments(moments)
    found = angles(metric.whiten(torch.cat([bulk[:1980], massive[:20]])))
    ratio, bound = automatic_ratio(moments, metric)
    assert bound == pytest.approx(1 / 256, rel=0.01)
    assert ratio == pytest.approx(0.0035, abs=0.0005)
    assert ratio < bound
    assert found.mean_cosine == pytest.approx(0.195, abs=0.01)
    assert found.mean == pytest.approx(78.7, abs=1)


def test_centring_does_what_the_metric_is_praised_for():
    """A strong mean alone: off 90 degrees in Euclid's metric, at 90 centred, and at 90 in the AIP of other rows."""
    rows = 0.1 * normal(3, 5000, 64) + 0.1
    metric = own_metric(rows[:4000])
    judged = rows[4000:]
    mean = rows[:4000].mean(0)
    covariance = AtomicInnerProduct.from_moments(Moments.from_rows(rows[:4000]), kind="covariance")
    assert angles(judged).mean == pytest.approx(60, abs=1)
    assert angles(judged - mean).mean == pytest.approx(90, abs=0.1)
    assert angles(metric.whiten(judged)).mean == pytest.approx(90, abs=1)
    assert angles(covariance.whiten(judged - mean)).mean == pytest.approx(90, abs=0.1)
    assert angles(covariance.whiten(judged)).mean == pytest.approx(60, abs=1)  # the mean must be taken out


def test_controls_keep_the_spectrum_and_lose_the_directions():
    metric = own_metric(normal(4, 300, 6) * torch.arange(1, 7))
    for control in controls(metric, 0):
        torch.testing.assert_close(
            torch.linalg.eigvalsh(control.matrix()), torch.linalg.eigvalsh(metric.matrix()), rtol=1e-9, atol=0
        )
        assert not torch.allclose(control.matrix(), metric.matrix(), rtol=0.1)
    assert controls(metric, 0) == controls(metric, 0)
    assert controls(metric, 0)[1] != controls(metric, 1)[1]


def test_the_section_has_every_way_side_by_side(planted_data):
    atoms = normal(5, 24, 16)
    subject = subject_of(Projections(atoms, 0.5), planted_data())
    found, section = judge(Shift(subject))
    assert list(found.rows) == list(found.atoms) == list(WAYS)
    for table in ("rows", "atoms"):
        assert section.tables[table]["metric"] == list(WAYS.values())
    assert len(section.tables["row_angles"]["degrees_at_most"]) == 180
    assert sum(section.tables["row_angles"]["aip"]) == 600 * 599 / 2
    numbers = section.numbers
    # rows of the planted store lie about an offset: taking it out brings them to 90 degrees
    for way in ("centred", "mahalanobis"):
        assert numbers[f"{way}_angle"] == pytest.approx(90, abs=3), way
    for way in ("aip", "half", "own"):  # their norms in S are uneven, so the angle stays further off than the ratio
        assert numbers["euclid_angle"] + 5 < numbers[f"{way}_angle"] < 90, way
    assert numbers["random_angle"] < numbers["aip_angle"]
    assert numbers["own_ratio"] <= numbers["ratio_bound"] * 1.01
    assert numbers["train_ratio"] <= numbers["ratio_bound"]
    assert numbers["ratio_bound"] == pytest.approx(1 / 16, rel=0.01)
    rows = subject.held_out.sample(600)["planted"].double()
    assert numbers["aip_angle"] == pytest.approx(angles(subject.geometry.whiten(rows)).mean)
    (claim,) = section.claims
    assert claim.verdict is Verdict.NOT_REFUTED
    assert claim.nulls["centred"] == numbers["centred_angle"]
    assert section.notes[0].startswith("Automatic: on the 4,800 rows an AIP is made from")


def test_what_there_is_too_little_of_is_left_out(planted_data):
    found, section = judge(Shift(subject_of(Projections(torch.zeros(3, 16), 0.5), planted_data())), splits=())
    assert set(found.atoms.values()) == {None}
    assert found.rows["half"] is None
    assert section.tables["atoms"]["metric"] == []
    assert "half_angle" not in section.numbers
    assert math.isfinite(section.numbers["aip_angle"])
