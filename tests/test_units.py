"""Every unit as a config names it, on one small store."""

import pytest
import torch
import yaml

from atoms.activations.site_rows import SiteRows
from atoms.commands.parser import AtomsArgumentParser
from atoms.geometry import coherence
from atoms.sae import ThresholdSAE
from atoms.units import TrainedUnit, Unit

CONFIGS = {
    "neurons": "{class_path: atoms.units.Neurons, init_args: {model: {name: gpt2, revision: main}}}",
    "neurons without": "{class_path: atoms.units.Neurons}",
    "random": "{class_path: atoms.units.RandomUnits, init_args: {atoms: 40, encoder: topk, k: 3, seed: 1}}",
    "shuffled": "{class_path: atoms.units.PermutedUnits, init_args: {unit: saved, k: 3}}",
    "shuffled unit": """
      class_path: atoms.units.PermutedUnits
      init_args: {unit: {class_path: atoms.units.DataUnits, init_args: {atoms: 30}}, k: 3}
    """,
    "data": "{class_path: atoms.units.DataUnits, init_args: {atoms: 50}}",
    "whitening": "{class_path: atoms.units.WhiteningBasis, init_args: {seed: null}}",
    "rotated": "{class_path: atoms.units.WhiteningBasis, init_args: {seed: 3}}",
    "pca": "{class_path: atoms.units.PCA, init_args: {atoms: 9}}",
    "ica": "{class_path: atoms.units.ICA, init_args: {rows: 1000, iterations: 30}}",
    "k-means": "{class_path: atoms.units.KMeans, init_args: {atoms: 20, rows: 500}}",
    "k-means omp": "{class_path: atoms.units.KMeans, init_args: {atoms: 20, rows: 500, encoder: omp, k: 2}}",
    "dictionary": "{class_path: atoms.units.DictionaryLearning, init_args: {atoms: 20, rows: 500, penalty: 0.3}}",
}


@pytest.fixture
def train(planted_data, tmp_path):
    rows = SiteRows(planted_data(), "planted", "train")
    ThresholdSAE(16, 24, geometry=rows.geometry).save(tmp_path / "saved", {"site": "planted", "target_l0": 2.0})
    return rows


def read(text) -> Unit:
    parser = AtomsArgumentParser()
    parser.add_argument("--unit", type=Unit)
    return parser.instantiate(parser.parse_object({"unit": yaml.safe_load(text)})).unit


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_names_a_unit_that_keeps_the_contract(name, train, planted_data):
    unit = read(CONFIGS[name])
    unit.fit(train)
    assert (unit.site, unit.reads) == ("planted", "planted")
    assert unit.atoms.shape[1] == 16
    assert unit.atoms.dtype in (torch.float32, torch.float64)
    assert unit.centre.shape == (16,)
    assert unit.centre.dtype == torch.float32
    rows = next(SiteRows(planted_data(), "planted", "val").batches(100))
    codes = unit.encode(rows)
    assert (len(codes), codes.width) == (100, len(unit.atoms))
    within = codes.rows[1:] == codes.rows[:-1]
    assert (codes.indices.diff()[within] > 0).all()
    assert (codes.values != 0).all()
    found = unit.decode(codes)
    assert found.shape == (100, 16)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert not any(tensor.requires_grad for tensor in (unit.atoms, found))
    assert 0 <= coherence(unit.atoms, aip=train.geometry).maximum <= 1
    again = unit.to(torch.device("cpu")).encode(rows)
    assert torch.equal(again.to_dense(), codes.to_dense())


def test_a_trained_unit_keeps_the_contract_of_saved_dictionaries(train):
    unit = TrainedUnit.load("saved")
    unit.fit(train)
    assert unit.encode(torch.zeros(3, 16)).width == 24
