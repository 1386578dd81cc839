import pytest
import torch
from judging import Pursuer, dense, find, subject_of

from atoms.activations.planted import SITE
from atoms.checks.claim import Verdict
from atoms.checks.recovery_margins import CERTIFIED, recovery_margins
from atoms.checks.row_certificates import RowCertificates, RowCertificatesCheck
from atoms.errors import AtomsError


@pytest.fixture(scope="module")
def data(planted_store):
    from atoms.activations.datamodule import ActivationDataModule

    return ActivationDataModule(store=str(planted_store), batch_size=256, pool_mib=8)


@pytest.fixture(scope="module")
def truth(data):
    """The planted atoms, pursued about the mean row."""

    def make(k: int = 4, nonnegative: bool = True) -> Pursuer:
        unit = Pursuer(data.truth, data.geometry(SITE), k, nonnegative)
        unit.centre = data.moments(SITE).mean.float()
        return unit

    return make


def test_columns_are_what_one_row_at_a_time_gives(data, truth):
    subject = subject_of(truth(3, nonnegative=False), data, rows=200)
    found = find(RowCertificatesCheck(subject))
    assert len(found) == 200
    assert found.index.tolist() == subject.held_out.places[:200].tolist()
    assert found.max_k == 6
    rows = subject.held_out.sample(len(subject.held_out))[SITE][:200]
    codes = subject.unit.encode(rows)
    mean = subject.train.moments.mean
    rebuilt = (codes.to_dense() @ subject.unit.atoms + subject.unit.centre).double()
    metric = subject.geometry.matrix()
    for row in (0, 17, 199):
        missing, spread = rows[row].double() - rebuilt[row], rows[row].double() - mean
        assert found.error[row].item() == pytest.approx((missing @ missing / (spread @ spread)).item(), rel=1e-4)
        aip = (missing @ metric @ missing) / (spread @ metric @ spread)
        assert found.error_aip[row].item() == pytest.approx(aip.item(), rel=1e-4)
        own = codes.to_dense()[row].double() * subject.norms
        support = own.nonzero().squeeze(1)
        alone = recovery_margins(subject.directions, support[None], own[support][None])
        assert found.k[row] == found.used[row] == len(support)
        for name in ("fuchs", "one_sided", "erc"):
            column = getattr(found, "fuchs_one_sided" if name == "one_sided" else name)
            assert column[row].item() == pytest.approx(getattr(alone, name).item(), rel=1e-9)


def test_f_counts_rows_that_meet_all_three_and_rises_with_k_and_eta(data, truth):
    subject = subject_of(truth(), data, rows=300)
    check = RowCertificatesCheck(subject)
    found = find(check)
    assert found.one_sided
    by_hand = [
        float(error) <= 0.2 and int(used) <= 3 and float(margin) < CERTIFIED
        for error, used, margin in zip(found.error, found.used, found.fuchs_one_sided, strict=True)
    ]
    assert found.F(0.2, 3) == pytest.approx(sum(by_hand) / 300)
    curves = found.curves(subject.settings.etas)
    assert curves["k"] == list(range(1, 9))
    for eta in subject.settings.etas:
        curve = curves[f"eta {eta:g}"]
        assert curve == sorted(curve)
        assert curve == [pytest.approx(found.F(eta, k)) for k in range(1, 9)]
    assert all(low <= high for low, high in zip(curves["eta 0.05"], curves["eta 0.3"], strict=True))

    section = check.report({"rows": found})
    assert section.numbers["f"] == found.F(0.2, 8)
    assert section.numbers["f_k"] == 8
    assert section.numbers["certified"] == section.numbers["fuchs_one_sided"] >= section.numbers["fuchs"]
    assert section.numbers["fuchs"] >= section.numbers["erc"]
    assert "one-sided" in section.notes[0]
    (claim,) = section.claims
    assert claim.verdict is Verdict.NOT_REFUTED


def test_one_negative_code_makes_the_two_sided_certificate_count(data, truth):
    found = find(RowCertificatesCheck(subject_of(truth(nonnegative=False), data, rows=300)))
    assert not found.one_sided
    assert torch.equal(found.margin, found.fuchs)
    assert found.fuchs_one_sided.isinf().any()


def test_dependent_atoms_are_a_witness(data, truth):
    unit = truth(2)
    unit.atoms = torch.cat([unit.atoms, unit.atoms[:1]])
    encode = unit.encode

    def share(rows):  # whoever uses the first atom uses its double as well
        codes = encode(rows).to_dense()
        codes[:, -1] = codes[:, 0] = codes[:, 0] / 2
        return type(encode(rows)).from_dense(codes)

    unit.encode = share
    check = RowCertificatesCheck(subject_of(unit, data, rows=300))
    found = find(check)
    doubled = int(found.singular.sum())
    assert 0 < doubled < 300
    assert found.fuchs[found.singular].isinf().all()
    section = check.report({"rows": found})
    (claim,) = section.claims
    assert claim.verdict is Verdict.REFUTED
    assert claim.value == section.numbers["singular"] == doubled
    assert f"row {int(found.index[found.singular][0])}" in claim.why


def test_dense_units_are_cut_or_have_no_headline(data):
    check = RowCertificatesCheck(subject_of(dense(16), data, rows=200))
    section = check.report({"rows": find(check)})
    assert section.numbers["f"] == 0
    assert section.numbers["f_k"] == 8  # half of the dimensions
    assert section.numbers["left_out"] == 200
    assert section.numbers["certified"] == 0
    assert section.numbers["k_median"] == 16
    assert any("without checks.max_k" in note for note in section.notes)

    cut = RowCertificatesCheck(subject_of(dense(16), data, rows=200, max_k=4))
    found = find(cut)
    section = cut.report({"rows": found})
    assert section.numbers["cut"] == 200
    assert found.used.tolist() == [4] * 200
    assert found.error.min() > 1e-3  # of the cut code: the whole one is exact
    assert any("strongest atoms are judged" in note for note in section.notes)


def test_rows_without_atoms_are_counted_and_unique(data, truth):
    unit = truth(1)
    unit.target_l0 = None
    encode = unit.encode

    def thin(rows):
        codes = encode(rows).to_dense()
        return type(encode(rows)).from_dense(codes * (codes > codes.max() / 2))

    unit.encode = thin
    check = RowCertificatesCheck(subject_of(unit, data, rows=256))
    found = find(check)
    empty = found.k == 0
    assert 0 < int(empty.sum()) < 256
    assert (found.fuchs[empty] == 0).all()
    section = check.report({"rows": found})
    assert section.numbers["rows_without_atoms"] == int(empty.sum())
    assert any("no target L0" in note for note in section.notes)


def test_no_row_at_all(data, truth):
    with pytest.raises(AtomsError, match="no held-out row"):
        RowCertificatesCheck(subject_of(truth(), data)).compute()


def test_batches_of_any_size_give_the_same(data, truth):
    first, second = (
        find(RowCertificatesCheck(subject_of(truth(), data, rows=200, batch_rows=size))) for size in (64, 200)
    )
    assert isinstance(first, RowCertificates)
    for name in ("k", "used", "singular"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    for name in ("error", "fuchs", "fuchs_one_sided", "erc"):
        assert torch.allclose(getattr(first, name), getattr(second, name), rtol=1e-9, atol=1e-12)
