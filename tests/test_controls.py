"""Random, shuffled and memorising units."""

import pytest
import torch

from atoms.activations.site_rows import SiteRows
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, coherence
from atoms.sae import ThresholdSAE
from atoms.units import DataUnits, PermutedUnits, RandomUnits, TrainedUnit


def whitened(unit, rows):
    return rows.geometry.whiten(unit.atoms.double())


def test_random_atoms_are_isotropic_and_of_unit_length_where_rows_are_white(train):
    unit = RandomUnits(atoms=20_000)
    unit.fit(train)
    directions = whitened(unit, train)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(20_000, dtype=torch.float64), rtol=1e-4, atol=0)
    spread = torch.linalg.eigvalsh(directions.T @ directions / 20_000) * 16
    assert spread.min() > 0.93
    assert spread.max() < 1.07
    assert directions.mean(0).norm() < 0.02
    torch.testing.assert_close(unit.centre, train.moments.mean.float())


def test_a_shuffle_keeps_every_axis_and_no_atom(train):
    unit = TrainedUnit(
        ThresholdSAE(16, 40, geometry=train.geometry, power=0.0), name="sae", site="planted", target_l0=3.0
    )
    shuffled = PermutedUnits(unit)
    shuffled.fit(train)
    assert (shuffled.name, shuffled.site, shuffled.k) == ("sae permuted", "planted", 3)
    axes = train.geometry.eigenvectors
    before, after = whitened(unit, train), whitened(shuffled, train)
    before = before / before.norm(dim=1, keepdim=True)
    torch.testing.assert_close((after @ axes).sort(dim=0).values, (before @ axes).sort(dim=0).values, atol=1e-5, rtol=0)
    # which raw coordinates are shuffled makes no difference along these axes
    raw = unit.atoms.double() / train.geometry.norm(unit.atoms)[:, None]
    torch.testing.assert_close(
        (shuffled.atoms.double() @ axes).sort(dim=0).values, (raw @ axes).sort(dim=0).values, atol=1e-5, rtol=0
    )
    cosines = before @ (after / after.norm(dim=1, keepdim=True)).T
    assert cosines.max() < 0.99
    torch.testing.assert_close(shuffled.centre, unit.centre)


def test_a_shuffle_reads_a_saved_dictionary(train, tmp_path):
    ThresholdSAE(16, 20, geometry=train.geometry).save(tmp_path / "mine", {"site": "planted", "target_l0": 4.0})
    shuffled = PermutedUnits(str(tmp_path / "mine"), encoder="topk")
    shuffled.fit(train)
    assert (shuffled.name, shuffled.site, shuffled.target_l0) == ("mine permuted", "planted", 4)


def test_a_memoriser_knows_its_own_rows_and_only_those(train, planted_data):
    own = train.sample(200)["planted"]
    unit = DataUnits(atoms=200)
    unit.fit(train)
    codes = unit.encode(own)
    assert codes.l0.tolist() == [1] * 200
    assert codes.indices.tolist() == list(range(200))
    torch.testing.assert_close(codes.values, torch.ones(200))
    torch.testing.assert_close(unit.decode(codes), own)
    held_out = next(SiteRows(planted_data(), "planted", "val").batches(500))
    error = (held_out - unit.decode(unit.encode(held_out))).square().sum() / (held_out - unit.centre).square().sum()
    assert error > 0.1


def test_a_memoriser_on_noise_has_every_score_on_rows_it_has_seen(train):
    noise = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    unit = DataUnits()
    unit.fit(train)
    unit.atoms = noise - unit.centre
    unit._ready(train.geometry)
    torch.testing.assert_close(unit.decode(unit.encode(noise)), noise)
    fresh = torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
    error = (fresh - unit.decode(unit.encode(fresh))).square().sum() / (fresh - unit.centre).square().sum()
    assert error > 0.3


def test_a_memoriser_keeps_all_rows_where_there_are_fewer(train):
    unit = DataUnits(atoms=10_000)
    unit.fit(train)
    assert len(unit.atoms) == len(train) == 4800


def test_random_directions_of_raw_space_would_be_more_coherent(train):
    """Why the control is drawn where rows are white."""
    stretched = AtomicInnerProduct(
        train.geometry.mean, train.geometry.eigenvalues * torch.logspace(0, 4, 16).double(),
        train.geometry.eigenvectors, 1e-9, "second_moment",
    )  # fmt: skip
    drawn = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)).double()
    assert coherence(drawn, aip=stretched).rms > 2 * coherence(stretched.unwhiten(drawn), aip=stretched).rms


def test_a_shuffle_is_of_the_site_of_its_unit(train):
    unit = TrainedUnit(ThresholdSAE(16, 20, geometry=train.geometry), name="sae", site="elsewhere")
    with pytest.raises(AtomsError, match=r"^unit sae is of site elsewhere, not of planted"):
        PermutedUnits(unit).fit(train)
