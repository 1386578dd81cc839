import pytest
import torch
from judging import Pursuer, subject_of

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.planted import SITE
from atoms.checks.check import Subject
from atoms.checks.matched_null import fidelity_matched_null
from atoms.errors import AtomsError
from atoms.geometry.inner_product import unit_rows
from atoms.units.pursuit import orthogonal_matching_pursuit


@pytest.fixture(scope="module")
def data(planted_store):
    return ActivationDataModule(store=str(planted_store), batch_size=256, pool_mib=8)


def subject(data, **settings) -> Subject:
    unit = Pursuer(data.truth, data.geometry(SITE), 2, nonnegative=True)
    unit.centre = data.moments(SITE).mean.float()
    return subject_of(unit, data, **settings)


def r2_of(rows, rebuilt) -> float:
    return 1 - ((rows - rebuilt).square().sum() / (rows - rows.mean(0)).square().sum()).item()


def test_random_directions_need_more_atoms_than_the_planted_ones(data):
    judged = subject(data, null_rows=300, rows=500)
    sample = judged.held_out.sample(300, limit=500)
    rows = sample[SITE].double()
    own = r2_of(rows, judged.unit.decode(judged.unit.encode(sample[SITE])).double())
    null = fidelity_matched_null(judged, own)
    assert null.reached
    assert null.k > 2
    assert len(null.curve) == null.k == null.certificates.max_k
    assert null.r2 == null.curve[-1] >= own > null.curve[-2]
    assert (null.certificates.used <= null.k).all()
    assert null.f == null.certificates.F(judged.settings.eta, null.k)
    assert torch.equal(null.certificates.index, sample[""])
    assert sample[""].max() <= judged.held_out.places[499]

    # The same, by the definition: pursue with that many atoms and compare sums of squares.
    generator = torch.Generator().manual_seed(judged.settings.seed)
    drawn = unit_rows(torch.randn(24, 16, generator=generator, dtype=torch.float64))
    centred = rows - judged.train.moments.mean
    for k in (1, null.k - 1, null.k):
        code = orthogonal_matching_pursuit(judged.geometry.whiten(centred), drawn, k)
        dense = torch.zeros(300, 24, dtype=torch.float64)
        dense.scatter_add_(1, code.support.clamp_min(0), code.coefficients)
        left = centred - judged.geometry.unwhiten(dense @ drawn)
        assert null.curve[k - 1].item() == pytest.approx(r2_of(rows, rows - left))
    errors = left.square().sum(1) / centred.square().sum(1)
    assert torch.allclose(null.certificates.error, errors, rtol=1e-5)


def test_what_is_rebuilt_exactly_is_out_of_reach(data):
    null = fidelity_matched_null(subject(data, null_rows=100), 1.0)
    assert not null.reached
    assert null.k == len(null.curve) == 8
    assert null.r2 == null.curve.max() < 1


def test_a_unit_that_rebuilds_nothing_is_matched_by_one_atom(data):
    null = fidelity_matched_null(subject(data, null_rows=50), -0.5)
    assert null.reached
    assert null.k == 1


def test_more_atoms_are_tried_where_few_do_not_suffice(data, monkeypatch):
    judged = subject(data, null_rows=200)
    whole = fidelity_matched_null(judged, 0.9)
    monkeypatch.setattr("atoms.checks.matched_null._FIRST", 1)
    stepwise = fidelity_matched_null(judged, 0.9)
    assert stepwise.k == whole.k > 1
    assert torch.allclose(stepwise.curve, whole.curve)


def test_nothing_to_draw(data):
    judged = subject(data)
    judged.unit.atoms = judged.unit.atoms[:0]
    with pytest.raises(AtomsError, match="0 atoms in 16 dimensions"):
        fidelity_matched_null(judged, 0.5)
