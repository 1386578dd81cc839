import math
from types import SimpleNamespace

import oracle
import pytest
import torch

from atoms.checks.claim import Verdict
from atoms.checks.separability import SeparabilityCheck
from atoms.checks.uniqueness import UniquenessCheck
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments
from atoms.metrics import q_star, q_star_null


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def section(judged, *k: int):
    separability = SeparabilityCheck(judged).compute()
    found = {"separability": separability, "uniqueness": None}
    if k:
        found["rows"] = SimpleNamespace(k=torch.tensor(k))
    return separability, UniquenessCheck(judged).report(found)


def test_the_oracle_is_unique_up_to_eight_atoms():
    judged = oracle.subject(oracle.dictionary(), oracle.geometry(), 20)
    _, found = section(judged, *[3] * 10, *[8] * 9, 9)
    assert [claim.verdict for claim in found.claims] == [
        Verdict.GUARANTEED, Verdict.GUARANTEED, Verdict.NOT_GUARANTEED,
    ]  # fmt: skip
    assert {found.numbers[name] for name in ("k_mu", "k_best", "k_babel", "k_spark")} == {8}
    assert found.numbers["k_welch"] == max(k for k in range(1, 50) if (2 * k - 1) / math.sqrt(511) < 1)


def test_beyond_welch_it_is_unattainable_and_the_limit_is_named():
    judged = oracle.subject(normal(0, 1536, 384), AtomicInnerProduct.from_atoms(torch.eye(384)), 20)
    _, found = section(judged, 1, 11, 12)
    assert [claim.verdict for claim in found.claims] == [
        Verdict.NOT_GUARANTEED, Verdict.UNATTAINABLE, Verdict.UNATTAINABLE,
    ]  # fmt: skip
    assert found.numbers["k_welch"] == 11
    assert "beyond K = 11" in found.claims[2].why


def test_one_metric_in_which_the_condition_holds_is_enough():
    """Orthogonal in Euclid's, not in S: unique all the same."""
    metric = AtomicInnerProduct.from_moments(Moments.from_rows(normal(1, 300, 8) @ normal(2, 8, 8)))
    separability, found = section(oracle.subject(torch.eye(8), metric, 5), 4, 4, 4)
    assert separability.maximum > 1 / 7
    assert separability.best_power == 0
    assert {claim.verdict for claim in found.claims} == {Verdict.GUARANTEED}
    assert "mu at p = 0" in found.claims[0].why
    assert found.numbers["flag_basis"] == 1
    assert found.numbers["k_best"] == 8


def test_stability_is_read_beside_its_null():
    judged = oracle.subject(normal(3, 64, 16), AtomicInnerProduct.from_atoms(torch.eye(16)), 20)
    separability, found = section(judged, 1, 1, 2, 3, 3, 4)
    histogram = torch.zeros(65, dtype=torch.int64)
    histogram[1:5] = torch.tensor([2, 1, 2, 1])
    for reading in ("pairs", "atoms", "max"):
        expected = q_star(separability.aip, histogram, reading).q, q_star_null(16, 64, histogram, reading).q
        assert (found.numbers[f"q_{reading}"], found.numbers[f"q_{reading}_null"]) == expected
        assert found.numbers[f"q_{reading}_excess"] == expected[0] - expected[1]
        curve = found.tables[f"q_{reading}"]
        assert len(curve["q"]) == len(curve["mu"]) == len(curve["k"]) == len(curve["limit"])
    assert found.numbers["flag_single"] == found.numbers["flag_basis"] == 0


def test_degenerate_optima_are_flagged():
    metric = AtomicInnerProduct.from_moments(Moments.from_rows(normal(4, 300, 16)), ridge=0.0)
    basis = oracle.subject(metric.unmap(), metric, 5)
    basis.unit.atoms = metric.unmap()
    _, found = section(basis, 16, 16, 16)
    assert [found.numbers[f"q_{reading}"] for reading in ("pairs", "atoms", "max")] == [1, 1, 1]
    assert found.numbers["flag_basis"] == 1
    assert any("whiten" in note for note in found.notes)
    _, found = section(oracle.subject(normal(5, 64, 16), metric, 5), 1, 1, 1)
    assert found.numbers["flag_single"] == 1
    assert any("pure noise" in note for note in found.notes)


def test_what_is_missing_is_said():
    judged = oracle.subject(normal(5, 64, 16), AtomicInnerProduct.from_atoms(torch.eye(16)), 5)
    _, found = section(judged)
    assert any("q* is missing" in note for note in found.notes)
    assert "q_pairs" not in found.numbers
    assert {claim.verdict for claim in found.claims} == {Verdict.NOT_APPLICABLE}
    with pytest.raises(AtomsError, match="needs the check separability"):
        UniquenessCheck(judged).report({})
