"""Judging a checkpoint: ``atoms validate``, ``test`` and ``predict``."""

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
from atoms.training.checkpoint_file import SealedCheckpointIO
from atoms.training.codes_writer import CodesWriter
from atoms.training.members import SINGLE


@pytest.fixture
def run(fit_words, database, capsys):
    """A short fit: its MLflow run, its last checkpoint and the table it printed."""
    main([*fit_words, "--trainer.max_epochs=1", "--checkpoint.every_n_train_steps=10", "--checkpoint.save_top_k=-1"])
    (found,) = database.search_runs([database.get_experiment_by_name("atoms").experiment_id])
    (last,) = Path("runs").glob("*/*/checkpoints/step-0000018.ckpt")
    return found, str(last.absolute()), table(capsys.readouterr().out)


def table(out: str) -> list[str]:
    return out[: out.index("\n", out.index("memorisation gap") if "memorisation gap" in out else 0)].splitlines()


def children(database, run) -> list:
    query = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    return database.search_runs([run.info.experiment_id], query)


class TestValidate:
    """The same table again, and where it is kept."""

    def test_same_table_and_numbers_from_any_directory(self, run, database, capsys, tmp_path, monkeypatch):
        found, last, printed = run
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        main(["validate", f"--ckpt_path={last}", "--trainer.accelerator=cpu"])
        assert table(capsys.readouterr().out) == printed
        assert not list(elsewhere.iterdir())
        (child,) = children(database, found)
        assert child.info.status == "FINISHED"
        assert child.data.tags["checkpoint"] == checkpoint.digest(last)
        assert child.data.tags["command"] == "validate"
        finals = {name: value for name, value in found.data.metrics.items() if name.startswith("final/")}
        assert child.data.metrics == finals
        assert {path.name for path in Path(child.info.artifact_uri).glob("figures/*")} == {
            "pre_activations.png", "firing_rates.png", "coherence.png", "atoms_per_row.png",
        }  # fmt: skip

    def test_numbers_reach_the_parent_at_the_rows_the_checkpoint_saw(self, run, database):
        found, last, _ = run
        early = last.replace("step-0000018", "step-0000010")
        main(["validate", f"--ckpt_path={early}", "--trainer.accelerator=cpu"])
        history = {point.step: point.value for point in database.get_metric_history(found.info.run_id, "final/r2")}
        (child,) = children(database, found)
        assert history == {18 * 256: found.data.metrics["final/r2"], 10 * 256: child.data.metrics["final/r2"]}
        # MLflow shows the value of the highest step: an older checkpoint does not cover the run's own.
        parent = database.get_run(found.info.run_id)
        assert parent.data.metrics["final/r2"] == found.data.metrics["final/r2"]
        assert parent.info.status == "FINISHED"

    def test_store_that_moved(self, run, planted_store, tmp_path, capsys):
        _, last, printed = run
        content = torch.load(last, weights_only=True)
        content["atoms"]["store"] = str(tmp_path / "gone")
        SealedCheckpointIO().save_checkpoint(content, "moved.ckpt")
        with pytest.raises(SystemExit):
            main(["validate", "--ckpt_path=moved.ckpt", "--trainer.accelerator=cpu"])
        assert "name the store with --data.store" in capsys.readouterr().err
        main(["validate", "--ckpt_path=moved.ckpt", "--trainer.accelerator=cpu", f"--data.store={planted_store}"])
        assert table(capsys.readouterr().out) == printed

    def test_another_store_is_judged_in_the_geometry_that_was_learnt(self, run, capsys, database):
        """The other store's rows are this store's; its training rows, and with them its own geometry, are not."""
        found, last, _ = run
        main(["cache", "--data.planted={width: 16, atoms: 24, active: 2.0, rows: 6000, seed: 7}", "--data.store=other"])
        main(["validate", f"--ckpt_path={last}", "--trainer.accelerator=cpu", "--data.store=other"])
        assert "is not the store this checkpoint learnt from" in capsys.readouterr().err
        (child,) = children(database, found)
        sae = load(last)
        rows = ActivationStore.open("other").read_rows("val", "planted", 0, 600).double()
        with torch.no_grad():
            error = rows - sae(rows.float()).double()
        metric = sae.geometry.map()
        spread = (rows - rows.mean(0)) @ metric
        expected = 1 - (error @ metric).square().sum() / spread.square().sum()
        assert child.data.metrics["final/r2_aip"] == pytest.approx(float(expected), abs=1e-5)

    def test_wrong_width(self, run, capsys):
        _, last, _ = run
        main(["cache", "--data.planted={width: 8, rows: 100}", "--data.store=narrow"])
        with pytest.raises(SystemExit):
            main(["validate", f"--ckpt_path={last}", "--data.store=narrow"])
        assert "has width 8, not the 16 the checkpoint learnt" in capsys.readouterr().err

    def test_run_that_is_gone(self, run, capsys):
        _, last, printed = run
        Path("mlflow.db").rename("kept.db")
        main(["validate", f"--ckpt_path={last}", "--trainer.accelerator=cpu"])
        out, err = capsys.readouterr()
        assert table(out) == printed
        assert err.startswith("note     not logged")
        assert not Path("mlflow.db").exists()


def test_test_split_has_rows_and_a_child_of_its_own(run, fit_words, database, capsys):
    found, last, _ = run
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
