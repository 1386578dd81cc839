"""The controls by directions nobody trained: as many, as sparse and of the same signs as what is judged."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from judging import Given, subject_of

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.planted import SITE
from atoms.activations.site_rows import SiteRows
from atoms.checks.information.projection_codes import (
    _BATCH,
    ProjectionCodes,
    Whitening,
    random_directions,
    row_directions,
)
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


def projecting(subject, per_row=3.0, one_sided=True) -> ProjectionCodes:
    directions = random_directions(subject.num_atoms, subject.width, subject.settings.seed)
    return ProjectionCodes(Whitening(subject), directions, per_row, one_sided)


def drawn(subject, rows, per_row=3.0, one_sided=True) -> np.ndarray:
    codes = projecting(subject, per_row, one_sided).of(sampled(rows))
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
    made = projecting(own, 4, one_sided)
    codes = made.of(sampled(rows)).toarray()
    white = own.geometry.whiten(rows.double() - own.train.moments.mean)
    projections = (white @ made.directions.double().T).numpy()
    sizes = projections if one_sided else np.abs(projections)
    factor = codes.max() / projections.max()  # units of the whitened space
    for row in range(0, len(rows), 50):
        largest = [place for place in np.argsort(-sizes[row])[:4] if sizes[row, place] > 0]
        assert np.flatnonzero(codes[row]).tolist() == sorted(largest)
        assert codes[row, largest] == pytest.approx(factor * projections[row, largest], rel=1e-3, abs=1e-4)


def test_random_directions_are_isotropic_and_of_unit_length():
    found = random_directions(ATOMS, WIDTH, 0)
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
    made = projecting(subject())
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


# ------------------------------------------------------------------------------------------ coordinates


def test_whitened_rows_are_about_the_mean_and_measured_by_the_geometry(subject, rows):
    """Their inner products are those of the geometry, in some unit."""
    own = subject()
    found = Whitening(own)(rows.numpy()[:200]).double()
    centred = own.geometry.whiten(rows[:200].double() - own.train.moments.mean)
    products, expected = found @ found.T, centred @ centred.T
    factor = products.trace() / expected.trace()
    assert factor > 0
    assert torch.allclose(products, factor * expected, atol=1e-3 * products.abs().max().item())
    mean = Whitening(own)(own.train.moments.mean.float()[None].numpy())
    assert mean.norm() < 1e-3 * found.norm(dim=1).mean()


# ------------------------------------------------------------------------------------------ rows as directions


def test_directions_of_rows_are_those_of_rows_evenly_spread(subject, rows):
    own = subject()
    white = Whitening(own)
    found = row_directions(sampled(rows), white, ATOMS)
    assert found.shape == (ATOMS, WIDTH)
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(ATOMS))
    places = [at * len(rows) // ATOMS for at in range(ATOMS)]
    assert len(set(places)) == ATOMS
    centred = own.geometry.whiten(rows[places].double() - own.train.moments.mean)
    expected = centred @ centred.T / (centred.norm(dim=1)[:, None] * centred.norm(dim=1))
    assert torch.allclose((found @ found.T).double(), expected, atol=1e-3)
    assert ((white(rows.numpy()[places]) * found).sum(1) > 0).all()


def test_of_fewer_rows_than_atoms_all_are_directions(subject, rows):
    own = subject()
    white = Whitening(own)
    few = sampled(rows[: ATOMS // 2 - 1])
    found = row_directions(few, white, ATOMS)
    assert found.shape == (ATOMS // 2 - 1, WIDTH)
    assert torch.allclose(found, torch.nn.functional.normalize(white(few.rows), dim=1), atol=1e-6)
    codes = ProjectionCodes(white, found, 1000, one_sided=False)
    assert codes.k == len(found)
    assert codes.of(sampled(rows[:50])).shape == (50, len(found))


def test_a_row_looks_its_own_way(subject, rows):
    """Of directions that are rows, each row's largest cosine, and so the code that is kept, is its own."""
    own = subject()
    white = Whitening(own)
    chosen = sampled(rows[:ATOMS])
    found = row_directions(chosen, white, ATOMS)
    codes = ProjectionCodes(white, found, 1, one_sided=True).of(chosen).toarray()
    assert (codes.argmax(1) == np.arange(ATOMS)).all()
    assert codes.max(1) == pytest.approx(white(chosen.rows).norm(dim=1).numpy(), rel=1e-4)


def test_a_row_that_is_the_mean_has_no_direction_and_no_code(subject, rows):
    """Nothing is divided by a length of nothing."""

    class Centred:
        def __call__(self, given: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(given)

    given = rows[:3].clone()
    given[1] = 0
    found = row_directions(sampled(given), Centred(), 3)  # type: ignore[arg-type]
    assert found.isfinite().all()
    assert found.norm(dim=1).tolist() == pytest.approx([1, 0, 1])
    codes = ProjectionCodes(Centred(), found, 3, one_sided=False).of(sampled(given)).toarray()  # type: ignore[arg-type]
    assert (codes[:, 1] == 0).all()
    assert (codes[1] == 0).all()
