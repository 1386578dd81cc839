"""Trained dictionaries as units."""

import json

import pytest
import torch

from atoms.activations.site_rows import SiteRows
from atoms.errors import AtomsError
from atoms.sae import ThresholdSAE
from atoms.units import TrainedUnit


@pytest.fixture
def sae(train):
    made = ThresholdSAE(16, 40, geometry=train.geometry, power=0.5, encoder="aligned", seed=4)
    with torch.no_grad():
        made.threshold.uniform_(0.1, 1.5)
        made.bias.normal_(0, 0.1)
        made.origin.normal_(0, 0.1)
    return made


def test_a_unit_does_what_its_dictionary_does(sae, train, planted_data):
    unit = TrainedUnit(sae, name="mine", site="planted", target_l0=2.0)
    unit.fit(train)
    rows = next(SiteRows(planted_data(), "planted", "val").batches(300))
    codes = unit.encode(rows)
    with torch.no_grad():
        torch.testing.assert_close(codes.to_dense(), sae.encode(rows))
        torch.testing.assert_close(unit.decode(codes), sae(rows), rtol=1e-4, atol=1e-5)
    assert (unit.power, unit.target_l0, unit.name) == (0.5, 2.0, "mine")
    assert torch.equal(unit.threshold, sae.threshold)
    assert not any(tensor.requires_grad for tensor in (unit.atoms, unit.threshold, codes.values))
    # a code never falls short of its threshold: both are coefficients of raw atoms
    assert (codes.values >= unit.threshold[codes.indices.long()]).all()


def test_its_encoder_in_activation_space_is_the_folded_one(sae):
    found = TrainedUnit(sae, name="mine", site="planted").encoder_weights
    assert torch.equal(found, sae.fold().w_enc)
    assert not found.requires_grad


def test_a_saved_dictionary_says_what_it_is(sae, train, tmp_path):
    sae.save(tmp_path / "wide", {"site": "planted", "target_l0": 2.5, "seed": 4})
    unit = TrainedUnit.load(tmp_path / "wide")
    unit.fit(train)
    assert (unit.name, unit.site, unit.target_l0, unit.seed) == ("wide", "planted", 2.5, 4)
    assert torch.equal(unit.atoms, sae.atoms)
    described = json.loads((tmp_path / "wide" / "tsae.json").read_text())
    assert unit.source == {"artefact": str(tmp_path / "wide"), "sha256": described["weights_sha256"]}


def test_a_saved_dictionary_that_says_nothing_takes_any_site(sae, train, tmp_path):
    sae.save(tmp_path / "bare")
    unit = TrainedUnit.load(tmp_path / "bare")
    assert (unit.site, unit.target_l0, unit.seed) == (None, None, None)
    unit.fit(train)
    assert unit.site == "planted"


def test_a_folder_without_a_dictionary_is_refused(tmp_path):
    with pytest.raises(AtomsError, match="holds no saved SAE"):
        TrainedUnit.load(tmp_path)


def test_what_a_fit_saves_is_read_with_site_target_and_seed(fitted):
    (folder,) = fitted.folder.glob("runs/*/*/checkpoints/atoms/tsae")
    unit = TrainedUnit.load(folder)
    assert (unit.site, unit.target_l0, unit.seed) == ("planted", 2.0, 0)


def test_units_that_differ_by_their_start_alone_are_told(train):
    def unit(seed, power=0.5, target=2.0, atoms=20):
        sae = ThresholdSAE(16, atoms, geometry=train.geometry, power=power, seed=seed)
        return TrainedUnit(sae, name="x", site="planted", target_l0=target, seed=seed)

    first = unit(0)
    assert first.same_but_for_seed(unit(1))
    for other in (unit(0), unit(1, power=0.0), unit(1, target=3.0), unit(1, atoms=21)):
        assert not first.same_but_for_seed(other)
