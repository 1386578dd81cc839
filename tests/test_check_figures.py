"""The pictures of a certificate: drawn from what is saved, of anything that was judged."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from judging import dead
from stores import SITE, SPEC, make_rows, write

from atoms.activations.grid import Grid
from atoms.activations.store import StoreWriter
from atoms.activations.writer import moments_name
from atoms.checks import Certificate, CheckSettings, certify
from atoms.checks.figures.draw import FIGURES, draw
from atoms.checks.figures.geometry import FIVE_WAYS
from atoms.checks.shift import WAYS
from atoms.geometry import Moments
from atoms.units import RandomUnits

CPU = {"accelerator": "cpu", "devices": 1}
QUICK = CheckSettings(rows=400, batch_rows=200, solved_rows=4, null_rows=32, refit_rows=32, probe_rows=400, bootstrap=5)
AXES = {"k", "error_at_most", "rank", "upper_edge", "q", "tau", "degrees_at_most", "ridge", "ridge_share", "tasks"}
SHORT = {"f", "k_histogram", "firing_by_rank", "babel", "spectrum", "atoms", "observed", "unions", "random", "families"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    grid = Grid(chunk_rows=64, shard_rows=128, block_rows=256)
    spec = replace(SPEC, sites={SITE: 8}, splits={"train": 768, "val": 512}, grid=grid)
    path = tmp_path_factory.mktemp("figures") / "store"
    writer = StoreWriter.create(path, spec)
    write(writer)
    rows = [make_rows(spec, span)[SITE] for span in spec.spans if span.split == "train"]
    writer.write_file(moments_name(SITE), Moments.from_rows(torch.cat(rows)).to_bytes())
    writer.finalise()
    return path


@pytest.fixture(scope="module")
def judged(store) -> Certificate:
    """Everything that can be measured, of random directions and of others in the place of another seed."""
    unit, other = (RandomUnits(atoms=16, k=3, seed=seed) for seed in range(2))
    return certify(unit, store, settings=QUICK, others=[other], trainer=CPU)


@pytest.fixture(scope="module")
def loaded(judged, tmp_path_factory) -> Certificate:
    return Certificate.load(judged.save(tmp_path_factory.mktemp("saved")))


@pytest.fixture(scope="module")
def figures(judged):
    return draw(judged)


def png(figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=30)
    return image.getvalue()


def without(certificate: Certificate, section: str) -> Certificate:
    return replace(certificate, sections=tuple(own for own in certificate.sections if own.name != section))


def changed(certificate: Certificate, change, tables=None) -> Certificate:
    """With what was measured changed in all tables, or in those named, and no number known."""
    return replace(
        certificate,
        sections=tuple(
            replace(
                own,
                numbers=dict.fromkeys(own.numbers, math.nan),
                tables={
                    name: {column: change(column, values) for column, values in table.items()}
                    if tables is None or name in tables
                    else table
                    for name, table in own.tables.items()
                },
            )
            for own in certificate.sections
        ),
    )


def measured(change):
    """A change of what is neither a word nor where on an axis a value stands."""
    return lambda column, values: values if column in AXES or isinstance(values[0], str) else change(values)


def test_every_figure_of_a_full_certificate(judged, figures):
    """Fails where a check calls a table or a column otherwise than its figure does."""
    assert judged.failed == {}
    assert list(figures) == list(FIGURES)
    for figure in figures.values():
        for axes in figure.axes:
            assert axes.get_title(loc="left")
            assert axes.lines or axes.patches


def test_saved_one_is_drawn_again(figures, loaded):
    again = draw(loaded)
    assert list(again) == list(figures)
    for name, figure in figures.items():
        for own, other in zip(figure.axes, again[name].axes, strict=True):
            assert [patch.get_label() for patch in own.patches] == [patch.get_label() for patch in other.patches]
            for line, copy in zip(own.lines, other.lines, strict=True):
                assert line.get_label() == copy.get_label()
                np.testing.assert_array_equal(line.get_xydata(), copy.get_xydata())


def test_headline_and_its_controls_stand_where_the_numbers_say(judged, figures):
    (axes,) = figures["certified"].axes
    numbers = judged.numbers()
    points = {line.get_label().split(":")[0]: line.get_xydata()[0] for line in axes.lines if len(line.get_xdata()) == 1}
    assert points["the unit"] == pytest.approx([numbers["rows/f_k"], numbers["rows/f"]])
    assert points["principal axes"] == pytest.approx([numbers["rows/f_k"], numbers["joint/f_basis"]])
    curve = next(line for line in axes.lines if line.get_label() == "error at most 0.2")
    assert numbers["rows/f"] == pytest.approx(np.interp(numbers["rows/f_k"], *curve.get_xydata().T))


def test_histograms_are_of_all_rows(figures):
    for name in ("representability", "sparsity"):
        axes = figures[name].axes[0]
        held_out, train = (patch.get_data().values for patch in axes.patches)
        assert held_out.sum() == pytest.approx(1)
        assert train.sum() == pytest.approx(1)


def test_angles_of_rows_and_of_atoms(figures):
    for axes in figures["shift"].axes:
        assert len(axes.patches) == len(FIVE_WAYS)
        assert any(list(line.get_xdata()) == [90, 90] for line in axes.lines)
    assert FIVE_WAYS.keys() <= WAYS.keys()


def test_what_was_not_measured_is_not_drawn(judged):
    found = draw(without(without(without(judged, "rows"), "shift"), "joint"))
    assert found.keys() == FIGURES.keys() - {"certified", "shift"}


def test_nothing_known(judged):
    assert draw(changed(judged, lambda column, values: [])) == {}
    assert draw(changed(judged, lambda column, values: [math.nan] * len(values))) == {}


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan])
def test_one_value_everywhere(judged, value):
    figures = draw(changed(judged, measured(lambda values: [value] * len(values))))
    assert ("shift" in figures) == (value == value)
    for name in {"separability", "stability"} & figures.keys():
        png(figures[name])


def test_tables_of_one_row(judged):
    figures = draw(changed(judged, lambda column, values: values[:1], SHORT))
    assert figures.keys() == FIGURES.keys()
    for figure in figures.values():
        png(figure)


def test_dead_unit(store):
    skip = ["use", "l1", "isometry", "identifiability"]
    figures = draw(certify(dead(8), store, settings=replace(QUICK, skip=skip), trainer=CPU))
    assert figures.keys() >= {"certified", "representability", "sparsity", "shift", "metric"}
    for figure in figures.values():
        png(figure)
    assert "5 never fire" in {axes.get_title(loc="right") for axes in figures["sparsity"].axes}
