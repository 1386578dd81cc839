"""Text of a data set on the Hugging Face hub, or of local JSON, CSV and Parquet files."""

from collections.abc import Iterator
from typing import Any

from atoms.activations.corpus import Corpus, Document, at_most, check_limit
from atoms.errors import AtomsError


class HubText(Corpus):
    """One document per row of a data set, read in its own order (extra ``hub``).

    Args:
        name: Hub id, or a loader of local files: ``json``, ``csv``, ``parquet``, ``text``.
        config: Configuration of the data set, if it has several.
        split: Split of the data set; ``train[:1%]`` takes a part.
        column: Column that holds the text.
        revision: Branch, tag or commit of the hub repository.
        data_files: Local files for the loaders named above.
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
        limit: int | None = None,
    ) -> None:
        check_limit(limit)
        self.name, self.config, self.split, self.column = name, config, split, column
        self.revision, self.data_files, self.limit = revision, data_files, limit

    def documents(self) -> Iterator[Document]:  # noqa: D102  # inherited
        return at_most(self.limit, self._documents(), f"data.harvest.corpus.name {self.name} holds no text")

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {
            "name": self.name, "config": self.config, "split": self.split, "column": self.column, "limit": self.limit,
        }  # fmt: skip

    def _documents(self) -> Iterator[Document]:
        try:
            import datasets
        except ImportError:
            raise AtomsError(
                f"data.harvest.corpus.name is {self.name}, which needs the package datasets: pip install 'atoms[hub]'"
            ) from None
        try:
            rows = datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, data_files=self.data_files
            )
        except Exception as error:  # the library raises kinds of its own for every stage of finding and reading
            reason = " ".join(str(error).split())
            raise AtomsError(
                f"data.harvest.corpus.name is {self.name}, which cannot be loaded ({reason}): mend name, config, split "
                "or data_files"
            ) from error
        if self.column not in rows.column_names:
            raise AtomsError(
                f"data.harvest.corpus.column is {self.column!r}, but {self.name} has {', '.join(rows.column_names)}: "
                "name the one that holds the text"
            )
        for number, text in enumerate(rows[self.column]):
            if text and text.strip():
                yield Document(f"{self.name}#{number}", text.strip())
