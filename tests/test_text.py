"""Corpora, their digests, and how documents are dealt to splits."""

import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.activations import Corpus, text
from atoms.activations.text import StdlibDocstrings, TextFiles, assign_splits, document_order
from atoms.errors import AtomsError


def plain(corpus: Corpus) -> list[tuple[str, str]]:
    """Name and text of every document."""
    return [(document.name, document.text) for document in corpus.documents()]


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small standard library in place of Python's own."""
    root = tmp_path / "lib"
    (root / "pkg" / "tests").mkdir(parents=True)
    (root / "site-packages").mkdir()
    (root / "zebra.py").write_text('"""Stripes."""\n')
    (root / "pkg" / "__init__.py").write_text(
        '"""The\n    package."""\nclass A:\n    """Class A."""\n    if True:\n        def f(self):\n'
        '            """Inner\n\n            f."""\n    async def g(self):\n        """Gee \\ud800."""\nx = "no doc"\n'
    )
    (root / "pkg" / "broken.py").write_text("def (:\n")
    (root / "pkg" / "latin.py").write_bytes(b'"""caf\xe9"""\n')
    (root / "pkg" / "escape.py").write_text('"""Bad \\d escape."""\n')
    (root / "pkg" / "tests" / "test_a.py").write_text('"""A test."""\n')
    (root / "site-packages" / "other.py").write_text('"""Not ours."""\n')
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(root))
    return root


def test_docstrings_of_every_definition_in_order(library):
    assert plain(StdlibDocstrings(min_chars=1)) == [
        ("pkg", "The\npackage."),
        ("pkg.A", "Class A."),
        ("pkg.A.f", "Inner\n\nf."),
        ("pkg.A.g", "Gee ?."),
        ("pkg.escape", "Bad \\d escape."),
        ("zebra", "Stripes."),
    ]


def test_docstring_length_and_limit(library):
    assert [d.name for d in StdlibDocstrings(min_chars=12).documents()] == ["pkg", "pkg.escape"]
    assert [d.name for d in StdlibDocstrings(min_chars=1, limit=2).documents()] == ["pkg", "pkg.A"]
    with pytest.raises(AtomsError, match=r"min_chars=999 leaves no docstring"):
        list(StdlibDocstrings(min_chars=999).documents())


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"modules": ["zebra"]}, ["zebra"]),
        ({"modules": ["pkg"]}, ["pkg", "pkg.A", "pkg.A.f", "pkg.A.g", "pkg.escape"]),
        ({"without": ["pkg"]}, ["zebra"]),
        ({"modules": ["zebra", "pkg"], "without": ["pkg", "unheard-of"], "limit": 1}, ["zebra"]),
        ({"without": []}, ["pkg", "pkg.A", "pkg.A.f", "pkg.A.g", "pkg.escape", "zebra"]),
    ],
)
def test_docstrings_of_some_modules(library, asked, names):
    """Modules are named whole, and only at the top: ``pkg`` has its parts, and ``z`` is no ``zebra``."""
    assert [document.name for document in StdlibDocstrings(min_chars=1, **asked).documents()] == names


@pytest.mark.parametrize(
    "asked", [{"modules": ["z"]}, {"modules": ["escape"]}, {"modules": []}, {"without": ["pkg", "zebra"]}]
)
def test_modules_that_leave_no_docstring_are_named(library, asked):
    ((name, value),) = asked.items()
    with pytest.raises(AtomsError) as refused:
        list(StdlibDocstrings(min_chars=1, **asked).documents())
    assert str(refused.value).startswith(f"data.harvest.corpus.min_chars=1, {name}={value} leaves no docstring")


def test_what_is_not_asked_of_docstrings_is_no_part_of_their_digest(library):
    """Stores that were made before one could ask stay the same; two parts of a library are two corpora."""
    plainly = StdlibDocstrings(min_chars=1)
    assert plainly.settings() == {"min_chars": 1, "limit": None}
    assert StdlibDocstrings(min_chars=1, modules=["pkg"]).settings() == {
        "min_chars": 1, "limit": None, "modules": ["pkg"],
    }  # fmt: skip
    digests = {
        corpus.digest()
        for corpus in (
            plainly,
            StdlibDocstrings(min_chars=1, modules=["zebra"]),
            StdlibDocstrings(min_chars=1, without=["pkg"]),
            StdlibDocstrings(min_chars=1, without=["zebra"]),
        )
    }
    assert len(digests) == 4


