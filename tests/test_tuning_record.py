"""What an experiment says: plain values, numbers, tables, notes and lines of a file."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from atoms.tuning.comparison import comparisons
from atoms.tuning.curves import LOSSES, Curve
from atoms.tuning.experiment import Run
from atoms.tuning.record import Found, csv_rows, notes, numbers, screen, to_json

STEPS = [0, 2, 4, 8]
REFERENCES = ["full", "lora", "random"]


def curve(fall, cost, seed=0):
    """Losses that fall from 4 by a rate, the last step by a little more with the seed; general text costs its share."""
    down = [fall * step * (1 + seed / 50) / 8 for step in STEPS]
    task = {name: [4 + more - part for part in down] for more, name in enumerate(("train", "val", "test"))}
    return Curve(STEPS, [64 * step for step in STEPS], task | {"general": [3 + cost * part for part in down]})


def searching(arm, rates, best):
    """Runs of a search whose lowest validation loss is at one of the rates."""
    made = []
    for lr in rates:
        asked = {"train": [4.0, 3.0], "val": [5.0, 4.0 + abs(math.log(lr / best))], "general": [3.0, 3.0 + lr]}
        made.append(Run(arm, lr, 0, 10, None, [], Curve([0, 8], [0, 512], asked)))
    return made


def found(seeds=3, **changed):
    """An experiment of three arms; keywords replace an arm's curves."""
    shapes = {"full": (2.0, 0.5), "lora": (1.0, 0.2), "kappa": (1.5, 0.1)}
    runs = {
        arm: [
            Run(arm, 1e-2, seed, 100 + seed, 2 + seed if arm == "lora" else None, ["a", "b"], curve(*shape, seed))
            for seed in range(1, seeds + 1)
        ]
        for arm, shape in shapes.items()
    }
    for arm, curves in changed.items():
        runs[arm] = [Run(arm, 1e-2, seed, 100, None, [], each) for seed, each in enumerate(curves, 1)]
    searched = {arm: searching(arm, [1e-3, 1e-2, 1e-1], 1e-2) for arm in runs}
    curves = {arm: {run.seed: run.curve for run in group} for arm, group in runs.items()}
    start = {name: values[0] for name, values in runs["full"][0].curve.losses.items()}
    return Found("m on Text", start, searched, runs, comparisons(curves, REFERENCES))


def printed(experiment, width=160):
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(screen(experiment))
    return capture.get()


def diverged():
    """Losses that are no numbers from the third point on."""
    made = curve(2.0, 0.5)
    losses = {name: [*values[:2], math.nan, math.inf] for name, values in made.losses.items()}
    return Curve(made.steps, made.tokens, losses)


def test_plain_values_are_strict_and_whole():
    experiment = found()
    record = to_json(experiment, {"seed": 0, "shares": (0.1, 0.2)})
    read = json.loads(json.dumps(record, allow_nan=False))
    assert read["title"] == "m on Text"
    assert read["settings"] == {"seed": 0, "shares": [0.1, 0.2]}
    assert read["start"] == {"train": 4.0, "val": 5.0, "test": 6.0, "general": 3.0}
    assert Run.from_json(read["runs"]["lora"][1]) == experiment.runs["lora"][1]
    assert [Run.from_json(each) for each in read["searched"]["full"]] == experiment.searched["full"]
    assert [each["arm"] for each in read["compared"]] == [each.arm for each in experiment.compared]
    assert {"forgets less", "forgets more"} >= {each["verdict"] for each in read["compared"]}
    assert read["numbers"] == numbers(experiment)


def test_what_is_no_number_is_null():
    record = to_json(found(kappa=[diverged(), diverged(), diverged()]), {})
    read = json.loads(json.dumps(record, allow_nan=False))
    assert read["numbers"]["kappa/train"] is None
    assert read["runs"]["kappa"][0]["curve"]["losses"]["val"][1:] == [pytest.approx(4.5), None, None]
    assert read["numbers"]["full/train"] is not None


def test_numbers_are_means_of_last_points_and_differences_at_full_depth():
    experiment = found()
    known = numbers(experiment)
    ends = [2.0 * (1 + seed / 50) for seed in (1, 2, 3)]
    assert known["full/test"] == pytest.approx(6 - np.mean(ends))
    assert known["full/forgetting"] == pytest.approx(0.5 * np.mean(ends))
    assert known["full/trained"] == 102
    assert (known["kappa/lr"], known["start/general"]) == (1e-2, 3.0)
    # lora descends least, 1.02 on its first seed; there kappa has forgotten a tenth of it and lora a fifth
    assert known["kappa_less_lora/equal_train"] == pytest.approx(-0.1 * 1.02)
    assert known["kappa_less_lora/equal_train_low"] == pytest.approx(known["kappa_less_lora/equal_train_high"])
    assert known["kappa_less_full/equal_test"] == pytest.approx(-0.4 * 1.5 * 1.02)
    pairs = {name.partition("/")[0] for name in known if "_less_" in name}
    assert pairs == {"lora_less_full", "kappa_less_full", "kappa_less_lora"}
    assert all(isinstance(value, float) for value in known.values())


