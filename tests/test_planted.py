import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stores import broken_off

from atoms.activations import planted
from atoms.activations.grid import Grid
from atoms.activations.lock import StoreLock
from atoms.activations.planted import SITE, PlantedSpec, load_truth, plant
from atoms.activations.store import ActivationStore
from atoms.errors import AtomsError

SMALL = PlantedSpec(width=12, atoms=8, active=2.0, rows=500)
EXACT = PlantedSpec(width=40, atoms=30, active=3.0, low=0.5, high=1.5, noise=0.0, rows=20_000, seed=5)


def codes_of(spec: PlantedSpec, rows: torch.Tensor) -> np.ndarray:
    """The codes behind noiseless rows of fewer atoms than dimensions, by least squares."""
    atoms, offset = spec.truth()
    codes = (rows.double() - offset).numpy() @ np.linalg.pinv(atoms.numpy())
    return np.where(np.abs(codes) < 1e-4, 0.0, codes)


def test_a_block_is_a_function_of_seed_split_and_number():
    same = SMALL.draw("train", 3, 50)
    assert torch.equal(same, SMALL.draw("train", 3, 50))
    others = [
        SMALL.draw("train", 4, 50),
        SMALL.draw("val", 3, 50),
        SMALL.draw("test", 3, 50),
        replace(SMALL, seed=1).draw("train", 3, 50),
    ]
    assert len({rows.numpy().tobytes() for rows in [same, *others]}) == 5


def test_atoms_are_unit_directions_drawn_with_the_seed():
    atoms, offset = PlantedSpec(width=64, atoms=500, offset=3.0).truth()
    assert atoms.shape == (500, 64)
    np.testing.assert_allclose(atoms.norm(dim=1), 1.0, rtol=1e-14)
    assert float(offset.norm()) == pytest.approx(3.0)
    cosines = (atoms @ atoms.T)[~torch.eye(500, dtype=torch.bool)]
    assert float(cosines.square().mean()) == pytest.approx(1 / 64, rel=0.02)  # isotropic
    assert not torch.equal(atoms, PlantedSpec(width=64, atoms=500, seed=1).truth()[0])


def test_codes_are_as_sparse_and_as_large_as_asked():
    codes = codes_of(EXACT, EXACT.draw("train", 0, 16_000))
    active = codes > 0
    assert not (codes < 0).any()
    counts = active.sum(1)
    spread = 3.0 * (1 - 3.0 / 30)  # of a binomial distribution
    assert counts.mean() == pytest.approx(3.0, abs=4 * np.sqrt(spread / 16_000))
    assert counts.var() == pytest.approx(spread, rel=0.06)
    np.testing.assert_allclose(active.mean(0), 0.1, atol=4 * np.sqrt(0.09 / 16_000))
    values = codes[active]
    assert 0.4999 < values.min() < 0.51
    assert 1.49 < values.max() < 1.5001
    assert values.mean() == pytest.approx(1.0, abs=0.01)


def test_noise_has_the_deviation_asked_for():
    noiseless = SMALL.draw("val", 0, 4000) - replace(SMALL, noise=0.0).draw("val", 0, 4000)
    assert float(noiseless.std()) == pytest.approx(0.01, rel=0.02)


def test_the_store_holds_what_was_drawn(tmp_path):
    plant(SMALL, tmp_path / "s")
    store = ActivationStore.open(tmp_path / "s")
    assert {split: store.n_rows(split) for split in store.splits} == {"train": 400, "val": 50, "test": 50}
    assert torch.equal(store.read_rows("val", SITE, 0, 50), SMALL.draw("val", 0, 50))
    assert torch.equal(load_truth(ActivationStore.open(tmp_path / "s")), SMALL.truth()[0])
    rows = store.read_rows("train", SITE, 0, 400).double()
    moments = store.moments(SITE)
    assert moments.count == 400
    np.testing.assert_allclose(moments.outer, rows.T @ rows, rtol=1e-12)
    assert not list((tmp_path / "s" / "moments").glob("parts*"))
    assert not (tmp_path / "s.lock").exists()


def test_a_store_of_text_has_no_truth(pristine):
    assert load_truth(ActivationStore.open(pristine)) is None


def plant_in_blocks(monkeypatch: pytest.MonkeyPatch, path: Path) -> ActivationStore:
    """Twelve blocks or so instead of one."""
    monkeypatch.setattr(Grid, "choose", classmethod(lambda cls, *_: cls(8, 16, 48)))
    plant(SMALL, path)
    return ActivationStore.open(path)


def test_resumed_it_is_the_same_store(tmp_path, monkeypatch):
    whole = plant_in_blocks(monkeypatch, tmp_path / "whole")
    with broken_off(6):
        plant_in_blocks(monkeypatch, tmp_path / "resumed")
    with pytest.raises(AtomsError, match="incomplete, 6 of 13 blocks"):
        ActivationStore.open(tmp_path / "resumed")
    resumed = plant_in_blocks(monkeypatch, tmp_path / "resumed")
    assert resumed.content_digest() == whole.content_digest()
    assert torch.equal(resumed.moments(SITE).outer, whole.moments(SITE).outer)


def test_codes_of_a_whole_block_are_never_in_memory(monkeypatch):
    monkeypatch.setattr(planted, "CODES_AT_ONCE", 2**14)
    spec = PlantedSpec(width=4, atoms=256)
    tracemalloc.start()
    rows = spec.draw("train", 0, 20_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 20_000
    assert peak < 20_000 * 4 * 4 + 6 * 2**14 * 8  # against 41 MB of codes


def test_every_setting_but_the_place_names_another_store():
    changes = [
        {"width": 13}, {"atoms": 9}, {"active": 3.0}, {"low": 0.4}, {"high": 2.0},
        {"noise": 0.1}, {"offset": 0.0}, {"rows": 600}, {"seed": 1},
    ]  # fmt: skip
    names = {replace(SMALL, **change).directory().name for change in changes}
    assert len(names | {SMALL.directory().name}) == len(changes) + 1
    assert replace(SMALL, root="elsewhere").directory().name == SMALL.directory().name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, r"data\.planted\.width is 0: give"),
        ({"rows": 9}, r"data\.planted\.rows is 9: give a number of at least 10"),
        ({"noise": -1.0}, r"data\.planted\.noise is -1\.0"),
        ({"noise": float("nan")}, r"data\.planted\.noise is nan"),
        ({"noise": float("inf")}, r"data\.planted\.noise is inf: give a finite number"),
        ({"offset": float("nan")}, r"data\.planted\.offset is nan: give a finite number"),
        ({"seed": -1}, r"data\.planted\.seed is -1"),
        ({"active": 0.0}, r"data\.planted\.active is 0\.0: .* at most 8"),
        ({"active": 9.0}, r"data\.planted\.active is 9\.0: .* at most 8"),
        ({"low": 2.0}, r"data\.planted\.low is 2\.0 and high 1\.5"),
    ],
)
def test_settings_that_cannot_work(change, message):
    with pytest.raises(AtomsError, match=message):
        replace(SMALL, **change)


def test_two_writers_do_not_meet(tmp_path):
    with StoreLock(tmp_path / "s"), pytest.raises(AtomsError, match=r"data\.store=.*being written by process"):
        plant(SMALL, tmp_path / "s")
    assert not (tmp_path / "s").exists()
