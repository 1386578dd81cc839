"""Activations of one's own: every row arrives once, where it belongs, and held out by its document."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from stores import broken_off

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.grid import Grid
from atoms.activations.lock import StoreLock
from atoms.activations.matrix import Deal, MatrixSpec, import_matrix
from atoms.activations.planted import PlantedSpec
from atoms.activations.store import ActivationStore
from atoms.cli import main
from atoms.errors import AtomsError

N, H = 900, 6
SPLITS = ("train", "val", "test")


@pytest.fixture
def rows() -> np.ndarray:
    """Distinct rows in ``acts.npy``; document of row i in ``docs.npy``, of uneven lengths and in two places each."""
    generator = np.random.default_rng(3)
    values = generator.standard_normal((N, H)).astype(np.float32)
    np.save("acts.npy", values)
    half = np.sort(generator.integers(0, 60, N // 2))
    np.save("docs.npy", np.concatenate([half, half]) * 7 + 1000)
    return values


def spec(**settings) -> MatrixSpec:
    return MatrixSpec(**{"files": {"s": "acts.npy"}, "doc_ids": "docs.npy", **settings})


def stored(settings: MatrixSpec, path: str = "store") -> ActivationStore:
    import_matrix(settings, Path(path))
    return ActivationStore.open(path)


def where_from(store: ActivationStore, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Number of the source row of every stored row, matched by content; every row must be found once."""
    numbers = {row.tobytes(): number for number, row in enumerate(rows)}
    assert len(numbers) == len(rows)
    found = {
        split: np.array([numbers[row.tobytes()] for row in store.read_rows(split, "s", 0, store.n_rows(split)).numpy()])
        for split in store.splits
    }
    assert sorted(np.concatenate(list(found.values()))) == list(range(len(rows)))
    return found


@pytest.mark.parametrize("memory", ["one block", "many blocks"])
def test_every_row_arrives_once_and_documents_are_never_split(rows, memory, monkeypatch):
    if memory == "many blocks":
        monkeypatch.setattr(Grid, "choose", classmethod(lambda cls, *_: cls(8, 16, 48)))
    token_ids, positions = np.arange(N) * 3, np.arange(N) % 11
    np.save("tokens.npy", token_ids)
    Path("positions.csv").write_text("position\n" + "\n".join(map(str, positions)))
    store = stored(spec(token_ids="tokens.npy", positions="positions.csv"))
    found, documents = where_from(store, rows), np.load("docs.npy")
    kept = {split: set(documents[numbers]) for split, numbers in found.items()}
    assert not kept["train"] & kept["val"]
    assert not kept["train"] & kept["test"]
    assert not kept["val"] & kept["test"]
    for split, numbers in found.items():
        beside = store.tokens(split)
        assert np.array_equal(beside["doc_id"], documents[numbers])
        assert np.array_equal(beside["token_id"], token_ids[numbers])
        assert np.array_equal(beside["position"], positions[numbers])
        assert not np.array_equal(numbers, np.sort(numbers))  # shuffled
    held_out = len(found["val"]) + len(found["test"])
    assert held_out == pytest.approx(0.2 * N, rel=0.2)
    moments = store.moments("s")
    train = rows[found["train"]].astype(np.float64)
    assert moments.count == len(train)
    np.testing.assert_allclose(moments.outer, train.T @ train, rtol=1e-12)


def test_blocks_follow_the_order_of_the_files(rows, monkeypatch):
    monkeypatch.setattr(Grid, "choose", classmethod(lambda cls, *_: cls(8, 16, 48)))
    numbers = where_from(stored(spec()), rows)["train"]
    blocks = [numbers[start : start + 48] for start in range(0, len(numbers), 48)]
    for before, after in pairwise(blocks):
        assert before.max() < after.min()


