"""What stands in the way of a harvest is said in one line, and nothing half-written is left."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harvests import CPU, limit_memory, make, run
from safetensors.torch import load_file, save_file

from atoms.activations.harvest import harvest
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.lock import StoreLock
from atoms.activations.manifest import COMPLETE
from atoms.activations.model_source import ModelSpec
from atoms.errors import AtomsError


@pytest.fixture
def own_bert(tiny_bert: Path, tmp_path: Path) -> Path:
    """A model of one's own to spoil."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "own-bert"))


def spoil(model: Path, change: Callable[[torch.Tensor], None]) -> None:
    file = model / "model.safetensors"
    weights = load_file(file)
    change(weights["embeddings.LayerNorm.weight"])
    save_file(weights, file, metadata={"format": "pt"})


def test_a_spread_model_needs_accelerate(tiny_bert, text_folder, monkeypatch):
    spec = make(tiny_bert, text_folder, ["resid_post.0"])
    spec.model = ModelSpec(str(tiny_bert), device_map="auto")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "accelerate" else found(name, *a))
    refused(
        spec, r"data\.harvest\.model\.device_map is auto, which needs accelerate: pip install 'atoms\[device-map\]'"
    )


def refused(spec: HarvestSpec, message: str) -> None:
    with pytest.raises(AtomsError, match=message) as caught:
        harvest(spec, spec.directory(), CPU)
    assert "\n" not in str(caught.value)


def assert_nothing_written() -> None:
    assert not Path("activations").exists() or not list(Path("activations").iterdir())


def test_unknown_model(text_folder, tmp_path):
    missing = tmp_path / "brt"
    (tmp_path / "bert").mkdir()
    refused(
        make(missing, text_folder, ["resid_post.0"]),
        r"data\.harvest\.model\.name='.*brt' is not a folder; did you mean '.*bert'",
    )
    assert_nothing_written()


def test_unknown_site(tiny_bert, text_folder):
    message = r"data\.harvest\.sites: BertModel has no place 'resid_post\.3'; .* nearest names: resid_post\.2"
    refused(make(tiny_bert, text_folder, ["resid_post.3"]), message)
    assert_nothing_written()


def test_a_place_that_does_not_exist(tiny_bert, text_folder):
    """It is said of those settings that name it."""
    spec = make(tiny_bert, text_folder, ["resid_post.0"], trainer={"accelerator": "abacus"})
    refused(spec, r"^data\.harvest\.trainer: .*abacus")
    for trainer in ({}, {"devices": 1}):
        spec = make(tiny_bert, text_folder, ["resid_post.0"], trainer=trainer)
        with pytest.raises(AtomsError, match=r"^trainer: .*abacus"):
            harvest(spec, spec.directory(), {"accelerator": "abacus"})


def test_context_too_long(tiny_bert, text_folder):
    message = (
        r"data\.harvest\.context is 63, but .* reads at most 62 tokens beside its special ones: set it to 62 or less"
    )
    refused(make(tiny_bert, text_folder, ["resid_post.0"], context=63), message)
    assert_nothing_written()


def test_wrong_digest(tiny_bert, text_folder):
    spec = make(tiny_bert, text_folder, ["resid_post.0"])
    spec.model = ModelSpec(str(tiny_bert), sha256="0" * 64)
    refused(spec, r"data\.harvest\.model\.sha256=0{64} but model\.safetensors .* has [0-9a-f]{64}; fetch")
    assert_nothing_written()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_gives_no_numbers(own_bert, text_folder, value):
    spoil(own_bert, lambda weight: weight.fill_(value))
    spec = make(own_bert, text_folder, ["resid_post.0"])
    refused(spec, r"data\.harvest\.sites=resid_post\.0: the model gives NaN or infinite values in \d+ of \d+ rows")
    assert not list(Path(spec.directory(), "manifest").iterdir())
    assert not (spec.directory() / COMPLETE).exists()


def test_rows_too_large_for_float16(own_bert, text_folder):
    spoil(own_bert, lambda weight: weight.mul_(1e6))
    message = r"data\.harvest\.dtype=float16: .* overflow it \(largest value .*\); use bfloat16 or float32"
    spec = make(own_bert, text_folder, ["embeddings"], dtype="float16")
    refused(spec, message)
    assert not (spec.directory() / COMPLETE).exists()


def test_a_few_values_too_large_for_float16_are_counted_and_said(own_bert, text_folder, capfd):
    def outlier(weight: torch.Tensor) -> None:
        weight[:2] *= 1e6  # two words of the vocabulary

    spoil(own_bert, outlier)
    store = run(make(own_bert, text_folder, ["embeddings"], dtype="float16"))
    counts = store.sealed.nonfinite["train"]["embeddings"]
    assert counts.infinite >= counts.rows > 0 == counts.nan
    said = capfd.readouterr().err
    assert f"train embeddings: {counts.infinite:,} infinities and 0 NaN in {counts.rows:,} rows" in said
    assert "harvest with data.harvest.dtype: bfloat16" in said
    assert store.moments("embeddings").count == store.n_rows("train") - counts.rows


def test_a_disk_too_small(tiny_bert, text_folder, monkeypatch):
    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(
        make(tiny_bert, text_folder, ["resid_post.0"]),
        r"data\.store=.*: needs .* GB, only 0\.000 GB are free; free",
    )
    assert_nothing_written()


def test_a_directory_that_cannot_be_written(tiny_bert, text_folder):
    Path("file").write_text("in the way")
    refused(
        make(tiny_bert, text_folder, ["resid_post.0"], root="file"),
        r"data\.store=file/.*: cannot create the lock",
    )


def test_a_store_that_is_being_written(tiny_bert, text_folder):
    spec = make(tiny_bert, text_folder, ["resid_post.0"])
    with StoreLock(spec.directory()):
        refused(spec, rf"data\.store=.*: being written by process {os.getpid()} .*; wait for it or stop it")


def test_a_store_made_by_other_settings(tiny_bert, text_folder):
    first = make(tiny_bert, text_folder, ["resid_post.0"])
    harvest(first, first.directory(), CPU)
    with pytest.raises(AtomsError, match=r"data\.store=.*made by other settings \(.*context: stored 30, asked 20"):
        harvest(make(tiny_bert, text_folder, ["resid_post.0"], context=20), first.directory(), CPU)


@pytest.mark.parametrize("content", [None, "  \n ", "[SEP] [CLS]"])
def test_a_corpus_without_text(tiny_bert, tmp_path, content):
    text = tmp_path / "text"
    text.mkdir()
    if content is not None:
        (text / "a.txt").write_text(content)
    with pytest.raises(AtomsError, match=r"data\.harvest\.corpus[.: ]"):
        run(make(tiny_bert, text, ["resid_post.0"]))
    assert_nothing_written()


def test_a_corpus_of_too_few_groups(tiny_bert, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for number in range(5):  # five copies are one group
        (text / f"{number}.txt").write_text(" ".join(f"w{i}" for i in range(40)) + f" w{100 + number}")
    refused(
        make(tiny_bert, text, ["resid_post.0"]),
        r"data\.harvest\.corpus: split '\w+' would get no text, because .* falls into 1 groups .*data\.harvest\.val",
    )
    assert_nothing_written()


def test_a_device_with_too_little_memory(tiny_bert, text_folder, monkeypatch):
    limit_memory(monkeypatch, 0)
    spec = make(tiny_bert, text_folder, ["resid_post.0"], batch_tokens=777)
    refused(spec, r"data\.harvest\.context: one sequence of 32 tokens is too much for the memory of cpu: lower it")
