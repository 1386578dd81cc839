"""What figures are drawn from: columns and numbers of a certificate, or word that there are none."""

import math
from dataclasses import replace

import numpy as np
import pytest
from certificates import certificate

from atoms.checks.claim import Section
from atoms.checks.figures.source import NothingToShow, Source, shares_of


@pytest.fixture
def source():
    tables = {
        "some": {"q": [0.5, math.nan], "none": [math.nan, math.nan], "reading": ["pairs", "atoms"]},
        "empty": {"q": [], "none": []},
    }
    return Source(replace(certificate(), sections=(Section("checked", "", {"mu": 0.4}, tables=tables),)))


def test_what_was_measured(source):
    assert source.unit == certificate().unit
    assert source.table("checked", "some")["reading"] == ["pairs", "atoms"]
    np.testing.assert_array_equal(source.column("checked", "some", "q"), [0.5, math.nan])
    np.testing.assert_array_equal(source.counts("checked", "some", "q"), [0.5, 0])
    np.testing.assert_array_equal(source.counts("checked", "some", "none"), [0, 0])
    assert source.number("checked/mu") == 0.4


@pytest.mark.parametrize(
    "ask",
    [
        lambda source: source.table("checked", "nonesuch"),
        lambda source: source.table("nonesuch", "some"),
        lambda source: source.table("checked", "empty"),
        lambda source: source.column("checked", "some", "nonesuch"),
        lambda source: source.column("checked", "some", "none"),
        lambda source: source.counts("checked", "some", "nonesuch"),
        lambda source: source.counts("checked", "empty", "q"),
    ],
)
def test_what_was_not(source, ask):
    with pytest.raises(NothingToShow):
        ask(source)


def test_a_number_that_was_not_measured(source):
    assert math.isnan(source.number("checked/nonesuch"))


def test_shares_of_counts():
    np.testing.assert_array_equal(shares_of(np.array([1.0, 3.0])), [0.25, 0.75])
    np.testing.assert_array_equal(shares_of(np.zeros(2)), [0, 0])
