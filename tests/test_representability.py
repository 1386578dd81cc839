"""Fidelity against references, and the two ways it misleads: memory and the mean."""

import math

import numpy as np
import pytest
import torch
from judging import Given, Projections, dead, judge, subject_of

from atoms.activations.store import ActivationStore
from atoms.checks.claim import Verdict
from atoms.checks.representability import EXACT, Representability
from atoms.geometry import AtomicInnerProduct


@pytest.fixture(scope="module")
def truth(planted_store):
    """Planted atoms and centre, float64."""
    from atoms.activations.planted import PlantedSpec

    return PlantedSpec(width=16, atoms=24, active=2.0, rows=6000).truth()


def rows_of(store, split: str, count: int = 600) -> np.ndarray:
    return ActivationStore.open(store).read_rows(split, "planted", 0, count).double().numpy()


def claims(section) -> dict[str, Verdict]:
    return {claim.name: claim.verdict for claim in section.claims}


def test_every_score_is_its_definition(planted_store, planted_data, truth):
    atoms, centre = truth
    unit = Projections(atoms, 0.35, centre)
    subject = subject_of(unit, planted_data(), batch_rows=100)
    found, section = judge(Representability(subject))
    numbers = section.numbers
    training = ActivationStore.open(planted_store).read_rows("train", "planted", 0, 4800).double().numpy()
    root = subject.geometry.map().numpy()
    for suffix, split in (("", "val"), ("_train", "train")):
        x = rows_of(planted_store, split)
        codes = unit.encode(torch.from_numpy(x).float())
        x_hat = codes.to_dense().double().numpy() @ unit.atoms.double().numpy() + centre.numpy()
        for space, metric in (("", np.eye(16)), ("_aip", root)):
            error = np.square((x - x_hat) @ metric).sum(1)
            around = np.square((x - training.mean(0)) @ metric).sum(1)
            energy = np.square(x @ metric).sum(1)
            centred = np.square((x - x.mean(0)) @ metric).sum()
            expected = {
                f"r2{space}": 1 - error.sum() / centred,
                f"r2{space}_uncentred": 1 - error.sum() / energy.sum(),
                f"r2{space}_row_median": np.median(1 - error / around),
                f"r2{space}_uncentred_row_median": np.median(1 - error / energy),
                f"mean_r2{space}_uncentred": 1 - around.sum() / energy.sum(),
            }
            for name, value in expected.items():
                assert numbers[name + suffix] == pytest.approx(value, abs=1e-6), (split, name)
        assert found.held_out.rows == numbers["rows"] == 600
    x = rows_of(planted_store, "val")
    x_hat = unit.encode(torch.from_numpy(x).float()).to_dense().double().numpy() @ atoms.numpy() + centre.numpy()
    relative = np.square(x - x_hat).sum(1) / np.square(x - training.mean(0)).sum(1)
    assert numbers["largest_error"] == pytest.approx(relative.max(), rel=1e-4)
    assert numbers["r2_low"] < numbers["r2"] < numbers["r2_high"]
    assert numbers["gap"] == pytest.approx(numbers["r2_train"] - numbers["r2"])
    assert sum(section.tables["row_errors"]["held_out_rows"]) == 600
    # the mean alone explains nothing about the mean, and a good deal about zero
    assert numbers["mean_r2_uncentred"] > 0.2
    assert claims(section) == {"representability": Verdict.NOT_GUARANTEED, "memorisation": Verdict.NOT_REFUTED}


