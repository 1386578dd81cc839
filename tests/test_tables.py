"""Columns of files as documents."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atoms.activations import TableFiles
from atoms.errors import AtomsError

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "name": "x"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "tables"
    (root / "sub").mkdir(parents=True)
    (root / "b.jsonl").write_text('{"text": " one "}\n{"text": " "}\n{"text": null}\n{"text": "two"}\n')
    (root / "a.csv").write_text("text,id\nthree,1\n")
    (root / "sub" / "c.json").write_text('[{"text": "four"}]')
    pq.write_table(pa.table({"text": ["five"]}), root / "sub" / "d.parquet")
    (root / "readme.md").write_text("not a table")
    return root


ALL = [
    ("a.csv#0", "three"), ("b.jsonl#0", "one"), ("b.jsonl#3", "two"), ("sub/c.json#0", "four"),
    ("sub/d.parquet#0", "five"),
]  # fmt: skip


def plain(corpus: TableFiles) -> list[tuple[str, str]]:
    return [(document.name, document.text) for document in corpus.documents()]


def test_every_kind_of_file_below_a_folder(folder):
    assert plain(TableFiles([str(folder)])) == ALL
    assert plain(TableFiles([f"{folder}/**/*.parquet", str(folder / "a.csv")])) == [ALL[4], ALL[0]]
    assert plain(TableFiles([str(folder)], limit=2)) == ALL[:2]


def test_messages_from_every_kind_of_file(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": TURNS}))
    pq.write_table(pa.table({"messages": [TURNS]}), tmp_path / "b.parquet")  # gives the first turn a name of None
    documents = list(TableFiles([str(tmp_path)], column="messages").documents())
    assert [document.messages for document in documents] == [tuple(TURNS)] * 2


def test_token_ids_from_every_kind_of_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"input_ids": [1, 2]}\n{"input_ids": []}\n')
    pq.write_table(pa.table({"input_ids": pa.array([[1, 2]], pa.list_(pa.int16()))}), tmp_path / "b.parquet")
    documents = list(TableFiles([str(tmp_path)], column="input_ids").documents())
    assert [(d.ids.tolist(), d.ids.dtype.name) for d in documents] == [([1, 2], "int32")] * 2


def test_subject_and_group(tmp_path):
    (tmp_path / "a.csv").write_text("q,who,book\nBo and Bo,Bo,7\nAda, Bo ,8\n")
    first, second = TableFiles([str(tmp_path)], column="q", subject="who", group="book").documents()
    assert (first.subject, first.group) == ((7, 9), "7")
    assert (second.subject, second.group) == (None, "8")


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ('{"text": 5}', "text", r"a\.jsonl line 1 holds 5, which is neither text, nor messages .* name another column"),
        ('{"text": [1.5]}', "text", r"line 1 holds \[1\.5\], which is neither"),
        ('{"text": [true]}', "text", r"line 1 holds \[True\], which is neither"),
        ('{"text": [{"role": "user"}]}', "text", r"line 1 holds \[\{'role': 'user'\}\], which is neither"),
        ('{"text": [99999999999]}', "text", r"line 1 holds \[99999999999\], which are no token ids"),
        ('{"text": "x"}', "body", r"line 1 has no column 'body' but text"),
        ('{"text": ""}', "text", r"hold nothing in column 'text'; there is nothing to harvest"),
        ("", "text", r"hold nothing in column 'text'"),
    ],
)
def test_cells_that_are_no_documents(tmp_path, line, column, message):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(AtomsError, match=message) as caught:
        list(TableFiles([str(tmp_path)], column=column).documents())
    assert "\n" not in str(caught.value)


def test_subjects_must_be_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "who": 3}')
    with pytest.raises(AtomsError, match=r"corpus\.subject: .*line 1 holds 3, not text"):
        list(TableFiles([str(tmp_path)], subject="who").documents())


def test_no_file(tmp_path):
    with pytest.raises(AtomsError, match=r"corpus\.paths: no \.csv or \.json or .* file matches"):
        list(TableFiles([str(tmp_path)]).documents())
    with pytest.raises(AtomsError, match=r"limit must be at least 1, got 0"):
        TableFiles([str(tmp_path)], limit=0)


def test_digest_is_of_content_and_settings(folder, tmp_path):
    digest = TableFiles([str(folder)]).digest()
    moved = folder.rename(tmp_path / "moved")
    assert TableFiles([str(moved)]).digest() == digest
    others = {TableFiles([str(moved)], limit=4).digest(), TableFiles([str(moved)], group="text").digest()}
    (moved / "a.csv").unlink()
    others.add(TableFiles([str(moved)]).digest())
    assert len(others | {digest}) == 4
    (tmp_path / "ids.jsonl").write_text('{"x": [1, 2]}\n{"x": [3]}\n')
    ids = TableFiles([str(tmp_path / "ids.jsonl")], column="x").digest()
    (tmp_path / "ids.jsonl").write_text('{"x": [1]}\n{"x": [2, 3]}\n')
    assert TableFiles([str(tmp_path / "ids.jsonl")], column="x").digest() != ids


def test_describe():
    assert TableFiles(["x"], column="body").describe() == {
        "corpus": "TableFiles", "column": "body", "subject": None, "group": None, "limit": None,
    }  # fmt: skip
