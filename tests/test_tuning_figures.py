"""What is drawn of an experiment, and that nothing that can happen in one keeps it from being drawn."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from test_tuning_record import curve, diverged, found, searching

from atoms.tuning.arms import ARMS
from atoms.tuning.figures import _COLOURS, draw

NAMES = {"curves", "forgetting", "differences", "learning_rates"}


def pictures(experiment):
    """All figures, each made a PNG, whose warnings are errors here."""
    made = draw(experiment)
    assert made.keys() == NAMES
    for figure in made.values():
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=40)
        assert content.getvalue().startswith(b"\x89PNG")
    return made


def lines(axes, label):
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    return line.get_xdata(), line.get_ydata()


def test_every_arm_has_a_colour_of_its_own():
    assert _COLOURS.keys() == ARMS.keys()
    assert len(set(_COLOURS.values())) == len(ARMS)


def test_curves_are_means_over_seeds():
    experiment = found()
    figure = draw(experiment)["curves"]
    for axes, name in zip(figure.axes, ("train", "test", "general"), strict=True):
        for arm, runs in experiment.runs.items():
            x, y = lines(axes, arm)
            assert list(x) == [1, 129, 257, 513]
            assert y == pytest.approx(np.mean([run.curve.losses[name] for run in runs], 0))


def test_forgetting_is_drawn_on_the_way_down_alone():
    risen = curve(2.0, 0.5)
    for name in ("train", "test"):
        risen.losses[name][3] = risen.losses[name][0]
    figure = draw(found(seeds=1, full=[risen]))["forgetting"]
    for axes, name in zip(figure.axes, ("train", "test"), strict=True):
        x, y = lines(axes, "full")
        assert list(x) == risen.losses[name][:3]
        assert y == pytest.approx(risen.forgetting()[:3])
        assert len(lines(axes, "kappa")[0]) == 4
        assert axes.xaxis_inverted()


def test_differences_are_those_of_the_tables_at_full_depth():
    experiment = found()
    left, right = draw(experiment)["differences"].axes
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == ["lora - full", "kappa - full", "kappa - lora"]
    for axes, axis in ((left, "train"), (right, "test")):
        dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
        shown = {labels[int(dot.get_ydata()[0])]: dot.get_xdata()[0] for dot in dots}
        assert shown == {
            f"{each.arm} - {each.reference}": each.difference
            for each in experiment.compared
            if (each.axis, each.depth) == (axis, 1.0)
        }


def test_rates_mark_the_one_that_was_taken():
    experiment = found()
    experiment.searched["full"] = searching("full", [1e-3, 1e-2, 1e-1], 1e-1)
    experiment.runs["full"] = [replace(run, lr=1e-1) for run in experiment.runs["full"]]
    experiment.searched["full"][0].curve.losses["val"][1] = math.nan
    axes, beside = draw(experiment)["learning_rates"].axes
    assert list(lines(beside, "kappa")[1]) == pytest.approx([1e-3, 1e-2, 1e-1])  # forgetting grows with the rate
    assert list(lines(axes, "full")[0]) == [1e-2, 1e-1]  # what diverged is not drawn
    dots = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "o"]
    assert dots == [1e-1, 1e-2, 1e-2]


@pytest.mark.parametrize(
    "experiment",
    [
        found(seeds=1),
        found(full=[curve(0.0, 0.0)] * 3, lora=[curve(0.0, 0.0)] * 3, kappa=[curve(0.0, 0.0)] * 3),
        found(kappa=[diverged()] * 3),
        found(kappa=[diverged(), curve(1.5, 0.1), curve(1.5, 0.1)]),
        found(**{arm: [curve(1.0, 0.1)] * 3 for arm in ARMS}),
    ],
    ids=["one seed", "nothing learnt", "diverged", "diverged once", "all arms"],
)
def test_nothing_that_happens_keeps_an_experiment_from_being_drawn(experiment):
    pictures(experiment)
