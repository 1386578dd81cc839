import math
from types import SimpleNamespace

import oracle
import pytest
import torch

from atoms.checks import identifiability
from atoms.checks.claim import Verdict
from atoms.checks.identifiability import IdentifiabilityCheck
from atoms.checks.separability import SeparabilityCheck
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments
from atoms.sae import SparseCodes


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measure(judged, codes, noise=0.0, batch=16):
    check = IdentifiabilityCheck(judged)
    for start in range(0, len(codes), batch):
        own = noise if isinstance(noise, float) else noise[start : start + batch]
        check.update(oracle.encoded(judged, codes[start : start + batch], own, start))
    found = {"identifiability": check.compute(), "separability": SeparabilityCheck(judged).compute()}
    section = check.report(found)
    return found["identifiability"], section, {claim.name: claim.verdict for claim in section.claims}


@pytest.mark.parametrize(("k", "ratio", "holds"), [(3, 0.8, 1), (4, 0.8, 1), (3, 0.25, 0), (7, 0.8, 0), (9, 0.8, 0)])
def test_the_oracle_has_windows_where_the_theorem_says(k, ratio, holds):
    judged = oracle.subject(oracle.dictionary(), oracle.geometry(), 60, solved_rows=2)
    own, section, verdicts = measure(judged, oracle.codes(oracle.ATOMS, k, ratio, 60))
    assert section.numbers["window"] == section.numbers["coverage"] == holds
    assert verdicts["t5"] is (Verdict.GUARANTEED if holds else Verdict.NOT_GUARANTEED)
    assert verdicts["t5_deployed"] is Verdict.NOT_APPLICABLE
    if holds:
        assert verdicts["support_synthetic"] is verdicts["support_real"] is Verdict.NOT_REFUTED
        # in units of ‖d‖_S = 1 / sqrt(2)
        low, high = k / 16 / math.sqrt(2), (ratio - (k - 1) / 16) / math.sqrt(2)
        assert section.numbers["tau"] == pytest.approx((low + high) / 2, rel=1e-5)
        assert (own.synthetic_off <= low + 1e-6).all()
        assert (own.synthetic_on >= high - 1e-6).all()
    assert own.refits["synthetic_ls"].max() < 1e-10
    assert section.numbers["real_ls_q50"] < 1e-6


def test_noise_spoils_amplitudes_of_real_rows_and_not_the_theorem():
    judged = oracle.subject(oracle.dictionary(), oracle.geometry(), 60)
    noise = 0.1 * normal(0, 60, oracle.WIDTH).float()
    _, section, verdicts = measure(judged, oracle.codes(oracle.ATOMS, 3, 0.8, 60), noise)
    assert verdicts["t5"] is Verdict.GUARANTEED
    assert verdicts["support_synthetic"] is Verdict.NOT_REFUTED
    assert verdicts["support_real"] is Verdict.REFUTED
    assert section.numbers["real_ls_q50"] > 0.01
    assert 0 < section.numbers["error_ls_q50"] <= section.numbers["error_unit_q50"]
    assert section.numbers["error_ls_q50"] <= section.numbers["error_nnls_q50"] + 1e-12


def test_what_is_measured_is_what_a_dense_encoder_does():
    metric = AtomicInnerProduct.from_moments(Moments.from_rows(normal(1, 300, 8) * torch.arange(1, 9)))
    atoms = normal(2, 20, 8).float()
    judged = oracle.subject(atoms, metric, 40)
    judged.unit.threshold = torch.linspace(0.1, 1.5, 20)
    judged.unit.power = 0.5
    judged.unit.centre = normal(3, 8).float()
    codes = oracle.codes(20, 3, 0.4, 40) * 2
    batch = oracle.encoded(judged, codes, normal(4, 40, 8).float())
    check = IdentifiabilityCheck(judged)
    check.update(batch)
    own = check.compute()

    norms = metric.norm(atoms.double())
    unit = atoms.double() / norms.unsqueeze(1)
    encoder = metric.matrix() @ unit.T
    scaled = codes.float().double() * norms
    for name, rows in (("synthetic", scaled @ unit), ("real", batch.rows.double() - judged.unit.centre.double())):
        pre = rows @ encoder
        for line in range(40):
            on = codes[line] > 0
            assert getattr(own, f"{name}_on")[line].item() == pytest.approx(pre[line, on].min().item(), abs=1e-9)
            off = max(pre[line, ~on].max().item(), 0)
            assert getattr(own, f"{name}_off")[line].item() == pytest.approx(off, abs=1e-9)
            fires = pre[line] >= judged.unit.threshold.double() * norms
            assert getattr(own, f"{name}_deployed")[line] == (fires == on).all()
            if name == "synthetic":
                error = (pre[line, on] - scaled[line, on]).norm() / scaled[line].norm()
                assert own.synthetic_error[line].item() == pytest.approx(error.item(), abs=1e-9)
            else:
                best = pre[line].topk(3).indices
                assert own.real_overlap[line].item() == pytest.approx(on[best].double().mean().item())
    lengths = {"S": norms, "encoder": metric.whiten(atoms.double(), 0.5).norm(dim=1)}
    for name, length in lengths.items():
        for line in range(40):
            on, theta = codes[line] > 0, judged.unit.threshold.double() * length
            amplitudes = own.amplitudes[name]
            assert amplitudes.low[line].item() == pytest.approx((codes[line] * length)[on].min().item(), rel=1e-6)
            assert amplitudes.high[line].item() == pytest.approx((codes[line] * length).max().item(), rel=1e-6)
            assert amplitudes.theta_on[line].item() == pytest.approx(theta[on].max().item())
            assert amplitudes.theta_off[line].item() == pytest.approx(theta[~on].min().item())