def test_coefficients_solved_for_again_are_those_of_least_squares(planted_store, planted_data, truth):
    atoms, centre = truth
    unit = Projections(atoms, 0.35, centre)
    subject = subject_of(unit, planted_data(), refit_rows=150)
    _, section = judge(Representability(subject))
    x = rows_of(planted_store, "val")[::4]
    metric, back = subject.geometry.map().numpy(), subject.geometry.unmap().numpy()
    codes = unit.encode(torch.from_numpy(x).float()).to_dense().numpy()
    inside = (x - unit.centre.double().numpy()) @ metric
    errors = []
    for row, code in zip(inside, codes, strict=True):
        support = (unit.atoms.double().numpy() @ metric)[code != 0].T
        errors.append(row - support @ np.linalg.lstsq(support, row)[0] if support.size else row)
    mean = subject.train.moments.mean.numpy()
    every = rows_of(planted_store, "val")
    offset = every.mean(0) - mean
    for space, error, around in (
        ("_aip", np.array(errors), metric),
        ("", np.array(errors) @ back, np.eye(16)),
    ):
        total = np.square((x - mean) @ around).sum() - len(x) * np.square(offset @ around).sum()
        assert section.numbers[f"r2{space}_refit"] == pytest.approx(1 - np.square(error).sum() / total, abs=1e-6)
    assert section.numbers["r2_aip_sample"] <= section.numbers["r2_aip_nnls"] <= section.numbers["r2_aip_refit"]
    assert any("on 150 held-out and 150 training rows" in note for note in section.notes)


def test_a_basis_with_every_coefficient_is_exact(planted_data):
    basis = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    _, section = judge(Representability(subject_of(Given(basis, lambda rows: rows @ basis.T), planted_data())))
    assert claims(section) == {"representability": Verdict.GUARANTEED, "memorisation": Verdict.NOT_REFUTED}
    assert section.numbers["largest_error"] < EXACT
    assert section.numbers["exact_rows"] == 1
    assert section.numbers["r2"] == pytest.approx(1, abs=1e-9)


def test_a_unit_that_remembers_training_rows_is_caught(planted_store, planted_data):
    """One atom for each training row looked at: fidelity one there, and what a row next to it gives elsewhere."""
    memory = torch.from_numpy(rows_of(planted_store, "train")).float()

    def codes(rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.cdist(rows, memory).argmin(1), 600).float()

    _, section = judge(Representability(subject_of(Given(memory, codes), planted_data())))
    assert section.numbers["r2_train"] == pytest.approx(1, abs=1e-6)
    assert section.numbers["gap"] > section.numbers["gap_low"] > 0.05
    assert claims(section)["memorisation"] is Verdict.REFUTED


def test_dead_atoms_no_training_rows_and_too_many_atoms(planted_data, truth, monkeypatch):
    _, section = judge(Representability(subject_of(dead(16), planted_data())), splits={"val"})
    assert section.numbers["r2_uncentred"] == 0
    assert section.numbers["r2_refit"] == pytest.approx(section.numbers["r2_sample"])
    assert section.numbers["r2_sample"] < 0
    assert claims(section) == {"representability": Verdict.NOT_GUARANTEED, "memorisation": Verdict.NOT_APPLICABLE}
    assert any("No training rows were looked at" in note for note in section.notes)
    assert all(map(math.isnan, section.tables["fidelity"]["train"]))
    monkeypatch.setattr("atoms.checks.representability._MOST_ATOMS", 2)
    atoms, centre = truth
    _, section = judge(Representability(subject_of(Projections(atoms, 0.1, centre), planted_data(), rows=50)))
    assert any("have more than 2 atoms and were not solved for" in note for note in section.notes)
    monkeypatch.setattr("atoms.checks.representability._MOST_ATOMS", -1)
    _, section = judge(Representability(subject_of(Projections(atoms, 0.1, centre), planted_data(), rows=50)))
    assert math.isnan(section.numbers["r2_refit"])


def test_rows_left_out_for_their_norm_are_counted(planted_data, truth):
    data = planted_data(max_norm=1.1)
    _, section = judge(Representability(subject_of(Projections(*truth[:1], 0.35, truth[1]), data)))
    left_out = 600 - data.num_rows("val")
    assert left_out > 0
    assert section.notes[0].startswith(f"{left_out:,} of 600 held-out rows are left out of everything here")
    assert section.numbers["rows"] == 600 - left_out


def test_geometry_of_the_scores_is_that_of_training_rows(planted_data, truth):
    subject = subject_of(Projections(*truth[:1], 0.35, truth[1]), planted_data())
    assert subject.geometry == AtomicInnerProduct.from_moments(subject.train.moments)
    assert subject.train.moments.count == 4800
