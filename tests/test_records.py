"""Rows of JSON, CSV and Parquet files, and what can be wrong with such files."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoms.activations import records
from atoms.activations.records import read_rows
from atoms.errors import AtomsError

SETTING = "data.harvest.corpus.paths"

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def values_of(file: Path, columns: list[str] | None = None) -> list[Any]:
    rows = list(read_rows(file, SETTING, columns))
    assert [row.number for row in rows] == list(range(len(rows)))
    return [row.value for row in rows]


@given(st.lists(values, max_size=12), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_is_read_as_json_reads_it(tmp_path, monkeypatch, written, at_once, indent, ascii_only):
    """However little of the file is looked at together."""
    monkeypatch.setattr(records, "_CHARS_AT_ONCE", at_once)
    (tmp_path / "a.json").write_text(json.dumps(written, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    assert values_of(tmp_path / "a.json") == written
    lines = [json.dumps(value, ensure_ascii=ascii_only) for value in written]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    assert values_of(tmp_path / "a.jsonl") == written


def test_a_json_file_is_never_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_CHARS_AT_ONCE", 100)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "x" * 50}] * 1000)[:-1] + ", broken")  # never closed
    rows = read_rows(path, SETTING)
    assert [next(rows).value["text"] for _ in range(900)] == ["x" * 50] * 900
    with pytest.raises(AtomsError, match=r"a\.json is not JSON at record 1000 \(Expecting value\); mend the file"):
        list(rows)


def test_csv_and_tsv(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbftext,id\r\n"one, ""two""\nthree",1\r\n\r\n,2\r\n')
    assert values_of(tmp_path / "a.csv", ["text"]) == [
        {"text": 'one, "two"\nthree', "id": "1"}, {"text": "", "id": "2"},
    ]  # fmt: skip
    (tmp_path / "a.tsv").write_text(f"text\tid\n{'long ' * 40_000}\t1\n")
    assert values_of(tmp_path / "a.tsv")[0]["text"] == "long " * 40_000


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(records, "_ROWS_AT_ONCE", 2)
    table = pa.table(
        {"text": pa.array(["a", None, "b", "a"]).cast(kind), "id": [1, 2, 3, 4], "more": [[1], [], [2], [3]]}
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    assert values_of(tmp_path / "a.parquet", ["text"]) == [{"text": text} for text in ("a", None, "b", "a")]
    assert values_of(tmp_path / "a.parquet")[3] == {"text": "a", "id": 4, "more": [3]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', r"a\.jsonl line 3 is not JSON \(Expecting .*\); mend the line"),
        ("a.jsonl", b'{"text": "x"}\n"\xff"\n', r"a\.jsonl line 2 is not UTF-8 \(byte 0xff\); convert it first"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl line 1 is not JSON"),
        ("a.jsonl", b'{"body": "x", "id": 1}', r"a\.jsonl line 1 has no column 'text' but body, id: name"),
        ("a.jsonl", b'"x"', r"a\.jsonl line 1 has no column 'text' but none"),
        ("a.json", b'[{"text": "x"} {"text": "y"}]', r"a\.json is not JSON at record 1 \(a comma or the list's end"),
        ("a.json", b'[{"text": "x"},]', r"a\.json is not JSON at record 1 \(Expecting value\)"),
        ("a.json", b'[{"text": "x"}', r"a\.json is not JSON at record 1 \(a comma or the list's end"),
        ("a.json", b'[{"text": "x"}] 1', r"a\.json is not JSON at record 1 \(text follows the list's end"),
        ("a.json", b"[", r"a\.json is not JSON at record 0"),
        ("a.json", b"[" * 100_000, r"a\.json is not JSON at record 0"),
        ("a.json", b'{"text": "x"}', r"a\.json does not hold a JSON list; for one value a line name it \.jsonl"),
        ("a.json", b"", r"a\.json does not hold a JSON list"),
        ("a.json", b'["\xe9"]', r"a\.json is not UTF-8 \(byte 0xe9\)"),
        ("a.csv", b"text,id\nx\n", r"a\.csv line 2 has 1 fields and the header 2; put fields"),
        ("a.csv", b'text,id\nx,"y\n', r"a\.csv line 2 is not CSV \(unexpected end of data\)"),
        ("a.csv", b"text,text\nx,y\n", r"a\.csv names a column twice"),
        ("a.csv", b"body,id\nx,y\n", r"a\.csv line 2 has no column 'text' but body, id"),
        ("a.csv", b"text\n\xe9\n", r"a\.csv is not UTF-8 \(byte 0xe9\)"),
        ("a.parquet", b"no such thing", r"a\.parquet cannot be read as Parquet \(.*\); write it again"),
        ("a.parquet", b"", r"a\.parquet cannot be read as Parquet"),
        ("a.xlsx", b"", r"a\.xlsx is of no kind that can be read; give \.jsonl, "),
    ],
)  # fmt: skip
def test_what_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AtomsError, match=message) as caught:
        list(read_rows(tmp_path / name, SETTING, ["text"]))
    assert str(caught.value).startswith("data.harvest.corpus")
    assert "\n" not in str(caught.value)


def test_a_parquet_file_without_the_column(tmp_path):
    pq.write_table(pa.table({"body": ["x"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(AtomsError, match=r"a\.parquet has no column 'text' but body, id: name the one"):
        list(read_rows(tmp_path / "a.parquet", SETTING, ["text"]))


def test_a_damaged_parquet_file(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(i) * 20 for i in range(5000)]}), file)
    whole = bytearray(file.read_bytes())
    whole[100:20_000] = b"\xff" * 19_900
    file.write_bytes(whole)
    with pytest.raises(AtomsError, match=r"a\.parquet"):
        list(read_rows(file, SETTING, ["text"]))


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    file = tmp_path / "a.jsonl"
    file.write_text("1")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AtomsError, match=r"paths: cannot read .*a\.jsonl: Permission denied"):
        list(read_rows(file, SETTING))
