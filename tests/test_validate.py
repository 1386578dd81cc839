"""``atoms validate``: the certificate on the screen, on the disk and in MLflow."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from stores import SITE, SPEC, make_store

from atoms.checks import Certificate
from atoms.cli import main
from atoms.training import checkpoint
from atoms.training.checkpoint_file import SealedCheckpointIO

QUICK = [
    "--checks.rows=300", "--checks.train_rows=200", "--checks.solved_rows=8", "--checks.null_rows=64",
    "--checks.refit_rows=32", "--checks.bootstrap=10", "--trainer.accelerator=cpu",
]  # fmt: skip
FAST = [*QUICK, "--checks.skip=[l1, isometry, identifiability, shift, metric, use, information, stability]"]
BOXES = re.compile("[\u2500-\u257f]")


def children(database, run) -> list:
    return database.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")


@pytest.fixture
def learnt(fitted, database, fit_words, monkeypatch):
    """A short fit of one's own: its MLflow run and its last checkpoint."""
    main([*fit_words, "--trainer.max_epochs=1"])
    (run,) = database.search_runs([database.get_experiment_by_name("atoms").experiment_id])
    (last,) = Path("runs").glob("*/*/checkpoints/*.ckpt")
    return run, str(last.absolute())


def refused(words, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        main(["validate", *words])
    assert end.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("atoms: error: ")
    return said[-1]


# ------------------------------------------------------------------------------------------ what it leaves


def test_screen_file_and_run(learnt, database, capsys):
    run, last = learnt
    capsys.readouterr()
    main(["validate", f"--ckpt_path={last}", *QUICK])
    out = capsys.readouterr().out
    assert "300 held-out rows of planted, 200 training rows beside; width 16" in out
    assert "R² held out (training rows)" in out
    assert re.search(r"joint.atoms +(guaranteed|not guaranteed|vacuous) ", out)
    assert "not done: stability: " in out
    assert "not done: use: " in out
    assert "certificate certificates/" in out
    assert max(map(len, out.splitlines()[:-1])) <= 100

    found = Certificate.load("certificates/planted")
    assert " ".join(found.sentence.split()) in " ".join(out.split())
    assert found.unit.source == {
        "checkpoint": last,
        "sha256": checkpoint.digest(last),
        "member": "tsae",
        "store": found.rows.identity,
    }
    figures = {path.name for path in Path("certificates/planted").glob("*.png")}
    assert len(figures) >= 8

    (child,) = children(database, run)
    assert child.info.status == "FINISHED"
    assert child.data.tags["command"] == "validate"
    assert child.data.tags["checkpoint"] == checkpoint.digest(last)
    assert child.data.metrics == pytest.approx({f"check/{key}": value for key, value in found.numbers().items()})
    assert json.loads((Path(child.info.artifact_uri) / "certificate.json").read_text())["sentence"] == found.sentence
    assert {path.name for path in Path(child.info.artifact_uri).glob("figures/*.png")} == figures
    parent = database.get_run(run.info.run_id)
    assert parent.info.status == "FINISHED"
    assert child.data.metrics.items() <= parent.data.metrics.items()
    (point,) = database.get_metric_history(run.info.run_id, "check/joint/f")
    assert point.step == 18 * 256


def test_same_sentence_from_any_directory_and_nothing_written_there(fitted, capsys, tmp_path, monkeypatch):
    said = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        words = ["validate", f"--ckpt_path={fitted.last}", *FAST, "--tracking_uri=none", f"--output={tmp_path}/out"]
        main(words)
        said.append(capsys.readouterr().out)
        assert not list((tmp_path / name).iterdir())
    assert said[0] == said[1]
    assert "logged" not in said[0]


def test_plain_has_neither_boxes_nor_colours(fitted, capsys):
    main(["validate", f"--ckpt_path={fitted.last}", *FAST, "--tracking_uri=none", "--plain=true"])
    out = capsys.readouterr().out
    assert not BOXES.search(out)
    assert "\x1b" not in out


def test_run_that_is_gone(learnt, capsys):
    _, last = learnt
    Path("mlflow.db").rename("kept.db")
    capsys.readouterr()
    main(["validate", f"--ckpt_path={last}", *FAST])
    out, err = capsys.readouterr()
    assert "joint.atoms" in out
    assert "note     not logged" in err
    assert not Path("mlflow.db").exists()
    assert Certificate.load("certificates/planted").sentence


# ------------------------------------------------------------------------------------------ what is judged


def test_members_that_differ_in_their_seed_are_compared(fit_words, capsys):
    members = "--model.members={a: {seed: 1}, b: {seed: 2}, wide: {expansion: 3}}"
    main([*fit_words, "--trainer.max_epochs=1", "--trainer.logger=false", members])
    (last,) = Path("runs").glob("checkpoints/*.ckpt")
    capsys.readouterr()
    main(
        [
            "validate",
            f"--ckpt_path={last}",
            *QUICK,
            "--checks.skip=[l1, isometry, identifiability, shift, metric, use, information]",
        ]
    )
    out = capsys.readouterr().out
    assert "wide: not done: stability" in out
    numbers = {name: Certificate.load(f"certificates/{name}").numbers() for name in ("a", "b", "wide")}
    assert numbers["a"]["stability/seeds"] == numbers["b"]["stability/seeds"] == 2
    assert 0 < numbers["a"]["stability/random_mean"] < 1
    assert "stability/seeds" not in numbers["wide"]
    assert "logged" not in out  # it was learnt without a run, and is judged without one


def test_twins_that_learnt_from_noise(fitted, capsys):
    main(["validate", f"--ckpt_path={fitted.last}", *FAST, "--noise=true", "--tracking_uri=none"])
    out = capsys.readouterr().out
    assert "tsae from noise" in out
    found = {name: Certificate.load(f"certificates/{name}") for name in ("planted", "tsae from noise", "tsae on noise")}
    assert found["tsae from noise"].rows.store == found["planted"].rows.store
    assert found["tsae on noise"].rows.store.endswith("noise-0.zarr")
    assert found["planted"].unit.digest != found["tsae from noise"].unit.digest == found["tsae on noise"].unit.digest
    r2 = {name: each.numbers()["representability/r2"] for name, each in found.items()}
    assert r2["planted"] > r2["tsae from noise"]


def test_several_units_share_a_run_with_a_child_each(learnt, database, capsys, planted_store):
    run, last = learnt
    config = {
        "units": {
            "noise": {"class_path": "atoms.units.RandomUnits", "init_args": {"encoder": "topk"}},
            "axes": {"class_path": "atoms.units.PCA"},
            "saved": str(next(Path("runs").glob("*/*/checkpoints/atoms/*"))),
        }
    }
    Path("controls.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    capsys.readouterr()
    main(["validate", "--config=controls.yaml", f"--ckpt_path={last}", *FAST])
    out = capsys.readouterr().out
    header = next(line for line in out.splitlines() if "noise" in line)
    assert re.search(r"planted +noise +axes +saved", header)
    (shared,) = children(database, run)
    assert shared.info.run_name == "controls"
    inner = {child.info.run_name: child for child in children(database, shared)}
    assert inner.keys() == {"planted", "noise", "axes", "saved"}
    assert inner["planted"].data.metrics == pytest.approx(inner["saved"].data.metrics)
    assert {child.info.status for child in inner.values()} == {"FINISHED"}
    assert shared.data.metrics["check/axes/joint/f"] == inner["axes"].data.metrics["check/joint/f"]
    together = {path.name for path in Path("certificates").glob("*.png")}
    assert together == {"frontier.png", "claims.png"}
    assert {path.name for path in Path(shared.info.artifact_uri).glob("figures/*.png")} == together
    assert Path("certificates/axes/certified.png").exists()
    # All are asked for as few atoms as the checkpoint's.
    assert {child.data.metrics["check/joint/k"] for child in inner.values()} == {4.0}


def test_a_unit_by_its_class_and_one_by_its_folder(fitted, planted_store, capsys, database):
    folder = next(fitted.folder.glob("runs/*/*/checkpoints/atoms/*"))
    main(["validate", f"--unit={folder}", f"--data.store={planted_store}", *FAST, "--experiment=other"])
    words = ["--unit=atoms.units.DataUnits", "--unit.k=1", "--unit.atoms=20", f"--data.store={planted_store}"]
    main(["validate", *words, *FAST, "--experiment=other"])
    runs = database.search_runs([database.get_experiment_by_name("other").experiment_id])
    assert len(runs) == 2
    assert all(run.data.tags["command"] == "validate" for run in runs)
    assert Certificate.load("certificates/data").unit.kind == "DataUnits"
    assert Certificate.load(f"certificates/{folder.name}").unit.source["artefact"] == str(folder)


def test_store_that_moved(learnt, planted_store, capsys):
    _, last = learnt
    content = torch.load(last, weights_only=True)
    content["atoms"]["store"] = str(Path("gone").absolute())
    SealedCheckpointIO().save_checkpoint(content, "moved.ckpt")
    assert "name the store with --data.store" in refused(["--ckpt_path=moved.ckpt", *FAST], capsys)
    main(["validate", "--ckpt_path=moved.ckpt", *FAST, f"--data.store={planted_store}"])
    assert "joint.atoms" in capsys.readouterr().out


def test_another_store_is_named(fitted, capsys):
    main(["cache", "--data.planted={width: 16, atoms: 24, active: 2.0, rows: 2000, seed: 7}", "--data.store=other"])
    main(["validate", f"--ckpt_path={fitted.last}", *FAST, "--data.store=other", "--tracking_uri=none"])
    assert "is not the store this checkpoint learnt from" in capsys.readouterr().err
    found = Certificate.load("certificates/planted")
    assert found.rows.store.endswith("other")
    assert found.sentence.endswith("rows held out here may be rows it has seen.")


def test_one_that_cannot_be_judged_costs_the_others_nothing(fitted, capsys):
    units = "--units={axes: {class_path: atoms.units.PCA}, far: {class_path: atoms.units.PCA, init_args: {atoms: 99}}}"
    said = refused([f"--ckpt_path={fitted.last}", units, *FAST, "--tracking_uri=none"], capsys)
    assert said.startswith("atoms: error: not judged: far: ")
    assert {path.parent.name for path in Path("certificates").glob("*/certificate.json")} == {"planted", "axes"}
    assert Path("certificates/frontier.png").exists()


def test_two_of_one_name(fitted, capsys):
    said = refused([f"--ckpt_path={fitted.last}", "--units={planted: {class_path: atoms.units.PCA}}", *FAST], capsys)
    assert "units has planted, which is also a member of the checkpoint: give it another name" in said


# ------------------------------------------------------------------------------------------ what is required


@pytest.mark.parametrize("wish", ["rows.rows>=300", "sparsity.dead<=1", "rows.independent=not refuted"])
def test_requirement_that_is_met(fitted, wish):
    main(["validate", f"--ckpt_path={fitted.last}", *FAST, "--tracking_uri=none", f"--require={wish}"])


def test_requirements_that_are_not(fitted, capsys):
    words = ["--require=[rows.rows>=301, sparsity.dead<=1, l1.bp_recovered>=0.1]", "--tracking_uri=none"]
    with pytest.raises(SystemExit) as end:
        main(["validate", f"--ckpt_path={fitted.last}", *FAST, *words])
    assert end.value.code == 3
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("unmet")] == [
        "unmet       planted: rows.rows>=301.0: is 300",
        "unmet       planted: l1.bp_recovered>=0.1: was not measured",
    ]
    assert Certificate.load("certificates/planted").sentence


@pytest.mark.parametrize("wish", ["rows.rowz>=1", "joint.atom"])
def test_requirement_nobody_knows(fitted, wish, capsys):
    said = refused([f"--ckpt_path={fitted.last}", *FAST, "--tracking_uri=none", f"--require={wish}"], capsys)
    assert "near are" in said


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to judge: name a checkpoint with --ckpt_path, or a unit with --unit"),
        (["--unit=atoms.units.PCA"], "data.store is not set"),
        (["--unit=atoms.units.PCA", "--data.store=nowhere"], "data.store is nowhere, which does not exist"),
        (["--ckpt_path=none.ckpt"], "ckpt_path is none.ckpt, which is not a file"),
        (["--unit=os.path.join"], "os.path.join holds no saved SAE"),
        (["--unit=none"], "none holds no saved SAE"),
        (["--unit=atoms.units.PCA", "--require=f"], "require is 'f'"),
        (["--unit=atoms.units.PCA", "--data.store=.", "--noise=true"], "data.store is ., where there is no store"),
        (["--unit=atoms.units.PCA", "--checks.eta=2"], "checks.eta is 2.0"),
        (["--unit=atoms.units.PCA", "--trainer.strategy=tensor_parallel"], "atoms are judged whole"),
    ],
)
def test_what_cannot_be_asked(words, said, capsys):
    assert said in refused(words, capsys)
    assert not Path("certificates").exists()


def test_wrong_width(fitted, capsys):
    main(["cache", "--data.planted={width: 8, rows: 100}", "--data.store=narrow"])
    said = refused([f"--ckpt_path={fitted.last}", "--data.store=narrow", *FAST], capsys)
    assert "has width 16, but planted has 8" in said


@pytest.mark.parametrize("splits", [{"train": 150, "val": 0}, {"train": 150}])
def test_store_without_held_out_rows(splits, capsys):
    make_store(Path("trainonly").absolute(), replace(SPEC, splits=splits))
    said = refused(["--unit=atoms.units.PCA", "--data.store=trainonly", f"--data.site={SITE}", *FAST], capsys)
    assert "split 'val'" in said
    assert not Path("certificates").exists()
