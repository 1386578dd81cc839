"""Columns of local JSON, CSV and Parquet files as corpora."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from atoms.activations.corpus import Corpus, Document, at_most, check_limit, corpus_files, document_of
from atoms.activations.records import SUFFIXES, read_rows
from atoms.errors import AtomsError


class TableFiles(Corpus):
    """One document per row of JSON, CSV or Parquet files; rows whose cell is empty are passed over.

    What the column holds says what a document is: a string is text, a list of ``{"role", "content"}`` a conversation
    for the tokenizer's chat template, a list of integers token ids that are run as they are. Files are read a few rows
    at a time.

    Args:
        paths: Files, folders (every file of a known kind below them) and glob patterns (``**`` for any depth), in this
            order. Kinds: ``.jsonl``, ``.ndjson``, ``.json`` (a list), ``.parquet``, ``.csv``, ``.tsv``.
        column: Column that holds the documents.
        subject: Column that holds what a text is about, word for word as it stands in the text; where it stands last
            is meant. For ``data.harvest.tokens=subject_*``.
        group: Column whose equal values are held out together, e.g. the book of a chapter.
        limit: Stop after this many documents.
    """

    def __init__(
        self,
        paths: list[str],
        column: str = "text",
        subject: str | None = None,
        group: str | None = None,
        limit: int | None = None,
    ) -> None:
        check_limit(limit)
        self.paths, self.column, self.subject, self.group, self.limit = paths, column, subject, group, limit

    def documents(self) -> Iterator[Document]:  # noqa: D102  # inherited
        complaint = f"data.harvest.corpus.paths {self.paths} hold nothing in column {self.column!r}"
        return at_most(self.limit, self._documents(), complaint)

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {"column": self.column, "subject": self.subject, "group": self.group, "limit": self.limit}

    def _documents(self) -> Iterator[Document]:
        columns = [name for name in (self.column, self.subject, self.group) if name is not None]
        for name, file in corpus_files(self.paths, SUFFIXES):
            for row in read_rows(file, "data.harvest.corpus.paths", columns):
                group = None if self.group is None else str(row.value[self.group])
                document = document_of(f"{name}#{row.number}", row.value[self.column], row.where, group)
                if document is not None:
                    yield document if self.subject is None else _about(document, row.value[self.subject], row.where)


def _about(document: Document, subject: Any, where: str) -> Document:
    """The document with the place of its subject, if its text holds it."""
    if not isinstance(subject, str):
        raise AtomsError(f"data.harvest.corpus.subject: {where} holds {subject!r}, not text; name another column")
    subject = subject.strip()
    at = document.text.rfind(subject) if subject else -1
    return document if at < 0 else replace(document, subject=(at, at + len(subject)))
