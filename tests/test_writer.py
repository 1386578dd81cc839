import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stores import ODD_SITE, SITE, SPEC, make_rows, make_store, make_tokens, shard, write

from atoms.activations import files
from atoms.activations.grid import Grid, Span
from atoms.activations.manifest import NonFinite
from atoms.activations.spec import STORAGE
from atoms.activations.store import ActivationStore, StoreWriter
from atoms.errors import AtomsError


def test_digest_ignores_how_rows_were_written(pristine, tmp_path):
    writer = StoreWriter.create(tmp_path / "store", SPEC)
    write(writer, list(reversed(writer.pending)))
    writer.finalise()
    assert ActivationStore.open(tmp_path / "store").content_digest() == ActivationStore.open(pristine).content_digest()


def test_digest_sees_one_changed_value(own_store):
    before = ActivationStore.open(own_store).content_digest()
    writer = StoreWriter.resume(own_store, SPEC)
    span = SPEC.spans[1]
    rows = make_rows(SPEC, span)
    rows[SITE][3, 2] += 1
    writer.write_block(span, rows, **make_tokens(span))
    assert ActivationStore.open(own_store).content_digest() != before


WRITE_FOREVER = """
import sys
sys.path.insert(0, sys.argv[2])
from stores import *
writer = StoreWriter.open(sys.argv[1], SPEC)
for span in writer.pending:
    print(span.index, flush=True)
    writer.write_block(span, make_rows(writer.spec, span), **make_tokens(span))
print("done", flush=True)
"""


@pytest.mark.parametrize("kill_after", [2, 4])
def test_killed_writer_resumes_to_the_same_store(pristine, tmp_path, kill_after):
    arguments = [sys.executable, "-c", WRITE_FOREVER, str(tmp_path / "store"), str(Path(__file__).parent)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert process.stdout is not None
    for _ in range(kill_after):
        assert process.stdout.readline().strip().isdigit()
    process.send_signal(signal.SIGKILL)  # in the middle of a block
    process.wait()
    process.stdout.close()
    with pytest.raises(AtomsError, match=r"incomplete, \d of 7 blocks are done; run `atoms cache`"):
        ActivationStore.open(tmp_path / "store")

    (shard(tmp_path / "store").parent / "0.abc.partial").write_text("what a kill inside zarr leaves")
    writer = StoreWriter.resume(tmp_path / "store", SPEC)
    assert 7 - kill_after <= len(writer.pending) <= 7 - kill_after + 1
    assert not list((tmp_path / "store").rglob("*.partial"))
    write(writer)
    writer.finalise()
    assert ActivationStore.open(tmp_path / "store").content_digest() == ActivationStore.open(pristine).content_digest()


def test_shards_of_an_uncommitted_block_are_rewritten(pristine, tmp_path):
    """A power cut may leave short shards under their final names; without a manifest they count for nothing."""
    writer = StoreWriter.create(tmp_path / "store", SPEC)
    write(writer, writer.pending[:1])
    left = shard(tmp_path / "store", index=2)
    left.parent.mkdir(parents=True)
    left.write_bytes(b"short")
    writer = StoreWriter.resume(tmp_path / "store", SPEC)
    write(writer)
    writer.finalise()
    assert ActivationStore.open(tmp_path / "store").content_digest() == ActivationStore.open(pristine).content_digest()


def test_deleting_a_manifest_makes_resume_rewrite_the_block(own_store):
    before = ActivationStore.open(own_store).content_digest()
    (own_store / "manifest" / "train-000001.json").unlink()
    data = bytearray(shard(own_store, index=2).read_bytes())
    data[5] ^= 1
    shard(own_store, index=2).write_bytes(data)
    with pytest.raises(AtomsError, match="incomplete, 6 of 7"):
        ActivationStore.open(own_store)
    writer = StoreWriter.resume(own_store, SPEC)
    assert writer.pending == [Span("train", 1, 32, 64)]
    assert not (own_store / "complete.json").exists()
    write(writer)
    writer.finalise()
    assert ActivationStore.open(own_store).content_digest() == before


def test_processes_write_different_blocks(pristine, tmp_path):
    ranks = [StoreWriter.open(tmp_path / "store", SPEC)]
    ranks += [StoreWriter.attach(tmp_path / "store", SPEC) for _ in range(2)]
    for rank, writer in enumerate(ranks):
        write(writer, writer.spec.spans[rank::3])
    ranks[0].finalise()
    assert ActivationStore.open(tmp_path / "store").content_digest() == ActivationStore.open(pristine).content_digest()


def test_open_creates_then_resumes(tmp_path):
    write(StoreWriter.open(tmp_path / "a" / "store", SPEC), SPEC.spans[:2])
    assert len(StoreWriter.open(tmp_path / "a" / "store", SPEC).pending) == 5


def test_resume_of_a_complete_store_changes_nothing(own_store):
    writer = StoreWriter.resume(own_store, SPEC)
    assert writer.pending == []
    ActivationStore.open(own_store)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (replace(SPEC, seed=6), "seed: stored 5, asked 6"),
        (replace(SPEC, dtype="float16"), "dtype: stored 'float32', asked 'float16'"),
        (
            replace(SPEC, provenance={"model": {"name": "m", "hash": "xyz"}, "context": 64}),
            "provenance.model.hash: stored 'abc', asked 'xyz'",
        ),
        (replace(SPEC, grid=Grid(4, 16, 64)), "grid.block_rows: stored 32, asked 64"),
        (replace(SPEC, sites={SITE: 8}), f"sites.{ODD_SITE}: stored 3, asked None"),
    ],
)
def test_other_settings_are_refused_by_name(own_store, asked, named):
    with pytest.raises(AtomsError) as caught:
        StoreWriter.open(own_store, asked)
    assert named in str(caught.value)
    assert "use the stored settings" in str(caught.value)
    assert asked.identity_hash != SPEC.identity_hash


