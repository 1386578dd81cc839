"""Where the text comes from, and which documents are held out.

`StdlibDocstrings` and `TextFiles` are corpora of plain text. `assign_splits` deals whole groups of near-duplicates (see
`grouping`) to the splits, so that nothing held out was also trained on.
"""

import ast
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoms.activations.corpus import Corpus, Document, at_most, check_limit, corpus_files
from atoms.activations.grouping import mix
from atoms.errors import AtomsError

FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
"""Default share of the tokens in each split."""

_TOLERANCE = 0.2  # a split this far from its share, relative to it, is worth a word
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


class StdlibDocstrings(Corpus):
    """Docstrings of the running Python's standard library: English text that every installation holds.

    Sources are parsed and never imported, tests are left out. Each module, class and function docstring is one
    document, in order of module path and line. Python 3.11 gives about 4,000 documents and 1.5 million characters.

    Args:
        min_chars: Shortest docstring kept, in characters; shorter ones hold little but a signature.
        limit: Stop after this many documents.
        modules: Top-level modules to read, e.g. ``[tkinter, turtle]``; all by default.
        without: Top-level modules to leave out.
    """

    def __init__(
        self,
        min_chars: int = 100,
        limit: int | None = None,
        modules: list[str] | None = None,
        without: list[str] | None = None,
    ) -> None:
        check_limit(limit)
        self.min_chars = min_chars
        self.limit = limit
        self.modules = modules
        self.without = without

    def documents(self) -> Iterator[Document]:  # noqa: D102  # inherited
        yield from self._documents

    def settings(self) -> dict[str, Any]:  # noqa: D102
        # What is not asked for is not named, so that stores made before one could ask stay the same.
        asked = {"modules": self.modules, "without": self.without}
        chosen = {name: value for name, value in asked.items() if value is not None}
        return {"min_chars": self.min_chars, "limit": self.limit, **chosen}

    @cached_property
    def _documents(self) -> list[Document]:
        """All documents; parsing takes seconds and is done once."""
        found = (each for each in _library_docstrings() if len(each.text) >= self.min_chars and self._asked(each.name))
        said = "".join(f", {name}={value}" for name, value in self.settings().items() if name in ("modules", "without"))
        return list(
            at_most(self.limit, found, f"data.harvest.corpus.min_chars={self.min_chars}{said} leaves no docstring")
        )

    def _asked(self, name: str) -> bool:
        module = name.partition(".")[0]
        return (self.modules is None or module in self.modules) and module not in (self.without or ())


class TextFiles(Corpus):
    """UTF-8 text files, each a document or split into several.

    Args:
        paths: Files, folders (every ``.txt`` below them) and glob patterns (``**`` for any depth), in this order.
        separator: Start a new document at each line that holds only this; ``""`` splits at blank lines.
            By default a file is one document.
        limit: Stop after this many documents.
    """

    def __init__(self, paths: list[str], separator: str | None = None, limit: int | None = None) -> None:
        check_limit(limit)
        self.paths = paths
        self.separator = separator
        self.limit = limit

    def documents(self) -> Iterator[Document]:  # noqa: D102  # inherited
        return at_most(self.limit, self._documents(), f"data.harvest.corpus.paths {self.paths} hold no text")

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {"separator": self.separator, "limit": self.limit}

    def _documents(self) -> Iterator[Document]:
        for name, file in corpus_files(self.paths, {".txt"}):
            for number, text in enumerate(self._pieces(_read(file))):
                yield Document(name if self.separator is None else f"{name}#{number}", text)

    def _pieces(self, text: str) -> list[str]:
        """The documents in a file's text, without the empty ones."""
        pieces = [text]
        if self.separator is not None:
            pieces = re.split(rf"^[ \t]*{re.escape(self.separator)}[ \t]*$", text, flags=re.MULTILINE)
        return [piece.strip() for piece in pieces if piece.strip()]


def _read(file: Path) -> str:
    """The file's text without a byte order mark, its lines ending the same way on every platform."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AtomsError(
            f"data.harvest.corpus.paths: {file} is not UTF-8 (byte {error.object[error.start]:#04x} at position "
            f"{error.start}); convert it first, e.g. with iconv -t utf-8"
        ) from error
    except OSError as error:
        raise AtomsError(f"data.harvest.corpus.paths: cannot read {file}: {error.strerror}") from error
    return text.replace("\r\n", "\n")


def _library_docstrings() -> Iterator[Document]:
    """Every docstring of the standard library's sources, cleaned of its indentation."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in _library_sources(root):
        module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old sources hold invalid escapes; they are not ours to mend
                tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):  # unreadable, or a deliberately broken file
            continue
        for name, node in _definitions(tree, module):
            if text := ast.get_docstring(node, clean=False):
                # A lone surrogate is legal in a literal and in no encoding.
                yield Document(name, inspect.cleandoc(text).encode(errors="replace").decode())


