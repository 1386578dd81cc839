"""ICA, k-means and dictionary learning, on rows with known atoms."""

import pytest
import torch

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.planted import PlantedSpec, plant
from atoms.activations.site_rows import SiteRows
from atoms.errors import AtomsError
from atoms.units import ICA, DictionaryLearning, KMeans, RandomUnits


def share_of_error(unit, rows):
    return ((rows - unit.decode(unit.encode(rows))).square().sum() / (rows - unit.centre).square().sum()).item()


def fitted(unit, rows):
    unit.fit(rows)
    return unit


def test_independent_components_rebuild_everything_from_uncorrelated_sources(train, held_out, capsys):
    unit = fitted(ICA(rows=3000), train)
    assert unit.atoms.shape == (16, 16)
    torch.testing.assert_close(unit.decode(unit.encode(held_out)), held_out, rtol=0, atol=1e-4)
    sources = unit.encode(train.sample(3000)["planted"]).to_dense()
    torch.testing.assert_close(sources.T.cov(), torch.eye(16), atol=5e-3, rtol=0)
    assert "fit      ICA: 16 components of 3,000 rows, at most 200 iterations" in capsys.readouterr().err


def test_independent_components_find_independent_atoms(tmp_path):
    """Where there are no more atoms than coordinates, planted sources are what ICA is for."""
    spec = PlantedSpec(width=8, atoms=8, active=0.8, rows=5000)
    plant(spec, tmp_path / "store")
    rows = SiteRows(ActivationDataModule(store=str(tmp_path / "store"), batch_size=256, pool_mib=8), "planted", "train")
    unit = fitted(ICA(), rows)
    cosines = (unit.atoms / unit.atoms.norm(dim=1, keepdim=True)).double() @ spec.truth()[0].T
    assert cosines.abs().max(0).values.min() > 0.98
    fewer = fitted(ICA(atoms=3), rows)
    assert fewer.atoms.shape == (3, 8)


def test_what_does_not_converge_says_so(train, capsys):
    fitted(ICA(rows=500, iterations=1), train)
    assert "note     ICA did not converge in 1 iterations; it is used as it is" in capsys.readouterr().err


def test_the_nearest_centroid_codes_a_row(train, held_out):
    unit = fitted(KMeans(atoms=30, rows=2000), train)
    codes = unit.encode(held_out)
    assert codes.l0.tolist() == [1] * 300
    assert codes.values.tolist() == [1.0] * 300
    nearest = torch.cdist(held_out, unit.atoms + unit.centre).argmin(1)
    assert torch.equal(codes.indices.long(), nearest)
    assert 0.05 < share_of_error(unit, held_out) < share_of_error(fitted(KMeans(atoms=4, rows=2000), train), held_out)


def test_centroids_as_directions_take_several_per_row(train, held_out):
    nearest, several = fitted(KMeans(atoms=30, rows=2000), train), fitted(KMeans(30, "omp", 4, rows=2000), train)
    assert torch.equal(nearest.atoms, several.atoms)
    assert several.encode(held_out).l0.max() == 4
    assert share_of_error(several, held_out) < share_of_error(nearest, held_out)


def test_dictionary_learning_finds_more_than_chance(train, held_out):
    unit = fitted(DictionaryLearning(atoms=24, k=3, penalty=0.2, rows=3000, passes=2), train)
    truth = train.data.truth.double()
    cosines = (unit.atoms / unit.atoms.norm(dim=1, keepdim=True)).double() @ truth.T
    chance = fitted(RandomUnits(atoms=24, k=3), train)
    by_chance = (chance.atoms / chance.atoms.norm(dim=1, keepdim=True)).double() @ truth.T
    assert (cosines.abs().max(0).values > 0.9).double().mean() > 0.5
    assert (by_chance.abs().max(0).values > 0.9).sum() <= 1
    assert share_of_error(unit, held_out) < 0.6 * share_of_error(chance, held_out)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ICA(rows=1000, iterations=20),
        lambda: KMeans(atoms=20, rows=1000),
        lambda: DictionaryLearning(atoms=20, rows=500),
    ],
)
def test_a_seed_gives_the_same_unit(make, train):
    assert torch.equal(fitted(make(), train).atoms, fitted(make(), train).atoms)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ICA(iterations=0), r"^unit ICA: iterations is 0: give at least 1$"),
        (lambda: KMeans(rows=0), r"^unit k-means: rows is 0: give at least 1$"),
        (lambda: KMeans(k=3), r"^unit k-means: k is 3, but the nearest centroid is one: set encoder to omp or topk$"),
        (lambda: KMeans(encoder="lars"), r"^unit k-means: encoder is 'lars': use 'omp' or 'topk'$"),
        (lambda: DictionaryLearning(penalty=0.0), r"^unit dictionary learning: penalty is 0\.0: give a number above 0"),
        (lambda: DictionaryLearning(atoms=-1), r"^unit dictionary learning: atoms is -1: give at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_they_are_read(make, message):
    with pytest.raises(AtomsError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ICA(atoms=17),
            r"^unit ICA: atoms is 17, but the 4800 rows of planted it learns from span 16 dimensions: lower atoms, or",
        ),
        (
            lambda: KMeans(rows=50),
            r"^unit k-means: atoms is 64, but it learns from 50 rows of planted: lower atoms, or raise rows$",
        ),
        (
            lambda: DictionaryLearning(atoms=4801),
            r"atoms is 4801, but it learns from 4800 rows of planted: lower atoms, or harvest more text$",
        ),
    ],
)
def test_more_atoms_than_the_rows_can_give_are_refused(make, message, train):
    with pytest.raises(AtomsError, match=message):
        make().fit(train)