def test_real_library_is_a_usable_corpus():
    documents = list(StdlibDocstrings().documents())
    assert len(documents) > 3000
    assert sum(len(document.text) for document in documents) > 1_000_000
    assert not [d.name for d in documents if {"test", "tests", "site-packages"} & set(d.name.split(".")[:-1])]
    assert "logging.Logger.findCaller" in {document.name for document in documents}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "texts"
    (root / "sub").mkdir(parents=True)
    (root / "b.txt").write_text("second\n")
    (root / "a.txt").write_bytes("\ufefffirst\r\nline\r\n".encode())
    (root / "sub" / "c.txt").write_text("third\n\n \nfourth\n---\nfifth")
    (root / "sub" / "notes.md").write_text("notes")
    return root


def test_folder_glob_and_file(folder):
    whole = [("a.txt", "first\nline"), ("b.txt", "second"), ("sub/c.txt", "third\n\n \nfourth\n---\nfifth")]
    assert plain(TextFiles([str(folder)])) == whole
    assert plain(TextFiles([f"{folder}/**/*.txt"])) == whole
    assert plain(TextFiles([f"{folder}/sub/*.md"])) == [("notes.md", "notes")]
    # the order is the user's, and no file comes twice
    assert [d.name for d in TextFiles([str(folder / "b.txt"), str(folder)]).documents()] == [
        "b.txt", "a.txt", "sub/c.txt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("separator", "expected"),
    [("", ["third", "fourth\n---\nfifth"]), ("---", ["third\n\n \nfourth", "fifth"])],
)
def test_separator(folder, separator, expected):
    documents = plain(TextFiles([str(folder / "sub")], separator=separator))
    assert documents == [(f"c.txt#{i}", piece) for i, piece in enumerate(expected)]


def test_limit_stops_reading(folder):
    (folder / "b.txt").write_bytes(b"\xff")
    assert [d.name for d in TextFiles([str(folder)], limit=1).documents()] == ["a.txt"]


@pytest.mark.parametrize("corpus", [TextFiles, StdlibDocstrings])
@pytest.mark.parametrize("limit", [0, -3])
def test_rejects_limit(corpus, limit):
    with pytest.raises(AtomsError, match=f"limit must be at least 1, got {limit}"):
        corpus(**({"paths": []} if corpus is TextFiles else {}), limit=limit)


def test_rejects_what_cannot_be_read(folder, tmp_path):
    with pytest.raises(AtomsError, match=r"no \.txt file matches '.*nothing\.txt'"):
        list(TextFiles([str(folder / "nothing.txt")]).documents())
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "e.txt").write_text("  \n")
    with pytest.raises(AtomsError, match="hold no text; there is nothing to harvest"):
        list(TextFiles([str(tmp_path / "empty")]).documents())
    (folder / "b.txt").write_bytes(b"abc\xe9def")
    with pytest.raises(AtomsError, match=r"b\.txt is not UTF-8 \(byte 0xe9 at position 3\)"):
        list(TextFiles([str(folder)]).documents())
    broken = tmp_path / "gone"
    broken.mkdir()
    with pytest.raises(AtomsError, match=r"no \.txt file matches"):
        list(TextFiles([str(broken)]).documents())