def test_create_refuses_a_taken_path(own_store, tmp_path):
    with pytest.raises(AtomsError, match="exists; resume it"):
        StoreWriter.create(own_store, SPEC)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(AtomsError, match="not an activation store"):
        StoreWriter.open(tmp_path / "notes", SPEC)


def test_finalise_refuses_missing_blocks(tmp_path):
    writer = StoreWriter.create(tmp_path / "store", SPEC)
    write(writer, writer.pending[:-1])
    with pytest.raises(AtomsError, match=r"block 1 of val is not whole; .*atoms cache"):
        writer.finalise()
    assert not (tmp_path / "store" / "complete.json").exists()


# --- rows that must not be stored ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", STORAGE)
def test_values_that_are_no_numbers_are_stored_and_counted(tmp_path, value, dtype):
    writer = StoreWriter.create(tmp_path / "store", replace(SPEC, dtype=dtype))
    for span in writer.pending:
        rows = make_rows(SPEC, span)
        if span in SPEC.spans[1:3]:
            rows[ODD_SITE][[4, 9], 1] = value
            rows[ODD_SITE][9, 2] = value
        writer.write_block(span, rows, **make_tokens(span))
    sealed = writer.finalise()
    infinite, nan = (0, 6) if np.isnan(value) else (6, 0)
    assert sealed.nonfinite["train"][ODD_SITE] == NonFinite(infinite, nan, 4)
    assert not sealed.nonfinite["train"][SITE]
    assert not sealed.nonfinite["val"][ODD_SITE]
    warning = sealed.warning(dtype)
    assert warning is not None
    assert f"train {ODD_SITE}: {infinite} infinities and {nan} NaN in 4 rows" in warning
    store = ActivationStore.open(tmp_path / "store")
    assert store.sealed == sealed
    norms = store.norms("train", ODD_SITE)
    assert np.flatnonzero(~np.isfinite(norms)).tolist() == [36, 41, 68, 73]
    assert np.array_equal(store.read_rows("train", ODD_SITE, 36, 37)[0, 1], value, equal_nan=True)


def test_float16_overflow_says_what_to_use(tmp_path):
    writer = StoreWriter.create(tmp_path / "store", replace(SPEC, dtype="float16"))
    for span in writer.pending:
        rows = make_rows(SPEC, span)
        if span.index == 0:
            rows[SITE][7, :2] = torch.tensor([65504.0, -70000.0])
        writer.write_block(span, rows, **make_tokens(span))
    sealed = writer.finalise()
    assert sealed.nonfinite["train"][SITE] == NonFinite(1, 0, 1)
    assert "Float16 ends at 65,504: harvest with data.harvest.dtype: bfloat16" in str(sealed.warning("float16"))


def test_a_store_of_numbers_warns_of_nothing(pristine):
    assert ActivationStore.open(pristine).sealed.warning("float16") is None


def test_large_float32_rows_are_no_overflow(tmp_path):
    writer = StoreWriter.create(tmp_path / "store", SPEC)
    span = SPEC.spans[0]
    rows = make_rows(SPEC, span)
    rows[SITE][0] = 3e38  # its norm overflows float32, the row does not
    writer.write_block(span, rows, **make_tokens(span))
    assert span not in writer.pending


def test_bfloat16_bits_are_taken_as_they_are(tmp_path):
    spec = replace(SPEC, dtype="bfloat16", sites={SITE: 8}, splits={"train": 8})
    writer = StoreWriter.create(tmp_path / "store", spec)
    rows = torch.randn(8, 8).bfloat16()
    span = spec.spans[0]
    writer.write_block(span, {SITE: rows.view(torch.uint16).numpy()}, **make_tokens(span))
    writer.finalise()
    assert torch.equal(ActivationStore.open(tmp_path / "store").read_rows("train", SITE, 0, 8), rows.float())


