"""Text of a data set on the Hugging Face hub, or of local files through its loaders."""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from atoms.activations.corpus import Corpus, Document, at_most, check_limit, document_of
from atoms.activations.identity import digest_of
from atoms.errors import AtomsError

_HUB_TIMEOUT = 10.0  # seconds
_COMMIT = re.compile("[0-9a-f]{40}")


class HubText(Corpus):
    """One document per row of a data set, read in its own order (extra ``hub``); empty cells are passed over.

    What the column holds says what a document is, as in ``TableFiles``: text, a conversation or token ids.

    A data set is downloaded whole and known by its content. With ``streaming`` rows are fetched as they are read, and
    no more than ``limit`` or ``data.harvest.max_tokens`` ask for; the data set is then known by its commit, which is
    looked up unless ``revision`` is one.

    Args:
        name: Hub id, or a loader of local files: ``json``, ``csv``, ``parquet``, ``text``.
        config: Configuration of the data set, if it has several.
        split: Split of the data set; ``train[:1%]`` takes a part, except when streaming.
        column: Column that holds the documents.
        revision: Branch, tag or commit of the hub repository.
        data_files: Files of the repository, or local files for the loaders named above.
        streaming: Fetch rows as they are read instead of downloading the data set.
        limit: Stop after this many documents.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        split: str = "train",
        column: str = "text",
        revision: str | None = None,
        data_files: list[str] | None = None,
        streaming: bool = False,
        limit: int | None = None,
    ) -> None:
        check_limit(limit)
        self.name, self.config, self.split, self.column = name, config, split, column
        self.revision, self.data_files, self.streaming, self.limit = revision, data_files, streaming, limit

    def documents(self) -> Iterator[Document]:  # noqa: D102  # inherited
        complaint = f"data.harvest.corpus.name {self.name} holds nothing in column {self.column!r}"
        return at_most(self.limit, self._documents(), complaint)

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {
            "name": self.name, "config": self.config, "split": self.split, "column": self.column, "limit": self.limit,
        }  # fmt: skip

    def digest(self) -> str:
        """As of any corpus; of a hub repository's commit where reading everything would mean to download it."""
        if self.commit is None:
            return super().digest()
        return digest_of({**self.describe(), "data_files": self.data_files})

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {**super().describe(), **({} if self.commit is None else {"commit": self.commit})}

    @cached_property
    def commit(self) -> str | None:
        """The commit that is streamed from; None for what is read whole and known by its content."""
        loader = "/" not in self.name and self.data_files is not None  # json, csv, ... over files
        local = loader or Path(self.name).exists()
        if not self.streaming or local:
            return None
        if self.revision is not None and _COMMIT.fullmatch(self.revision):
            return self.revision
        try:
            commit = HfApi().dataset_info(self.name, revision=self.revision, timeout=_HUB_TIMEOUT).sha
        except Exception as error:  # the HTTP client and its exceptions differ between versions of huggingface_hub
            raise AtomsError(
                f"data.harvest.corpus.name is {self.name}, whose commit cannot be looked up "
                f"({_one_line(error)}): mend name or revision, or set data.harvest.corpus.revision to a commit"
            ) from error
        assert commit is not None  # only absent from listings
        return str(commit)

    def _documents(self) -> Iterator[Document]:
        rows = self._rows
        if rows.column_names is not None and self.column not in rows.column_names:
            raise self._no_column(rows.column_names)
        number = -1
        try:
            for number, row in enumerate(rows):
                if self.column not in row:  # a stream may not know its columns beforehand
                    raise self._no_column(row)
                name = f"{self.name}#{number}"
                document = document_of(name, row[self.column], f"row {number} of {self.name}")
                if document is not None:
                    yield document
        except AtomsError:
            raise
        except Exception as error:  # a stream may break anywhere, in as many ways as it may fail to begin
            raise AtomsError(
                f"data.harvest.corpus.name is {self.name}, which cannot be read beyond row {number} "
                f"({_one_line(error)}): run the command again, or leave data.harvest.corpus.streaming out"
            ) from error

    @cached_property
    def _rows(self) -> Any:
        """The data set, found once, so that what is hashed and what is read are the same."""
        try:
            import datasets
        except ImportError:
            raise AtomsError(
                f"data.harvest.corpus.name is {self.name}, which needs the package datasets: pip install 'atoms[hub]'"
            ) from None
        try:
            rows = datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.commit or self.revision,
                data_files=self.data_files, streaming=self.streaming,
            )  # fmt: skip
        except Exception as error:  # the library raises kinds of its own for every stage of finding and reading
            raise AtomsError(
                f"data.harvest.corpus.name is {self.name}, which cannot be loaded ({_one_line(error)}): mend name, "
                "config, split or data_files"
            ) from error
        return rows.select_columns([self.column]) if self.column in (rows.column_names or ()) else rows

    def _no_column(self, there: Any) -> AtomsError:
        return AtomsError(
            f"data.harvest.corpus.column is {self.column!r}, but {self.name} has {', '.join(there)}: name the one "
            "that holds the documents"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