def test_reports_unreadable_file(folder, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(AtomsError, match=r"cannot read .*a\.txt: Permission denied"):
        list(TextFiles([str(folder)]).documents())


def test_digest_is_of_content_and_settings(folder, tmp_path):
    digest = TextFiles([str(folder)]).digest()
    os.utime(folder / "a.txt", (0, 0))
    moved = folder.rename(tmp_path / "elsewhere")
    assert TextFiles([str(moved)]).digest() == digest
    others = {
        TextFiles([str(moved)], separator="").digest(),
        TextFiles([str(moved)], limit=99).digest(),
        TextFiles([str(moved / "a.txt")]).digest(),
    }
    (moved / "b.txt").write_text("Second\n")
    others.add(TextFiles([str(moved)]).digest())
    assert len(others | {digest}) == 5


def test_digest_knows_where_documents_end(tmp_path):
    (tmp_path / "a.txt").write_text("x\n\nyz")
    left = TextFiles([str(tmp_path)], separator="").digest()
    (tmp_path / "a.txt").write_text("xy\n\nz")
    assert TextFiles([str(tmp_path)], separator="").digest() != left


def test_describe(folder):
    assert TextFiles([str(folder)], limit=2).describe() == {"corpus": "TextFiles", "separator": None, "limit": 2}
    assert StdlibDocstrings().describe() == {"corpus": "StdlibDocstrings", "min_chars": 100, "limit": None}


sizes = st.lists(st.integers(1, 500), min_size=60, max_size=150)


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(0, 5))
def test_shares_are_met(tokens, seed):
    tokens = np.array(tokens)
    splits = assign_splits(np.arange(len(tokens)), tokens, seed=seed)
    assert splits.tokens.sum() == tokens.sum()
    np.testing.assert_array_equal(splits.tokens, np.bincount(splits.split, weights=tokens, minlength=3))
    assert np.abs(splits.tokens - tokens.sum() * np.array([0.8, 0.1, 0.1])).max() <= 2 * tokens.max()


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(2, 5), st.randoms(use_true_random=False))
def test_groups_stay_whole_in_any_order(tokens, per_group, random):
    tokens = np.array(tokens)
    groups = (np.arange(len(tokens)) // per_group) * 7919
    splits = assign_splits(groups, tokens)
    for group in np.unique(groups):
        assert len(set(splits.split[groups == group])) == 1
    order = list(range(len(tokens)))
    random.shuffle(order)
    np.testing.assert_array_equal(assign_splits(groups[order], tokens[order]).split, splits.split[order])


def test_seed_decides():
    groups, tokens = np.arange(500), np.full(500, 10)
    first, again, other = (assign_splits(groups, tokens, seed=seed).split for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert 0.1 < (first != other).mean() < 0.6  # independent deals differ for 34 % of the documents


def test_large_and_small_documents_are_held_out_alike():
    rng = np.random.default_rng(0)
    tokens = rng.lognormal(4, 1, 20_000).astype(np.int64) + 1
    splits = assign_splits(np.arange(len(tokens)), tokens)
    means = [tokens[splits.documents(name)].mean() for name in splits.names]
    np.testing.assert_allclose(means, tokens.mean(), rtol=0.05)


def test_giant_group_does_not_ruin_the_shares():
    tokens = np.array([3000, *[10] * 700])
    splits = assign_splits(np.arange(len(tokens)), tokens)
    assert splits.split[0] == 0
    assert splits.tokens.tolist() == [8000, 1000, 1000]
    assert splits.warnings == ()


def test_says_when_a_share_is_missed():
    splits = assign_splits(np.arange(101), np.array([9000, *[10] * 100]))
    assert splits.tokens.tolist() == [9000, 500, 500]
    assert len(splits.warnings) == 2
    assert "split 'val' holds 5.0% of the tokens instead of 10.0%" in splits.warnings[0]
    assert "101 groups of near-duplicate documents, the largest with 90.0%" in splits.warnings[0]


def test_split_of_share_zero_stays_empty():
    splits = assign_splits(np.arange(20), np.full(20, 5), {"train": 0.9, "val": 0.1, "test": 0})
    assert splits.tokens.tolist() == [90, 10, 0]
    assert splits.documents("test").shape == (0,)
    assert splits.warnings == ()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_rejects_corpus_of_too_few_groups(count):
    with pytest.raises(AtomsError, match=rf"would get no text, because the corpus falls into {count} groups"):
        assign_splits(np.arange(count), np.full(count, 9))


@pytest.mark.parametrize("fractions", [{"train": 0.8, "val": 0.1}, {"train": 1.5, "val": -0.5}, {"train": np.nan}, {}])
def test_rejects_fractions(fractions):
    with pytest.raises(AtomsError, match=r"data\.harvest\.val and data\.harvest\.test must leave shares that sum to 1"):
        assign_splits(np.arange(9), np.full(9, 9), fractions)


def test_document_order_is_a_shuffle_fixed_by_the_seed():
    documents = np.arange(3, 1000, 2)
    order = document_order(documents, seed=1)
    assert sorted(order) == documents.tolist()
    np.testing.assert_array_equal(order, document_order(documents[::-1], seed=1))
    assert (order != document_order(documents, seed=2)).mean() > 0.9
    assert abs(np.corrcoef(np.arange(len(order)), order)[0, 1]) < 0.15


def test_shuffle_is_the_same_everywhere():
    """A row plan must come out the same on another machine and another numpy."""
    assert document_order(np.arange(10), seed=0).tolist() == [0, 7, 3, 1, 9, 5, 4, 6, 8, 2]


def test_negative_seed_is_a_seed():
    assert sorted(document_order(np.arange(10), seed=-1)) == list(range(10))


def test_default_fractions_are_not_shared_state():
    assert text.FRACTIONS == {"train": 0.8, "val": 0.1, "test": 0.1}