@pytest.mark.parametrize("spoil", ["site", "shape", "tokens", "span", "integers"])
def test_wrong_calls_are_programming_errors(tmp_path, spoil):
    writer = StoreWriter.create(tmp_path / "store", SPEC)
    span = SPEC.spans[0]
    rows, tokens = make_rows(SPEC, span), make_tokens(span)
    if spoil == "site":
        del rows[SITE]
    elif spoil == "shape":
        rows[SITE] = rows[SITE][:5]
    elif spoil == "tokens":
        tokens["doc_id"] = tokens["doc_id"][1:]
    elif spoil == "integers":
        rows[SITE] = rows[SITE].int()
    else:
        span = replace(span, stop=span.stop - 1)
    with pytest.raises((ValueError, TypeError)):
        writer.write_block(span, rows, **tokens)


# --- disks -----------------------------------------------------------------------------------------------------------


def test_too_small_a_disk_is_refused_before_the_first_row(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=SPEC.disk_bytes - 1))
    with pytest.raises(AtomsError, match=r"needs 0\.000 GB, only 0\.000 GB are free"):
        StoreWriter.create(tmp_path / "store", SPEC)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=SPEC.disk_bytes))
    StoreWriter.create(tmp_path / "store", SPEC)


def test_space_of_committed_blocks_is_not_asked_for_again(own_store, monkeypatch):
    (own_store / "manifest" / "train-000001.json").unlink()
    usage = shutil.disk_usage(own_store)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=SPEC.disk_bytes // 2))
    StoreWriter.resume(own_store, SPEC)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(AtomsError, match="free some disk"):
        StoreWriter.resume(own_store, SPEC)


def full_disk(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", range(0, 24, 3))
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_that_fills_up_leaves_a_resumable_store(pristine, tmp_path, monkeypatch, call, step):
    """Wherever in a block it happens."""
    writer = StoreWriter.create(tmp_path / "store", SPEC)
    write(writer, writer.pending[:2])
    done = 0
    original = getattr(os, call)

    def full_after_a_while(*arguments):
        nonlocal done
        done += 1
        if done > step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, full_after_a_while)
        with pytest.raises(
            AtomsError, match=r"disk full, .* still to be written; free that much and run `atoms cache`"
        ):
            write(writer)
    writer = StoreWriter.resume(tmp_path / "store", SPEC)
    assert len(writer.pending) >= 4
    write(writer)
    writer.finalise()
    assert ActivationStore.open(tmp_path / "store").content_digest() == ActivationStore.open(pristine).content_digest()


def test_full_disk_while_creating_leaves_nothing_under_the_name(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full_disk)
        with pytest.raises(AtomsError, match="disk full"):
            StoreWriter.create(tmp_path / "store", SPEC)
    assert not (tmp_path / "store").exists()
    StoreWriter.create(tmp_path / "store", SPEC)
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AtomsError, match=r"cannot be written .*choose a directory"):
        StoreWriter.create(tmp_path / "file" / "store", SPEC)


@pytest.mark.parametrize("dtype", STORAGE)
def test_disk_is_known_exactly_beforehand(tmp_path, dtype):
    spec = replace(SPEC, dtype=dtype)
    make_store(tmp_path / "store", spec)
    shards = [file for file in (tmp_path / "store").rglob("c/**/*") if file.is_file()]
    assert sum(file.stat().st_size for file in shards) == spec.disk_bytes


def test_chunks_that_look_like_fill_values_are_stored(tmp_path):
    """Imported matrices have no tokens: their columns are -1 throughout, which is also the fill value."""
    spec = replace(SPEC, sites={SITE: 8}, splits={"train": 20})
    writer = StoreWriter.create(tmp_path / "store", spec)
    span = spec.spans[0]
    none = np.full(span.rows, -1)
    writer.write_block(span, make_rows(spec, span), token_id=none, doc_id=none, position=none)
    writer.finalise()
    assert (ActivationStore.open(tmp_path / "store").tokens("train")["doc_id"] == -1).all()


# --- mending ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["complete.json", "zarr.json", "train/tokens/doc_id/zarr.json", "train/zarr.json"])
def test_metadata_is_written_anew_and_the_rows_are_kept(own_store, lost):
    before = ActivationStore.open(own_store)
    for name in {lost, "complete.json"}:
        (own_store / name).unlink()
    times = {file: file.stat().st_mtime_ns for file in own_store.rglob("c/**/*") if file.is_file()}
    writer = StoreWriter.open(own_store, SPEC)
    assert writer.pending == []
    writer.finalise(before.extra)
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert ActivationStore.open(own_store).sealed == before.sealed


def test_blocks_of_another_store_do_not_count(own_store, tmp_path):
    """A manifest that was copied in, or a store laid out over the remains of another."""
    other = replace(SPEC, seed=6)
    for name in ("zarr.json", "complete.json"):
        (own_store / name).unlink()
    assert len(StoreWriter.open(own_store, other).pending) == 7
