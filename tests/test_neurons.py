"""Neurons of a site, on a store harvested from a tiny GPT-2."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from atoms.activations import TextFiles
from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.harvest import harvest
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.model_source import ModelSpec
from atoms.activations.site_rows import SiteRows
from atoms.errors import AtomsError
from atoms.units import Neurons


@pytest.fixture(scope="module")
def spec(tiny_gpt2, text_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("neurons")
    sites = ["mlp_in.1", "mlp_out.1", "mlp_out.2", "resid_post.1"]
    made = HarvestSpec(ModelSpec(str(tiny_gpt2)), TextFiles([str(text_folder)]), sites, str(root), context=30)
    harvest(made, made.directory(), {"accelerator": "cpu", "devices": 1})
    return made


@pytest.fixture
def rows_of(spec):
    def make(site, split="train"):
        return SiteRows(ActivationDataModule(store=str(spec.directory()), batch_size=64, pool_mib=1), site, split)

    return make


def test_neurons_of_an_mlp_rebuild_its_output_exactly(rows_of):
    unit = Neurons()
    unit.fit(rows_of("mlp_out.1"))
    assert (unit.site, unit.reads, unit.atoms.shape) == ("mlp_out.1", "mlp_in.1", (64, 16))
    batch = next(iter(rows_of("mlp_out.1", "val").stream(500, ["mlp_in.1"])))
    codes = unit.encode(batch.rows["mlp_in.1"])
    torch.testing.assert_close(unit.decode(codes), batch.rows["mlp_out.1"], rtol=1e-4, atol=1e-4)
    assert torch.equal(codes.to_dense(), batch.rows["mlp_in.1"])


def test_elsewhere_neurons_are_the_coordinates(rows_of):
    unit = Neurons()
    unit.fit(rows_of("resid_post.1"))
    assert (unit.site, unit.reads) == ("resid_post.1", "resid_post.1")
    assert torch.equal(unit.atoms, torch.eye(16))
    rows = next(rows_of("resid_post.1", "val").batches(100))
    codes = unit.encode(rows)
    assert torch.equal(codes.to_dense(), rows)
    assert torch.equal(unit.decode(codes), rows)


def test_a_store_without_the_rows_neurons_are_read_from_is_refused(rows_of):
    with pytest.raises(
        AtomsError, match=r"^unit neurons: the codes of mlp_out\.2 are the rows of mlp_in\.2, which .* does not hold"
    ) as refused:
        Neurons().fit(rows_of("mlp_out.2"))
    assert "data.harvest.sites=[mlp_in.2, mlp_out.2]" in str(refused.value)


def test_another_model_can_be_named_and_is_held_to_the_store(rows_of, tiny_gpt2, tmp_path):
    moved = shutil.copytree(tiny_gpt2, tmp_path / "moved")
    Neurons(ModelSpec(str(moved))).fit(rows_of("mlp_out.1"))
    weights = load_file(moved / "model.safetensors")
    weights["h.1.mlp.c_proj.weight"][3] += 1.0
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        AtomsError, match=r"^unit neurons: what they write differs from mlp_out\.1 in the store by \d+%"
    ):
        Neurons(ModelSpec(str(moved))).fit(rows_of("mlp_out.1"))


def test_a_model_of_another_shape_is_refused(rows_of, tiny_folder):
    with pytest.raises(
        AtomsError, match=r"^unit neurons: the model's down-projection is \(24, 16\), but mlp_in\.1 and"
    ):
        Neurons(ModelSpec(str(tiny_folder("gpt2")))).fit(rows_of("mlp_out.1"))


def test_a_model_that_is_gone_is_refused(rows_of):
    with pytest.raises(AtomsError, match=r"^unit neurons: .*nowhere"):
        Neurons(ModelSpec("./nowhere")).fit(rows_of("mlp_out.1"))


def test_a_store_that_does_not_say_its_model_is_refused(rows_of):
    rows = rows_of("mlp_out.1")
    rows.data.store.spec = replace(rows.data.store.spec, provenance={})
    with pytest.raises(AtomsError, match=r"does not say which model its rows come from: name it as unit\.model\.name$"):
        Neurons().fit(rows)
