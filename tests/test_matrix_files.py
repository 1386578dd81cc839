"""Files of activations, each format read against what was written."""

import hashlib
import json
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from atoms.activations import matrix_files
from atoms.activations.matrix_files import Column, Site, content_digests
from atoms.errors import AtomsError

ROWS = np.random.default_rng(0).standard_normal((70, 5))


def read(site: Site, rows) -> torch.Tensor:
    """The rows asked for, put together from the pieces."""
    rows = np.asarray(rows, np.int64)
    out = torch.full((len(rows), site.width), torch.nan, dtype=torch.float64)
    for piece, values in site.read(rows):
        out[piece] = values.double()
    return out


def write(name: str, values: np.ndarray, kind: str) -> str:
    """A file of a kind; returns its name."""
    if kind == "npy":
        np.save(name := f"{name}.npy", values)
    elif kind == "fortran":
        np.save(name := f"{name}.npy", np.asfortranarray(values))
    elif kind == "big-endian":
        np.save(name := f"{name}.npy", values.astype(values.dtype.newbyteorder(">")))
    elif kind == "safetensors":
        save_file({"x": torch.from_numpy(values), "ids": torch.arange(3)}, name := f"{name}.safetensors")
    else:
        name, form = f"{name}.zarr", 2 if kind == "zarr2" else 3
        chunks = (4, *values.shape[1:-1], 3)
        shards = {"shards": (8, *values.shape[1:-1], 6)} if kind == "sharded" else {}
        zarr.create_array(name, data=values, chunks=chunks, zarr_format=form, **shards)
    return name


