"""The control by random directions: as many, as sparse and of the same signs as what is judged."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from judging import Given, subject_of

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.planted import SITE
from atoms.activations.site_rows import SiteRows
from atoms.checks.information.random_codes import _BATCH, RandomCodes
from atoms.checks.row_sample import Sampled
from atoms.geometry import Moments

WIDTH, ATOMS = 16, 40


@pytest.fixture(scope="module")
def rows(planted_store) -> torch.Tensor:
    data = ActivationDataModule(store=str(planted_store), batch_size=256)
    return torch.cat(list(SiteRows(data, SITE, "train").batches(1000)))[:1500]


@pytest.fixture
def subject(planted_data):
    def make(**settings):
        unit = Given(torch.eye(WIDTH).repeat(3, 1)[:ATOMS], lambda rows: rows.repeat(1, 3)[:, :ATOMS])
        return subject_of(unit, planted_data(), **settings)

    return make


def sampled(rows: torch.Tensor) -> Sampled:
    return Sampled(np.arange(len(rows)), rows.numpy(), None)


def drawn(subject, rows, per_row=3.0, one_sided=True) -> np.ndarray:
    codes = RandomCodes(subject, per_row, one_sided).of(sampled(rows))
    assert codes.shape == (len(rows), subject.num_atoms)
    assert codes.dtype == np.float32
    assert codes.format == "csr"
    assert (codes.data != 0).all()
    return codes.toarray()


@pytest.mark.parametrize(("per_row", "k"), [(3.0, 3), (2.6, 3), (3.4, 3), (0.01, 1), (0.0, 1), (9.0, 9)])
def test_as_many_a_row_as_the_unit_has(subject, rows, per_row, k):
    codes = drawn(subject(), rows, per_row)
    assert (codes >= 0).all()
    counts = (codes != 0).sum(1)
    assert counts.max() == k
    assert (counts == k).mean() > 0.99  # of forty directions a few always look the row's way


def test_either_sign_where_the_unit_has_either(subject, rows):
    codes = drawn(subject(), rows, 5, one_sided=False)
    assert ((codes != 0).sum(1) == 5).all()
    assert 0.3 < (codes[codes != 0] < 0).mean() < 0.7


def test_no_more_than_there_are(subject, rows):
    assert ((drawn(subject(), rows, 1000, one_sided=False) != 0).sum(1) == ATOMS).all()
    codes = drawn(subject(), rows, 1000)
    assert (codes >= 0).all()
    assert 0.3 < (codes == 0).mean() < 0.7  # of one sign only those that are positive


@pytest.mark.parametrize("one_sided", [True, False])
def test_they_are_the_largest_projections_in_whitened_space(subject, rows, one_sided):
    own = subject()
    made = RandomCodes(own, 4, one_sided)
    codes = made.of(sampled(rows)).toarray()
    white = own.geometry.whiten(rows.double() - own.train.moments.mean)
    projections = (white @ made.directions.double().T).numpy()
    sizes = projections if one_sided else np.abs(projections)
    factor = codes.max() / projections.max()  # units of the whitened space
    for row in range(0, len(rows), 50):
        largest = [place for place in np.argsort(-sizes[row])[:4] if sizes[row, place] > 0]
        assert np.flatnonzero(codes[row]).tolist() == sorted(largest)
        assert codes[row, largest] == pytest.approx(factor * projections[row, largest], rel=1e-3, abs=1e-4)


def test_directions_are_isotropic_and_of_unit_length(subject):
    found = RandomCodes(subject(), 3, True).directions
    assert found.shape == (ATOMS, WIDTH)
    assert torch.allclose(found.norm(dim=1), torch.ones(ATOMS))
    assert found.mean(0).abs().max() < 0.25
    cosines = (found @ found.T)[~torch.eye(ATOMS, dtype=torch.bool)]
    assert cosines.square().mean().item() == pytest.approx(1 / WIDTH, rel=0.2)


def test_the_seed_says_which(subject, rows):
    first, again, other = (drawn(subject(seed=seed), rows[:100]) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_a_row_has_its_codes_whatever_stands_beside_it(subject, rows):
    made = RandomCodes(subject(), 3, True)
    assert len(rows) > _BATCH
    whole = made.of(sampled(rows)).toarray()
    for chosen in (slice(0, 1), slice(1000, 1200), slice(1499, 1500)):
        assert np.allclose(made.of(sampled(rows[chosen])).toarray(), whole[chosen], atol=1e-4)


def test_rows_in_other_units_have_the_same_signs(subject, rows):
    own = subject()

    def learnt_from(rows: torch.Tensor) -> SiteRows:
        train = SiteRows(own.train.data, SITE, "train")
        train.__dict__["moments"] = Moments.from_rows(rows)
        return train

    codes, scaled = (drawn(replace(own, train=learnt_from(each)), each) for each in (rows, 1024 * rows))
    assert np.array_equal(codes, scaled)
