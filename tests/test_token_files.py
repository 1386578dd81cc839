"""Arrays of token ids as documents."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoms.activations import TokenFiles, token_files
from atoms.errors import AtomsError


def ids(corpus: TokenFiles) -> list[tuple[str, list[int]]]:
    documents = list(corpus.documents())
    assert {document.ids.dtype.name for document in documents} == {"int32"}
    return [(document.name, document.ids.tolist()) for document in documents]


def test_a_row_is_a_document(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, 4]], np.int64))
    assert ids(TokenFiles([str(tmp_path)])) == [("a.npy#0", [1, 2]), ("a.npy#1", [3, 4])]
    assert ids(TokenFiles([str(tmp_path)], limit=1)) == [("a.npy#0", [1, 2])]


@pytest.mark.parametrize("dtype", ["uint16", "int32", "uint32", "int64"])
def test_bare_numbers(tmp_path, dtype):
    np.array([5, 0, 6, 7, 0, 0, 8], dtype).tofile(tmp_path / "a.bin")
    assert ids(TokenFiles([str(tmp_path)], dtype=dtype)) == [("a.bin#0", [5, 0, 6, 7, 0, 0, 8])]
    cut = ids(TokenFiles([str(tmp_path)], dtype=dtype, separator=0))
    assert cut == [("a.bin#0", [5]), ("a.bin#1", [6, 7]), ("a.bin#3", [8])]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60).filter(any), st.integers(1, 70))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_documents_end_where_the_separator_says(tmp_path, monkeypatch, stream, at_once):
    monkeypatch.setattr(token_files, "_AT_ONCE", at_once)
    np.save(tmp_path / "a.npy", np.array(stream))
    expected = [[int(t) for t in part] for part in "".join(map(str, stream)).split("0") if part]
    assert [row for _, row in ids(TokenFiles([str(tmp_path)], separator=0))] == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", np.zeros(3), r"a\.npy holds float64 of shape \(3,\); token ids are integers"),
        ("a.npy", np.zeros((2, 2, 2), int), r"a\.npy holds int64 of shape \(2, 2, 2\)"),
        ("a.npy", np.array([1, 2**40]), r"a\.npy document 0 holds \[1, 1099511627776\], which are no token ids"),
        ("a.npy", np.array([{}], object), r"a\.npy cannot be read as token ids \(.*Python objects.*\)"),
        ("a.npy", b"no array", r"a\.npy cannot be read as token ids"),
        ("a.bin", b"", r"a\.bin cannot be read as token ids"),
        ("a.bin", b"odd", r"a\.bin cannot be read as token ids"),
        ("a.txt", b"", r"a\.txt cannot be read as token ids \(neither \.npy nor \.bin; tables .* TableFiles\)"),
        ("a.npy", np.zeros((0, 4), int), r"hold no token ids; there is nothing to harvest"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, content, message):
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content, allow_pickle=True)
    with pytest.raises(AtomsError, match=message) as caught:
        list(TokenFiles([str(file)]).documents())
    assert "\n" not in str(caught.value)


def test_settings_that_cannot_work():
    with pytest.raises(AtomsError, match=r"corpus\.dtype is float32: give one of uint16, int32, uint32, int64"):
        TokenFiles(["a.bin"], dtype="float32")
    with pytest.raises(AtomsError, match=r"limit must be at least 1"):
        TokenFiles(["a.bin"], limit=0)


def test_digest_is_of_content_and_not_of_the_file(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 2]]))
    digest = TokenFiles([str(tmp_path)]).digest()
    np.save(tmp_path / "a.npy", np.array([[1, 2]], np.uint16))
    assert TokenFiles([str(tmp_path)]).digest() == digest
    np.save(tmp_path / "a.npy", np.array([[2, 1]]))
    assert TokenFiles([str(tmp_path)]).digest() != digest
    assert TokenFiles(["x"], separator=3).describe() == {
        "corpus": "TokenFiles", "separator": 3, "dtype": "uint16", "limit": None,
    }  # fmt: skip
