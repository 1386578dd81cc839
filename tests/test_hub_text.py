import json
import sys
from pathlib import Path

import pytest

from atoms.activations import HubText, hub_text
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


def test_cells_may_be_conversations_or_token_ids(files, tmp_path):
    turns = [{"role": "user", "content": "hi"}]
    (tmp_path / "more.jsonl").write_text(json.dumps({"messages": turns, "ids": [1, 2]}))
    more = [str(tmp_path / "more.jsonl")]
    (document,) = HubText("json", column="messages", data_files=more).documents()
    assert document.messages == tuple(turns)
    (document,) = HubText("json", column="ids", data_files=more).documents()
    assert document.ids.tolist() == [1, 2]


# ------------------------------------------------------------------------------------------ streaming

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_stream_gives_what_the_whole_gives(files):
    whole, stream = HubText("json", data_files=files), HubText("json", data_files=files, streaming=True)
    assert list(stream.documents()) == list(whole.documents())
    assert stream.digest() == whole.digest()  # local files are known by their content either way
    with pytest.raises(AtomsError, match=r"corpus\.column is 'body', but json has text, id"):
        list(HubText("json", column="body", data_files=files, streaming=True).documents())


def test_a_stream_is_read_no_further_than_its_limit(files, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text("no json at all\n")
    stream = HubText("json", data_files=[*files, str(broken)], streaming=True, limit=2)
    assert [document.text for document in stream.documents()] == ["one", "two"]
    with pytest.raises(
        AtomsError, match=r"corpus\.name is json, which cannot be read beyond row 2 \(.*\): run"
    ) as caught:
        list(HubText("json", data_files=[*files, str(broken)], streaming=True).documents())
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub(monkeypatch):
    """A hub that knows one commit, and notes what is asked of it."""
    asked: list[dict[str, object]] = []

    def load(name, config, **settings):
        asked.append({"name": name, **settings})
        return datasets.Dataset.from_dict({"text": ["one", "two"], "id": [1, 2]}).to_iterable_dataset()

    class Api:
        def dataset_info(self, name, revision, timeout):
            if name != "org/data":
                raise ConnectionError("no such\ndata set")
            asked.append({"revision": revision})
            return type("Info", (), {"sha": COMMIT})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub_text, "HfApi", Api)
    return asked


def test_a_stream_is_pinned_to_a_commit_and_known_by_it(hub):
    corpus = HubText("org/data", revision="main", streaming=True)
    digest = corpus.digest()
    assert corpus.describe()["commit"] == COMMIT
    assert hub == [{"revision": "main"}]  # nothing was downloaded for it
    assert [document.text for document in corpus.documents()] == ["one", "two"]
    assert hub[1]["revision"] == COMMIT
    assert len(hub) == 2
    pinned = HubText("org/data", revision=COMMIT, streaming=True)
    assert pinned.digest() == digest
    assert len(hub) == 2  # a commit is not looked up, so that a store is found without a network
    assert HubText("org/data", revision="f" * 40, streaming=True).digest() != digest
    assert HubText("org/data", revision=COMMIT, streaming=True, limit=1).digest() != digest


def test_a_commit_that_cannot_be_looked_up(hub):
    with pytest.raises(AtomsError, match=r"whose commit cannot be looked up \(no such data set\): mend name") as caught:
        HubText("org/none", streaming=True).digest()
    assert "\n" not in str(caught.value)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(AtomsError, match=r"pip install 'atoms\[hub\]'"):
        list(HubText("some/data").documents())
