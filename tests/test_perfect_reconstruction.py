"""When components determine what they are components of: the condition, what decides, and what is said of it."""

import math
import re
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_variable import variables

from atoms.errors import AtomsError
from atoms.information import (
    FewSamplesWarning,
    SampleSpace,
    Variable,
    Verdict,
    complement,
    determines,
    entropy,
    equivalent,
    estimate,
    from_samples,
    from_table,
    independent,
    join,
    meet,
    perfect_reconstruction,
    redundancy,
)
from atoms.information.reconstruction import Reconstruction

laws = settings(deadline=None)


def solve(x: Variable, components: list[Variable]) -> Reconstruction:
    """The verdict, of samples however few."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        return perfect_reconstruction(x, components, resamples=0)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Variable, list[Variable]]:
    """A variable and functions of it."""
    (x,) = draw(variables(1)) if draw(st.booleans()) else [join(*draw(variables(3)))]
    values = st.lists(st.integers(0, 2), min_size=x.size, max_size=x.size)
    maps = draw(st.lists(values, min_size=1, max_size=4))
    return x, [x.space.variable(lambda _, f=f: np.array(f)[x.labels], f"f{n}") for n, f in enumerate(maps)]


@st.composite
def products(draw: st.DrawFn) -> tuple[Variable, list[Variable]]:
    """Independent components of a variable that tells them all, or less."""
    shares = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(lambda cells: np.array(cells) / sum(cells))
    first, second = draw(shares), draw(shares)
    components = from_table(np.outer(first, second))
    hidden = components[0].space.variable(
        draw(st.lists(st.integers(0, 1), min_size=len(first) * len(second), max_size=len(first) * len(second)))
    )
    return join(*components, hidden), list(components)


@laws
@given(problems())
def test_the_gap_is_entropy_less_what_components_tell_and_repeat(found):
    x, components = found
    result = solve(x, components)
    told = sum(map(entropy, components))
    assert result.gap == pytest.approx(entropy(x) - told + redundancy(*components), abs=1e-9)
    assert result.joint == pytest.approx(told - redundancy(*components), abs=1e-9)
    assert result.redundancy == pytest.approx(redundancy(*components), abs=1e-9)
    assert result.entropy == pytest.approx(entropy(x), abs=1e-9)
    assert result.slack == pytest.approx(told - entropy(x), abs=1e-9)
    assert result.independent == independent(*components)


@laws
@given(problems())
def test_the_condition_is_the_same_in_both_metrics(found):
    x, components = found
    result = solve(x, components)
    h, n = entropy(x), len(components)
    far = sum(h - entropy(component) for component in components)
    assert result.condition == (far <= (n - 1) * h + 1e-8) == (sum(map(entropy, components)) >= h - 1e-8)
    assert result.condition == (result.rajski_slack >= -1e-8)
    if h:
        assert result.rajski_slack * h == pytest.approx(result.slack, abs=1e-9)
    for component, told in zip(components, result.components, strict=True):
        assert told.distance == pytest.approx(told.unknown, abs=1e-9)
        assert told.distance == pytest.approx(h - entropy(component), abs=1e-9)
        assert told.rajski == pytest.approx(1 - entropy(component) / h if h else 0, abs=1e-9)
        assert (told.name, told.size, told.extra) == (component.name, component.size, 0)
        assert told.is_function
        assert told.witness is None


@laws
@given(problems() | products())
def test_the_verdict(found):
    x, components = found
    result = solve(x, components)
    perfect = equivalent(join(*components), x)
    assert (result.verdict is Verdict.PERFECT) == perfect
    assert perfect == (result.gap < 1e-9)
    assert not perfect or result.gap == 0
    assert result.condition or not perfect
    assert perfect or not (result.independent and result.condition)
    if not perfect:
        assert result.verdict is (Verdict.NOT_PERFECT if result.condition else Verdict.RULED_OUT)
    if perfect and result.independent:
        assert result.slack == pytest.approx(0, abs=1e-9)
    if perfect and abs(result.slack) < 1e-9:
        assert result.independent
    assert bool(result.subsets.greedy) == (perfect and x.size > 1)
    assert (result.subsets.told[-1] if result.subsets.told else 0) == pytest.approx(result.joint, abs=1e-9)
    for places in result.subsets.minimal:
        assert equivalent(join(*(components[place] for place in places)), x) if places else x.size == 1
    assert result.why


@laws
@given(problems() | variables(3).map(lambda found: (found[0], list(found[1:]))))
def test_what_is_confused(found):
    x, components = found
    result = solve(x, components)
    alike: dict[tuple, set] = {}
    for value, *row in zip(*(variable.labels.tolist() for variable in (x, *components)), strict=True):
        alike.setdefault(tuple(row), set()).add(x.symbol(value))
    groups = [values for values in alike.values() if len(values) > 1]
    assert result.confused == len(set().union(*groups))
    neighbours = {pair for values in groups for pair in pairwise(sorted(values))}
    assert len(set(result.witnesses)) == len(result.witnesses) == min(5, len(neighbours))
    for one, other in result.witnesses:
        assert one != other
        assert any({one, other} <= values for values in groups)


def test_each_value_that_is_confused_counts_once():
    x, y = from_table([[0.25, 0.25], [0.25, 0.25]])
    result = solve(x, [y])
    assert result.confused == 2
    assert result.witnesses == ((0, 1),)
    assert result.gap == pytest.approx(1)


@laws
@given(variables(3))
def test_what_is_no_function_is_said_to_be_none(found):
    x, *components = found
    result = solve(x, components)
    functions = [determines(x, component) for component in components]
    assert [told.is_function for told in result.components] == functions
    assert (result.verdict is Verdict.NOT_APPLICABLE) == (not all(functions)) == (result.subsets is None)
    assert (result.condition is None) == math.isnan(result.slack) == math.isnan(result.rajski_slack)
    assert (result.condition is None) == (not all(functions))
    assert (result.gap < 1e-9) == (result.confused == 0) == determines(join(*components), x)
    assert result.size == x.size
    assert result.draws == x.space.draws
    for told, component in zip(result.components, components, strict=True):
        assert (told.extra < 1e-9) == told.is_function
        assert told.distance == pytest.approx(told.unknown + told.extra, abs=1e-9)
        if told.witness is not None:
            value, one, other = told.witness
            seen = set(zip(x.labels.tolist(), component.labels.tolist(), strict=True))
            assert one != other
            assert {(value, one), (value, other)} <= {(x.symbol(a), component.symbol(b)) for a, b in seen}


@laws
@given(problems())
def test_counts_decide_as_probabilities_do(found):
    x, components = found
    columns = [variable.labels for variable in (x, *components)]
    counts = np.rint(x.space.probabilities * 2520 * 40).astype(int)
    drawn, *its = from_samples(*columns, counts=counts)
    known, *others = map(SampleSpace.of(counts / counts.sum()).variable, columns)
    first, second = solve(drawn, its), solve(known, others)
    assert first.verdict == second.verdict
    assert first.confused == second.confused
    assert first.subsets.minimal == second.subsets.minimal
    assert first.gap == pytest.approx(second.gap, abs=1e-9)
    assert first.slack == pytest.approx(second.slack, abs=1e-9)


@laws
@given(variables(2))
def test_a_function_and_its_complement_are_perfect(found):
    x, other = found
    y = meet(x, other)
    assert solve(x, [y, complement(y, x)]).verdict is Verdict.PERFECT
    assert solve(x, [x]).verdict is Verdict.PERFECT
    both = join(x, other)
    assert solve(both, [x, other]).verdict is Verdict.PERFECT


@pytest.mark.parametrize("known", [True, False])
def test_a_bit_among_noise_is_rebuilt_and_the_condition_does_not_speak_of_it(known):
    """The component has ten bits of its own: it is far from the bit that it tells."""
    if known:
        table = np.zeros((2, 2, 1024))
        table[0, 0] = table[1, 1] = 1 / 2048
        x, told, noise = from_table(table, names=["x", "told", "noise"])
        component = join(told, noise, name="x and noise")
    else:
        rows = (np.arange(2048)[:, None] >> np.arange(11)) & 1
        x, component = from_samples(rows[:, 0], rows, names=["x", "x and noise"], counts=np.full(2048, 5))
    result = solve(x, [component])
    assert result.verdict is Verdict.NOT_APPLICABLE
    assert result.verdict == "not applicable"
    assert result.gap == pytest.approx(0, abs=1e-9)
    assert result.confused == 0
    assert result.entropy == pytest.approx(1)
    (told,) = result.components
    assert (told.extra, told.distance, told.unknown) == pytest.approx((10, 10, 0), abs=1e-9)
    assert result.condition is None
    assert math.isnan(result.slack)
    assert math.isnan(result.rajski_slack)
    assert not told.is_function
    value, one, other = told.witness
    assert value == one[0] == other[0] == 0
    assert one != other
    why, still = result.why.split("; ")
    assert why == f"x and noise is no function of x: where that is 0, it is {one!r} and {other!r}"
    assert still == "all the same, components determine x"
    assert result.subsets is None


def test_reasons_have_their_numbers():
    space = SampleSpace.uniform(4)
    x = space.variable(range(4))
    high, low, parity = (space.variable(values) for values in ([0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]))
    assert solve(x, [high, low]).why == (
        "components are independent and Σ D = 2.000 ≤ (n - 1) H(X) = 2.000; no two values of X share all components"
    )
    assert solve(x, [high, low, parity]).why == (
        "Σ D = 3.000 ≤ (n - 1) H(X) = 4.000; no two values of X share all components"
    )
    assert solve(x, [high]).why == "the components are too far from X: Σ D = 1.000 > (n - 1) H(X) = 0.000"
    assert solve(x, [high, high]).why == (
        "X = 0 and X = 1 have the same components, though Σ D = 2.000 ≤ (n - 1) H(X) = 2.000"
    )
    assert [str(verdict) for verdict in Verdict] == ["perfect", "ruled out", "not perfect", "not applicable"]


def test_rounding_leaves_no_gap():
    generator = np.random.default_rng(0)
    for _ in range(20):
        space = SampleSpace.of(generator.dirichlet(np.ones(100)))
        x, same = space.variable(range(100)), space.variable(generator.permutation(100))
        assert solve(x, [same, same]).gap == 0


def test_components_that_are_enough():
    space = SampleSpace.uniform(4)
    x = space.variable(range(4))
    bits = [space.variable(values) for values in ([0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0])]
    found = solve(x, bits)
    assert found.subsets.minimal == ((0, 1), (0, 2), (1, 2))
    assert found.subsets.greedy == (0, 1)
    assert solve(x, bits[:1]).subsets.minimal == ()


def test_constants():
    space = SampleSpace.uniform(3)
    constant, x = space.variable([7, 7, 7]), space.variable([0, 1, 2])
    found = solve(constant, [constant])
    assert found.verdict is Verdict.PERFECT
    assert (found.entropy, found.gap, found.slack, found.rajski_slack) == (0, 0, 0, 0)
    assert found.subsets.minimal == ((),)
    assert solve(constant, [x]).verdict is Verdict.NOT_APPLICABLE
    found = solve(x, [constant])
    assert found.verdict is Verdict.RULED_OUT
    assert found.confused == 3
    assert found.witnesses == ((0, 1), (1, 2))
    assert found.gap == pytest.approx(math.log2(3))


def sampled(count: int) -> tuple[Variable, list[Variable]]:
    values = np.random.default_rng(0).integers(0, 6, count)
    x, *components = from_samples(values, values % 2, values % 3, names=["x", "odd", "third"])
    return x, components


def test_estimates_of_components_that_share_a_name():
    space = SampleSpace.of_samples(8, [3] * 8)
    x, half, same = (space.variable(np.arange(8) // k, name) for k, name in ((1, "X"), (4, "X"), (2, "joint")))
    found = perfect_reconstruction(x, [half, same, half], resamples=0)
    assert {name: round(each.plug_in, 9) for name, each in found.estimates.items()} == {
        "H(X)": 3, "H(X) #1": 1, "H(joint) #2": 2, "H(X) #3": 1, "H(joint)": 2, "gap": 1, "R": 2,
    }  # fmt: skip


def test_of_samples_bias_and_interval_are_told():
    x, components = sampled(600)
    result = perfect_reconstruction(x, components, title="six", seed=5)
    assert (result.title, result.x, result.draws, result.size) == ("six", "x", 600, 6)
    assert result.verdict is Verdict.PERFECT
    assert list(result.estimates) == ["H(x)", "H(odd)", "H(third)", "H(joint)", "gap", "R"]
    assert result.estimates["H(x)"] == estimate(entropy, x, seed=5)
    assert result.estimates["H(x)"].miller_madow == pytest.approx(result.entropy + 5 / (1200 * math.log(2)))
    assert result.estimates["H(joint)"].plug_in == pytest.approx(result.joint)
    assert result.estimates["R"].plug_in == pytest.approx(result.redundancy, abs=1e-12)
    assert result.estimates["R"].low <= result.redundancy <= result.estimates["R"].high
    assert (result.estimates["gap"].low, result.estimates["gap"].high) == (0, 0)
    assert result.notes == (
        "It is perfect of the samples. Of combinations never drawn, on which about 0 of the probability lies (Good and "
        "Turing), nothing is known.",
    )
    other = perfect_reconstruction(x, components, seed=6)
    assert other.estimates["H(x)"].low != result.estimates["H(x)"].low
    assert math.isnan(perfect_reconstruction(x, components, resamples=0).estimates["R"].low)
    grouped = perfect_reconstruction(x, components, groups=np.arange(600) // 20)
    assert grouped.estimates["H(x)"] == estimate(entropy, x, groups=np.arange(600) // 20)


def test_of_what_is_known_nothing_is_estimated():
    x, y = from_table(np.eye(20) / 20)
    result = perfect_reconstruction(x, [y])
    assert result.estimates == {}
    assert result.notes == ()
    assert result.draws is None


def test_too_few_samples_show_little():
    generator = np.random.default_rng(0)
    x, pattern = from_samples(np.arange(50), generator.integers(0, 2, (50, 20)), names=["token", "pattern"])
    with pytest.warns(FewSamplesWarning, match=r"^50 samples are too few for the 50 values seen of") as caught:
        result = perfect_reconstruction(x, [pattern], resamples=2)
    assert caught[0].filename == __file__
    assert len(caught) == 1
    assert result.verdict is Verdict.PERFECT
    few, little, contradiction = result.notes
    assert few == str(caught[0].message)
    assert little == "Rows that are nearly all different are told apart by anything: this reconstruction shows little."
    assert "on which about 1 of the probability lies" in contradiction
    with pytest.warns(FewSamplesWarning, match="50 samples"):
        result = perfect_reconstruction(x, [x.space.variable(np.arange(50) // 2)], resamples=2)
    assert result.verdict is Verdict.RULED_OUT
    assert len(result.notes) == 1


@pytest.mark.parametrize(
    ("components", "settings", "message"),
    [
        ([], {}, "there are no components: give at least one"),
        (from_samples([1, 2], names=["y"]), {}, "variables x and y are on different sample spaces: make both with one"),
        (None, {"groups": [1, 2]}, "groups has shape (2,) for 600 samples: give one each"),
        (None, {"groups": [1] * 600}, "groups are all the same: an interval needs at least two that differ"),
        (None, {"resamples": -2}, "resamples is -2: give how often to resample, 0 for no interval"),
    ],
)
def test_what_is_refused_is_said_in_one_line(components, settings, message):
    x, own = sampled(600)
    with pytest.raises(AtomsError, match=f"^{re.escape(message)}") as caught:
        perfect_reconstruction(x, own if components is None else components, **settings)
    assert "\n" not in str(caught.value)