def test_without_documents_spans_of_rows_stand_in(rows, capsys):
    store = stored(spec(doc_ids=None))
    for split, numbers in where_from(store, rows).items():
        assert np.array_equal(store.tokens(split)["doc_id"], numbers // 9)
        assert (store.tokens(split)["token_id"] == -1).all()
        assert (store.tokens(split)["position"] == -1).all()
    assert re.search(r"note .* each 9 consecutive rows stand in for a document", capsys.readouterr().err)


def test_sequences_are_documents(rows):
    np.save("acts.npy", rows.reshape(90, 10, H))
    store = stored(spec(doc_ids=None))
    for split, numbers in where_from(store, rows).items():
        assert np.array_equal(store.tokens(split)["doc_id"], numbers // 10)
        assert np.array_equal(store.tokens(split)["position"], numbers % 10)
    np.save("docs.npy", np.arange(90) // 3)  # several sequences of one document
    store = stored(spec(), "other")
    for split, numbers in where_from(store, rows).items():
        assert np.array_equal(store.tokens(split)["doc_id"], numbers // 30)


def test_several_sites_keep_their_rows_together(rows):
    other = torch.from_numpy(rows[:, :2].copy()).double() + 1
    save_file({"x": other[:400]}, "b1.safetensors")
    save_file({"x": other[400:]}, "b2.safetensors")
    np.save("c1.npy", rows[:400])
    np.save("c2.npy", rows[400:])
    store = stored(spec(files={"s": ["c*.npy"], "mlp/../out": ["b*.safetensors"]}))
    assert store.sites == ["s", "mlp/../out"]
    for split, numbers in where_from(store, rows).items():
        got = store.read_rows(split, "mlp/../out", 0, store.n_rows(split))
        assert torch.equal(got, other[numbers].float())


@pytest.mark.parametrize(
    ("given", "asked", "kept"),
    [
        ("float16", "auto", "float16"),
        ("float64", "auto", "float32"),
        ("bfloat16", "auto", "bfloat16"),
        ("float32", "bfloat16", "bfloat16"),
        ("float32", "float16", "float16"),
    ],
)
def test_types(rows, given, asked, kept):
    values = torch.from_numpy(rows).to(getattr(torch, given))
    save_file({"x": values}, "acts.safetensors")
    store = stored(spec(files={"s": "acts.safetensors"}, dtype=asked))
    assert store.spec.dtype == kept
    got = torch.cat([store.read_rows(split, "s", 0, store.n_rows(split)) for split in store.splits])
    expected = values.to(getattr(torch, kept)).float()
    assert torch.equal(got.sort(0).values, expected.sort(0).values)


def test_identity_follows_content_and_not_place(rows, tmp_path):
    base = spec(token_ids="docs.npy")
    (tmp_path / "elsewhere").mkdir()
    for name in ("acts.npy", "docs.npy"):
        (tmp_path / "elsewhere" / name).write_bytes(Path(name).read_bytes())
    moved = spec(files={"s": "elsewhere/acts.npy"}, doc_ids="elsewhere/docs.npy", token_ids="docs.npy", root="r")
    assert moved.directory().name == base.directory().name
    np.save("more.npy", rows + 1)
    others = [
        spec(), replace(base, doc_ids=None), replace(base, positions="docs.npy"), replace(base, seed=1),
        replace(base, files={"s": "more.npy"}), replace(base, files={"t": "acts.npy"}), replace(base, val=0.2),
        replace(base, dtype="float16"),
    ]  # fmt: skip
    assert len({other.directory().name.rpartition("-")[2] for other in [base, *others]}) == len(others) + 1


def test_resumed_it_is_the_same_store(rows, monkeypatch):
    monkeypatch.setattr(Grid, "choose", classmethod(lambda cls, *_: cls(8, 16, 48)))
    rows[100:140] = rows[:40]  # twins are counted alike
    np.save("acts.npy", rows)
    whole = stored(spec(doc_ids=None), "whole")
    with broken_off(9):
        import_matrix(spec(doc_ids=None), Path("resumed"))
    with pytest.raises(AtomsError, match="incomplete, 9 of"):
        ActivationStore.open("resumed")
    resumed = stored(spec(doc_ids=None), "resumed")
    assert resumed.content_digest() == whole.content_digest()
    assert torch.equal(resumed.moments("s").outer, whole.moments("s").outer)
    assert resumed.extra["held_out_twins"] == whole.extra["held_out_twins"] > 0


def test_equal_rows_across_splits_are_counted(rows, capsys):
    deal = Deal(spec())
    train, held_out = np.flatnonzero(deal.split == 0), np.flatnonzero(deal.split != 0)
    rows[held_out[:5]] = rows[train[7]]
    rows[held_out[5]] = rows[train[8]]
    rows[held_out[6]] = rows[held_out[7]]  # both held out: nothing learnt
    np.save("acts.npy", rows)
    store = stored(spec())
    assert store.extra["held_out_twins"] == 6
    assert f"6 of {len(held_out)} held-out rows are equal to a row learnt from" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "auto"), (np.inf, "auto"), (1e6, "float16")])
def test_rows_that_are_no_numbers_are_kept_counted_and_left_out(rows, value, dtype, capsys):
    rows[[3, 500], [0, 1]] = value
    np.save("acts.npy", rows)
    store = stored(spec(dtype=dtype))
    assert store.extra["not_finite"] == {"s": 2}
    assert "2 of 900 rows of s hold NaN or infinite values" in capsys.readouterr().err
    data = ActivationDataModule(store="store", max_norm=None)
    assert sum(data.num_rows(split) for split in SPLITS) == N - 2


def test_a_site_without_a_finite_row_is_refused(rows):
    np.save("acts.npy", np.full_like(rows, np.nan))
    with pytest.raises(AtomsError, match=r"data\.matrix\.files: \d+ of \d+ rows of s in one block hold NaN"):
        stored(spec())


def test_memory_is_a_block_and_a_window(monkeypatch):
    np.save("acts.npy", np.lib.format.open_memmap("big.npy", "w+", np.float32, (40_000, 64)))
    monkeypatch.setattr("atoms.activations.matrix_files.WINDOW_BYTES", 2**16)
    largest = []
    original = torch.empty

    def watched(*size, **kwargs):
        made = original(*size, **kwargs)
        largest.append(made.nbytes)
        return made

    monkeypatch.setattr(torch, "empty", watched)
    import_matrix(spec(doc_ids=None, memory_mib=1), Path("store"))
    assert max(largest) <= 2**20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"files": {}}, r"data\.matrix\.files is empty"),
        ({"files": {"": "a.npy"}}, r"site '': a name is printed as it is"),
        ({"dtype": "int8"}, r"data\.matrix\.dtype is int8: give auto or one of"),
        ({"memory_mib": 0}, r"data\.matrix\.memory_mib is 0: give at least 1"),
        ({"val": 0.0}, r"data\.matrix\.val=0\.0 and test=0\.1"),
        ({"val": 0.5, "test": 0.5}, r"data\.matrix\.val=0\.5 and test=0\.5"),
        ({"val": float("nan")}, r"data\.matrix\.val=nan"),
    ],
)
def test_settings_that_cannot_work(change, said):
    with pytest.raises(AtomsError, match=said):
        spec(**change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"doc_ids": "short.npy"}, r"doc_ids: short\.npy holds 5 integers, but the files hold 900 rows"),
        ({"token_ids": "short.npy"}, r"token_ids: short\.npy holds 5 integers"),
        ({"token_ids": "large.npy"}, r"token_ids: .*: give integers of 32 bits"),
        ({"positions": "large.npy"}, r"positions: .*: give integers of 32 bits"),
        ({"doc_ids": "same.npy"}, r"val=0\.1 and test=0\.1: 1 documents of 900 rows cannot be dealt"),
        ({"doc_ids": "nowhere.npy"}, r"data\.matrix\.doc_ids is nowhere\.npy, which is not a file"),
        ({"files": {"s": "acts.npy", "t": "less.npy"}}, r"site t has 4 rows in files of \(4, 6\), but site s 900"),
        ({"files": {"s": "acts.npy", "t": "folded.npy"}}, r"site t has 900 rows in files of \(90, 10, 6\)"),
    ],
)
def test_files_that_do_not_fit_together(rows, change, said):
    np.save("short.npy", np.arange(5))
    np.save("large.npy", np.full(N, 2**31))
    np.save("same.npy", np.zeros(N, np.int64))
    np.save("less.npy", rows[:4])
    np.save("folded.npy", rows.reshape(90, 10, H))
    with pytest.raises(AtomsError, match=said):
        import_matrix(spec(**change), Path("store"))


