"""Dense codes on as many directions as coordinates."""

import numpy as np
import pytest
import torch
from sklearn import decomposition

from atoms.errors import AtomsError
from atoms.geometry import coherence
from atoms.units import PCA, WhiteningBasis


@pytest.mark.parametrize("make", [PCA, WhiteningBasis, lambda: WhiteningBasis(None), lambda: WhiteningBasis(7)])
def test_a_whole_basis_rebuilds_everything(make, train, held_out):
    unit = make()
    unit.fit(train)
    codes = unit.encode(held_out)
    assert codes.l0.double().mean() > 15.9
    torch.testing.assert_close(unit.decode(codes), held_out, rtol=0, atol=1e-5)


@pytest.mark.parametrize("unit", [PCA(5), WhiteningBasis()])
def test_codes_are_rows_about_the_centre_times_the_weights(unit, train, held_out):
    unit.fit(train)
    expected = (held_out.double() - unit.centre) @ unit.encoder_weights.T
    torch.testing.assert_close(unit.encode(held_out).to_dense().double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", [None, 0, 7])
def test_a_whitening_basis_is_orthonormal_in_the_metric(seed, train):
    unit = WhiteningBasis(seed)
    unit.fit(train)
    assert coherence(unit.atoms, aip=train.geometry).maximum < 1e-10
    torch.testing.assert_close(train.geometry.norm(unit.atoms), torch.ones(16, dtype=torch.float64))


def test_without_a_rotation_the_basis_is_the_principal_axes(train):
    unit = WhiteningBasis(None)
    unit.fit(train)
    found = unit.atoms / unit.atoms.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, train.geometry.eigenvectors.T, atol=1e-10, rtol=0)
    assert not torch.equal(unit.atoms, _fitted(WhiteningBasis(0), train).atoms)


def _fitted(unit, rows):
    unit.fit(rows)
    return unit


@pytest.mark.parametrize("atoms", [None, 5])
def test_principal_components_are_those_of_scikit_learn(atoms, train, held_out):
    unit = _fitted(PCA(atoms), train)
    reference = decomposition.PCA(atoms).fit(torch.cat(list(train.batches(1000))).double().numpy())
    assert unit.atoms.shape == (atoms or 16, 16)
    np.testing.assert_allclose(np.abs(unit.atoms.numpy() @ reference.components_.T), np.eye(atoms or 16), atol=1e-4)
    expected = reference.inverse_transform(reference.transform(held_out.double().numpy()))
    np.testing.assert_allclose(unit.decode(unit.encode(held_out)), expected, atol=1e-4)


def test_numbers_of_components_that_cannot_be_are_refused(train):
    with pytest.raises(AtomsError, match=r"^unit PCA: atoms is 0: give at least 1"):
        PCA(0)
    with pytest.raises(AtomsError, match=r"^unit PCA: atoms is 17, but rows of planted have width 16: lower it$"):
        PCA(17).fit(train)
