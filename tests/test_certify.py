"""The whole judgement: every check on one pass, for any unit, on any number of ranks."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked import forked, lightning_ranks
from judging import Given, dead

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.planted import PlantedSpec, plant
from atoms.checks import Certificate, CheckSettings, Verdict, certify
from atoms.checks.check import Check
from atoms.checks.registry import CHECKS
from atoms.errors import AtomsError
from atoms.units import PCA, DataUnits, RandomUnits, TrainedUnit, WhiteningBasis

CPU = {"accelerator": "cpu", "devices": 1}
QUICK = CheckSettings(
    rows=300, train_rows=200, batch_rows=64, solved_rows=16, null_rows=64, refit_rows=64, bootstrap=20
)
ONE_BATCH = replace(QUICK, rows=60, train_rows=50)
NAMES = {check.name for check in CHECKS}
NO_TOKENS, ONE_SEED = "use", "stability"


def trained(fitted) -> TrainedUnit:
    (folder,) = fitted.folder.glob("runs/*/*/checkpoints/atoms/*")
    return TrainedUnit.load(folder)


@pytest.fixture(scope="module")
def certificate(fitted, planted_store) -> Certificate:
    return certify(trained(fitted), planted_store, settings=QUICK, trainer=CPU)


def test_every_check_has_its_section(certificate):
    assert certificate.failed.keys() == {NO_TOKENS, ONE_SEED}
    assert {section.name for section in certificate.sections} == NAMES - {NO_TOKENS, ONE_SEED}
    assert certificate.sections[0].name == "joint"
    assert certificate.seconds.keys() == NAMES
    assert certificate.rows.held_out == 300
    assert certificate.rows.train == 200
    assert certificate.rows.train_total == 4800
    assert certificate.unit.width, certificate.unit.atoms == (16, 40)
    assert certificate.sentence
    numbers = certificate.numbers()
    assert numbers["joint/f"] == numbers["rows/f"]
    assert certificate.claims()["joint.atoms"].value == numbers["joint/f"]


def test_same_again(certificate, fitted, planted_store):
    again = certify(trained(fitted), planted_store, settings=QUICK, trainer=CPU)
    assert replace(again, seconds={}).to_json() == replace(certificate, seconds={}).to_json()


def test_two_ranks_find_what_one_does(certificate, fitted, planted_store, tmp_path):
    """Five batches, and one, so that the second rank has none."""
    unit = next(fitted.folder.glob("runs/*/*/checkpoints/atoms/*"))
    places = [(rank, str(unit), str(planted_store), str(tmp_path)) for rank in range(2)]
    assert forked(judge_on_rank, *places, environments=lightning_ranks(2)) == [0, 0]
    few = certify(trained(fitted), planted_store, settings=ONE_BATCH, trainer=CPU)
    for name, alone in (("many", certificate), ("few", few)):
        expected = json.loads(replace(alone, seconds={}).to_json())
        for rank in range(2):
            found = Certificate.load(tmp_path / f"{name}-{rank}")
            same(json.loads(replace(found, seconds={}).to_json()), expected)


def judge_on_rank(rank: int, unit: str, store: str, folder: str) -> None:
    place = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    for name, settings in (("many", QUICK), ("few", ONE_BATCH)):
        found = certify(TrainedUnit.load(unit), store, settings=settings, trainer=place)
        found.save(Path(folder) / f"{name}-{rank}")


def same(found, expected, where="") -> None:
    """Integers and words equal, other numbers to 1e-9."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            same(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            same(found[number], value, f"{where}[{number}]")
    elif isinstance(expected, float) and not expected.is_integer():
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9), where
    else:
        assert found == expected, where


def test_dead_on_all_training_rows_beyond_those_looked_at(planted_store):
    """An atom that fires on the last training row alone is dead where few are looked at, and alive where all are."""
    store = ActivationDataModule(store=str(planted_store)).store
    last = store.read_rows("train", "planted", 4799, 4800)
    unit = Given(
        torch.eye(16)[:3], lambda rows: torch.stack([(rows == last).all(1), *[rows.new_zeros(len(rows))] * 2], 1)
    )
    found = certify(unit, planted_store, settings=replace(QUICK, skip=sorted(NAMES - {"sparsity"})), trainer=CPU)
    numbers = found.numbers()
    assert numbers["sparsity/dead_train"] == 1
    assert numbers["sparsity/dead_in_training"] == pytest.approx(2 / 3)


# ------------------------------------------------------------------------------------------ what must not be guaranteed

ALONE = CheckSettings(
    rows=400, train_rows=200, batch_rows=128, null_rows=128, bootstrap=20, max_k=4,
    skip=["l1", "isometry", "identifiability", "stability", "use", "shift", "metric"],
)  # fmt: skip


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> str:
    """Gaussian rows: a planted store whose every row is noise."""
    path = tmp_path_factory.mktemp("noise") / "store"
    plant(PlantedSpec(width=64, atoms=4, active=1e-6, noise=1.0, offset=0.0, rows=1000), path)
    return str(path)


