import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from atoms.metrics import SparsityProfile, sparsity_profile
from atoms.metrics.sparsity import row_fingerprints
from atoms.sae import SparseCodes

ATOMS, WIDTH = 7, 4


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse codes of either sign, and rows drawn with repetition from a few."""
    picks = torch.randint(0, max(1, count // 3), (count,), generator=torch.Generator().manual_seed(seed))
    return normal(seed, count, ATOMS) * (normal(seed + 1, count, ATOMS) > 1), normal(seed + 2, count, WIDTH)[picks]


def reference(codes: torch.Tensor, rows: torch.Tensor) -> dict[str, float]:
    firing = [{tuple(rows[i].tolist()) for i in range(len(codes)) if codes[i, a] != 0} for a in range(codes.shape[1])]
    return {
        "l0": sum((code != 0).sum().item() for code in codes) / len(codes),
        "dead": sum(len(seen) == 0 for seen in firing) / len(firing),
        "singleton": sum(len(seen) == 1 for seen in firing) / len(firing),
    }


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_profile_matches_a_count_by_sets(seed, count):
    codes, rows = batch_of(seed, count)
    found = sparsity_profile(codes, rows)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(reference(codes, rows))
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in found.values())


@settings(deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_any_split_into_batches_and_ranks_gives_the_same_counts(seed, sizes):
    codes, rows = batch_of(seed, sum(sizes) + 1)
    whole = SparsityProfile(ATOMS)
    whole.update(codes, rows)
    ranks = SparsityProfile(ATOMS), SparsityProfile(ATOMS)
    for number, part in enumerate(zip(codes.split([*sizes, 1]), rows.split([*sizes, 1]), strict=True)):
        ranks[number % 2].update(*part)
    ranks[0].merge_state(ranks[1])
    assert all(torch.equal(a, b) for a, b in zip(ranks[0].pooled(), whole.pooled(), strict=True))
    assert ranks[0].compute() == whole.compute()


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 30))
def test_codes_by_row_count_as_the_dense_ones_do(seed, count):
    codes, rows = batch_of(seed, count)
    dense, by_row = SparsityProfile(ATOMS), SparsityProfile(ATOMS)
    dense.update(codes, rows)
    by_row.update(SparseCodes.from_dense(codes), rows)
    assert all(torch.equal(a, b) for a, b in zip(dense.pooled(), by_row.pooled(), strict=True))
    if count:
        assert sparsity_profile(SparseCodes.from_dense(codes), rows) == sparsity_profile(codes, rows)


def test_blocks_of_dense_codes_do_not_lose_rows(monkeypatch):
    codes, rows = batch_of(0, 30)
    expected = sparsity_profile(codes, rows)
    monkeypatch.setattr("atoms.metrics.sparsity._BLOCK", 4 * ATOMS)
    assert sparsity_profile(codes, rows) == expected


def test_a_memorising_dictionary_is_all_singletons_however_often_rows_repeat():
    rows = normal(3, ATOMS, WIDTH)
    metric = SparsityProfile(ATOMS)
    metric.update(torch.eye(ATOMS), rows)
    metric.update(torch.eye(ATOMS), rows)
    assert metric.compute() == {"l0": 1, "dead": 0, "singleton": 1}
    metric.update(torch.eye(ATOMS), rows.flip(0))
    assert metric.compute()["singleton"].item() == pytest.approx(1 / ATOMS)  # the middle row stays in place


def test_histogram_and_firing_counts():
    codes = torch.tensor([[0, -1.0, 2.0], [0, 0, 0], [0, 0, 1e-30]])
    metric = SparsityProfile(3)
    metric.update(codes, normal(4, 3, WIDTH))
    assert metric.l0_histogram.tolist() == [1, 1, 1, 0]
    assert metric.firing_counts.tolist() == [0, 1, 2]


def test_without_rows_nothing_is_known():
    empty = torch.empty(0, ATOMS), torch.empty(0, WIDTH)
    metric = SparsityProfile(ATOMS)
    metric.update(*empty)
    for scores in (metric.compute(), sparsity_profile(*empty)):
        assert all(math.isnan(score) for score in scores.values())


def test_counts_survive_half_precision_and_inference_mode():
    module = nn.ModuleList([SparsityProfile(1)]).bfloat16()
    metric = module[0]
    with torch.inference_mode():
        metric.reset()
    for _ in range(1000):
        metric.update(torch.ones(1, 1), torch.ones(1, 1))
    assert metric.firing_counts.tolist() == [1000]
    assert metric.compute() == {"l0": 1, "dead": 0, "singleton": 1}


def test_fingerprints_tell_rows_apart():
    rows = torch.cat([normal(5, 1000, 8), torch.eye(8), -torch.eye(8), torch.zeros(1, 8), torch.ones(1, 8)])
    permuted = rows[:1000].roll(1, dims=1)
    everything = torch.cat([rows, permuted, (rows[:1000] * 1.0000002)])
    assert len(row_fingerprints(everything).unique()) == len(everything.unique(dim=0)) == len(everything)
    coarse = everything.bfloat16()
    assert len(row_fingerprints(coarse).unique()) == len(coarse.float().unique(dim=0))


def test_equal_rows_have_equal_fingerprints():
    rows = normal(6, 10, 8).bfloat16()
    assert torch.equal(row_fingerprints(rows), row_fingerprints(rows.float()))
    assert torch.equal(row_fingerprints(rows), row_fingerprints(torch.cat([rows, rows])[10:]))
    assert row_fingerprints(torch.tensor([[0.0, 1.0]])) == row_fingerprints(torch.tensor([[-0.0, 1.0]]))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="codes are"):
        SparsityProfile(3).update(torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="codes are"):
        SparsityProfile(4).update(torch.zeros(2, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="less than 1"):
        SparsityProfile(0)
