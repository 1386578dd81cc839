"""Rows of JSON, CSV and Parquet files, one at a time; no file is ever held whole."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from atoms.errors import AtomsError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
"""Kinds of files that can be read, told by their name."""

_ROWS_AT_ONCE = 1024
_CHARS_AT_ONCE = 2**16
_BLANK = " \t\r\n"
_NUMERIC = "0123456789.eE+-"


class Row(NamedTuple):
    """One row of a file."""

    where: str
    """File and place in it, for messages."""
    number: int
    """Its number in the file, from 0."""
    value: Any
    """What it holds: for a table a dict of columns."""


def read_rows(file: Path, setting: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a file in order.

    Args:
        file: A JSON list, a JSON value a line (``.jsonl``), a CSV file with a header, or a Parquet file.
        setting: The setting that named it, for messages.
        columns: Columns that every row must have; no other is read where that saves work. None takes rows as they are.

    Raises:
        AtomsError: If the file cannot be read or understood, or lacks a column.
    """
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise AtomsError(f"{setting}: {file} is of no kind that can be read; give {', '.join(SUFFIXES)}")
    with _reading(file, setting):
        if suffix == ".parquet":
            rows = _parquet(file, setting, columns)
        elif suffix in (".csv", ".tsv"):
            rows = _csv(file, setting, "\t" if suffix == ".tsv" else ",")
        else:
            rows = _json_lines(file, setting) if suffix != ".json" else _json_list(file, setting)
        for row in rows:
            _require(columns, row.value, row.where)
            yield row


@contextmanager
def _reading(file: Path, setting: str) -> Iterator[None]:
    """Turn what can go wrong with a file into one line."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise AtomsError(
            f"{setting}: {file} is not UTF-8 (byte {error.object[error.start]:#04x}); "
            "convert it first, e.g. with iconv -t utf-8"
        ) from error
    except OSError as error:
        raise AtomsError(f"{setting}: cannot read {file}: {error.strerror or ' '.join(str(error).split())}") from error


def _require(columns: Sequence[str] | None, there: Any, where: str) -> None:
    """Refuse what lacks a column: a row, or the names in a header."""
    there = there if isinstance(there, dict | list) else ()
    for column in columns or ():
        if column not in there:
            raise AtomsError(
                f"data.harvest.corpus: {where} has no column {column!r} but {', '.join(map(str, there)) or 'none'}: "
                "name the one that is meant"
            )


def _json_lines(file: Path, setting: str) -> Iterator[Row]:
    number = 0
    with file.open("rb") as lines:
        for line, data in enumerate(lines, start=1):
            where = f"{file} line {line}"
            try:
                text = data.decode("utf-8-sig" if line == 1 else "utf-8").strip()
                if not text:
                    continue
                value = json.loads(text)
            except UnicodeDecodeError as error:
                raise AtomsError(
                    f"{setting}: {where} is not UTF-8 (byte {error.object[error.start]:#04x}); "
                    "convert it first, e.g. with iconv -t utf-8"
                ) from error
            except (json.JSONDecodeError, RecursionError) as error:
                raise AtomsError(f"{setting}: {where} is not JSON ({error}); mend the line or take it out") from error
            yield Row(where, number, value)
            number += 1


def _json_list(file: Path, setting: str) -> Iterator[Row]:
    """The elements of one JSON list, decoded as the text comes in."""
    decoder = json.JSONDecoder()
    with file.open(encoding="utf-8-sig") as stream:
        text, ended, number = "", False, 0

        def more() -> bool:
            nonlocal text, ended
            part = stream.read(max(_CHARS_AT_ONCE, len(text)))  # doubling, so that a long element is not decoded often
            ended = not part
            text += part
            return not ended

        def next_char() -> str:
            nonlocal text
            text = text.lstrip(_BLANK)
            while not text and more():
                text = text.lstrip(_BLANK)
            return text[:1]

        if next_char() != "[":
            raise AtomsError(f"{setting}: {file} does not hold a JSON list; for one value a line name it .jsonl")
        text = text[1:]
        while (char := next_char()) != "]":
            if number:
                if char != ",":
                    raise _broken(setting, file, number, "a comma or the list's end is missing")
                text = text[1:]
                next_char()
            while True:
                try:
                    value, end = decoder.raw_decode(text)
                    # A number at the end of what was read may go on: 1 to 1.5, and 1. as well.
                    if ended or not isinstance(value, int | float) or text[end : end + 1].strip(_NUMERIC):
                        break
                except RecursionError as error:
                    raise _broken(setting, file, number, str(error)) from error
                except json.JSONDecodeError as error:
                    if ended:
                        raise _broken(setting, file, number, error.msg) from error
                more()
            text = text[end:]
            yield Row(f"{file} record {number}", number, value)
            number += 1
        text = text[1:]
        if next_char():
            raise _broken(setting, file, number, "text follows the list's end")


def _broken(setting: str, file: Path, number: int, why: str) -> AtomsError:
    return AtomsError(f"{setting}: {file} is not JSON at record {number} ({why}); mend the file")


def _csv(file: Path, setting: str, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a field may be a whole document
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise AtomsError(f"{setting}: {file} names a column twice in its header; rename one")
            number = 0
            for fields in reader:
                where = f"{file} line {reader.line_num}"
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise AtomsError(
                        f"{setting}: {where} has {len(fields)} fields and the header {len(header)}; "
                        "put fields that hold the delimiter in quotes"
                    )
                yield Row(where, number, dict(zip(header, fields, strict=True)))
                number += 1
        except csv.Error as error:
            raise AtomsError(f"{setting}: {file} line {reader.line_num} is not CSV ({error}); mend it") from error


def _parquet(file: Path, setting: str, columns: Sequence[str] | None) -> Iterator[Row]:
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            _require(columns, table.schema_arrow.names, str(file))
            number = 0
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=columns and list(columns)):
                for value in batch.to_pylist():
                    yield Row(f"{file} row {number}", number, value)
                    number += 1
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise AtomsError(f"{setting}: {file} cannot be read as Parquet ({reason}); write it again") from error
