"""``atoms test`` and ``predict``: the test split, and sparse codes of every row."""

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from atoms.activations.store import ActivationStore
from atoms.cli import main
from atoms.geometry import AtomicInnerProduct
from atoms.sae import ThresholdSAE
from atoms.training import checkpoint
from atoms.training.codes_writer import CodesWriter
from atoms.training.members import SINGLE


def children(database, run) -> list:
    query = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    return database.search_runs([run.info.experiment_id], query)


def test_test_split_has_rows_and_a_child_of_its_own(fit_words, database, capsys):
    main([*fit_words, "--trainer.max_epochs=1"])
    (found,) = database.search_runs([database.get_experiment_by_name("atoms").experiment_id])
    (last,) = Path("runs").glob("*/*/checkpoints/*.ckpt")
    main(["test", *fit_words[1:], f"--ckpt_path={last}"])
    assert "600 test rows" in capsys.readouterr().out
    (child,) = children(database, found)
    assert child.data.tags["command"] == "test"
    parent = database.get_run(found.info.run_id)
    assert parent.data.metrics["test/r2"] == child.data.metrics["test/r2"] != parent.data.metrics["final/r2"]


def load(path: str):
    """The dictionary of a checkpoint, rebuilt by hand."""
    prefix = f"members.{SINGLE}.sae."
    state = {
        name.removeprefix(prefix): value
        for name, value in torch.load(path, weights_only=True)["state_dict"].items()
        if name.startswith(prefix)
    }
    geometry = AtomicInnerProduct.from_state(state["_extra_state"])
    sae = ThresholdSAE(geometry.width, len(state["threshold"]), geometry=geometry, power=0.5, encoder="aligned")
    sae.load_state_dict(state)
    return sae


class TestPredict:
    """Codes of every row, once."""

    @pytest.fixture
    def codes(self, fitted, fit_words, capsys):
        main(["predict", *fit_words[1:], f"--ckpt_path={fitted.last}", "--output=out/codes.zarr"])
        assert capsys.readouterr().err == "codes    out/codes.zarr: train, val, test\n"
        return zarr.open_group("out/codes.zarr", mode="r")

    @pytest.mark.parametrize("split", ["train", "val", "test"])
    def test_equal_the_dictionary_s_own_for_every_row_once(self, codes, fitted, planted_store, split):
        store = ActivationStore.open(planted_store)
        group = codes[f"{split}/{SINGLE}"]
        with torch.no_grad():
            expected = load(fitted.last).encode(store.read_rows(split, "planted", 0, store.n_rows(split)))
        seen = torch.zeros(store.n_rows(split), dtype=torch.int64)
        dense = torch.zeros_like(expected)
        for _, part in sorted(group.groups()):
            rows, offsets, indices, values = (torch.from_numpy(part[name][:]) for name in PARTS)
            assert [rows.dtype, offsets.dtype, indices.dtype, values.dtype] == PARTS_TYPES
            assert offsets[0] == 0
            assert offsets[-1] == len(indices) == len(values)
            lengths = offsets.diff()
            assert (lengths >= 0).all()
            dense[rows.repeat_interleave(lengths), indices.long()] = values
            seen[rows] += 1
        assert (seen == 1).all()
        assert torch.equal(dense != 0, expected != 0)
        assert torch.allclose(dense, expected, rtol=1e-5, atol=1e-6)  # other batch sizes round otherwise

    def test_says_what_it_is(self, codes, fitted, planted_store):
        for split in ("train", "val", "test"):
            assert dict(codes[f"{split}/{SINGLE}"].attrs) == {
                "checkpoint": checkpoint.digest(fitted.last),
                "store": ActivationStore.open(planted_store).identity_hash,
                "site": "planted",
                "atoms": 40,
                "complete": True,
            }

    def test_in_several_parts(self, fitted, fit_words, monkeypatch):
        monkeypatch.setattr("atoms.training.codes_writer.ROWS_PER_PART", 512)
        main(["predict", *fit_words[1:], f"--ckpt_path={fitted.last}", "--splits=[val]"])
        group = zarr.open_group("codes.zarr/val/" + SINGLE, mode="r")
        parts = sorted(group.groups())
        assert [name for name, _ in parts] == ["part-000-000000", "part-000-000001"]
        assert [row for _, part in parts for row in part["rows"][:]] == list(range(600))

    def test_never_overwrites(self, fitted, fit_words, capsys):
        Path("codes.zarr").mkdir()
        with pytest.raises(SystemExit):
            main(["predict", *fit_words[1:], f"--ckpt_path={fitted.last}"])
        assert capsys.readouterr().err.startswith("atoms: error: output is codes.zarr, which exists")
        assert not list(Path("codes.zarr").iterdir())

    @pytest.mark.parametrize("output", ["", "a\0b", "a\x1b[2J"])
    def test_names_that_cannot_be(self, fitted, fit_words, output, capsys):
        with pytest.raises(SystemExit):
            main(["predict", *fit_words[1:], f"--ckpt_path={fitted.last}", f"--output={output}"])
        assert capsys.readouterr().err.startswith(f"atoms: error: output is {output!r}: name a folder to write")

    def test_broken_off_leaves_nothing_under_its_name_and_starts_afresh(self, fitted, fit_words, monkeypatch, capsys):
        words = ["predict", *fit_words[1:], f"--ckpt_path={fitted.last}"]
        with monkeypatch.context() as patch:
            patch.setattr("atoms.training.codes_writer.ROWS_PER_PART", 512)
            patch.setattr(CodesWriter, "on_predict_end", disk_is_full)
            with pytest.raises(SystemExit):
                main(words)
            assert capsys.readouterr().err.endswith("atoms: error: disk is full\n")
        assert list(Path("codes.zarr.partial").iterdir())
        assert not Path("codes.zarr").exists()
        main(words)
        assert zarr.open_group("codes.zarr", mode="r")[f"train/{SINGLE}"].attrs["complete"]
        assert not list(Path().glob("codes.zarr.partial"))


def disk_is_full(*_):
    raise OSError("disk is full")


PARTS = ("rows", "offsets", "indices", "values")
PARTS_TYPES = [torch.int64, torch.int64, torch.int32, torch.float32]


def test_rows_that_were_left_out_have_no_codes(planted_store, fit_words, tmp_path):
    """What ``max_norm`` leaves out of the fit is left out of everything, without being asked again."""
    strict = "--data.max_norm=1.1"
    main([*fit_words, "--trainer.logger=false", strict, "--trainer.max_epochs=1", "--data.batch_size=128"])
    words = [word for word in fit_words[1:] if "batch_size" not in word]
    (last,) = tmp_path.glob("runs/checkpoints/*.ckpt")
    main(["predict", *words, f"--ckpt_path={last}", "--splits=[val]"])
    store = ActivationStore.open(planted_store)
    limit = 1.1 * np.median(store.norms("train", "planted"))
    kept = np.flatnonzero(store.norms("val", "planted") <= limit)
    assert 0 < len(kept) < 600
    ((_, part),) = zarr.open_group(f"codes.zarr/val/{SINGLE}", mode="r").groups()
    assert part["rows"][:].tolist() == kept.tolist()
