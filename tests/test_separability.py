import math
from types import SimpleNamespace

import oracle
import pytest
import torch

from atoms.checks.claim import Verdict
from atoms.checks.separability import SeparabilityCheck
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments, coherence


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def skewed(width: int) -> AtomicInnerProduct:
    return AtomicInnerProduct.from_moments(Moments.from_rows(normal(1, 500, width) * torch.arange(1, width + 1)))


def section(judged, **found):
    check = SeparabilityCheck(judged)
    own = check.compute()
    return own, check.report({"separability": own, **found})


def rows(*k: int):
    return SimpleNamespace(k=torch.tensor(k))


def test_every_metric_is_measured_exactly_and_the_best_is_the_least():
    metric, atoms = skewed(12), normal(2, 60, 12).float()
    judged = oracle.subject(atoms, metric, 10, k=3)
    judged.unit.power = 0.3
    own, found = section(judged)
    assert own.maximum == found.numbers["mu"] == coherence(atoms, aip=metric).maximum
    assert own.euclid.maximum == coherence(atoms, aip=None).maximum
    assert own.encoder.maximum == pytest.approx(coherence(metric.whiten(atoms.double(), 0.3), aip=None).maximum)
    assert own.powers.tolist() == sorted([0.3, *(i / 8 for i in range(9))])
    assert own.best_maximum == own.maxima.min()
    assert own.maxima[own.powers == own.best_power] == own.best_maximum
    assert own.maxima[-1] == own.maximum
    assert len(own.babel) == 6  # twice the target
    torch.testing.assert_close(own.babel, coherence(atoms, aip=metric, babel=6).babel)


def test_tables_are_whole():
    judged = oracle.subject(normal(2, 60, 12), skewed(12), 10)
    own, found = section(judged)
    assert own.encoder is None
    assert math.isnan(found.numbers["mu_encoder"])
    for table in found.tables.values():
        assert len({len(column) for column in table.values()}) == 1
    for name in ("pairs", "atoms"):
        assert sum(found.tables[name]["aip"]) == pytest.approx(1)
    assert len(own.babel) == 59  # no longer than there are other atoms


def test_what_is_automatic_is_said_to_be():
    own, found = section(oracle.subject(normal(2, 60, 12), skewed(12), 10))
    assert own.own_leverage == pytest.approx(12)
    assert own.own_rms == pytest.approx(own.welch, rel=0.05)
    assert any("no evidence" in note for note in found.notes)
    flat = normal(3, 60, 12)
    flat[:, 0] = 0
    own, found = section(oracle.subject(flat, skewed(12), 10))
    assert math.isnan(own.own_rms)
    assert any("do not span" in note for note in found.notes)


def test_epsilon_of_the_oracle():
    judged = oracle.subject(oracle.dictionary(), oracle.geometry(), 20)
    _, found = section(judged, rows=rows(*[3] * 10, *[9] * 9, 17))
    assert [claim.name for claim in found.claims] == ["epsilon_median", "epsilon_q95", "epsilon_max"]
    assert [claim.inputs["k"] for claim in found.claims] == [3, 9, 17]
    assert [claim.verdict for claim in found.claims] == [Verdict.GUARANTEED, Verdict.REFUTED, Verdict.UNATTAINABLE]
    assert found.claims[1].value == pytest.approx(1 / 16)
    assert found.claims[1].threshold == pytest.approx(1 / 17)


def test_without_rows_the_target_speaks_and_without_it_nobody():
    atoms, metric = oracle.dictionary(), oracle.geometry()
    _, found = section(oracle.subject(atoms, metric, 20, k=3))
    assert [claim.verdict for claim in found.claims] == [Verdict.GUARANTEED, *[Verdict.NOT_APPLICABLE] * 2]
    _, found = section(oracle.subject(atoms, metric, 20))
    assert {claim.verdict for claim in found.claims} == {Verdict.NOT_APPLICABLE}


def test_the_witness_is_named_and_duplicates_counted():
    atoms = normal(4, 50, 12)
    atoms[31] = -3 * atoms[7]
    atoms[40] = 0
    own, found = section(oracle.subject(atoms, skewed(12), 10), rows=rows(2, 2, 2))
    assert own.aip.pair == (7, 31)
    assert found.claims[0].verdict is Verdict.REFUTED
    assert "atoms 7 and 31" in found.claims[0].why
    assert found.numbers["zero_norm"] == 1
    assert found.numbers["near_duplicates"] == (own.aip.per_atom > 0.9).sum() >= 2


def test_a_unit_without_a_pair_is_refused():
    atoms = torch.zeros(5, 12)
    atoms[2] = 1
    with pytest.raises(AtomsError, match="1 atoms of non-zero norm of 5"):
        SeparabilityCheck(oracle.subject(atoms, skewed(12), 10)).compute()
    with pytest.raises(AtomsError, match="NaN"):
        SeparabilityCheck(oracle.subject(atoms + math.nan, skewed(12), 10)).compute()
