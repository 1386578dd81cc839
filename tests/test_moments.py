import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.errors import AtomsError
from atoms.geometry import Moments


def rows_of(seed: int, count: int, width: int = 5) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def same(first: Moments, second: Moments) -> bool:
    return first.count == second.count and all(
        torch.equal(getattr(first, name), getattr(second, name)) for name in ("total", "outer")
    )


def test_moments_match_numpy():
    rows = rows_of(0, 40) * 3 + 100
    moments = Moments.from_rows(rows)
    exact = rows.double().numpy()
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.second_moment, exact.T @ exact / 40, rtol=1e-13)
    np.testing.assert_allclose(moments.covariance, np.cov(exact.T, bias=True), atol=1e-9)
    assert torch.equal(moments.covariance, moments.covariance.T)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_moments_of_parts_add_up_to_the_whole(seed, sizes):
    rows = rows_of(seed, sum(sizes))
    parts = [Moments.from_rows(part) for part in rows.split(sizes)]
    pooled = sum(parts, Moments.zeros(5))
    whole = Moments.from_rows(rows)
    assert pooled.count == whole.count
    torch.testing.assert_close(pooled.total, whole.total, rtol=0, atol=1e-12)
    torch.testing.assert_close(pooled.outer, whole.outer, rtol=0, atol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(-60, 60))
def test_a_power_of_two_passes_through_without_rounding(seed, exponent):
    rows = rows_of(seed, 12)
    plain, scaled = Moments.from_rows(rows), Moments.from_rows(rows * 2.0**exponent)
    assert torch.equal(scaled.total, plain.total * 2.0**exponent)
    assert torch.equal(scaled.outer, plain.outer * 4.0**exponent)


def test_moments_about_a_point_are_those_of_rows_less_it():
    rows, point = rows_of(2, 40).double() + 5, rows_of(3, 1)[0]
    found, wanted = Moments.from_rows(rows).about(point), Moments.from_rows(rows - point)
    assert found.count == 40
    torch.testing.assert_close(found.total, wanted.total)
    torch.testing.assert_close(found.outer, wanted.outer)
    torch.testing.assert_close(found.covariance, Moments.from_rows(rows).covariance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_is_summed_in_float64(dtype):
    rows = rows_of(1, 30).to(dtype)
    assert same(Moments.from_rows(rows), Moments.from_rows(rows.double()))


def test_blocks_do_not_lose_rows(monkeypatch):
    monkeypatch.setattr("atoms.geometry.moments._BLOCK", 7)
    rows = rows_of(2, 30)
    torch.testing.assert_close(Moments.from_rows(rows).outer, rows.double().T @ rows.double())


def test_no_rows_have_no_mean():
    empty = Moments.from_rows(torch.empty(0, 3))
    assert same(empty, Moments.zeros(3))
    assert empty.mean.isnan().all()
    assert empty.second_moment.isnan().all()
    assert empty.covariance.isnan().all()


def test_saved_moments_come_back_bit_for_bit(tmp_path):
    moments = Moments.from_rows(rows_of(3, 30))
    moments.save(tmp_path / "moments.safetensors")
    moments.save(tmp_path / "moments.safetensors")
    assert same(Moments.load(tmp_path / "moments.safetensors"), moments)
    assert [path.name for path in tmp_path.iterdir()] == ["moments.safetensors"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "moments.safetensors"
    moments = Moments.from_rows(rows_of(4, 30))
    moments.save(path)

    def full_disk(_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        (moments + moments).save(path)
    assert same(Moments.load(path), moments)
    assert list(tmp_path.iterdir()) == [path]


def test_unreadable_files_are_the_users_to_mend(tmp_path):
    with pytest.raises(AtomsError, match="does not exist"):
        Moments.load(tmp_path / "absent.safetensors")
    torn = tmp_path / "torn.safetensors"
    Moments.zeros(2).save(torn)
    torn.write_bytes(torn.read_bytes()[:-4])
    with pytest.raises(AtomsError, match="cannot be read"):
        Moments.load(torn)


@pytest.mark.parametrize(
    "fields",
    [
        {"total": torch.zeros(2)},
        {"total": torch.zeros(3, dtype=torch.float64)},
        {"outer": torch.zeros(2, 3, dtype=torch.float64)},
        {"count": -1},
    ],
)
def test_malformed_moments_are_refused(fields):
    with pytest.raises(ValueError, match=r"total|float64|count"):
        dataclasses.replace(Moments.zeros(2), **fields)


def test_wrong_rows_and_widths_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        Moments.from_rows(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="floating-point"):
        Moments.from_rows(torch.zeros(3))
    with pytest.raises(ValueError, match="width 2 and 3"):
        Moments.zeros(2) + Moments.zeros(3)