def test_curves_as_lines():
    experiment = found(seeds=2)
    rows = list(csv.DictReader(csv_rows(experiment).splitlines()))
    assert len(rows) == 3 * (3 * 2 + 2 * 4)
    assert list(rows[0]) == [
        "arm", "stage", "lr", "seed", "step", "tokens", *(f"{name}_loss" for name in LOSSES), "forgetting",
    ]  # fmt: skip
    (row,) = (row for row in rows if (row["arm"], row["stage"], row["seed"], row["step"]) == ("kappa", "run", "2", "4"))
    made = experiment.runs["kappa"][1].curve
    assert (row["lr"], row["tokens"]) == ("0.01", "256")
    assert [float(row[f"{name}_loss"]) for name in LOSSES] == [made.losses[name][2] for name in LOSSES]
    assert float(row["forgetting"]) == made.forgetting()[2]
    tried = [row for row in rows if row["stage"] == "search"]
    assert all(row["test_loss"] == "" for row in tried)
    assert {row["forgetting"] for row in tried if row["step"] == "0"} == {"0.0"}
    assert {row["val_loss"] for row in tried if row["step"] == "0"} == {"5.0"}


def test_tables_show_every_arm_and_every_pair():
    out = printed(found())
    lines = {line.split("  ")[0]: line.split() for line in reversed(out.splitlines()) if line.strip()}
    assert lines["at the start"][-4:] == ["0", "4.000", "6.000", "0"]
    ends = 2.0 * (1 + np.array([1, 2, 3]) / 50)
    assert f"{4 - ends.mean():.3f}" in lines["full"]
    assert lines["lora"][1:5] == ["102", "3", "to", "5"]
    for axis in ("training loss", "held-out task loss"):
        assert f"forgetting at equal {axis}" in out
    rows = [line for line in out.splitlines() if line.startswith("kappa - lora")]
    assert [row.split()[-1] for row in rows] == ["less", "less"]
    assert all("3 of 3" in row for row in rows)
    assert max(map(len, out.splitlines())) <= 120
    level, ours, theirs, difference = rows[0].split()[3:7]
    assert (level, ours, theirs, difference) == ("2.980", "+.102", "+.204", "-.102")
    assert "-.051 (-.051 to -.051)" in rows[0]  # half-way down, half as much


def test_forgetting_is_shown_at_every_rate_and_the_one_taken_is_marked():
    out = printed(found()).splitlines()
    (head,) = (at for at, line in enumerate(out) if line.startswith("forgetting at training loss 3.000, seed 0"))
    assert out[head].split()[-3:] == ["0.001", "0.01", "0.1"]
    assert [out[head + row].split() for row in (1, 2, 3)] == [
        [arm, "+0.001", "+0.010*", "+0.100"] for arm in ("full", "lora", "kappa")
    ]
    assert to_json(found(), {})["by_rate"]["forgetting"]["kappa"][0.1] == pytest.approx(0.1)


def test_one_seed_is_said_to_be_one_and_no_number_is_not():
    assert printed(found(seeds=1)).count("(one seed)") == 3 * 2 * 2
    broken = curve(1.5, 0.1)
    broken.losses["general"][1:] = [math.nan] * 3
    out = printed(found(kappa=[broken, curve(1.5, 0.1), curve(1.5, 0.1)]))
    assert "(one seed)" not in out
    assert "kappa - " not in out  # it is compared as far as it got, which is nowhere
    assert "lora - full" in out


def test_tables_of_an_experiment_that_compares_nothing():
    flat = [curve(0.0, 0.0) for _ in range(3)]
    out = printed(found(full=flat, lora=flat, kappa=flat))
    assert "forgetting at equal" not in out
    assert "kappa" in out


def test_an_edge_is_the_lowest_or_the_highest_rate_tried():
    experiment = found()
    for best, edge in ((1e-3, True), (1e-2, False), (1e-1, True)):
        experiment.searched["full"] = searching("full", [1e-3, 1e-2, 1e-1], best)
        experiment.runs["full"][0] = replace(experiment.runs["full"][0], lr=best)
        assert experiment.at_edge("full") is edge
        assert ("full: the best rate is the last one tried" in " ".join(notes(experiment, REFERENCES))) is edge
        assert ("(edge)" in printed(experiment)) is edge


def test_notes_say_what_a_reader_of_the_tables_would_miss():
    assert notes(found(), REFERENCES) == []
    assert notes(found(), ["random"]) == notes(found(), []) == [
        "nothing is compared: of references, none was run beside another arm"
    ]  # fmt: skip
    assert notes(found(kappa=[diverged(), curve(1.5, 0.1), diverged()]), REFERENCES) == [
        "kappa: diverged on seed 1, 3, and is compared as far as it got"
    ]
    flat = [curve(0.0, 0.0), curve(1.0, 0.1), curve(1.0, 0.1)]
    assert notes(found(kappa=flat), REFERENCES) == [
        f"kappa - {reference}: not compared at equal {said}, which one of them never lowers on some seed"
        for reference in ("full", "lora")
        for said in ("training loss", "held-out task loss")
    ]
    nothing = found()
    for each in nothing.searched["lora"]:
        each.curve.losses["val"][1] += 9
    assert notes(nothing, REFERENCES)[1:] == ["lora: no rate lowers the validation loss"]
    dropped = found()
    dropped.runs.pop("kappa")
    assert notes(replace(dropped, compared=[]), []) == [
        "kappa: diverges at every rate, and is left out: set recipe.learning_rates lower",
        "nothing is compared: of references, none was run beside another arm",
    ]
    assert "kappa" not in printed(replace(dropped, compared=[]))
