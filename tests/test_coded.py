"""Directions coded by pursuit in the atomic inner product."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp

from atoms.errors import AtomsError
from atoms.units import DataUnits, RandomUnits
from atoms.units.coded import CodedUnit


class Given(CodedUnit):
    """Directions as they are given, about the mean."""

    def __init__(self, directions, **settings):
        super().__init__("given", atoms=None, **{"encoder": "omp", "k": None, **settings})
        self.directions = directions

    def learn(self, rows):
        return self.directions, rows.moments.mean


def test_codes_are_those_of_matching_pursuit_among_whitened_atoms(train, held_out):
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(40, 16, generator=generator) * torch.rand(40, 1, generator=generator)
    unit = Given(directions, k=4)
    unit.fit(train)
    metric = train.geometry.map()
    atoms = directions.double() @ metric
    lengths = atoms.norm(dim=1)
    rows = (held_out.double() - train.moments.mean) @ metric
    reference = orthogonal_mp((atoms / lengths[:, None]).numpy().T, rows.numpy().T, n_nonzero_coefs=4).T
    codes = unit.encode(held_out)
    np.testing.assert_allclose(codes.to_dense().numpy(), reference / lengths.numpy(), rtol=2e-4, atol=1e-5)
    assert (codes.l0 == 4).all()
    assert unit.target_l0 == 4
    error = train.geometry.norm(held_out - unit.decode(codes)).square()
    torch.testing.assert_close(
        error, (rows - torch.from_numpy(reference) @ (atoms / lengths[:, None])).square().sum(1), rtol=1e-3, atol=1e-6
    )


def test_least_squares_in_the_metric_leaves_an_error_orthogonal_to_the_atoms_chosen(train, held_out):
    unit = Given(torch.randn(24, 16, generator=torch.Generator().manual_seed(3)), encoder="topk", k=5)
    unit.fit(train)
    codes = unit.encode(held_out)
    error = held_out - unit.decode(codes)
    chosen = unit.atoms[codes.indices.long()]
    assert train.geometry.cos(error[codes.rows], chosen).abs().max() < 1e-3


def test_atoms_of_zero_norm_are_never_used(train, held_out):
    directions = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    directions[5] = 0
    for encoder in ("omp", "topk"):
        unit = Given(directions, encoder=encoder, k=8)
        unit.fit(train)
        codes = unit.encode(held_out)
        assert 5 not in codes.indices
        assert codes.values.isfinite().all()


def test_k_follows_from_the_width_and_never_exceeds_the_atoms(train, held_out):
    unit = RandomUnits()
    unit.fit(train)
    assert (unit.k, len(unit.atoms)) == (2, 64)
    few = RandomUnits(atoms=2, k=5)
    few.fit(train)
    assert few.encode(held_out).l0.max() == 2


def test_fitting_again_changes_nothing(train, held_out):
    first, second = RandomUnits(seed=3, k=4), RandomUnits(seed=3, k=4)
    first.fit(train)
    second.fit(train)
    second.fit(train)
    assert torch.equal(first.atoms, second.atoms)
    assert torch.equal(first.encode(held_out).values, second.encode(held_out).values)
    third = RandomUnits(seed=4)
    third.fit(train)
    assert not torch.equal(first.atoms, third.atoms)


def test_rows_are_coded_one_by_one(train, held_out):
    unit = RandomUnits(k=3)
    unit.fit(train)
    whole = unit.encode(held_out).to_dense()
    pieces = torch.cat([unit.encode(part).to_dense() for part in held_out.split(37)])
    torch.testing.assert_close(whole, pieces)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomUnits(atoms=0), r"^unit random: atoms is 0: give at least 1, or null for the usual number$"),
        (lambda: RandomUnits(k=0), r"^unit random: k is 0: give at least 1, or null for an eighth of the width$"),
        (lambda: DataUnits(encoder="lasso"), r"^unit data: encoder is 'lasso': use 'omp' or 'topk'$"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_they_are_read(make, message):
    with pytest.raises(AtomsError, match=message):
        make()


def test_as_many_atoms_per_row_as_dimensions_are_refused(train):
    with pytest.raises(AtomsError, match=r"^unit random: k is 16, but the rows of planted have rank 16, which as many"):
        RandomUnits(k=16).fit(train)
