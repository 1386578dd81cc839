"""Arrays of token ids on disk as corpora."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from atoms.activations.corpus import Corpus, Document, at_most, check_limit, corpus_files, token_ids
from atoms.errors import AtomsError

Bits = Literal["uint16", "int32", "uint32", "int64"]
"""Types of token ids in files that do not say it themselves."""

_AT_ONCE = 2**24


class TokenFiles(Corpus):
    """Text that was tokenised before, in arrays that are read from disk as needed and never whole.

    A two-dimensional ``.npy`` array holds one document per row; padding at the ends is taken off. A one-dimensional one
    and a ``.bin`` file (bare numbers, as training codes write them) are one document, or several if ``separator`` says
    what ends one. Ids are run as they are; those that every document begins or ends with are taken for the model's
    special tokens. Ids in a column of a JSON or Parquet file are read by ``TableFiles``.

    Args:
        paths: Files, folders (every ``.npy`` and ``.bin`` below them) and glob patterns, in this order.
        separator: Token id that ends a document of a one-dimensional array; it is taken out. For causal models' data
            usually the end-of-text token.
        dtype: Type of the numbers in ``.bin`` files; little endian.
        limit: Stop after this many documents.
    """

    def __init__(
        self, paths: list[str], separator: int | None = None, dtype: Bits = "uint16", limit: int | None = None
    ) -> None:
        check_limit(limit)
        if dtype not in get_args(Bits):
            raise AtomsError(f"data.harvest.corpus.dtype is {dtype}: give one of {', '.join(get_args(Bits))}")
        self.paths, self.separator, self.dtype, self.limit = paths, separator, dtype, limit

    def documents(self) -> Iterator[Document]:  # noqa: D102  # inherited
        return at_most(self.limit, self._documents(), f"data.harvest.corpus.paths {self.paths} hold no token ids")

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {"separator": self.separator, "dtype": self.dtype, "limit": self.limit}

    def _documents(self) -> Iterator[Document]:
        for name, file in corpus_files(self.paths, {".npy", ".bin"}):
            array = self._open(file)
            rows = iter(array) if array.ndim == 2 else self._cut(array)
            for number, row in enumerate(rows):
                if len(row):
                    yield Document(f"{name}#{number}", ids=token_ids(np.asarray(row), f"{file} document {number}"))

    def _open(self, file: Path) -> NDArray[Any]:
        """The file's array, mapped and not read."""
        try:
            if file.suffix.lower() == ".npy":
                array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
            elif file.suffix.lower() == ".bin":
                array = np.memmap(file, np.dtype(self.dtype).newbyteorder("<"), "r")
            else:
                raise ValueError("neither .npy nor .bin; tables of ids are for TableFiles")
        except (OSError, ValueError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise AtomsError(f"data.harvest.corpus.paths: {file} cannot be read as token ids ({reason})") from error
        if array.ndim not in (1, 2) or array.dtype.kind not in "iu":
            raise AtomsError(
                f"data.harvest.corpus.paths: {file} holds {array.dtype} of shape {array.shape}; token ids are integers "
                "in one dimension, or in two with a document per row"
            )
        return array

    def _cut(self, array: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """The documents of a one-dimensional array."""
        begin = 0
        if self.separator is not None:
            for start in range(0, len(array), _AT_ONCE):
                for end in np.flatnonzero(array[start : start + _AT_ONCE] == self.separator).tolist():
                    yield array[begin : start + end]
                    begin = start + end + 1
        yield array[begin:]
