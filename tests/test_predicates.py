"""The conditions of theorems: on a dictionary where each is known to hold or not, and how they nest."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from atoms.checks import predicates
from atoms.checks.predicates import threshold_window
from atoms.geometry import coherence

COHERENCE = ("gershgorin_rip", "donoho_elad", "tropp_coherence", "candes", "cai_zhang")
BABEL = ("babel_rip", "babel_uniqueness", "tropp_babel")
RIP = {"gershgorin_rip", "babel_rip"}
UNIQUE = {"donoho_elad", "tropp_coherence", "babel_uniqueness", "tropp_babel"}

# K, least over largest coefficient, noise, and what does not hold
TABLE = [
    (3, 0.8, 0.0, set()),
    (4, 0.8, 0.0, {"candes"}),
    (3, 0.25, 0.0, {"threshold_window"}),
    (7, 0.8, 0.0, {"candes", "cai_zhang", "threshold_window"}),
    (9, 0.8, 0.0, {"candes", "cai_zhang", "threshold_window"} | UNIQUE),
    (17, 0.8, 0.0, {"candes", "cai_zhang", "threshold_window"} | UNIQUE | RIP),
    (3, 0.8, 0.1, {"representability", "amplitude"}),
]


@pytest.fixture(scope="module")
def found():
    return coherence(oracle.dictionary(), aip=oracle.geometry(), babel=40)


def test_the_oracle_is_what_it_says(found):
    assert found.maximum == pytest.approx(oracle.MU, abs=1e-12)
    k = torch.arange(1, 41, dtype=torch.float64)
    torch.testing.assert_close(found.babel, oracle.MU * k, rtol=0, atol=1e-11)
    own = coherence(oracle.dictionary(), aip=None)
    assert own.histogram[0] + own.histogram[4095:4097].sum() == oracle.ATOMS * (oracle.ATOMS - 1) // 2


@pytest.mark.parametrize(("k", "ratio", "noise", "expected"), TABLE)
def test_the_oracle_table(found, k, ratio, noise, expected):
    mu, atoms, metric = found.maximum, oracle.dictionary(), oracle.geometry()
    failing = {name for name in COHERENCE if not getattr(predicates, name)(k, mu)}
    failing |= {name for name in BABEL if not getattr(predicates, name)(k, found.babel)}

    codes = oracle.codes(oracle.ATOMS, k, ratio, 50)
    rows = codes @ atoms + noise * torch.randn(50, oracle.WIDTH, generator=torch.Generator().manual_seed(1))
    scaled = codes * metric.norm(atoms)
    present = scaled > 0
    assert (present.sum(1) == k).all()
    low, high = scaled.masked_fill(~present, 9).amin(1), scaled.amax(1)
    begin, end = threshold_window(torch.full((50,), k), mu, low, high)
    assert len(set((begin < end).tolist())) == 1
    failing |= {"threshold_window"} if not (begin < end).all() else set()

    for row, truth in zip(rows, codes, strict=True):
        support = truth > 0
        fitted = torch.linalg.lstsq(atoms[support].T, row.unsqueeze(1)).solution.squeeze(1)
        if (fitted @ atoms[support] - row).norm() > 1e-10 * row.norm():
            failing.add("representability")
        if (fitted - truth[support]).norm() > 1e-10 * truth.norm():
            failing.add("amplitude")
    assert failing == expected


@given(st.integers(1, 60), st.floats(0, 1), st.floats(1e-3, 1))
def test_the_conditions_nest(k, mu, ratio):
    holds = {name: getattr(predicates, name)(k, mu) for name in COHERENCE}
    assert holds["tropp_coherence"] == holds["donoho_elad"]
    chain = [holds[name] for name in ("candes", "cai_zhang", "donoho_elad", "gershgorin_rip")]
    assert chain == sorted(chain)
    assume(abs((2 * k - 1) * mu - 1) > 1e-6)  # at equality the predicates leave room for rounding
    begin, end = threshold_window(k, mu, ratio, 1.0)
    assert holds["donoho_elad"] or begin >= end
    assert (begin < end) == (ratio > mu * (2 * k - 1)) or abs(ratio - mu * (2 * k - 1)) < 1e-9


@given(st.integers(1, 60), st.floats(0, 1), st.floats(0, 1))
def test_fewer_atoms_and_less_coherence_never_hurt(k, mu, share):
    for name in COHERENCE:
        predicate = getattr(predicates, name)
        assert predicate(k, mu * share) >= predicate(k, mu)
        assert predicate(k, mu) >= predicate(k + 1, mu)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(2, 12), st.floats(0, 0.4))
def test_babel_forms_are_never_stricter_and_nest(seed, count, spread):
    draw = np.random.default_rng(seed)
    atoms = torch.from_numpy(np.eye(count, 12) + spread * draw.standard_normal((count, 12)))
    found = coherence(atoms, aip=None, babel=12)
    for k in range(1, 7):
        rip, unique, recovered = (getattr(predicates, name)(k, found.babel) for name in BABEL)
        assert rip >= unique >= recovered >= predicates.tropp_coherence(k, found.maximum)
        assert rip >= predicates.gershgorin_rip(k, found.maximum)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 8), st.floats(1e-3, 1.0))
def test_what_is_promised_is_so(seed, count, spread):
    """Independence of any k atoms, for all supports there are."""
    draw = np.random.default_rng(seed)
    atoms = np.eye(count, 6) + spread * draw.standard_normal((count, 6))
    found = coherence(torch.from_numpy(atoms), aip=None, babel=8)
    unit = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    for k in range(1, count + 1):
        if predicates.babel_rip(k, found.babel):
            subset = draw.permutation(count)[:k]
            values = np.linalg.eigvalsh(unit[subset] @ unit[subset].T)
            assert values[0] > 0
            mu_1 = found.babel[k - 2].item() if k > 1 else 0
            assert 1 - mu_1 - 1e-9 <= values[0] <= values[-1] <= 1 + mu_1 + 1e-9


def test_a_condition_met_by_rounding_alone_is_missed():
    assert not predicates.gershgorin_rip(17, 1 / 16 * (1 - 1e-15))
    assert predicates.gershgorin_rip(17, 1 / 16 * (1 - 1e-8))
    assert predicates.gershgorin_rip(1, 1.0)
    assert not predicates.donoho_elad(1, 1.0)


def test_a_babel_function_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="up to 3, not to 4"):
        predicates.tropp_babel(4, torch.zeros(3))
