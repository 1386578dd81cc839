"""What a corpus is: documents in a fixed order, and the digest of their content."""

import glob
import hashlib
import json
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoms.errors import AtomsError

Message = dict[str, Any]
"""One turn of a conversation, ``{"role": ..., "content": ...}``, as chat templates read it."""


@dataclass(frozen=True, slots=True)
class Document:
    """What is read by the language model on its own: text, a conversation or token ids."""

    name: str
    """Where it comes from, for people; need not be unique."""
    text: str = ""
    """The text; empty for a conversation or token ids."""
    subject: tuple[int, int] | None = None
    """First and one past the last character of what the text is about, for ``data.harvest.tokens=subject_*``."""
    group: str | None = None
    """Documents of equal key are held out together, like near-duplicates."""
    messages: tuple[Message, ...] | None = None
    """The turns of a conversation, rendered with the tokenizer's chat template."""
    ids: NDArray[np.int32] | None = None
    """Token ids, shape (tokens,), run as they are."""


class Corpus(ABC):
    """Documents in a fixed order, the same on every machine that holds the same text."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield every document, in an order that depends on nothing but the corpus.

        All are of one kind: text, conversations or token ids.

        Raises:
            AtomsError: If there is no document, or one cannot be read.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Plain values that decide what is extracted, without anything that depends on the machine."""

    def digest(self) -> str:
        """Hexadecimal sha256 of the settings and of every document's name and content, in order."""
        header = json.dumps([type(self).__name__, self.settings()], sort_keys=True)
        content = hashlib.sha256(header.encode())
        for document in self.documents():
            for part in (document.name, document.text):
                data = part.encode()
                content.update(len(data).to_bytes(8, "little") + data)
            beside = {
                "subject": document.subject,
                "group": document.group,
                "messages": document.messages,
                "ids": None
                if document.ids is None
                else hashlib.sha256(document.ids.astype("<i4").tobytes()).hexdigest(),
            }
            if any(value is not None for value in beside.values()):
                data = json.dumps(beside, sort_keys=True).encode()
                content.update(b"\xff" * 8 + len(data).to_bytes(8, "little") + data)  # no part of text is that long
        return content.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Plain values that say which corpus this is, for a manifest or a report."""
        return {"corpus": type(self).__name__, **self.settings()}


def document_of(name: str, value: Any, where: str, group: str | None = None) -> Document | None:
    """The document that a cell of a table is; what it holds says of which kind.

    Args:
        name: Name of the document.
        value: A string is text, a list of ``{"role", "content"}`` a conversation, a list of integers token ids.
        where: The cell's place, for messages.
        group: Key of what is held out together with it.

    Returns:
        The document, or None for an empty cell.

    Raises:
        AtomsError: If the cell holds anything else.
    """
    if value is None or (isinstance(value, str | list) and not value):
        return None
    if isinstance(value, str):
        text = value.strip()
        return Document(name, text, group=group) if text else None
    if isinstance(value, list) and all(type(token) is int for token in value):
        return Document(name, ids=token_ids(np.array(value), where), group=group)
    if isinstance(value, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and "content" in turn for turn in value
    ):
        # A table gives every turn the columns of all turns.
        turns = tuple({key: part for key, part in turn.items() if part is not None} for turn in value)
        return Document(name, messages=turns, group=group)
    raise AtomsError(
        f"data.harvest.corpus.column: {where} holds {reprlib.repr(value)}, which is neither text, nor messages with "
        "role and content, nor token ids; name another column"
    )


def token_ids(values: NDArray[Any], where: str) -> NDArray[np.int32]:
    """Token ids as int32.

    Raises:
        AtomsError: If they are no integers, or too large to be ids.
    """
    if values.dtype.kind not in "iu" or values.max(initial=0) >= 2**31 or values.min(initial=0) < -(2**31):
        raise AtomsError(f"data.harvest.corpus: {where} holds {reprlib.repr(values.tolist())}, which are no token ids")
    return values.astype(np.int32)


def corpus_files(paths: list[str], suffixes: Collection[str]) -> list[tuple[str, Path]]:
    """Every file that ``data.harvest.corpus.paths`` stands for, once, with its name relative to what was asked for.

    Args:
        paths: Files, folders and glob patterns (``**`` for any depth), in this order.
        suffixes: Which files below a folder are meant, e.g. ``.txt``.

    Raises:
        AtomsError: If a path stands for no file.
    """
    files: dict[Path, str] = {}
    for path in paths:
        root, matches = _matches(path, suffixes)
        if not matches:
            raise AtomsError(
                f"data.harvest.corpus.paths: no {' or '.join(sorted(suffixes))} file matches {path!r}; "
                "give a file, folder or glob"
            )
        for name in sorted(match.relative_to(root).as_posix() for match in matches):
            files.setdefault((root / name).resolve(), name)
    return [(name, file) for file, name in files.items()]


def _matches(path: str, suffixes: Collection[str]) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files that ``path`` stands for."""
    given = Path(path).expanduser()
    if given.is_dir():
        return given, [file for file in given.rglob("*") if file.suffix.lower() in suffixes and file.is_file()]
    if given.is_file():
        return given.parent, [given]
    fixed = Path(*takewhile(lambda part: not glob.has_magic(part), given.parts[:-1]))
    found = map(Path, glob.glob(str(given), recursive=True))
    return fixed, [file for file in found if file.is_file()]


def check_limit(limit: int | None) -> None:
    """Refuse a limit that leaves nothing."""
    if limit is not None and limit < 1:
        raise AtomsError(
            f"data.harvest.corpus.limit must be at least 1, got {limit}; leave it out to keep every document"
        )


def at_most(limit: int | None, documents: Iterable[Document], complaint: str) -> Iterator[Document]:
    """The first ``limit`` documents; no document at all is the user's mistake."""
    count = 0
    for document in islice(documents, limit):
        count += 1
        yield document
    if count == 0:
        raise AtomsError(f"{complaint}; there is nothing to harvest")