KINDS = ["npy", "fortran", "big-endian", "safetensors", "zarr2", "zarr3", "sharded"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_format_gives_its_rows(kind, dtype, monkeypatch):
    monkeypatch.setattr(matrix_files, "WINDOW_BYTES", 400)  # many windows
    values = ROWS.astype(dtype)
    site = Site("s", [write("a", values, kind)], None)
    assert (len(site), site.width, site.dtypes) == (70, 5, [dtype])
    picks = [0, 1, 2, 30, 31, 69]
    assert torch.equal(read(site, range(70)), torch.from_numpy(values).double())
    assert torch.equal(read(site, picks), torch.from_numpy(values)[picks].double())
    assert read(site, []).shape == (0, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_are_rows_one_after_the_other(kind, monkeypatch):
    monkeypatch.setattr(matrix_files, "WINDOW_BYTES", 400)
    values = ROWS.reshape(14, 5, 5).astype(np.float32)
    site = Site("s", [write("a", values, kind)], None)
    assert site.sequences == [(14, 5)]
    picks = [3, 4, 5, 23, 66]
    assert torch.equal(read(site, picks), torch.from_numpy(values.reshape(70, 5))[picks].double())


def test_bfloat16_is_kept_bit_for_bit():
    values = torch.from_numpy(ROWS).bfloat16()
    save_file({"x": values}, "a.safetensors")
    array = zarr.create_array("b.zarr", data=values.view(torch.uint16).numpy(), chunks=(8, 5))
    array.attrs["logical_dtype"] = "bfloat16"
    for name in ("a.safetensors", "b.zarr"):
        site = Site("s", [name], None)
        assert site.dtypes == ["bfloat16"]
        ((_, read_back),) = site.read(np.arange(70))
        assert torch.equal(read_back.view(torch.uint16), values.view(torch.uint16))


@settings(deadline=None, max_examples=40)
@given(cuts=st.lists(st.integers(1, 69), max_size=4), picks=st.sets(st.integers(0, 69)), window=st.integers(1, 4000))
def test_files_are_joined_in_order(tmp_path_factory, cuts, picks, window):
    folder = tmp_path_factory.mktemp("parts")
    bounds = [0, *sorted(set(cuts)), 70]
    for number, (start, stop) in enumerate(pairwise(bounds)):
        np.save(folder / f"p{number}.npy", ROWS[start:stop])
    picks = sorted(picks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix_files, "WINDOW_BYTES", window)
        site = Site("s", [f"{folder}/p*.npy"], None)
        assert torch.equal(read(site, picks), torch.from_numpy(ROWS)[picks])


def test_patterns_are_sorted_as_people_count():
    for number in (1, 2, 10, 9, 100):
        np.save(f"a{number}.npy", np.full((1, 2), float(number)))
    site = Site("s", ["a1.npy", "a?.npy", "a??*.npy"][1:], None)
    assert read(site, range(5))[:, 0].tolist() == [1, 2, 9, 10, 100]


def test_a_tensor_is_named_by_its_key():
    save_file({"x": torch.zeros(2, 3), "y": torch.ones(4, 3), "z": torch.ones(3)}, "a.safetensors")
    assert len(Site("s", ["a.safetensors"], "y")) == 4
    with pytest.raises(AtomsError, match=r"data\.matrix\.key is not set and a\.safetensors holds .*x \(2, 3\)"):
        Site("s", ["a.safetensors"], None)
    with pytest.raises(AtomsError, match=r"data\.matrix\.key is 'q', which a\.safetensors does not hold"):
        Site("s", ["a.safetensors"], "q")
    group = zarr.create_group("g.zarr")
    group.create_array("deep/acts", data=ROWS)
    assert len(Site("s", ["g.zarr"], None)) == 70
    with pytest.raises(AtomsError, match=r"key is '\.\./a'"):
        Site("s", ["g.zarr"], "../a")


def test_columns_of_integers():
    np.save("a.npy", np.arange(5, dtype=np.uint16))
    for name, text in {
        "a.txt": "0\n1\n2\n3\n4\n",
        "a.csv": "doc\n0\n1\n2\n3\n4",
        "b.csv": "\ufeff0\n1\n2\n3\n4\n",
    }.items():
        (matrix_files.Path(name)).write_text(text, encoding="utf-8")
    for name in ("a.npy", "a.txt", "a.csv", "b.csv"):
        assert Column("data.matrix.doc_ids", name).values.tolist() == [0, 1, 2, 3, 4], name


def make_bad(name: str) -> str:
    """A file that cannot be read as activations."""
    path = matrix_files.Path(name)
    if name == "truncated.npy":
        np.save(path, ROWS)
        path.write_bytes(path.read_bytes()[:-8])
    elif name == "objects.npy":
        np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)
    elif name == "ints.npy":
        np.save(path, np.ones((3, 2), np.int64))
    elif name == "complex.npy":
        np.save(path, np.ones((3, 2), np.complex64))
    elif name == "fields.npy":
        np.save(path, np.zeros(3, [("a", "f4"), ("b", "f4")]))
    elif name == "vector.npy":
        np.save(path, np.ones(3))
    elif name == "deep.npy":
        np.save(path, np.ones((2, 2, 2, 2)))
    elif name == "empty.npy":
        np.save(path, np.ones((0, 4)))
    elif name == "narrow.npy":
        np.save(path, np.ones((4, 0)))
    elif name == "zip.npy":
        with path.open("wb") as file:
            np.savez(file, a=ROWS)
    elif name == "lying.npy":  # a header that promises more than any machine has
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 4), }" % 2**61
        header += b" " * (117 - len(header)) + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    elif name in ("none.npy", "a.safetensors"):
        path.write_bytes(b"")
    elif name == "header.safetensors":
        path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    elif name == "short.safetensors":
        save_file({"x": torch.ones(30, 4)}, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif name == "ints.safetensors":
        save_file({"x": torch.ones(3, 4, dtype=torch.int32)}, path)
    elif name == "folder.zarr":
        path.mkdir()
    elif name == "ints.zarr":
        zarr.create_array(path, data=np.ones((3, 2), np.int32))
    elif name == "chunk.zarr":
        zarr.create_array(path, shape=(2**30, 4), dtype="f4", chunks=(2**30, 4))
    elif name == "pickled.zarr":
        zarr.create_array(path, data=ROWS, zarr_format=2)
        content = json.loads((path / ".zarray").read_text())
        (path / ".zarray").write_text(json.dumps(content | {"filters": [{"id": "pickle", "protocol": 5}]}))
    else:
        path.write_bytes(pickle.dumps(ROWS))
    return name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.npy", "nothing matches 'nowhere.npy' of site s: mend the path"),
        ("truncated.npy", "truncated.npy is not a whole .npy file of numbers"),
        ("objects.npy", r"objects.npy is not a whole .npy file of numbers \(it holds pickled objects\)"),
        ("ints.npy", "ints.npy holds int64, which is no kind of activations"),
        ("complex.npy", "complex.npy holds complex64"),
        ("fields.npy", "fields.npy holds fields"),
        ("vector.npy", r"vector.npy has shape \(3,\): give rows \(N, H\)"),
        ("deep.npy", r"deep.npy has shape \(2, 2, 2, 2\)"),
        ("empty.npy", r"empty.npy has shape \(0, 4\), so it holds no number"),
        ("narrow.npy", r"narrow.npy has shape \(4, 0\), so it holds no number"),
        ("zip.npy", "zip.npy is not a whole .npy file of numbers"),
        ("lying.npy", "lying.npy is not a whole .npy file of numbers"),
        ("none.npy", "none.npy is not a whole .npy file"),
        ("a.safetensors", "a.safetensors is not a whole safetensors file"),
        ("header.safetensors", "header.safetensors is not a whole safetensors file"),
        ("short.safetensors", "short.safetensors is not a whole safetensors file"),
        ("ints.safetensors", "ints.safetensors holds I32 in 'x'"),
        ("folder.zarr", "folder.zarr is not a Zarr array or group"),
        ("ints.zarr", "ints.zarr holds int32"),
        ("chunk.zarr", "chunk.zarr has chunks of 17,179,869,184 bytes"),
        ("pickled.zarr", "pickled.zarr is (coded with pickle|not a Zarr array)"),
        ("a.pt", "a.pt is a pickle, which may run any program"),
        ("a.npz", "a.npz is of type .npz: save the matrix as"),
        ("noend", "noend is of type unknown"),
    ],
)
def test_files_that_cannot_be_read(name, said):
    if name != "nowhere.npy":
        make_bad(name)
    with pytest.raises(AtomsError, match=said) as error:
        Site("s", [name], None)
    assert "\n" not in str(error.value)


