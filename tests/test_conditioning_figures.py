"""Pictures of a survey, of models of every build."""

import io
import math

import pytest
import torch
from test_conditioning_record import surveyed

from atoms.conditioning.figures import FIGURES, draw
from atoms.figures import QUIET


def drawn(tensors, **settings):
    """Figures of a survey, each of which can be saved without a warning."""
    figures = draw(surveyed(tensors, **settings))
    for figure in figures.values():
        figure.savefig(io.BytesIO(), format="png", dpi=40)
    return figures


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def points(axes, marker=None):
    """Where matrices are shown, and whether their markers are full."""
    shown = [
        line
        for line in axes.lines
        if line.get_linestyle() == "None"
        and line.get_color() != QUIET
        and (line.get_marker() == "$\\infty$") is bool(marker)
    ]
    return {
        (x, y, line.get_markerfacecolor() != "white") for line in shown for x, y in zip(*line.get_data(), strict=True)
    }


BLOCKS = {
    f"layers.{n}.{role}.weight": shape for n in range(3) for role, shape in (("attn.o", (8, 8)), ("mlp.down", (8, 12)))
}


def test_a_line_a_role():
    figures = drawn({"embed.weight": (30, 8), **BLOCKS})
    assert tuple(figures) == FIGURES
    for name in ("kappa", "spectrum"):
        assert len(figures[name].axes) == 2
        assert legend(figures[name])[:3] == ["attn.o", "mlp.down", "embed"]
    found = {each.role: each for each in surveyed({"embed.weight": (30, 8), **BLOCKS}) if each.layer in (None, 2)}
    kappa = figures["kappa"].axes[0]
    shown = points(kappa)
    assert len(shown) == 7
    expected = {(2, found["attn.o"].kappa), (2, found["mlp.down"].kappa), (3, found["embed"].kappa)}
    assert {(*each, True) for each in expected} <= shown
    assert [tick.get_text() for tick in kappa.get_xticklabels()] == ["0", "1", "2", "outside"]
    assert {text.get_text() for text in kappa.texts} == {"8x8", "8x12", "8x30"}


def test_the_map_is_of_roles_by_layers():
    (axes, bar) = drawn(BLOCKS)["map"].axes
    values = axes.images[0].get_array()
    assert values.shape == (2, 3)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["attn.o", "mlp.down"]
    for each in surveyed(BLOCKS):
        assert values[["attn.o", "mlp.down"].index(each.role), each.layer] == pytest.approx(math.log10(each.relative))
    assert bar.get_ylabel() == ""


def test_a_map_with_gaps():
    (axes, _) = drawn({**BLOCKS, "layers.1.extra.weight": (8, 12)})["map"].axes
    assert axes.images[0].get_array().mask.sum() == 2


def test_a_role_in_several_shapes_has_a_line_of_the_map_for_each():
    """Where a layer has several, which would lie on each other; a shape a layer is still one line."""
    branches = {f"layers.{n}.branch.{b}.weight": (4 + 4 * b, 12) for n in range(2) for b in range(2)}
    tensors = {**branches, "layers.0.down.weight": (8, 12), "layers.1.down.weight": (6, 10)}
    (axes, _) = drawn(tensors)["map"].axes
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["branch.N 4x12", "branch.N 8x12", "down"]
    values = axes.images[0].get_array()
    assert not values.mask.any()
    for each in surveyed(tensors):
        name = "down" if each.role == "down" else f"branch.N {each.rows}x{each.columns}"
        assert values[names.index(name), each.layer] == pytest.approx(math.log10(each.relative))


def test_experts_are_a_mean_in_their_range():
    figures = drawn({f"layers.{n}.experts.{e}.w2.weight": (8, 12) for n in range(2) for e in range(4)})
    assert legend(figures["kappa"])[0] == "experts.N.w2"
    assert len(points(figures["kappa"].axes[0])) == 2
    assert figures["kappa"].axes[1].collections


def test_one_layer_and_names_that_are_no_formula():
    figures = drawn({"h.0.w$x_$.weight": (8, 12), "h.0.$\\frac$.weight": (8, 12)})
    assert legend(figures["kappa"])[0] == r"w\$x_\$"
    assert [tick.get_text() for tick in figures["kappa"].axes[0].get_xticklabels()] == ["0"]


@pytest.mark.parametrize("count", [1, 3, 90])
def test_without_layers_matrices_stand_side_by_side(count):
    figures = drawn({f"part_{n}.weight": (8, 12) for n in range(count)})
    assert figures.keys() == {"kappa", "spectrum"}
    assert not figures["kappa"].legends
    axes = figures["kappa"].axes[0]
    assert len(points(axes)) == count
    assert axes.get_xticklabels()[0].get_text() == "part_0"
    assert len(axes.get_xticklabels()) <= 45


def test_singular_matrices_stand_at_the_top():
    singular = torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    figures = drawn({"h.0.a.weight": singular, "h.1.a.weight": (3, 3), "h.0.b.weight": singular})
    assert points(figures["kappa"].axes[0], marker="infinite") == {(0, 0.97, True)}
    assert len(points(figures["kappa"].axes[0])) == 1
    assert [text.get_text() for text in figures["map"].axes[0].texts] == ["∞", "∞"]


def test_bounds_are_hollow_and_have_no_spectrum():
    figures = drawn(BLOCKS, max_dim=4)
    assert figures.keys() == {"kappa", "map"}
    assert {full for _, _, full in points(figures["kappa"].axes[0])} == {False}


def test_many_roles_and_many_layers():
    figures = drawn(
        {f"layers.{n}.a_role_with_quite_a_long_name_{r}.weight": (4, 6) for n in range(50) for r in range(23)}
    )
    names = legend(figures["kappa"])
    assert len(set(names)) == len(names) == 25
    assert all(len(name) <= 34 for name in names)
    assert len(figures["kappa"].axes[0].get_xticklabels()) <= 25
    assert figures["map"].get_size_inches()[0] < 15
