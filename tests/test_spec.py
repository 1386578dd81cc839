import json
from dataclasses import replace

import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import SPEC

from atoms.activations.spec import site_folder, stored_spec
from atoms.activations.store import ActivationStore, StoreSpec
from atoms.errors import AtomsError


@given(st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=20))
@settings(deadline=None)
def test_site_folders_are_one_to_one_and_safe(sites):
    folders = [site_folder(site) for site in [*sites, "tokens", "..", "__x"]]
    assert len(set(folders)) == len(set(sites) | {"tokens", "..", "__x"})
    for folder in folders:
        assert "/" not in folder
        assert not folder.startswith((".", "_"))
        assert folder != "tokens"


def test_spec_survives_json(pristine):
    assert stored_spec(pristine) == SPEC
    assert StoreSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


@pytest.mark.parametrize(
    ("change", "setting"),
    [({"dtype": "int8"}, r"data\.harvest\.dtype=int8"), ({"sites": {}}, r"data\.harvest\.sites")],
)
def test_impossible_specs(change, setting):
    with pytest.raises(AtomsError, match=setting):
        replace(SPEC, **change)


def test_impossible_split_names():
    with pytest.raises(ValueError, match="'a/b' cannot name a split"):
        replace(SPEC, splits={"a/b": 1})


@pytest.mark.parametrize("version", [1, 99, "2"])
def test_other_formats(own_store, version):
    metadata = json.loads((own_store / "zarr.json").read_text())
    metadata["attributes"]["atoms"]["format_version"] = version
    (own_store / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(AtomsError, match=f"format {version}, this version of atoms reads 2; delete the store"):
        ActivationStore.open(own_store)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.replace(b'"seed": 5', b'"seed": 7'),
        lambda data: data.replace(b'"abc"', b'"abd"'),
        lambda data: data.replace(b'"dtype": "float32"', b'"dtype": "float99"'),
        lambda data: data.replace(b'"chunk_rows": 4', b'"chunk_rows": 0'),
        lambda data: data[:-30],
    ],
)
def test_a_damaged_spec_is_refused_with_its_cure(own_store, spoil):
    (own_store / "zarr.json").write_bytes(spoil((own_store / "zarr.json").read_bytes()))
    with pytest.raises(AtomsError, match=r"zarr\.json is damaged; delete zarr\.json and complete\.json"):
        stored_spec(own_store)


def test_not_a_store(tmp_path):
    zarr.create_group(tmp_path / "other")
    with pytest.raises(AtomsError, match="not an activation store"):
        ActivationStore.open(tmp_path / "other")
