"""Counts of the sparsity check against counting by hand."""

import math

import numpy as np
import pytest
import torch
from judging import Given, dead, judge, subject_of

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.grid import Grid
from atoms.activations.moments_writer import MomentsWriter
from atoms.activations.spec import StoreSpec
from atoms.activations.store import ActivationStore
from atoms.activations.writer import StoreWriter
from atoms.checks.claim import Verdict
from atoms.checks.sparsity import Sparsity

A = 12


@pytest.fixture(scope="module")
def unit():
    """Codes of uneven use: the first atoms fire often, the last two never."""
    generator = torch.Generator().manual_seed(2)
    atoms = torch.randn(A, 16, generator=generator)
    atoms /= atoms.norm(dim=1, keepdim=True)
    floors = torch.tensor([*torch.linspace(-0.5, 1.5, A - 2).tolist(), math.inf, math.inf])

    def codes(rows: torch.Tensor) -> torch.Tensor:
        pre = rows @ atoms.T
        return torch.where(pre > floors, pre, 0)

    return Given(atoms, codes)


def test_numbers_are_those_of_counting(unit, planted_store, planted_data):
    found, section = judge(Sparsity(subject_of(unit, planted_data(), batch_rows=70)))
    store = ActivationStore.open(planted_store)
    for suffix, split, usage in (("", "val", found.held_out), ("_train", "train", found.train)):
        fires = unit.encode(store.read_rows(split, "planted", 0, 600)).to_dense().numpy() != 0
        k, counts = fires.sum(1), fires.sum(0)
        assert usage.l0.tolist() == k.tolist()
        assert usage.firing_counts.tolist() == counts.tolist()
        assert usage.l0_histogram.tolist() == np.bincount(k, minlength=A + 1).tolist()
        numbers = {name: section.numbers[name + suffix] for name in section.numbers if name + suffix in section.numbers}
        assert numbers["l0"] == pytest.approx(k.mean())
        assert numbers["l0_low"] < numbers["l0"] < numbers["l0_high"]
        assert numbers["k_median"] == np.sort(k)[299]
        assert numbers["k_max"] == k.max()
        assert numbers["dead"] == (counts == 0).mean() >= 2 / A
        shares = np.sort(counts)[::-1].cumsum() / counts.sum()
        for name, share in (("atoms_for_50", 0.5), ("atoms_for_90", 0.9), ("atoms_for_99", 0.99)):
            assert numbers[name] == np.flatnonzero(shares >= share)[0] + 1
        assert numbers["duplicates"] == numbers["singleton"] == 0
        assert numbers["firing_max"] == counts.max() / 600
    assert section.numbers["seen_in_training"] == 0
    assert sum(section.tables["firing_rates"]["held_out_atoms"]) == A
    assert section.tables["firing_rates"]["held_out_atoms"][0] == section.numbers["dead"] * A
    assert sum(section.tables["k_histogram"]["train_rows"]) == 600


def test_at_most_k_atoms_is_held_or_refuted_by_a_row(unit, planted_data):
    found, section = judge(Sparsity(subject_of(unit, planted_data(), max_k=A)))
    (claim,) = section.claims
    assert (claim.verdict, claim.threshold) == (Verdict.GUARANTEED, A)
    most = int(found.held_out.l0.max())
    (claim,) = judge(Sparsity(subject_of(unit, planted_data(), max_k=most - 1)))[1].claims
    assert (claim.verdict, claim.value) == (Verdict.REFUTED, most)
    assert 0.9 < claim.inputs["within"] < 1
    found, _ = judge(Sparsity(subject_of(unit, planted_data())))
    assert found.max_k == 2 * int(found.held_out.l0.median())
    _, section = judge(Sparsity(subject_of(unit, planted_data(), max_k=16)))
    assert "K = 16 is no restriction: any 16 independent atoms rebuild every row." in section.notes


def test_all_atoms_dead(planted_data):
    _, section = judge(Sparsity(subject_of(dead(16), planted_data())), splits={"val"})
    assert section.numbers["dead"] == section.numbers["dead_on_both"] == 1
    assert section.numbers["l0"] == section.numbers["k_max"] == 0
    assert math.isnan(section.numbers["atoms_for_50"])
    assert math.isnan(section.numbers["l0_train"])
    assert any(note.startswith("All atoms are dead") for note in section.notes)


def test_repeated_rows_and_atoms_that_remember_one_of_them(tmp_path):
    """40 distinct training rows, each five times; held-out rows are 10 of them and 10 others; an atom for each."""
    generator = torch.Generator().manual_seed(0)
    distinct = torch.randn(60, 4, generator=generator)
    rows = {"train": distinct[:40].repeat(5, 1), "val": distinct[30:50]}
    spec = StoreSpec({"s": 4}, "float32", {"train": 200, "val": 20}, Grid(10, 100, 200), 0, {"kind": "test"})
    writer = StoreWriter.create(tmp_path / "s", spec)
    moments = MomentsWriter(writer, spec.spans, 0, 1, torch.device("cpu"))
    for span in spec.spans:
        column = np.arange(span.start, span.stop)
        part = {"s": rows[span.split][span.start : span.stop]}
        writer.write_block(span, part, token_id=column, doc_id=column, position=column)
        moments.after(span)
    moments.finish()
    moments.pool()
    moments.sweep()
    writer.finalise()

    unit = Given(distinct, lambda x: (x[:, None] == distinct).all(2).float())
    data = ActivationDataModule(store=str(tmp_path / "s"), max_norm=None)
    _, section = judge(Sparsity(subject_of(unit, data, "s", train_rows=200)))
    assert section.numbers["singleton_train"] == 40 / 60
    assert section.numbers["duplicates_train"] == 1 - 40 / 200
    assert section.numbers["duplicates"] == 0
    assert section.numbers["singleton"] == 20 / 60
    assert section.numbers["seen_in_training"] == 0.5
    assert section.numbers["dead_on_both"] == 10 / 60
    assert any("10 of 20 held-out rows are equal to one of the training rows" in note for note in section.notes)