def _library_sources(root: Path) -> Iterator[Path]:
    """Python files below ``root`` in order of path, without tests and installed packages."""
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and entry.name not in _NOT_LIBRARY:
            yield from _library_sources(entry)
        elif entry.suffix == ".py":
            yield entry


def _definitions(
    node: ast.AST, name: str
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The module, classes and functions under ``node`` with their dotted names, in order of line.

    Only statements are visited: definitions cannot hide in an expression, and most of a tree is expressions.
    """
    if isinstance(node, ast.Module):
        yield name, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{name}.{child.name}", child
            yield from _definitions(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _definitions(child, name)


@dataclass(frozen=True)
class Splits:
    """Which split each document went to, and what came of the shares."""

    names: tuple[str, ...]
    """Names of the splits, in the order of the fractions."""
    split: NDArray[np.int8]
    """Index into ``names`` of each document's split, shape (documents,)."""
    tokens: NDArray[np.int64]
    """Tokens in each split, shape (splits,)."""
    warnings: tuple[str, ...]
    """What the user should be told: one line per split that missed its share."""

    def documents(self, name: str) -> NDArray[np.int64]:
        """Indices of the documents in split ``name``, ascending."""
        return np.flatnonzero(self.split == self.names.index(name)).astype(np.int64)


def assign_splits(
    groups: NDArray[np.int64],
    tokens: NDArray[np.int64],
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
) -> Splits:
    """Deal whole groups of documents to splits so that each gets its share of the tokens.

    Groups are dealt from large to small, shuffled by a hash of seed and group id among groups of like size (within
    a factor of two). Each goes to the split that would be furthest behind its share of what has been dealt, so
    every split receives large and small groups alike and a giant one goes to the largest split. The result does not
    depend on the order of the documents.

    Args:
        groups: Group id of each document, shape (documents,), as `near_duplicate_groups` returns them.
        tokens: Number of tokens in each document, shape (documents,).
        fractions: Share of the tokens wanted in each split; they sum to 1.
        seed: Another seed is another deal.

    Returns:
        The split of each document, with a warning for each split more than 20 % off its share.

    Raises:
        AtomsError: If the fractions are no shares of a whole, or a split would be left without text.
    """
    shares = _check_fractions(fractions)
    ids, member = np.unique(groups, return_inverse=True)
    sizes = np.bincount(member, weights=tokens, minlength=len(ids)).astype(np.int64)
    _, magnitude = np.frexp(sizes)
    order = np.lexsort((_shuffle_key(ids, seed), -magnitude))

    dealt = np.zeros(len(shares))
    split_of_group = np.empty(len(ids), dtype=np.int8)
    for group in order:
        # Counted at its class's size and not its own, so that within a class the choice does not depend on size.
        total = dealt.sum() + 2.0 ** magnitude[group]
        behind = np.where(shares > 0, shares * total - dealt, -np.inf)
        choice = int(np.argmax(behind))
        split_of_group[group] = choice
        dealt[choice] += sizes[group]

    names = tuple(fractions)
    for name, share, got in zip(names, shares, dealt, strict=True):
        if share > 0 and got == 0:
            raise AtomsError(
                f"data.harvest.corpus: split {name!r} would get no text, because the corpus falls into {len(ids)} "
                "groups of near-duplicate documents; add documents, split long files (data.harvest.corpus.separator), "
                "or change data.harvest.val and data.harvest.test"
            )
    total_tokens = int(sizes.sum())
    largest = sizes.max() / total_tokens
    off = tuple(
        f"split {name!r} holds {got / total_tokens:.1%} of the tokens instead of {share:.1%}; the corpus has "
        f"{len(ids)} groups of near-duplicate documents, the largest with {largest:.1%} of the tokens"
        for name, share, got in zip(names, shares, dealt, strict=True)
        if abs(got / total_tokens - share) > _TOLERANCE * share
    )
    return Splits(names, split_of_group[member], dealt.astype(np.int64), off)


def document_order(documents: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Shuffle a split's documents, so that neighbours in the corpus do not meet in one window of the stream.

    Args:
        documents: Indices of documents, shape (n,).
        seed: Another seed is another order.

    Returns:
        The same indices in an order fixed by them and ``seed`` alone, on every machine and version.
    """
    return documents[np.argsort(_shuffle_key(documents, seed))]


def _shuffle_key(values: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A pseudo-random key for each distinct value; no two are equal."""
    salt = mix(np.array([seed % 2**64], dtype=np.uint64))
    return mix(values.astype(np.uint64) ^ salt)


def _check_fractions(fractions: Mapping[str, float]) -> NDArray[np.float64]:
    shares = np.array(list(fractions.values()), dtype=np.float64)
    if not ((shares >= 0).all() and abs(shares.sum() - 1) < 1e-6):
        raise AtomsError(
            f"data.harvest.val and data.harvest.test must leave shares that sum to 1, got {dict(fractions)}; "
            f"e.g. {FRACTIONS}"
        )
    return shares
