import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import in_a_group
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from atoms.geometry import AtomicInnerProduct, Moments
from atoms.metrics import ReconstructionR2, SparsityProfile, reconstruction_r2

WIDTH = 6


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair_of(seed: int, count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with a large mean and their noisy reconstructions, in float32."""
    x = 100 + 0.1 * normal(seed, count, WIDTH)
    return x.float(), (x + 0.05 * normal(seed + 1, count, WIDTH)).float()


def metric_space(seed: int = 9) -> AtomicInnerProduct:
    return AtomicInnerProduct.from_moments(Moments.from_rows(normal(seed, 200, WIDTH) @ normal(seed + 1, WIDTH, WIDTH)))


def reference(x: torch.Tensor, x_hat: torch.Tensor, metric: np.ndarray) -> tuple[float, float]:
    x64, error = x.double().numpy(), (x.double() - x_hat.double()).numpy()

    def energy(rows: np.ndarray) -> float:
        return float(np.einsum("ni,ij,nj->", rows, metric, rows))

    return 1 - energy(error) / energy(x64 - x64.mean(0)), 1 - energy(error) / energy(x64)


def fed(metric: ReconstructionR2, batches) -> ReconstructionR2:
    for batch in batches:
        metric.update(*batch)
    return metric


def assert_equal_scores(first: dict, second: dict, tolerance: float = 1e-9) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("shift", [None, torch.full((WIDTH,), 99.0)])
def test_a_mean_far_larger_than_the_spread_is_scored_right(shift):
    aip = metric_space()
    batches = [pair_of(seed) for seed in (0, 2, 4)]
    whole = [torch.cat(side) for side in zip(*batches, strict=True)]
    scores = fed(ReconstructionR2(WIDTH, aip, shift), batches).compute()
    euclid, atomic = reference(*whole, np.eye(WIDTH)), reference(*whole, aip.matrix().numpy())
    assert euclid[0] == pytest.approx(0.75, abs=0.05)
    assert [scores["r2"].item(), scores["r2_uncentred"].item()] == pytest.approx(euclid, abs=1e-6)
    assert [scores["r2_aip"].item(), scores["r2_aip_uncentred"].item()] == pytest.approx(atomic, abs=1e-6)
    assert all(score.dtype == torch.float64 and score.ndim == 0 for score in scores.values())
    assert_equal_scores(reconstruction_r2(*whole, aip), scores, 1e-6)


def test_a_shift_saves_what_even_float64_would_lose():
    x = (1e7 + 1e-1 * normal(0, 500, WIDTH)).contiguous()
    x_hat = x + 0.05 * normal(1, 500, WIDTH)
    truth = reference(x - 1e7, x_hat - 1e7, np.eye(WIDTH))[0]
    shifted = fed(ReconstructionR2(WIDTH, shift=torch.full((WIDTH,), 1e7)), [(x, x_hat)]).compute()["r2"].item()
    assert shifted == pytest.approx(truth, abs=1e-6)
    assert fed(ReconstructionR2(WIDTH), [(x, x_hat)]).compute()["r2"].item() != pytest.approx(truth, abs=1e-6)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_the_mean_scores_zero_and_the_identity_one(seed, count):
    x = normal(seed, count, WIDTH) + 3
    aip = metric_space()
    mean = reconstruction_r2(x, x.mean(0).expand_as(x), aip)
    assert mean["r2"].item() == pytest.approx(0, abs=1e-10)
    assert mean["r2_aip"].item() == pytest.approx(0, abs=1e-10)
    assert mean["r2_uncentred"] > 0
    assert [score.item() for score in reconstruction_r2(x, x, aip).values()] == [1.0] * 4


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(-30, 30))
def test_a_power_of_two_changes_nothing(seed, exponent):
    x, x_hat = pair_of(seed)
    rows = normal(seed, 50, WIDTH)
    plain = AtomicInnerProduct.from_moments(Moments.from_rows(rows))
    scaled = AtomicInnerProduct.from_moments(Moments.from_rows(rows * 2.0**exponent))
    first = reconstruction_r2(x, x_hat, plain)
    second = reconstruction_r2(x * 2.0**exponent, x_hat * 2.0**exponent, scaled)
    assert first == second


@settings(deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 8), min_size=1, max_size=5))
def test_merging_is_the_same_as_one_pass(seed, sizes):
    x, x_hat = pair_of(seed, sum(sizes) + 2)
    parts = list(zip(x.split([*sizes, 2]), x_hat.split([*sizes, 2]), strict=True))
    whole = fed(ReconstructionR2(WIDTH), [(x, x_hat)])
    first, second = (
        fed(ReconstructionR2(WIDTH), parts[::2]),
        fed(ReconstructionR2(WIDTH), parts[1::2] or [(x[:0], x[:0])]),
    )
    first.merge_state(second)
    assert_equal_scores(first.compute(), whole.compute())


def test_without_rows_or_variation_the_score_is_undefined():
    aip = metric_space()
    empty = torch.empty(0, WIDTH)
    for scores in (fed(ReconstructionR2(WIDTH, aip), [(empty, empty)]).compute(), reconstruction_r2(empty, empty, aip)):
        assert len(scores) == 4
        assert all(math.isnan(score) for score in scores.values())
    constant = torch.ones(4, WIDTH)
    assert reconstruction_r2(constant, constant)["r2"].isnan()
    assert reconstruction_r2(constant, 2 * constant)["r2"] == -math.inf


def test_without_an_inner_product_there_are_no_aip_scores():
    assert set(reconstruction_r2(*pair_of(0))) == {"r2", "r2_uncentred"}


@pytest.mark.parametrize(
    "cast",
    [
        lambda module: module.half(),
        lambda module: module.bfloat16(),
        lambda module: module.to(torch.bfloat16),
        lambda module: module[0].set_dtype(torch.float16),
    ],
)
def test_sums_stay_float64_whatever_the_module_becomes(cast):
    module = nn.ModuleList([ReconstructionR2(WIDTH, metric_space())])
    metric = fed(module[0], [pair_of(0)])
    expected = fed(ReconstructionR2(WIDTH, metric_space()), [pair_of(0), pair_of(2)]).compute()
    cast(module)
    metric.update(*pair_of(2))
    assert_equal_scores(metric.compute(), expected, 0)
    metric.reset()
    assert metric.total.dtype == metric.energies.dtype == metric.shift.dtype == torch.float64
    assert metric.rows.dtype == torch.int64


def test_autocast_does_not_reach_the_sums():
    expected = fed(ReconstructionR2(WIDTH, metric_space()), [pair_of(0)]).compute()
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal_scores(fed(ReconstructionR2(WIDTH, metric_space()), [pair_of(0)]).compute(), expected, 0)


def test_the_metric_behaves_as_a_torchmetric():
    metric = ReconstructionR2(WIDTH, metric_space())
    batch = metric(*pair_of(0))
    assert_equal_scores(batch, reconstruction_r2(*pair_of(0), metric_space()), 1e-6)
    metric(*pair_of(2))
    for twin in (copy.deepcopy(metric), metric.clone(), pickle.loads(pickle.dumps(metric))):
        assert_equal_scores(twin.compute(), metric.compute(), 0)
    assert not metric.state_dict()
    with torch.inference_mode():
        metric.reset()
    assert_equal_scores(fed(metric, [pair_of(0)]).compute(), batch, 0)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="not both"):
        ReconstructionR2(WIDTH).update(torch.zeros(3, WIDTH), torch.zeros(2, WIDTH))
    with pytest.raises(ValueError, match="not both"):
        ReconstructionR2(WIDTH).update(torch.zeros(3, 1), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="width 6, not 5"):
        ReconstructionR2(5, metric_space())
    with pytest.raises(ValueError, match="shift"):
        ReconstructionR2(WIDTH, shift=torch.zeros(5))


def codes_of(seed: int, count: int = 64) -> torch.Tensor:
    return normal(seed, count, 5) * (normal(seed + 1, count, 5) > 0.5)


def _rank(rank: int) -> list[Any]:
    reconstruction, sparsity = ReconstructionR2(WIDTH, metric_space()), SparsityProfile(5)
    # uneven shares: rank 1 has the smaller one
    seeds = ((0, 2), (4,))[rank]
    for seed in seeds:
        reconstruction.update(*pair_of(seed))
        sparsity.update(codes_of(seed), pair_of(seed)[0])
    local = sparsity.l0_histogram.sum().item()
    pooled = sparsity.pooled()
    assert sparsity.l0_histogram.sum().item() == local == 64 * len(seeds)
    return [reconstruction.compute(), sparsity.compute(), tuple(pooled)]


def test_two_ranks_score_as_one(tmp_path: Path):
    reconstruction, sparsity = ReconstructionR2(WIDTH, metric_space()), SparsityProfile(5)
    for seed in (0, 2, 4):
        reconstruction.update(*pair_of(seed))
        sparsity.update(codes_of(seed), pair_of(seed)[0])
    for r2, profile, pooled in in_a_group(_rank, tmp_path):
        assert_equal_scores(r2, reconstruction.compute(), 1e-9)
        assert profile == sparsity.compute()
        assert all(torch.equal(mine, whole) for mine, whole in zip(pooled, sparsity.pooled(), strict=True))
