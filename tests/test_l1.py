import math
from types import SimpleNamespace

import pytest
import torch
from judging import Pursuer, dense, find, subject_of

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.planted import SITE
from atoms.checks.claim import Verdict
from atoms.checks.l1 import PREDICATES, L1Check
from atoms.errors import AtomsError


@pytest.fixture(scope="module")
def data(planted_store):
    return ActivationDataModule(store=str(planted_store), batch_size=256, pool_mib=8)


def truth(data, k: int = 3, nonnegative: bool = True) -> Pursuer:
    unit = Pursuer(data.truth, data.geometry(SITE), k, nonnegative)
    unit.centre = data.moments(SITE).mean.float()
    return unit


def separability(mu: float, width: int = 16, alive: int = 24) -> SimpleNamespace:
    return SimpleNamespace(maximum=mu, width=width, alive=alive)


@pytest.mark.parametrize("nonnegative", [True, False])
def test_solved_rows_agree_with_their_certificates_and_prove_themselves(data, nonnegative):
    subject = subject_of(truth(data, 3, nonnegative), data, solved_rows=64)
    check = L1Check(subject)
    found = find(check)
    assert len(found) == 64
    assert found.one_sided == nonnegative
    assert found.bp_gap.max() < 1e-8
    assert found.bpdn_gap.max() < 1e-8
    assert found.certified.any()
    assert found.recovered[found.certified].all()
    assert (found.l1_ratio <= 1 + 1e-9).all()  # the unit's own code is within its own radius
    assert (found.omp_error <= 1 + 1e-6).all()  # the unit is that very pursuit, but for float32
    assert (found.omp_overlap == 1).double().mean() > 0.95
    assert torch.allclose(found.omp_error_refit, torch.ones(64, dtype=torch.float64), rtol=1e-4)
    section = check.report({"l1": found})
    assert section.numbers["bp_recovered_certified"] == 1.0
    assert section.numbers["bp_gap"] == found.bp_gap.max()
    assert len(section.tables["solved"]["index"]) == 64
    assert all(claim.verdict is Verdict.NOT_APPLICABLE for claim in section.claims if claim.name != "only_code")
    assert len({claim.name for claim in section.claims}) == len(section.claims) == 10


def test_a_wasteful_code_is_refuted_by_a_better_one(data):
    """A unit that adds two atoms for nothing is not the only one that is so sparse and close."""
    unit = truth(data, 2)
    encode = unit.encode

    def wasteful(rows):
        codes = encode(rows).to_dense()
        codes[torch.arange(len(codes)), (codes == 0).to(torch.int8).argmax(1)] = 0.3
        return type(encode(rows)).from_dense(codes)

    unit.encode = wasteful
    check = L1Check(subject_of(unit, data, solved_rows=40))
    found = find(check)
    (claim,) = (claim for claim in check.report({"l1": found}).claims if claim.name == "only_code")
    assert found.witness.double().mean() > 0.9
    assert claim.verdict is Verdict.REFUTED
    assert claim.value == pytest.approx(found.witness.double().mean().item())


def test_an_orthonormal_dictionary_is_its_own_solution(data):
    """Whitened axes at thresholds: every sparse code is recovered, and no other is as close with as few atoms."""
    geometry = data.geometry(SITE)
    unit = Pursuer(geometry.unwhiten(torch.eye(16, dtype=torch.float64)), geometry, 3, nonnegative=False)
    found = find(L1Check(subject_of(unit, data, solved_rows=30)))
    assert found.certified.all()
    assert found.recovered.all()
    assert (found.omp_overlap == 1).all()
    assert not found.witness[found.bpdn_k >= found.used].any()


@pytest.mark.parametrize("name", PREDICATES)
def test_named_conditions_at_their_edges(data, name):
    check = L1Check(subject := subject_of(truth(data), data, solved_rows=4))
    solved = find(check)
    rows = SimpleNamespace(k=torch.tensor([2] * 11 + [3] * 8 + [40]))
    limit = PREDICATES[name].factor / 3

    def verdicts(mu: float) -> dict[str, Verdict]:
        section = check.report({"l1": solved, "rows": rows, "separability": separability(mu, width=384, alive=1536)})
        return {claim.name.removeprefix(f"{name}_"): claim for claim in section.claims if claim.name.startswith(name)}

    below, above = verdicts(limit * 0.999), verdicts(limit * 1.001)
    assert [below[level].inputs["k"] for level in ("median", "q95", "max")] == [2, 3, 40]
    assert below["median"].verdict is Verdict.GUARANTEED
    assert above["median"].verdict is Verdict.NOT_GUARANTEED
    assert below["q95"].verdict is Verdict.NOT_GUARANTEED
    assert below["max"].verdict is Verdict.UNATTAINABLE
    assert below["median"].threshold == pytest.approx(limit)
    assert below["median"].value == pytest.approx(limit * 0.999)
    assert subject.num_atoms == 24


def test_predicates_nest():
    for mu in (0.01, 0.05, 0.1, 0.2, 0.4):
        for k in range(1, 40):
            holds = {name: predicate.holds(k, mu) for name, predicate in PREDICATES.items()}
            assert holds["candes"] <= holds["cai"] <= holds["tropp"]
            assert holds == {name: (2 * k - 1) * mu < each.factor for name, each in PREDICATES.items()}


def test_without_a_code_there_is_nothing_to_solve(data):
    check = L1Check(subject_of(dense(16), data, solved_rows=8))
    with pytest.raises(AtomsError, match="none of the 8 rows"):
        find(check)


def test_a_perfect_code_has_no_residual_to_compare_with(data):
    """Rows that are exact sums leave a radius of rounding; nothing may become infinite but the error's ratio."""
    unit = truth(data, 8, nonnegative=False)
    unit.target_l0 = None
    found = find(L1Check(subject_of(unit, data, solved_rows=10)))
    for name in ("bp_gap", "bpdn_gap", "l1_ratio", "bpdn_overlap"):
        assert all(math.isfinite(value) for value in getattr(found, name).tolist()), name
