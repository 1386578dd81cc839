import math
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.checks import isometry
from atoms.checks.claim import Verdict
from atoms.checks.isometry import IsometryCheck, condition_bound, extremes
from atoms.checks.separability import SeparabilityCheck
from atoms.errors import AtomsError


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measure(judged, codes):
    check = IsometryCheck(judged)
    for start in range(0, len(codes), 16):
        check.update(oracle.encoded(judged, codes[start : start + 16], start=start))
    return check, check.compute()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.lists(st.integers(1, 14), min_size=1, max_size=12), st.sampled_from([1, 64]))
def test_extremes_are_those_of_every_gram_matrix(seed, sizes, memory):
    draw = np.random.default_rng(seed)
    unit = torch.nn.functional.normalize(normal(seed, 20, 8), dim=1)
    supports = [torch.from_numpy(draw.permutation(20)[:size]) for size in sizes]
    found = extremes(unit, supports, torch.arange(len(sizes)).unsqueeze(1), memory)
    assert found.k.tolist() == sizes
    for support, low, high, rank in zip(supports, found.lowest, found.highest, found.effective_rank, strict=True):
        values = np.linalg.eigvalsh((unit[support] @ unit[support].T).numpy())
        shares = values[values > 1e-12] / len(support)
        assert rank.item() == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
        assert low.item() == pytest.approx(max(values[0], 0), abs=1e-12)
        assert high.item() == pytest.approx(values[-1], abs=1e-12)
    assert found.singular.tolist() == [size > 8 for size in sizes]


def test_where_supports_are_large_evenly_many_are_solved(monkeypatch):
    unit, supports = torch.eye(6, dtype=torch.float64), [torch.arange(4)] * 10
    monkeypatch.setattr(isometry, "_WORK", 5 * 4**3)
    found = extremes(unit, supports, torch.arange(10).unsqueeze(1), 64)
    assert found.rows.squeeze(1).tolist() == [0, 2, 4, 6, 8]
    assert found.delta.max() < 1e-12
    assert found.effective_rank.tolist() == pytest.approx([4] * 5)


def test_the_oracle_is_measured_within_its_bounds():
    judged = oracle.subject(oracle.dictionary(), oracle.geometry(), 40, solved_rows=5)
    check, own = measure(judged, oracle.codes(oracle.ATOMS, 3, 0.8, 40))
    assert own.sampled == 40
    assert own.observed.rows.squeeze(1).tolist() == list(range(40))
    for found, most in ((own.observed, 3), (own.random, 3), (own.unions, 6)):
        assert found.k.max() <= most
        assert found.delta.max() <= (most - 1) / 16 + 1e-6
        assert found.condition.max() <= condition_bound(most, oracle.MU) + 1e-5
    assert (own.unions.rows[:, 0] != own.unions.rows[:, 1]).all()
    assert sorted(own.unions.rows[:, 1].tolist()) == list(range(40))
    separability = SeparabilityCheck(judged).compute()
    rows = SimpleNamespace(k=torch.tensor([3] * 12 + [16] * 11 + [17]))
    section = check.report({"isometry": own, "separability": separability, "rows": rows})
    verdicts = {claim.name: claim.verdict for claim in section.claims}
    assert verdicts == {
        "t2_median": Verdict.GUARANTEED,
        "t2_q95": Verdict.GUARANTEED,
        "t2_max": Verdict.NOT_GUARANTEED,
        "observed": Verdict.NOT_REFUTED,
        "unions": Verdict.NOT_REFUTED,
        "random": Verdict.NOT_REFUTED,
    }
    assert section.numbers["kappa_bound_q50"] == pytest.approx((1 + 2 / 16) / (1 - 2 / 16), rel=1e-5)


def test_a_dependent_support_is_a_witness():
    atoms = torch.cat([torch.eye(6), torch.eye(6)[:1]])
    judged = oracle.subject(atoms, oracle.AtomicInnerProduct.from_atoms(atoms), 3, solved_rows=1)
    codes = torch.zeros(3, 7, dtype=torch.float64)
    codes[0, [0, 1]], codes[1, [0, 2, 6]], codes[2, [3, 6]] = 1.0, 1.0, 1.0
    check, own = measure(judged, codes)
    section = check.report({"isometry": own})
    observed, unions, _ = section.claims
    assert observed.verdict is unions.verdict is Verdict.REFUTED
    assert "row 1: 3 atoms are dependent; 1 of 3" in observed.why
    assert math.isnan(section.numbers["kappa_observed_max"])
    assert section.numbers["singular_observed"] == 1


def test_bounds_no_dictionary_reaches_are_unattainable():
    atoms = normal(0, 64, 8)
    judged = oracle.subject(atoms, oracle.AtomicInnerProduct.from_atoms(atoms), 8)
    check, own = measure(judged, oracle.codes(64, 5, 0.5, 8))
    separability = SeparabilityCheck(judged).compute()
    rows = SimpleNamespace(k=torch.tensor([1, 2, 9]))
    section = check.report({"isometry": own, "separability": separability, "rows": rows})
    verdicts = [claim.verdict for claim in section.claims[:3]]
    assert verdicts[0] is Verdict.GUARANTEED
    assert section.claims[2].verdict is Verdict.UNATTAINABLE


def test_dense_units_and_single_rows_are_measured_too():
    atoms = normal(1, 20, 6)
    judged = oracle.subject(atoms, oracle.AtomicInnerProduct.from_atoms(atoms), 1)
    check, own = measure(judged, torch.ones(1, 20, dtype=torch.float64))
    section = check.report({"isometry": own})
    assert section.claims[0].verdict is Verdict.REFUTED
    assert section.claims[1].verdict is Verdict.NOT_APPLICABLE
    assert own.observed.highest.item() == pytest.approx(
        torch.linalg.eigvalsh(judged.directions @ judged.directions.T)[-1].item()
    )


def test_atoms_of_zero_norm_are_no_part_of_a_support():
    atoms = torch.cat([torch.eye(4), torch.zeros(2, 4)])
    judged = oracle.subject(atoms, oracle.AtomicInnerProduct.from_atoms(atoms), 2)
    codes = torch.zeros(2, 6, dtype=torch.float64)
    codes[0, [0, 4]], codes[1, 5] = 1.0, 1.0
    _, own = measure(judged, codes)
    assert own.sampled == 1
    assert own.observed.k.tolist() == [1]
    with pytest.raises(AtomsError, match="none of the sampled"):
        measure(judged, codes[1:].clone())