def test_a_damaged_chunk_is_refused():
    zarr.create_array("a.zarr", data=ROWS, chunks=(70, 5), zarr_format=2)
    (matrix_files.Path("a.zarr") / "0.0").write_bytes(b"no zstd")
    with pytest.raises(AtomsError, match=r"a\.zarr cannot be read from row 0 .*: it is damaged"):
        read(Site("s", ["a.zarr"], None), range(70))


def test_sites_that_do_not_fit():
    np.save("a.npy", np.ones((3, 2)))
    np.save("b.npy", np.ones((3, 4)))
    with pytest.raises(AtomsError, match=r"b\.npy has rows of width 4, but a\.npy of the same site s has 2"):
        Site("s", ["a.npy", "b.npy"], None)
    with pytest.raises(AtomsError, match=r"a\.npy comes twice in site s"):
        Site("s", ["a.npy", "*.npy"], None)
    with pytest.raises(AtomsError, match="site s has no file"):
        Site("s", [], None)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.npy", None, "which is not a file"),
        ("a.json", "[1]", r"give a \.npy, \.csv or \.txt file"),
        ("a.txt", "1\n2.5\n", "does not hold one integer a line"),
        ("a.csv", "1,2\n3,4\n", "(does not hold one integer a line|of shape)"),
        ("a.txt", f"{2**70}\n", "does not hold one integer a line"),
    ],
)
def test_columns_that_cannot_be(name, content, said):
    if content:
        matrix_files.Path(name).write_text(content)
    with pytest.raises(AtomsError, match=said):
        _ = Column("data.matrix.doc_ids", name).values


def test_columns_of_other_numbers():
    np.save("a.npy", np.ones(3))
    np.save("b.npy", np.array([2**63], np.uint64))
    with pytest.raises(AtomsError, match=r"a\.npy holds float64 of shape \(3,\): give one integer"):
        _ = Column("data.matrix.doc_ids", "a.npy").values
    with pytest.raises(AtomsError, match=r"give integers below 2\^63"):
        _ = Column("data.matrix.doc_ids", "b.npy").values


def test_digests_follow_content_and_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix_files, "HASHED_ALWAYS", 100)
    np.save("a.npy", ROWS)
    write("z", ROWS, "zarr3")
    paths = [matrix_files.Path("a.npy"), matrix_files.Path("z.zarr")]
    root = tmp_path / "stores"
    root.mkdir()
    first = content_digests(paths, str(root))
    assert first[paths[0]] == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(matrix_files, "_sha256", lambda *_: pytest.fail("hashed again"))
        assert content_digests(paths, str(root)) == first
    paths[0].rename("b.npy")
    assert content_digests([matrix_files.Path("b.npy")], str(root))[matrix_files.Path("b.npy")] == first[paths[0]]
    np.save("b.npy", ROWS + 1)
    assert content_digests([matrix_files.Path("b.npy")], str(root))[matrix_files.Path("b.npy")] != first[paths[0]]
    (root / matrix_files.DIGESTS).write_text("[no object")
    assert content_digests(paths[1:], str(root))[paths[1]] == first[paths[1]]
