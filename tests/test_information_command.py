"""``atoms information``: problems, tables, stores and units; on the screen, on the disk and in MLflow."""

import csv
import json
import math
import re
import sys
from pathlib import Path

import pytest
import yaml
from stores import SITE
from test_information_check import write as write_tokens

from atoms.checks import Certificate
from atoms.cli import main
from atoms.commands.imports import trust
from atoms.errors import printable
from atoms.training import checkpoint

CONFIGS = Path(__file__).parent.parent / "configs" / "information"
BOXES = re.compile("[\u2500-\u257f]")
QUICK = [
    "--checks.rows=300", "--checks.train_rows=300", "--checks.bootstrap=5", "--checks.classes=8",
    "--trainer.accelerator=cpu",
]  # fmt: skip
UNIT = ["--unit=atoms.units.RandomUnits", "--unit.atoms=12", "--unit.k=2", "--unit.encoder=topk"]
EXAMPLES = "--problem=atoms.information.examples."
NOWHERE = "--tracking_uri=none"
MODULE = "a_strangers_module"

TABLE = "number,parity,third,weight,share\n" + "".join(f"{i},{i % 2},{i % 3},{i},{1 / 6:.17g}\n" for i in range(6))


def files() -> set[str]:
    return {str(path) for path in Path().rglob("*") if "store" not in path.parts}