def test_two_writers_do_not_meet(rows):
    with StoreLock(Path("store")), pytest.raises(AtomsError, match=r"being written by process"):
        import_matrix(spec(), Path("store"))
    assert not Path("store").exists()


def test_a_store_of_other_files_is_not_taken_for_it(rows):
    stored(spec())
    np.save("acts.npy", rows + 1)
    with pytest.raises(AtomsError, match=r"made by other settings \(provenance\.files"):
        ActivationDataModule(store="store", matrix=spec())


def test_one_source_only(rows):
    with pytest.raises(AtomsError, match=r"data\.planted and data\.matrix are both set"):
        ActivationDataModule(matrix=spec(), planted=PlantedSpec())


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture
def planted() -> np.ndarray:
    """2,000 planted rows in two files, 100 documents."""
    values = PlantedSpec(width=16, atoms=24, active=2.0).draw("train", 0, 2000).numpy()
    np.save("p1.npy", values[:700])
    np.save("p2.npy", values[700:])
    np.save("docs.npy", np.arange(2000) // 20)
    return values


@pytest.mark.parametrize(
    "words",
    [
        ["--import", "p1.npy", "p2.npy", "--doc_ids", "docs.npy"],
        ["--import=p*.npy", "--doc_ids=docs.npy"],
        ["--config=config.yaml"],
    ],
)
def test_cache_and_its_config_make_the_same_store(planted, words, capsys):
    matrix = {"files": {"activations": ["p1.npy", "p2.npy"]}, "doc_ids": "docs.npy"}
    Path("config.yaml").write_text(yaml.safe_dump({"data": {"matrix": matrix}}))
    main(["cache", *words, "--data.store=store"])
    assert "rows train 1,600, val 200, test 200" in capsys.readouterr().out
    main(["cache", "--config=config.yaml", "--data.store=store"])  # found
    assert "import" not in capsys.readouterr().err


def test_fit_learns_from_imported_rows(planted, database, capsys):
    settings = ["--model.expansion=2.5", "--model.target_l0=2", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    words = ["--import", "mlp_out.3=p*.npy", "--doc_ids=docs.npy", "--data.batch_size=64", *settings]
    main(["fit", *words])
    said = capsys.readouterr()
    assert "R² centred, raw" in said.out
    assert "mlp_out.3 (16) from 2 files" in said.err
    (path,) = Path("activations").glob("p1-*/")
    store = ActivationStore.open(path)
    numbers = {row.tobytes(): number for number, row in enumerate(planted)}
    documents = {}
    for split in SPLITS:
        rows = store.read_rows(split, "mlp_out.3", 0, store.n_rows(split)).numpy()
        documents[split] = {numbers.pop(row.tobytes()) // 20 for row in rows}
    assert not numbers
    assert sum(map(len, documents.values())) == 100  # none in two splits


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--import"], "--import names no file: give one, for example --import acts.npy"),
        (["--import="], "--import names no file"),
        (["--doc_ids=docs.npy"], "--doc_ids=docs.npy stands without --import"),
        (["--import", "p1.npy", "--doc_ids"], "--doc_ids names no file"),
        (["--import", "nowhere.npy"], "data.matrix.files: nothing matches 'nowhere.npy'"),
        (["--import", "p1.npy", "--doc_ids=docs.npy"], "data.matrix.doc_ids: docs.npy holds 2,000 integers, but"),
        (["--import", "p1.npy", "--data.planted={}"], "data.planted and data.matrix are both set"),
        (["--import", "p1.npy", "--data.matrix.seeed=3"], "data.matrix: seeed is no setting: did you mean seed?"),
    ],
)
def test_words_that_cannot_be(planted, words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["cache", *words])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("atoms: ")]
    assert stop.value.code == 1
    assert len(lines) == 1
    assert lines[0].startswith(f"atoms: error: {said}")
    assert not list(Path("activations").glob("*"))