def test_planted_atoms_are_guaranteed(planted_store):
    """The claim can be earned: true atoms, coded by pursuit."""
    data = ActivationDataModule(store=str(planted_store))
    unit = RandomUnits(atoms=len(data.truth), k=4)
    unit.learn = lambda rows: (data.truth, rows.moments.mean)
    unit.name = "truth"
    found = certify(unit, data, settings=ALONE, trainer=CPU)
    assert found.claims()["joint.atoms"].verdict is Verdict.GUARANTEED, found.claims()["joint.atoms"].why
    assert found.numbers()["joint/f_basis"] < found.numbers()["joint/f_low"]
    assert found.sentence.startswith("It may be claimed that ")


@pytest.mark.parametrize(
    "unit", [PCA(), WhiteningBasis(), RandomUnits(k=4), RandomUnits(k=4, encoder="topk"), DataUnits(k=1), dead(16)]
)
def test_worthless_units_never_earn_the_joint_claim(unit, planted_store):
    found = certify(unit, planted_store, settings=ALONE, trainer=CPU)
    assert found.claims()["joint.atoms"].verdict in (Verdict.VACUOUS, Verdict.NOT_GUARANTEED)
    assert "may be claimed that" not in found.sentence.replace("Nothing may be claimed", "").replace("may not be", "")


def test_the_memoriser_is_flagged(noise):
    """All training rows as atoms, one to a row: R² = 1 and q* = 1 on pure noise, and nothing on held-out rows."""
    unit = DataUnits(atoms=10**6, k=1)
    found = certify(unit, noise, settings=replace(ALONE, rows=None, train_rows=None), trainer=CPU)
    numbers, claims = found.numbers(), found.claims()
    assert numbers["representability/r2_train"] == pytest.approx(1, abs=1e-6)
    assert numbers["uniqueness/q_pairs"] == 1
    assert numbers["representability/r2"] < 0.4
    assert claims["representability.memorisation"].verdict is Verdict.REFUTED
    assert claims["joint.atoms"].verdict is Verdict.NOT_GUARANTEED
    assert numbers["uniqueness/flag_single"] == 1
    assert "memorises" in found.sentence


def test_a_unit_of_another_store_is_said_to_be(fitted, noise):
    unit = dead(64, 64)
    unit.source = trained(fitted).source
    found = certify(unit, noise, settings=ALONE, trainer=CPU)
    assert found.sentence.endswith("rows held out here may be rows it has seen.")


# ------------------------------------------------------------------------------------------ bad input


def test_a_unit_without_a_single_firing_is_judged_all_the_same(planted_store):
    found = certify(dead(16), planted_store, settings=QUICK, trainer=CPU)
    assert all("please report" not in reason for reason in found.failed.values()), found.failed
    assert found.numbers()["sparsity/dead"] == 1
    assert found.numbers()["joint/f"] == 0
    Certificate.from_json(json.loads(found.to_json()), "it")


def test_atoms_that_are_not_numbers(planted_store):
    broken = Given(torch.full((5, 16), math.nan), lambda rows: torch.ones(len(rows), 5))
    found = certify(broken, planted_store, settings=QUICK, trainer=CPU)
    assert any("NaN or infinity" in reason for reason in found.failed.values())
    assert all("please report" not in reason for reason in found.failed.values()), found.failed


def test_unit_of_another_width(planted_store):
    with pytest.raises(AtomsError, match="has width 8, but planted has 16"):
        certify(dead(8), planted_store, settings=QUICK, trainer=CPU)


def test_unit_of_another_site(planted_store):
    unit = dead(16)
    unit.site = "resid_post.3"
    with pytest.raises(AtomsError, match=r"has no site 'resid_post\.3'"):
        certify(unit, planted_store, trainer=CPU)


def test_site_must_be_said_where_there_are_several(pristine):
    with pytest.raises(AtomsError, match="site is not set and the store holds 2"):
        certify(dead(8), pristine, trainer=CPU)


def test_unknown_check(planted_store):
    with pytest.raises(AtomsError, match=r"checks\.skip names unique: the checks are joint, "):
        certify(dead(16), planted_store, settings=CheckSettings(skip=["unique"]), trainer=CPU)


@pytest.mark.parametrize(
    "change",
    [{"eta": 0.0}, {"share": 1.5}, {"max_k": 0}, {"rows": 0}, {"etas": []}, {"bootstrap": 0}, {"probe_rows": 0}],
)
def test_settings_that_cannot_be_asked(change):
    with pytest.raises(AtomsError, match=rf"checks\.{next(iter(change))} is "):
        CheckSettings(**change)


def test_one_check_fails_and_the_others_go_on(planted_store, monkeypatch, capsys):
    class Refusing(Check):
        name, title = "refusing", "Refuses"

        def update(self, batch):
            raise AtomsError("this cannot be done")

        def compute(self):
            pytest.fail("it failed before")

        def report(self, found):
            pytest.fail("it failed before")

    class Faulty(Refusing):
        name, title = "faulty", "Has a fault"

        def update(self, batch):
            raise IndexError("7")

    (rows,) = (check for check in CHECKS if check.name == "rows")
    monkeypatch.setattr(sys.modules["atoms.checks.certify"], "CHECKS", (Refusing, Faulty, rows))
    found = certify(dead(16), planted_store, settings=QUICK, trainer=CPU)
    assert found.failed == {"refusing": "this cannot be done", "faulty": "7 (IndexError; please report it)"}
    assert [section.name for section in found.sections] == ["rows"]
    assert "IndexError" in capsys.readouterr().err