def test_deployed_thresholds_are_held_against_the_windows():
    judged = oracle.subject(oracle.dictionary(), oracle.geometry(), 30)
    judged.unit.threshold = torch.full((oracle.ATOMS,), 0.4)
    codes = oracle.codes(oracle.ATOMS, 3, 0.8, 30)
    _, section, verdicts = measure(judged, codes)
    assert verdicts["t5_deployed"] is Verdict.GUARANTEED
    assert section.numbers["synthetic_deployed"] == section.numbers["real_deployed"] == 1
    judged.unit.threshold[codes[5].argmax()] = 0.9  # off support of nearly all rows this harms nothing
    _, section, verdicts = measure(judged, codes)
    assert verdicts["t5_deployed"] is Verdict.NOT_GUARANTEED
    assert 0.8 < section.numbers["deployed_window"] < 1


def test_signed_codes_are_no_case_of_the_theorem():
    judged = oracle.subject(oracle.dictionary(), oracle.geometry(), 20)
    codes = oracle.codes(oracle.ATOMS, 3, 0.8, 20)
    _, section, verdicts = measure(judged, torch.where(codes == 1, -codes, codes))
    assert verdicts["t5"] is verdicts["t5_deployed"] is Verdict.NOT_APPLICABLE
    assert section.numbers["signed"] == 1


def test_where_no_dictionary_would_do_it_is_unattainable():
    atoms = normal(0, 256, 64)
    judged = oracle.subject(atoms, AtomicInnerProduct.from_atoms(atoms), 20)
    _, section, verdicts = measure(judged, oracle.codes(256, 12, 0.8, 20))
    assert verdicts["t5"] is Verdict.UNATTAINABLE
    assert math.isnan(section.numbers["tau"])


def test_silent_rows_and_atoms_of_zero_norm_are_left_out():
    atoms = torch.cat([oracle.dictionary(), torch.zeros(2, oracle.WIDTH)])
    judged = oracle.subject(atoms, oracle.geometry(), 20)
    codes = oracle.codes(oracle.ATOMS + 2, 3, 0.8, 20)
    codes[:, -2:] = 0
    codes[3] = 0
    codes[4, -1] = 1.0
    own, _, verdicts = measure(judged, codes)
    assert own.silent == 1
    assert 3 not in own.index.tolist()
    assert own.k[own.index == 4].item() == (codes[4] > 0).sum() - 1
    assert verdicts["support_synthetic"] is Verdict.NOT_REFUTED
    with pytest.raises(AtomsError, match="no held-out row uses an atom"):
        measure(judged, codes * 0)


def test_without_separability_there_are_measurements_alone():
    judged = oracle.subject(oracle.dictionary(), oracle.geometry(), 20)
    check = IdentifiabilityCheck(judged)
    check.update(oracle.encoded(judged, oracle.codes(oracle.ATOMS, 3, 0.8, 20)))
    section = check.report({"identifiability": check.compute()})
    assert [claim.name for claim in section.claims] == ["support_synthetic", "support_real"]
    assert math.isnan(section.numbers["epsilon"])
    assert section.numbers["synthetic_exact"] == 1


def test_blocks_of_rows_and_batches_change_nothing():
    judged = oracle.subject(oracle.dictionary(), oracle.geometry(), 100, solved_rows=2)
    small = oracle.subject(oracle.dictionary(), oracle.geometry(), 100, solved_rows=2, memory_mib=1)  # 64 rows at once
    codes = oracle.codes(oracle.ATOMS, 3, 0.5, 100)
    codes[7] = 0
    (first, *_), (second, *_) = measure(judged, codes), measure(small, codes, batch=100)
    assert torch.equal(first.index, second.index)
    torch.testing.assert_close(first.synthetic_on, second.synthetic_on)
    torch.testing.assert_close(first.amplitudes["S"].low, second.amplitudes["S"].low)
    assert first.refits.keys() == second.refits.keys()
    assert torch.equal(first.refits["index"], second.refits["index"])


def test_large_supports_are_refitted_on_fewer_rows(monkeypatch):
    judged = oracle.subject(oracle.dictionary(), oracle.geometry(), 40, solved_rows=5)
    monkeypatch.setattr(identifiability, "_WORK", 40 * 3**4 / 4)
    own, *_ = measure(judged, oracle.codes(oracle.ATOMS, 3, 0.5, 40))
    assert own.refits["index"].tolist() == list(range(0, 40, 4))


def test_an_entry_of_zero_is_no_atom():
    judged = oracle.subject(oracle.dictionary(), oracle.geometry(), 1)
    batch = oracle.encoded(judged, oracle.codes(oracle.ATOMS, 3, 0.8, 1))
    values = batch.codes.values.clone()
    values[0] = 0
    codes = SparseCodes(batch.codes.offsets, batch.codes.indices, values, batch.codes.width)
    check = IdentifiabilityCheck(judged)
    check.update(SimpleNamespace(**{**vars(batch), "codes": codes}))
    assert check.compute().k.tolist() == [2]
