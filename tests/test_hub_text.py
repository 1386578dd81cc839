import json
import sys
from pathlib import Path

import pytest

from atoms.activations import HubText
from atoms.errors import AtomsError

datasets = pytest.importorskip("datasets", reason="extra hub")


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(["one", " ", "two"])))
    return [str(path)]


def test_a_document_per_row_that_has_text(files):
    corpus = HubText("json", data_files=files)
    assert [(document.name, document.text) for document in corpus.documents()] == [("json#0", "one"), ("json#2", "two")]
    assert [document.text for document in HubText("json", data_files=files, limit=1).documents()] == ["one"]


def test_digest_follows_content_and_not_the_path(files, tmp_path):
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(Path(files[0]).read_bytes())
    changed = tmp_path / "changed.jsonl"
    changed.write_text(json.dumps({"text": "three", "id": 0}) + "\n")
    digest = HubText("json", data_files=files).digest()
    assert HubText("json", data_files=[str(moved)]).digest() == digest
    assert HubText("json", data_files=[str(changed)]).digest() != digest


def test_an_unknown_column_names_those_there_are(files):
    with pytest.raises(AtomsError, match=r"corpus\.column is 'body', but json has text, id"):
        list(HubText("json", column="body", data_files=files).documents())


def test_an_unknown_data_set_is_one_line(tmp_path):
    with pytest.raises(AtomsError, match=r"corpus\.name is json, which cannot be loaded") as caught:
        list(HubText("json", data_files=[str(tmp_path / "none.jsonl")]).documents())
    assert "\n" not in str(caught.value)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(AtomsError, match=r"pip install 'atoms\[hub\]'"):
        list(HubText("some/data").documents())
