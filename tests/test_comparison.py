"""Pictures of several certificates side by side, of certificates made by hand."""

import io
from dataclasses import replace

import numpy as np
import pytest
from certificates import certificate as by_hand
from certificates import claim
from hypothesis import given
from hypothesis import strategies as st

from atoms.checks.claim import Section, Verdict
from atoms.checks.comparison import COMPARISONS, compare, spread


def test_units_beside_each_other():
    full = by_hand()
    numbers = (Section("sparsity", "", {"k_median": 3.0}), Section("representability", "", {"r2": 0.7}))
    full = replace(full, sections=(*full.sections, *numbers))
    others = [replace(full, unit=replace(full.unit, name=f"unit {number}")) for number in range(12)]
    figures = compare(others)
    assert figures.keys() == COMPARISONS
    (axes,) = figures["frontier"].axes
    names = {text.get_text().split(":")[0]: text.xyann[1] for text in axes.texts}
    assert names.keys() == {other.unit.name for other in others}
    assert np.diff(sorted(names.values())).min() > 0.05  # no name covers another, though all points are one
    for figure in figures.values():
        figure.savefig(io.BytesIO(), format="png", dpi=30)


def test_claims_by_unit():
    first, second = by_hand("a"), by_hand("b", Verdict.VACUOUS)
    axes = compare([first, second])["claims"].axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["joint.atoms", "uniqueness.t3"]
    assert [text.get_text() for text in axes.texts] == ["guar.", "vacuous", "unatt.", "unatt."]


def test_units_of_which_little_is_known():
    bare = replace(by_hand("bare"), sections=())
    assert compare([bare, bare]) == {}
    half = replace(bare, sections=(Section("l1", "l1", {}, (claim("cai"),)),))
    assert compare([half, bare]).keys() == {"claims"}
    numbers = (Section("sparsity", "", {"k_median": 3.0}), Section("representability", "", {"r2": -7.0}))
    (axes,) = compare([replace(bare, sections=numbers), half])["frontier"].axes
    assert [text.get_text() for text in axes.texts] == ["bare, R² -7"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=19), st.floats(0.001, 0.05))
def test_names_keep_their_distance_order_and_place(places, gap):
    found = spread(np.array(places), gap)
    assert found.min() >= -1e-9
    assert found.max() <= 1 + 1e-9
    ordered = found[np.argsort(places, kind="stable")]
    assert (np.diff(ordered) >= gap - 1e-9).all()
    if (np.diff(np.sort(places)) >= gap).all():
        assert found == pytest.approx(np.array(places))
