"""Bias, intervals and warnings of entropies of samples: closed forms, and seeded simulations of what they promise."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from test_variable import variables

from atoms.errors import AtomsError
from atoms.information import (
    FewSamplesWarning,
    conditional_entropy,
    dependency_coefficient,
    entropy,
    estimate,
    few_samples,
    from_samples,
    from_table,
    miller_madow,
    mutual_information,
    rajski_distance,
    redundancy,
    shannon_distance,
    unseen,
)
from atoms.information.estimation import UNSEEN, estimate_all

MEASURES = [
    entropy,
    conditional_entropy,
    mutual_information,
    shannon_distance,
    rajski_distance,
    dependency_coefficient,
    redundancy,
]
P = np.array([0.5, 0.3, 0.2])


def drawn(p: np.ndarray, count: int, seed: int):
    """A variable of which so many samples were drawn."""
    (x,) = from_samples(range(len(p)), counts=np.random.default_rng(seed).multinomial(count, p))
    return x


@settings(deadline=None, max_examples=50)
@given(variables(2))
def test_the_first_order_of_the_bias(found):
    x, y = found
    for some in ((x,), (y,), (x, y)):
        rows = np.unique(np.stack([variable.labels for variable in some], 1), axis=0)
        draws = x.space.draws
        bias = 0 if draws is None else (len(rows) - 1) / (2 * draws * math.log(2))
        assert miller_madow(*some) == pytest.approx(entropy(*some) + bias, abs=1e-12)


def test_a_correction_of_entropies_is_one_of_what_is_made_of_them():
    x, y = from_samples([0, 1, 2, 0, 1, 2, 0, 0], [0, 1, 1, 0, 1, 1, 0, 1])  # pairs 00, 11, 21, 01
    unit = 1 / (2 * 8 * math.log(2))
    plain, corrected = mutual_information(x, y), mutual_information(x, y, entropy=miller_madow)
    assert corrected == pytest.approx(plain + (2 + 1 - 3) * unit)
    plain, corrected = conditional_entropy(x, y), conditional_entropy(x, y, entropy=miller_madow)
    assert corrected == pytest.approx(plain + (3 - 1) * unit)
    plain, corrected = shannon_distance(x, y), shannon_distance(x, y, entropy=miller_madow)
    assert corrected == pytest.approx(plain + (2 * 3 - 2 - 1) * unit)


def test_correcting_reduces_the_bias():
    """Sixty samples of twenty equally probable values, three hundred times."""
    p, truth = np.full(20, 1 / 20), math.log2(20)
    found = np.array([(entropy(x), miller_madow(x)) for x in (drawn(p, 60, seed) for seed in range(300))])
    plain, corrected = found.mean(0) - truth
    assert plain == pytest.approx(-19 / (2 * 60 * math.log(2)), rel=0.25)
    assert abs(corrected) < abs(plain) / 3


def test_what_was_never_seen_weighs_about_what_was_seen_once():
    x, y = from_samples("aabcddd", [1, 1, 1, 1, 1, 1, 2])
    assert unseen(x) == 2 / 7  # b and c
    assert unseen(y) == 1 / 7
    assert unseen(x, y) == 3 / 7  # b, c and the d with a 2
    (counted,) = from_samples("abcd", counts=[5, 1, 0, 4])
    assert unseen(counted) == 1 / 10
    assert unseen(*from_table([[0.5, 0.5]])) == 0
    p = np.random.default_rng(0).dirichlet(np.full(300, 0.3))
    truth, told = [], []
    for seed in range(100):
        x = drawn(p, 400, seed)
        truth.append(1 - p[[x.symbol(at) for at in range(x.size)]].sum())
        told.append(unseen(x))
    assert np.mean(told) == pytest.approx(np.mean(truth), rel=0.1)


def test_too_few_samples_are_said_in_numbers():
    (x,) = from_samples(range(20))
    bias = 19 / (2 * 20 * math.log(2))
    assert few_samples(x) == (
        "20 samples are too few for the 20 values seen of (X1): 100% of the samples have one that was seen once, so "
        f"about as much of the probability lies on values never seen; their entropy is too low, by {bias:.3f} bits "
        "to first order, and information and redundancy are too high."
    )
    with pytest.warns(FewSamplesWarning, match=r"^20 samples are too few for the 20 values seen of \(X1\)") as caught:
        found = estimate(entropy, x)
    assert caught[0].filename == __file__
    assert found.note == few_samples(x)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    columns = from_samples(*[range(20)] * 5, names="abcde")
    assert "of (a, b, c, d, …): 100%" in few_samples(*columns)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert estimate_all({"H": (entropy, (x,))})["H"].note == few_samples(x)


def test_enough_samples_are_not_warned_of():
    for count, once in ((100, 5), (1000, 50)):
        seen = [*range(once), *[-1] * (count - once)]
        (x,) = from_samples(seen)
        assert unseen(x) == UNSEEN
        assert few_samples(x) is None
        assert estimate(entropy, x, resamples=2).note is None
        (x,) = from_samples([*seen[:-1], -2])
        with pytest.warns(FewSamplesWarning, match=rf"^{count:,} samples are too few for the {once + 2} values seen"):
            estimate(entropy, x, resamples=2)
    x, y = from_samples([0, 1] * 50, [*range(10)] * 10)
    assert few_samples(x, y) is None
    assert few_samples(*from_table(np.full((5, 5), 1 / 25))) is None


def test_many_samples_apart_are_few_together():
    generator = np.random.default_rng(0)
    values = generator.integers(0, 4, (6, 500))
    columns = from_samples(*values)
    assert all(few_samples(column) is None for column in columns)
    seen, counts = np.unique(values, axis=1, return_counts=True)
    share = f"{(counts == 1).sum() / 500:.0%}"
    message = rf"^500 samples are too few for the {seen.shape[1]} values seen of \(X1, X2, X3, X4, …\): {share} of"
    with pytest.warns(FewSamplesWarning, match=message):
        estimate(redundancy, *columns, resamples=2)


@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_known_is_known_exactly(measure):
    x, y = from_table([[0.3, 0.1], [0.1, 0.5]])
    found = estimate(measure, x, y)
    assert found.plug_in == found.miller_madow == found.low == found.high == measure(x, y)
    assert found.note is None


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_is_estimated(measure):
    x, y = from_samples([0, 0, 1, 1], [0, 1, 0, 1], counts=[300, 100, 100, 500])
    found = estimate(measure, x, y)
    assert found.plug_in == pytest.approx(measure(x, y), abs=1e-12)
    assert found.miller_madow == pytest.approx(measure(x, y, entropy=miller_madow), abs=1e-12)
    assert found.low < found.plug_in < found.high
    again = estimate(measure, x, y, seed=1)
    assert (again.low, again.high) != (found.low, found.high)
    assert again.low == pytest.approx(found.low, abs=0.05)
    assert estimate(measure, x, y) == found


def test_the_interval_is_the_basic_bootstraps():
    x = drawn(P, 500, 0)
    counts = x.space.weights
    value = stats.entropy(counts, base=2)
    generator = np.random.default_rng(7)
    again = [stats.entropy(generator.multinomial(500, counts / 500), base=2) for _ in range(300)]
    for level in (0.95, 0.5):
        low, high = np.quantile(again, [(1 - level) / 2, (1 + level) / 2])
        found = estimate(entropy, x, resamples=300, seed=7, level=level)
        assert found.low == pytest.approx(2 * value - high)
        assert found.high == pytest.approx(2 * value - low)


def test_the_interval_is_as_wide_as_the_sampling_error():
    x = drawn(P, 2000, 0)
    found = estimate(entropy, x, resamples=4000)
    error = math.sqrt(np.var(np.log2(np.repeat(x.probabilities, x.space.weights.astype(int)))) / 2000)  # delta method
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize(
    ("p", "measure"),
    [(P, entropy), (np.array([[0.3, 0.1], [0.1, 0.5]]), mutual_information), (np.full(8, 1 / 8), entropy)],
    ids=["entropy", "information", "uniform"],
)
def test_the_interval_holds_the_truth_about_as_often_as_it_says(p, measure):
    truth, places = measure(*from_table(p)), np.unravel_index(np.arange(p.size), p.shape)
    hits = []
    for seed in range(200):
        found = from_samples(*places, counts=np.random.default_rng(seed).multinomial(1000, p.ravel()))
        interval = estimate(measure, *found, resamples=100, seed=seed)
        hits.append(interval.low <= truth <= interval.high)
    assert np.mean(hits) >= 0.85


def test_what_was_copied_is_no_further_evidence():
    """Groups of ten equal samples: intervals are those of the groups, wider by the root of ten."""
    one = np.random.default_rng(0).choice(3, 300, p=P)
    (x,) = from_samples(np.repeat(one, 10))
    alone = estimate(entropy, x, resamples=8000)
    grouped = estimate(entropy, x, resamples=8000, groups=np.repeat(np.arange(300), 10))
    assert grouped.plug_in == alone.plug_in
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(10), rel=0.08)
    (once,) = from_samples(one)
    single = estimate(entropy, once, resamples=8000, groups=range(300))
    assert (single.low, single.high) == pytest.approx((grouped.low, grouped.high))


def test_groups_of_one_are_samples():
    x, y = from_samples(*np.random.default_rng(0).integers(0, 3, (2, 400)))
    plain = estimate(mutual_information, x, y, resamples=1000)
    by_name = estimate(mutual_information, x, y, resamples=1000, groups=[f"document {n}" for n in range(400)])
    assert by_name.high - by_name.low == pytest.approx(plain.high - plain.low, rel=0.1)
    shuffled = np.random.default_rng(1).permutation(400)
    renamed = estimate(mutual_information, x, y, groups=np.arange(400) // 2)
    order = from_samples(x.labels[shuffled], y.labels[shuffled])
    again = estimate(mutual_information, *order, groups=(np.arange(400) // 2)[shuffled])
    assert again.low == pytest.approx(renamed.low)
    assert again.high == pytest.approx(renamed.high)


def test_groups_may_be_of_all_samples_or_of_those_that_count():
    groups = np.array(["a", "b", "b", "c", "c", "a"])
    values, counts = np.array([[0, 1, 0, 1, 0, 1], [0, 0, 0, 2, 0, 2]]), [30, 0, 20, 20, 20, 20]
    x, y = from_samples(*values, counts=counts)
    found = estimate(entropy, x, y, groups=groups)
    assert found == estimate(entropy, x, y, groups=groups[[0, 2, 3, 4, 5]])
    again = estimate(entropy, *from_samples(*np.repeat(values, counts, 1)), groups=np.repeat(groups, counts))
    assert (again.low, again.high) == pytest.approx((found.low, found.high))


def test_values_of_one_group_alone_have_no_interval():
    """Groups are what was sampled: of a variable that tells them apart, other groups would have other values."""
    group = np.repeat(np.arange(30), 20)
    x, y = from_samples(group // 2, np.arange(600) % 3)
    known = estimate(entropy, y, groups=group)
    assert known.low <= known.high
    with pytest.warns(
        FewSamplesWarning, match=r"^30 groups are too few for the 30 values seen of \(X1\): 100% of"
    ) as said:
        found = estimate(entropy, *from_samples(group), groups=group)
    assert math.isnan(found.low)
    assert found.note == str(said[0].message)
    assert estimate(entropy, x, groups=group).note is None  # two groups each
    assert "(X1, X2)" in estimate_all({"": (mutual_information, from_samples(group, y.labels))}, groups=group)[""].note


def test_several_measures_share_their_resamplings():
    x, y, _ = from_samples(*np.random.default_rng(0).integers(0, 2, (3, 300)))
    asked = {
        "H(X)": (entropy, (x,)),
        "H(X, Y)": (entropy, (x, y)),
        "I": (mutual_information, (x, y)),
        "I again": (mutual_information, (y, x)),
    }
    found = estimate_all(asked, seed=3)
    assert list(found) == list(asked)
    assert found["I"].low == pytest.approx(found["I again"].low, abs=1e-12)
    assert found["I"].high == pytest.approx(found["I again"].high, abs=1e-12)
    assert found["H(X)"].plug_in == pytest.approx(entropy(x), abs=1e-12)


def test_nothing_was_resampled():
    x = drawn(P, 100, 0)
    found = estimate(entropy, x, resamples=0)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.plug_in == entropy(x)
    assert found.miller_madow == miller_madow(x)


def test_what_has_no_counterexample_has_none_in_any_resampling():
    x, y = from_samples([0, 1, 2] * 100, [0, 1, 1] * 100)
    found = estimate(conditional_entropy, y, x)
    assert (found.plug_in, found.low, found.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": [0, 1]}, r"groups has shape \(2,\) for 3 samples: give one each"),
        ({"groups": [[0], [1], [2]]}, r"variable groups holds what cannot be compared"),
        ({"groups": np.zeros((3, 1))}, r"groups has shape \(3, 1\) for 3 samples: give one each"),
        ({"groups": 1}, r"groups has shape \(\) for 3 samples: give one each"),
        ({"groups": [5, 5, 5]}, "groups are all the same: an interval needs at least two that differ"),
        ({"groups": [5, None, 6]}, "variable groups has 1 missing values"),
        ({"level": 95}, "level is 95: give a share between 0 and 1, as 0.95"),
        ({"level": 0}, "level is 0: give a share between 0 and 1, as 0.95"),
        ({"resamples": -1}, "resamples is -1: give how often to resample, 0 for no interval"),
    ],
)
def test_what_is_refused_is_said_in_one_line(settings, message):
    (x,) = from_samples([0, 0, 1])
    with pytest.raises(AtomsError, match=f"^{message}") as caught:
        estimate(entropy, x, **settings)
    assert "\n" not in str(caught.value)


def test_nothing_is_estimated_of_no_variable_or_of_two_spaces():
    with pytest.raises(AtomsError, match=r"^no variable is given: give at least one"):
        estimate(entropy)
    (x,), (y,) = from_samples([0, 1]), from_samples([0, 1])
    with pytest.raises(AtomsError, match=r"^variables X1 and X1 are on different sample spaces"):
        estimate(mutual_information, x, y)
    for function in (miller_madow, unseen, few_samples):
        with pytest.raises(AtomsError, match=r"^variables X1 and X1 are on different sample spaces"):
            function(x, y)
