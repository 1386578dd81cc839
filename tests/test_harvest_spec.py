import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from atoms.activations import TextFiles, language_model
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.identity import digest_of
from atoms.activations.model_source import ModelSpec
from atoms.errors import AtomsError

Make = Callable[..., HarvestSpec]


@pytest.fixture
def make(tiny_bert: Path, text_folder: Path, tmp_path: Path) -> Make:
    """A spec over copies of model and text that a test may spoil; keywords replace settings."""
    model = shutil.copytree(tiny_bert, tmp_path / "bert")
    text = shutil.copytree(text_folder, tmp_path / "text")

    def spec(**changes: Any) -> HarvestSpec:
        settings = {
            "model": ModelSpec(str(model)),
            "corpus": TextFiles([str(text)]),
            "sites": ["resid_post.0"],
            "context": 40,
        }
        return HarvestSpec(**{**settings, **changes})

    return spec


def test_a_digest_depends_on_values_and_not_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": 1, "b": [1, 2]}) != digest_of({"a": 1, "b": [2, 1]})
    # written down once: the names of stores on people's disks depend on it
    assert digest_of({"a": 1}) == "f9d86028c6e0d64e225186f96acb69338b2c59764df79162107f5c4bb34d1310"


def test_equal_settings_name_the_same_directory(make):
    assert make().directory() == make().directory()


@pytest.mark.parametrize(
    "change",
    [
        {"sites": ["resid_post.1"]},
        {"sites": ["resid_post.0", "mlp_out.0"]},
        {"context": 39},
        {"dtype": "float16"},
        {"seed": 1},
        {"val": 0.2},
        {"test": 0.2},
        {"tokens": "last"},
        {"special": "bos"},
        {"packing": True},
        {"max_tokens": 1000},
    ],
)
def test_a_setting_that_rows_depend_on_names_another(make, change):
    assert make(**change).directory() != make().directory()


def test_the_type_the_model_computes_in_names_another(make):
    spec = make(dtype="float32")
    half = make(dtype="float32", model=replace(spec.model, dtype="float16"))
    assert half.storage == spec.storage
    assert half.directory() != spec.directory()


@pytest.mark.parametrize("change", [{"memory_mib": 1}, {"batch_tokens": 100}, {"trainer": {"accelerator": "cpu"}}])
def test_a_setting_that_rows_do_not_depend_on_names_the_same(make, change):
    assert make(**change).directory() == make().directory()


def test_other_text_names_another(make):
    before = make().directory()
    (Path(make().corpus.paths[0]) / "000.txt").write_text("w1 w2 w3")
    assert make().directory() != before


def test_other_weights_name_another(make):
    before = make().directory()
    file = Path(make().model.name) / "model.safetensors"
    weights = load_file(file)
    weights["embeddings.word_embeddings.weight"][0, 0] += 1
    save_file(weights, file, metadata={"format": "pt"})
    assert make().directory() != before


def test_the_directory_is_one_below_the_root(make):
    spec = make(root="somewhere/else")
    assert Path(spec.directory()).parent == Path("somewhere/else")
    assert "bert" in spec.directory().name
    assert "/" not in spec.directory().name


def test_the_root_may_be_far_away(make):
    assert str(make(root="s3://bucket/deep").directory()).startswith("s3://bucket/deep/")


def test_a_long_path_still_makes_a_name_for_a_file(make, tmp_path, tiny_bert):
    deep = tmp_path.joinpath(*["folder" * 20] * 3)
    shutil.copytree(tiny_bert, deep / "bert")
    spec = make(model=ModelSpec(str(deep / "bert")))
    assert len(spec.directory().name) < 100
    assert spec.directory().name != make(model=ModelSpec(str(deep / "bert")), seed=1).directory().name


@pytest.mark.parametrize(
    ("model_dtype", "dtype", "computed", "stored"),
    [
        ("auto", "auto", "bfloat16", "bfloat16"),
        ("float16", "auto", "float16", "float16"),
        ("float32", "float16", "float32", "float16"),
        ("auto", "float32", "bfloat16", "float32"),
    ],
)
def test_rows_are_stored_in_the_type_the_model_computes_in(make, model_dtype, dtype, computed, stored):
    model = make().model
    loaded = language_model.load_model(make().resolved).to(torch.bfloat16)
    loaded.save_pretrained(model.name)  # a checkpoint that says bfloat16
    spec = make(model=replace(model, dtype=model_dtype), dtype=dtype)
    assert (spec.compute_dtype, spec.storage) == (computed, stored)
    assert next(language_model.load_model(spec.resolved).parameters()).dtype == getattr(torch, computed)


def test_widths_need_no_weights(make, monkeypatch):
    spec = make(sites=["resid_post.1", "encoder.layer.0.intermediate.dense", "mlp_in.2"])
    monkeypatch.setattr(
        language_model.AutoModel, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded")
    )
    assert spec.widths() == {"resid_post.1": 16, "encoder.layer.0.intermediate.dense": 32, "mlp_in.2": 32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": []}, r"data\.harvest\.sites is empty: name at least one"),
        (
            {"sites": ["resid_post.0", "resid_post.0"]},
            r"data\.harvest\.sites names a place twice: resid_post\.0, ",
        ),
        ({"context": 0}, r"data\.harvest\.context is 0: give at least 1"),
        ({"batch_tokens": 0}, r"data\.harvest\.batch_tokens is 0"),
        ({"memory_mib": -1}, r"data\.harvest\.memory_mib is -1"),
        ({"dtype": "int8"}, r"data\.harvest\.dtype is int8: give auto or one of float32, float16, bfloat16"),
        ({"tokens": "first"}, r"data\.harvest\.tokens is first: give one of all, last, subject_last, subject_first"),
        ({"special": "keep"}, r"data\.harvest\.special is keep: give drop, bos or all"),
        ({"tokens": "last", "packing": True}, r"data\.harvest\.tokens=last keeps one token .*, and packing=True needs"),
        ({"tokens": "last", "special": "bos"}, r"data\.harvest\.tokens=last keeps one token .*, and special=bos needs"),
        ({"max_tokens": 0}, r"data\.harvest\.max_tokens is 0: give at least 1, or null"),
        ({"val": 0.0}, r"data\.harvest\.val=0\.0 and test=0\.1"),
        ({"val": 0.5, "test": 0.5}, r"data\.harvest\.val=0\.5 and test=0\.5"),
        ({"trainer": {"max_steps": 3}}, r"data\.harvest\.trainer sets max_steps: it may only set accelerator, devices"),
    ],
)
def test_settings_that_cannot_work(make, change, message):
    with pytest.raises(AtomsError, match=message):
        make(**change)
