import pytest
import torch
from row_subjects import Dense, Pursuer, judge, subject_of

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.planted import SITE
from atoms.checks.matched_null import MatchedNullCheck
from atoms.geometry.inner_product import unit_rows
from atoms.units.pursuit import orthogonal_matching_pursuit


@pytest.fixture(scope="module")
def data(planted_store):
    return ActivationDataModule(store=str(planted_store), batch_size=256, pool_mib=8)


def truth(data, k: int) -> Pursuer:
    unit = Pursuer(data.truth, data.geometry(SITE), k, nonnegative=True)
    unit.centre = data.moments(SITE).mean.float()
    return unit


def test_random_directions_need_more_atoms_than_the_planted_ones(data):
    subject = subject_of(truth(data, 2), data, null_rows=300)
    check = MatchedNullCheck(subject)
    null = judge(check)
    assert null.k is not None
    assert null.k > 2
    assert len(null.curve) == null.k == null.certificates.headline_k
    assert null.r2 == null.curve[-1] >= null.unit_r2 > null.curve[-2]
    assert (null.certificates.used <= null.k).all()

    # The same, by the definition: pursue with that many atoms and compare sums of squares.
    generator = torch.Generator().manual_seed(subject.settings.seed)
    drawn = unit_rows(torch.randn(24, 16, generator=generator, dtype=torch.float64))
    places = torch.from_numpy(subject.held_out.places)
    rows = subject.held_out.sample(len(places))[SITE][torch.isin(places, null.certificates.index)].double()
    centred = rows - subject.train.moments.mean
    for k in (1, null.k - 1, null.k):
        code = orthogonal_matching_pursuit(subject.geometry.whiten(centred), drawn, k)
        dense = torch.zeros(300, 24, dtype=torch.float64)
        dense.scatter_add_(1, code.support.clamp_min(0), code.coefficients)
        left = centred - subject.geometry.unwhiten(dense @ drawn)
        assert null.curve[k - 1].item() == pytest.approx(1 - (left.square().sum() / centred.square().sum()).item())
    errors = left.square().sum(1) / centred.square().sum(1)
    assert torch.allclose(null.certificates.error, errors, rtol=1e-6)

    section = check.report({"matched_null": null})
    assert section.numbers["k"] == null.k
    assert section.numbers["f"] == null.certificates.F(0.2, null.k)
    assert f"with {null.k} atoms a row" in section.notes[0]


def test_what_is_rebuilt_exactly_is_out_of_reach(data):
    check = MatchedNullCheck(subject_of(Dense(16), data, null_rows=100))
    null = judge(check)
    assert null.unit_r2 == pytest.approx(1.0)
    assert null.k is None
    assert len(null.curve) == 8
    assert null.r2 == null.curve.max() < 1
    section = check.report({"matched_null": null})
    assert section.numbers["k"] != section.numbers["k"]  # NaN
    assert "miss the unit's R²" in section.notes[0]


def test_a_unit_that_rebuilds_nothing_is_matched_by_one_atom(data):
    unit = truth(data, 1)
    unit.centre = unit.centre + 5
    assert judge(MatchedNullCheck(subject_of(unit, data, null_rows=50))).k == 1
