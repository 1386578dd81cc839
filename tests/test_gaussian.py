"""Gaussian rows with given moments."""

import numpy as np
import pytest
import torch

from atoms.activations.gaussian import GaussianRows
from atoms.activations.grid import Grid, Span
from atoms.activations.store import ActivationStore
from atoms.activations.synthetic import write_rows
from atoms.geometry import Moments

ROWS = 20_000


@pytest.fixture(scope="module")
def moments() -> dict[str, Moments]:
    """A site far from the origin that is flat in one direction, and a narrow one."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, 6)
    mixing[:, 0] = 0
    rows = torch.rand(5000, 6, generator=generator, dtype=torch.float64) @ mixing + 300
    return {"flat": Moments.from_rows(rows), "narrow": Moments.from_rows(rows[:, 1:3])}


def test_moments_are_matched_to_sampling_error(moments):
    drawn = GaussianRows(moments, {"train": ROWS}).blocks(Span("train", 0, 0, ROWS))
    for site, rows in drawn.items():
        assert rows.dtype == torch.float32
        wanted = moments[site]
        rows = rows.double()
        scale = wanted.covariance.diagonal().sqrt()
        assert ((rows.mean(0) - wanted.mean).abs() <= 5 * scale / ROWS**0.5 + 1e-4).all()
        # An entry of a sampled covariance deviates by at most sqrt(2 / N) of its two scales.
        bound = 5 * (2 / ROWS) ** 0.5 * torch.outer(scale, scale) + 1e-4
        assert ((rows.T.cov(correction=0) - wanted.covariance).abs() <= bound).all()
    flat = (drawn["flat"].double() - moments["flat"].mean)[:, 0]
    assert flat.abs().max() < 1e-4


def test_rows_are_gaussian_and_the_given_ones_were_not(moments):
    rows = GaussianRows(moments, {"train": ROWS}).blocks(Span("train", 0, 0, ROWS))["narrow"].double()
    z = (rows - rows.mean(0)) / rows.std(0)
    np.testing.assert_allclose(z.pow(4).mean(0), 3, atol=5 * (96 / ROWS) ** 0.5)  # a uniform variable has 1.8
    np.testing.assert_allclose(z.pow(3).mean(0), 0, atol=5 * (15 / ROWS) ** 0.5)


def test_a_block_is_a_function_of_seed_site_split_and_number(moments):
    rows = {"train": ROWS, "val": ROWS}
    first = Span("train", 0, 0, 64)
    twins = {"one": moments["narrow"], "other": moments["narrow"]}
    drawn = GaussianRows(twins, rows).blocks(first)
    assert torch.equal(drawn["one"], GaussianRows(twins, rows).blocks(first)["one"])
    others = [
        GaussianRows(twins, rows, seed=1).blocks(first)["one"],
        GaussianRows(twins, rows).blocks(Span("val", 0, 0, 64))["one"],
        GaussianRows(twins, rows).blocks(Span("train", 1, 64, 128))["one"],
    ]
    assert len({part.numpy().tobytes() for part in (*drawn.values(), *others)}) == 5


def test_memory_is_bounded_by_a_window_without_changing_a_row(moments, monkeypatch):
    whole = GaussianRows(moments, {"train": ROWS}).blocks(Span("train", 0, 0, 1000))
    monkeypatch.setattr("atoms.activations.gaussian._ROWS_AT_ONCE", 128)
    parts = GaussianRows(moments, {"train": ROWS}).blocks(Span("train", 0, 0, 1000))
    for site, rows in whole.items():
        torch.testing.assert_close(parts[site], rows, rtol=1e-6, atol=0)


def test_the_store_holds_them_and_names_other_moments_otherwise(moments, tmp_path, monkeypatch):
    monkeypatch.setattr(Grid, "choose", classmethod(lambda cls, *_: cls(8, 16, 48)))
    noise = GaussianRows(moments, {"train": 100, "val": 30})
    write_rows(noise, tmp_path / "s", "draw", dtype="float16")
    store = ActivationStore.open(tmp_path / "s")
    assert {split: store.n_rows(split) for split in store.splits} == {"train": 100, "val": 30}
    assert store.spec.dtype == "float16"
    last = Span("train", 2, 96, 100)
    assert torch.equal(store.read_rows("train", "flat", 96, 100), noise.blocks(last)["flat"].half())
    assert store.moments("narrow").count == 100
    assert noise.identity != GaussianRows({"flat": moments["narrow"]}, noise.rows).identity