def asked(*words, folder: str | None = None) -> dict:
    """Run the command; gives what it wrote to the one folder it made."""
    main(["information", *map(str, words)])
    (found,) = Path("information").glob(folder or "*")
    assert {path.name for path in found.iterdir()} == {"information.json", "plane.png"}
    assert (found / "plane.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((found / "information.json").read_text())


@pytest.fixture
def refused(capsys):
    """Run the command, which must fail with one line and leave nothing; gives the line."""

    def run(*words) -> str:
        capsys.readouterr()
        before = files()
        with pytest.raises(SystemExit) as stop:
            main(["information", *map(str, words)])
        out, err = capsys.readouterr()
        assert (stop.value.code, out) == (1, "")
        assert files() == before
        (line,) = err.splitlines()
        assert line.startswith("atoms: error: ")
        return line.removeprefix("atoms: error: ")

    return run


@pytest.fixture
def table() -> str:
    Path("numbers.csv").write_text(TABLE)
    return "numbers.csv"


@pytest.fixture
def store(pristine) -> Path:
    return pristine


# ------------------------------------------------------------------------------------------ problems

SIX = math.log2(6)
EXPECTED = {
    "chinese-remainders": {"entropy": math.log2(30), "slack": 0, "redundancy": 0, "independent": True, "minimal": 1},
    "linear-combinations": {"entropy": 3, "slack": 0, "redundancy": 0, "independent": True, "minimal": 1},
    "prime-signature": {"entropy": math.log2(30), "slack": 1.186, "redundancy": 1.186, "independent": False,
                        "minimal": 1},
    "sign-and-magnitude": {"entropy": 3, "slack": 0, "redundancy": 0, "independent": True, "minimal": 1},
    "sorting": {"entropy": math.log2(24), "slack": 6 - math.log2(24), "redundancy": 6 - math.log2(24),
                "independent": False, "minimal": 1},
}  # fmt: skip


def test_every_config_has_its_expectation():
    assert {path.stem for path in CONFIGS.iterdir()} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_configs(name, capsys):
    found, expected = asked(f"--config={CONFIGS / name}.yaml", NOWHERE), EXPECTED[name]
    out, err = capsys.readouterr()
    assert not err
    assert re.search(r"^verdict +perfect: ", out, re.MULTILINE)
    assert re.search(r"^found +information/", out, re.MULTILINE)
    assert "logged" not in out
    assert not list(Path().glob("*.db"))
    assert not Path("mlruns").exists()
    assert (found["schema"], found["version"]) == ("atoms-information", 1)
    assert (found["verdict"], found["condition"], found["gap"], found["confused"]) == ("perfect", True, 0, 0)
    assert found["draws"] is None
    assert found["estimates"] == {}
    assert found["witnesses"] == []
    assert found["joint"] == pytest.approx(found["entropy"])
    for key in ("entropy", "slack", "redundancy"):
        assert found[key] == pytest.approx(expected[key], abs=1e-3)
    assert found["independent"] is expected["independent"]
    assert len(found["subsets"]["minimal"]) == expected["minimal"]
    n = len(found["components"])
    assert len(found["subsets"]["minimal"][0]) == n  # none can be left out
    distances = [each["distance"] for each in found["components"]]
    assert sum(distances) == pytest.approx((n - 1) * found["entropy"] - expected["slack"], abs=1e-3)
    assert all(each["is_function"] and each["extra"] == 0 for each in found["components"])
    assert found["why"] in " ".join(out.split())


@pytest.mark.parametrize(
    ("name", "words", "witness"),
    [
        ("chinese-remainders", ["--problem.modulus=24", "--problem.moduli=[4, 6]"], [0, 12]),
        ("linear-combinations", ["--problem.matrix=[[1, 0, 1], [0, 1, 1], [0, 0, 0]]"], [[0, 0, 0], [0, 0, 1]]),
        ("prime-signature", ["--problem.primes=[2, 3, 5, 7, 11, 13, 17, 19, 23]"], [1, 29]),
        ("sign-and-magnitude", ["--problem.parts=[magnitude, square]"], [-1, 1]),
        ("sorting", ["--problem.comparisons=[[0, 1], [0, 2], [0, 3], [1, 2], [1, 3]]"], [[3, 2, 0, 1], [3, 2, 1, 0]]),
    ],
)
def test_what_the_configs_say_of_one_change(name, words, witness, capsys):
    """The condition holds all the same, and two values are confused."""
    found = asked(f"--config={CONFIGS / name}.yaml", *words, NOWHERE)
    assert (found["verdict"], found["condition"]) == ("not perfect", True)
    assert witness in found["witnesses"]
    assert found["gap"] == pytest.approx(found["entropy"] - found["joint"])
    assert found["gap"] > 0.05
    assert re.search(r"^confused +\d+ of ", capsys.readouterr().out, re.MULTILINE)


def test_too_few_comparisons_are_ruled_out():
    found = asked(EXAMPLES + "sorting", "--problem.length=3", "--problem.comparisons=[[0, 1], [1, 2]]", NOWHERE)
    assert (found["verdict"], found["condition"]) == ("ruled out", False)
    assert found["slack"] == pytest.approx(2 - SIX)


def test_a_run_with_its_numbers_and_files(database, capsys):
    words = [EXAMPLES + "chinese_remainders", "--problem.modulus=30", "--problem.moduli=[2, 3, 5]"]
    found = asked(*words, "--experiment=lattice")
    out, err = capsys.readouterr()
    assert not err
    (run,) = database.search_runs([database.get_experiment_by_name("lattice").experiment_id])
    assert f"logged      run {run.info.run_id} in " in out
    assert run.info.status == "FINISHED"
    assert run.info.run_name == found["title"]
    assert run.data.tags["command"] == "information"
    assert run.data.tags["verdict"] == "perfect"
    assert "2306.15540" in run.data.tags["source"]
    assert run.data.metrics == pytest.approx(
        {
            f"information/{key}": value
            for key, value in {
                "entropy": math.log2(30), "values": 30, "components": 3, "joint": math.log2(30), "gap": 0,
                "redundancy": 0, "slack": 0, "rajski_slack": 0, "condition": 1, "perfect": 1, "confused": 0,
                "sufficient": 3,
            }.items()
        },
        abs=1e-9,
    )  # fmt: skip
    kept = {path.name: path for path in Path(run.info.artifact_uri).rglob("*") if path.is_file()}
    assert kept.keys() == {"information.json", "plane.png"}
    assert json.loads(kept["information.json"].read_text()) == found
    assert kept["plane.png"].read_bytes().startswith(b"\x89PNG")


def test_plain_has_neither_boxes_nor_colours(capsys):
    asked(EXAMPLES + "sorting", "--problem.length=3", NOWHERE, "--plain=true")
    out = capsys.readouterr().out
    assert not BOXES.search(out)
    assert "\x1b" not in out
    assert re.search(r"^verdict +perfect", out, re.MULTILINE)


def test_the_same_numbers_twice(table):
    first, second = (asked(f"--table={table}", "--target=number", NOWHERE) for _ in range(2))
    assert first == second
    other = asked(f"--table={table}", "--target=number", NOWHERE, "--seed=1")
    assert other["estimates"] != first["estimates"]
    assert {**other, "estimates": {}} == {**first, "estimates": {}}


# ------------------------------------------------------------------------------------------ tables


def test_a_table(table, capsys):
    """Few samples are said in a note, and nowhere else."""
    found = asked(f"--table={table}", "--target=number", "--components=[parity, third]", NOWHERE, "--resamples=20")
    out, err = capsys.readouterr()
    assert not err
    assert (found["verdict"], found["x"], found["draws"], found["size"]) == ("perfect", "number", 6, 6)
    assert [each["name"] for each in found["components"]] == ["parity", "third"]
    assert found["independent"] is True
    assert found["estimates"].keys() == {"H(number)", "H(parity)", "H(third)", "H(joint)", "gap", "R"}
    each = found["estimates"]["H(number)"]
    assert each["plug_in"] == pytest.approx(SIX)
    assert each["miller_madow"] == pytest.approx(SIX + 5 / (12 * math.log(2)))
    assert each["low"] is each["high"] is None
    assert found["notes"][0].startswith("6 samples are too few for the 6 values seen of (number, parity, third)")
    assert re.search(r"^note +6 samples are too few", out, re.MULTILINE)


def test_without_resamples_there_are_no_intervals(table, capsys):
    found = asked(f"--table={table}", "--target=third", "--components=[parity]", NOWHERE, "--resamples=0")
    assert found["verdict"] == "not applicable"
    assert found["components"][0]["witness"][0] == 0
    assert found["subsets"] is None
    assert found["slack"] is None or math.isfinite(found["slack"])
    assert {each["low"] for each in found["estimates"].values()} == {None}
    out = capsys.readouterr().out
    assert "does not speak of these components" in out
    assert "95% interval" not in out


def test_weights_of_a_table(table):
    counted = asked(f"--table={table}", "--target=number", "--components=[third]", "--counts=weight", NOWHERE)
    assert counted["draws"] == 15
    assert counted["size"] == 5  # the first was never drawn
    known = asked(f"--table={table}", "--target=number", "--components=[third, parity]", "--probabilities=share",
                  NOWHERE)  # fmt: skip
    assert known["draws"] is None
    assert known["entropy"] == pytest.approx(SIX)
    assert known["estimates"] == {}


def test_bins_of_a_table():
    Path("real.tsv").write_text("x\ty\n" + "".join(f"{i // 2}\t{i / 8}\n" for i in range(64)))
    found = asked("--table=real.tsv", "--target=x", "--components=[y]", "--bins=4", NOWHERE)
    assert (found["size"], found["components"][0]["size"]) == (32, 4)
    assert found["verdict"] == "ruled out"
    assert found["joint"] == pytest.approx(2)


@pytest.mark.parametrize(
    ("target", "other"),
    [
        ("../../up\x1b[31m", "\x07bell"), ("x", "[/b]"), ("[/x]", "[red]b"), ("x", r"$\frac$"), (r"$\frac$", "a_$"),
        ("名", "ß"), ("_x", ""), ("two\nlines", "b" * 300), ("x" * 300, "$" * 99),
    ],
)  # fmt: skip
def test_names_of_columns_are_text(target, other, capsys):
    """They are no markup, no formula, no colour and no path."""
    with Path("names.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[target, other], *([i % 4, ["[bold]x", "$y$"][i % 2]] for i in range(40))])
    found = asked("--table=names.csv", f"--target={target}", "--resamples=5", NOWHERE)
    out, err = capsys.readouterr()
    assert not err
    assert found["verdict"] == "ruled out"
    assert (found["x"], found["components"][0]["name"]) == (printable(target), printable(other))
    assert f"{printable(other)[:50]}" in out
    assert f"H({printable(other)[:50]}" in out
    assert "\x1b" not in out + found["title"]
    assert "\x07" not in out
    assert {path.split("/")[0] for path in files()} == {"names.csv", "information"}


# ------------------------------------------------------------------------------------------ stores


def test_labels_of_a_store(store, capsys):
    found = asked(f"--data.store={store}", "--target=position", NOWHERE, "--resamples=10")
    assert found["draws"] == 150
    assert {each["name"] for each in found["components"]} == {"token", "document"}
    assert found["entropy"] == pytest.approx(math.log2(10))
    assert found["verdict"] == "not applicable"
    own = asked(f"--data.store={store}", "--target=position", "--components=[document]", NOWHERE, "--split=val",
                "--resamples=10", folder="position-of-val-rows*")  # fmt: skip
    assert own["draws"] == 37
    assert [each["name"] for each in own["components"]] == ["document"]


def test_a_unit_by_its_class(planted_store, database, capsys):
    main(["information", *UNIT, f"--data.store={planted_store}", *QUICK, "--experiment=other"])
    out = capsys.readouterr().out
    assert "300 held-out rows of planted, 300 training rows beside; width 16" in out
    assert "certificate information/" in out
    found = Certificate.load("information/random")
    assert [section.name for section in found.sections] == ["information"]
    assert found.failed == {}
    assert found.settings["skip"]
    assert found.numbers()["information/classes"] == 8
    assert {path.name for path in Path("information/random").iterdir()} == {"certificate.json"}
    (run,) = database.search_runs([database.get_experiment_by_name("other").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["command"] == "information"
    expected = {f"check/{key}": value for key, value in found.numbers().items() if math.isfinite(value)}
    assert {key: value for key, value in run.data.metrics.items() if math.isfinite(value)} == pytest.approx(expected)


def test_a_unit_on_rows_whose_tokens_are_known(tmp_path, capsys):
    """With a picture of every atom's distance to a label."""
    path = write_tokens(tmp_path / "store")
    main(["information", *UNIT, f"--data.store={path}", *QUICK, NOWHERE, "--plain=true", "--checks.probe_rows=300"])
    out = capsys.readouterr().out
    assert not BOXES.search(out)
    assert "logged" not in out
    found = Certificate.load("information/random")
    numbers = found.numbers()
    (line,) = re.findall(r"^token +(.*)$", out, re.MULTILINE)
    suffixes = ("bits", "told", "told_random", "told_rows", "told_whole", "told_5", "told_5_coordinates")
    assert line.split() == [f"{numbers[f'information/token_{suffix}']:.2f}" for suffix in suffixes]
    (section,) = found.sections
    assert [claim.name for claim in section.claims] == ["token"]
    assert section.numbers["token_bits"] > 2
    assert {path.name for path in Path("information/random").iterdir()} == {"certificate.json", "information.png"}


def test_a_checkpoint_is_judged_beside_the_run_that_learnt_it(fit_words, database, capsys):
    main([*fit_words, "--trainer.max_epochs=1"])
    (learnt,) = database.search_runs([database.get_experiment_by_name("atoms").experiment_id])
    (last,) = Path("runs").glob("*/*/checkpoints/*.ckpt")
    capsys.readouterr()
    main(["information", f"--ckpt_path={last.absolute()}", *QUICK])
    assert "certificate information/" in capsys.readouterr().out
    found = Certificate.load("information/planted")
    assert [section.name for section in found.sections] == ["information"]
    assert found.unit.source["sha256"] == checkpoint.digest(str(last))
    (child,) = database.search_runs([learnt.info.experiment_id], f"tags.`mlflow.parentRunId` = '{learnt.info.run_id}'")
    assert child.data.tags["command"] == "information"
    assert child.info.run_name == "information"
    assert child.data.metrics["check/information/classes"] == 8
    kept = json.loads((Path(child.info.artifact_uri) / "certificate.json").read_text())
    assert [section["name"] for section in kept["sections"]] == ["information"]
    assert database.get_run(learnt.info.run_id).data.metrics["check/information/classes"] == 8


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to look at: name a table with --table, a store with --data.store, a unit with --ckpt_path or"),
        (["--target=number"], "nothing to look at"),
        ([EXAMPLES + "sorting", "--problem.length=3", "--target=x"], "target is x beside --problem: it belongs to"),
        ([EXAMPLES + "sorting", "--problem.length=3", "--bins=3"], "bins is 3 beside --problem: it belongs to --"),
        (["--table=TABLE", "--target=number", "--split=val"], "split is val beside --table: it belongs to --"),
        (["--data.store=STORE", "--target=token", "--noise=true"], "noise is True beside --data.store: this"),
        ([*UNIT, "--data.store=STORE", "--resamples=5"], "resamples is 5 beside a unit"),
        ([*UNIT, "--data.store=STORE", "--checks.skip=[use]"], "checks.skip is ['use'] beside a unit"),
        ([EXAMPLES + "sorting", "--problem.length=3", "--table=TABLE"], "--problem and --table are set: ask one"),
        ([EXAMPLES + "sorting", "--problem.length=3", *UNIT], "--problem and a unit (--ckpt_path, --unit, --units"),
        (["--table=TABLE", "--target=number", "--ckpt_path=x.ckpt"], "--table and a unit (--ckpt_path, --unit"),
        (["--table=TABLE", "--target=number", "--data.store=STORE"], "--table and --data.store are set: ask one"),
        ([EXAMPLES + "sorting", "--problem.length=3", "--data.store=STORE"], "--problem and --data.store are set"),
        (["--table=TABLE"], "target is not set: name what is to be rebuilt with --target"),
        (["--data.store=STORE"], "target is not set"),
        (["--table=TABLE", "--target=frob"], "has no column 'frob' but number, parity, third, weight, share: name one"),
        (["--table=TABLE", "--target=number", "--components=[frob]"], "has no column 'frob'"),
        (["--table=nowhere.csv", "--target=number"], "table: nowhere.csv cannot be read (No such file or directory)"),
        (["--table=TABLE", "--target=number", "--resamples=-1"], "resamples is -1: give 0 or more"),
        (["--table=TABLE", "--target=number", "--bins=1"], "bins is 1: give at least 2"),
        (["--table=TABLE", "--target=number", "--counts=weight", "--probabilities=share"], "counts is weight and prob"),
        (["--table=TABLE", "--target=number", "--frob=1"], "frob is no setting"),
        (["--table=TABLE", "--target=number", "--componets=[third]"], "did you mean components?"),
        (["--data.store=STORE", "--target=frob"], "target is frob: STORE knows token, position, document"),
        (["--data.store=STORE", "--target=token", "--components=[group]"], "components is group: STORE knows token"),
        (["--data.store=STORE", "--target=token", "--split=dev"], "split is dev: STORE has train, val, test"),
        (["--data.store=STORE", "--target=token", "--split=test"], "split is test, of which STORE has no rows: name"),
        (["--data.store=nowhere", "--target=token"], "data.store=nowhere: no store there"),
        ([*UNIT], "data.store is not set: name the store whose rows the unit is to explain"),
        ([*UNIT, "--data.store=nowhere"], "data.store is nowhere, which does not exist"),
        ([*UNIT, "--data.store=STORE", f"--data.site={SITE}", "--checks.classes=0"], "checks.classes is 0: give at"),
        (["--unit=atoms.units.RandomUnits", "--unit.atoms=-1", "--data.store=STORE"], "atoms is -1: give at least 1"),
        (["--ckpt_path=none.ckpt"], "ckpt_path is none.ckpt, which is not a file"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        ([EXAMPLES + "sorting", "--problem.length=20"], "all 20! orders of 20 things takes"),
        ([EXAMPLES + "sorting", "--problem.length=1"], "length is 1: give at least 2"),
        ([EXAMPLES + "sorting", "--problem.length=three"], "problem: length: expected int, got three"),
        ([EXAMPLES + "sorting", "--problem.lenght=3"], "problem: lenght is no setting: did you mean length?"),
        ([EXAMPLES + "sorting"], "problem: the following arguments are required: length"),
        ([EXAMPLES + "linear_combinations", "--problem.q=4", "--problem.matrix=[[1, 0], [0, 1]]"], "q is 4: give a"),
        ([EXAMPLES + "linear_combinations", "--problem.q=2", "--problem.matrix=[[1, 0], [1]]"], "of lengths [2, 1"),
        ([EXAMPLES + "chinese_remainders", "--problem.modulus=-5", "--problem.moduli=[2]"], "modulus is -5"),
        ([EXAMPLES + "prime_signature", "--problem.numbers=[4, 4]"], "numbers holds 4 twice"),
        ([EXAMPLES + "prime_signature", "--problem.numbers=[4]", "--problem.primes=[9]"], "primes holds 9"),
        ([EXAMPLES + "sign_and_magnitude", "--problem.values=[1, 1]"], "values is [1"),
        ([EXAMPLES + "frob"], "module 'atoms.information.examples' has no attribute 'frob'"),
        (["--problem=atoms.units.PCA"], "does not correspond to a subclass of Problem"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(words, said, refused, table, store):
    places = {"TABLE": table, "STORE": str(store)}
    for word, place in places.items():
        words, said = [each.replace(word, place) for each in words], said.replace(word, place)
    assert said in refused(*words, NOWHERE)


@pytest.mark.parametrize("how", ["words", "spec", "file"])
@pytest.mark.parametrize("path", [f"{MODULE}.make", "os.system", "atoms.cli.main"])
def test_a_strangers_problem_is_not_imported(how, path, refused, monkeypatch, tmp_path):
    mark = tmp_path / "imported"
    (tmp_path / f"{MODULE}.py").write_text(f"open({str(mark)!r}, 'w').write('x')\ndef make(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = {"class_path": path, "init_args": {"length": 3}}
    Path("config.yaml").write_text(yaml.safe_dump({"problem": spec}))
    words = {"words": f"--problem={path}", "spec": f"--problem={json.dumps(spec)}", "file": "--config=config.yaml"}
    assert f"class_path {path} is not imported: a config may name classes of atoms" in refused(words[how], NOWHERE)
    assert not mark.exists()
    assert MODULE not in sys.modules


def test_a_problem_of_ones_own(monkeypatch, tmp_path):
    """By a function that returns one, of a package that is trusted on the command line."""
    (tmp_path / f"{MODULE}.py").write_text(
        "from atoms.information import Problem, SampleSpace\n"
        "def coins(count: int) -> Problem:\n"
        "    space = SampleSpace.uniform(2**count)\n"
        "    parts = [space.variable(lambda x, i=i: x >> i & 1, f'coin {i}') for i in range(count)]\n"
        "    return Problem(space.variable(lambda x: x), tuple(parts), 'coins')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        found = asked("--allow_import", MODULE, f"--problem={MODULE}.coins", "--problem.count=3", NOWHERE)
    finally:
        sys.modules.pop(MODULE, None)
        trust([])
    assert (found["title"], found["verdict"], found["slack"]) == ("coins", "perfect", 0)


def test_where_nothing_can_be_written(table, planted_store, capsys):
    Path("taken").write_text("")
    for words in ([f"--table={table}", "--target=number"], [*UNIT, f"--data.store={planted_store}", *QUICK]):
        with pytest.raises(SystemExit) as stop:
            main(["information", *words, NOWHERE, "--output=taken"])
        assert stop.value.code == 1
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert line.startswith("atoms: error: output is taken")
        assert line.endswith("name another folder")
        assert "found   " not in out
        assert Path("taken").read_text() == ""


def test_a_tracking_uri_that_is_none_loses_nothing(table, capsys):
    found = asked(f"--table={table}", "--target=number", "--tracking_uri=bogus://x")
    err = capsys.readouterr().err
    assert found["verdict"]
    (line,) = err.splitlines()
    assert line.startswith("note     not logged: ")
    assert "bogus://x" in line
