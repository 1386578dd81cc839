import errno
import json
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
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import ZstdCodec

from atoms.activations import files
from atoms.activations.grid import Grid, Span
from atoms.activations.lock import StoreLock
from atoms.activations.reader import ChunkReader, DamagedChunkError
from atoms.activations.spec import STORAGE, site_folder, stored_spec
from atoms.activations.store import ActivationStore, StoreSpec, StoreWriter
from atoms.errors import AtomsError

SITE, ODD_SITE = "model.layers.3", "blocks/1:post"
SPEC = StoreSpec(
    sites={SITE: 8, ODD_SITE: 3},
    dtype="float32",
    splits={"train": 150, "val": 37, "test": 0},
    grid=Grid(chunk_rows=4, shard_rows=16, block_rows=32),
    seed=5,
    provenance={"model": {"name": "m", "hash": "abc"}, "context": 64},
)


def make_rows(spec: StoreSpec, span: Span) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * span.index + len(span.split))
    return {site: torch.randn(span.rows, width, generator=generator) for site, width in spec.sites.items()}


def make_tokens(span: Span) -> dict[str, np.ndarray]:
    rows = np.arange(span.start, span.stop)
    return {"token_id": rows % 7, "doc_id": rows // 10, "position": rows % 10}


def write(writer: StoreWriter, spans: list[Span] | None = None) -> None:
    for span in writer.pending if spans is None else spans:
        writer.write_block(span, make_rows(writer.spec, span), **make_tokens(span))


def make_store(path: Path, spec: StoreSpec = SPEC) -> Path:
    writer = StoreWriter.create(path, spec)
    write(writer)
    writer.finalise({"versions": "1"})
    return path


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("pristine") / "store")


@pytest.fixture
def path(pristine, tmp_path):
    """A store of one's own to spoil."""
    return Path(shutil.copytree(pristine, tmp_path / "store"))


def shard(path: Path, split: str = "train", site: str = SITE, index: int = 0) -> Path:
    return path / split / site_folder(site) / "acts" / "c" / str(index) / "0"


@pytest.mark.parametrize("dtype", STORAGE)
def test_rows_come_back_as_rounded(tmp_path, dtype):
    spec = replace(SPEC, dtype=dtype)
    store = ActivationStore.open(make_store(tmp_path / "store", spec))
    assert store.dtype == STORAGE[dtype][1]
    for split in ("train", "val"):
        expected = {site: [] for site in spec.sites}
        for span in spec.grid.spans(split, spec.splits[split]):
            for site, rows in make_rows(spec, span).items():
                expected[site].append(rows.to(store.dtype))
        for site, parts in expected.items():
            rows = torch.cat(parts)
            chunks = [store.to_torch(store.read_chunk(split, site, i)) for i in range(len(store.chunks(split)))]
            assert [len(chunk) for chunk in chunks] == [len(r) for r in store.chunks(split)]
            assert torch.equal(torch.cat(chunks), rows)
            assert torch.equal(store.read_rows(split, site, 3, 35), rows[3:35].float())
            assert store.read_rows(split, site, 9, 9).shape == (0, spec.sites[site])
            norms = np.linalg.norm(rows.double().numpy(), axis=1).astype(np.float32)
            np.testing.assert_array_equal(store.norms(split, site), norms)
        whole = make_tokens(Span(split, 0, 0, spec.splits[split]))
        for name, column in store.tokens(split).items():
            np.testing.assert_array_equal(column, whole[name])


def test_metadata(pristine):
    store = ActivationStore.open(pristine)
    assert store.sites == [SITE, ODD_SITE]
    assert store.splits == ["train", "val", "test"]
    assert [store.n_rows(split) for split in store.splits] == [150, 37, 0]
    assert (store.width(SITE), store.width(ODD_SITE)) == (8, 3)
    assert store.provenance == SPEC.provenance
    assert store.extra == {"versions": "1"}
    assert store.identity_hash == SPEC.identity_hash
    assert len(store.norms("test", SITE)) == 0
    assert store.moments_path(ODD_SITE).parent == pristine / "moments"


@pytest.mark.parametrize("dtype", STORAGE)
def test_disk_is_known_exactly_beforehand(tmp_path, dtype):
    spec = replace(SPEC, dtype=dtype)
    make_store(tmp_path / "store", spec)
    shards = [file for file in (tmp_path / "store").rglob("c/**/*") if file.is_file()]
    assert sum(file.stat().st_size for file in shards) == spec.disk_bytes


def test_any_zarr_reader_opens_it(pristine):
    store = ActivationStore.open(pristine)
    group = zarr.open_group(pristine, mode="r")
    for split in ("train", "val"):
        for site in SPEC.sites:
            array = group[f"{split}/{site_folder(site)}/acts"]
            assert array.attrs["site"] == site
            assert array.metadata.dimension_names == ("token", "hidden")
            reader = ChunkReader(pristine / array.path)
            np.testing.assert_array_equal(reader.read_rows(0, SPEC.splits[split]), array[:])
            np.testing.assert_array_equal(store.norms(split, site), group[f"{split}/{site_folder(site)}/norm"][:])
        for name, column in store.tokens(split).items():
            np.testing.assert_array_equal(column, group[f"{split}/tokens/{name}"][:])


def test_bfloat16_says_what_its_bits_mean(tmp_path):
    make_store(tmp_path / "store", replace(SPEC, dtype="bfloat16"))
    array = zarr.open_array(tmp_path / "store" / "train" / site_folder(SITE) / "acts", mode="r")
    assert array.dtype == np.uint16
    assert array.attrs["logical_dtype"] == "bfloat16"
    assert torch.tensor([int(array.fill_value)], dtype=torch.uint16).view(torch.bfloat16).isnan()


def test_buffer_is_reused(pristine):
    store = ActivationStore.open(pristine)
    buffer = np.empty((4, 8), np.float32)
    rows = store.read_chunk("train", SITE, 37, out=buffer)
    assert rows.base is buffer
    assert rows.shape == (2, 8)  # the last chunk is shorter
    with pytest.raises(ValueError, match="out must be contiguous"):
        store.read_chunk("train", SITE, 0, out=np.empty((4, 16), np.float32)[:, ::2])


def test_other_codecs_are_read_through_zarr(tmp_path):
    values = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float16)
    array = zarr.create_array(
        tmp_path / "a", shape=values.shape, chunks=(8, 3), shards=(16, 3), dtype="f2", compressors=[ZstdCodec()]
    )
    array[:] = values
    reader = ChunkReader(tmp_path / "a")
    np.testing.assert_array_equal(reader.read_rows(5, 50), values[5:])
    (tmp_path / "a" / "c" / "1" / "0").unlink()
    with pytest.raises(DamagedChunkError, match="missing"):
        reader.read(3)


@given(st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=20))
@settings(deadline=None)
def test_site_folders_are_one_to_one_and_safe(sites):
    folders = [site_folder(site) for site in [*sites, "tokens", "..", "__x"]]
    assert len(set(folders)) == len(set(sites) | {"tokens", "..", "__x"})
    for folder in folders:
        assert "/" not in folder
        assert not folder.startswith((".", "_"))
        assert folder != "tokens"


# --- writing, stopping, resuming -------------------------------------------------------------------------------------


def test_digest_ignores_how_rows_were_written(pristine, tmp_path):
    writer = StoreWriter.create(tmp_path / "store", SPEC)
    write(writer, list(reversed(writer.pending)))
    writer.finalise()
    assert ActivationStore.open(tmp_path / "store").content_digest() == ActivationStore.open(pristine).content_digest()


def test_digest_sees_one_changed_value(path):
    before = ActivationStore.open(path).content_digest()
    writer = StoreWriter.resume(path, SPEC)
    span = SPEC.spans[1]
    rows = make_rows(SPEC, span)
    rows[SITE][3, 2] += 1
    writer.write_block(span, rows, **make_tokens(span))
    assert ActivationStore.open(path).content_digest() != before


WRITE_FOREVER = """
import sys
sys.path.insert(0, sys.argv[2])
from test_store import *
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


def test_deleting_a_manifest_makes_resume_rewrite_the_block(path):
    before = ActivationStore.open(path).content_digest()
    (path / "manifest" / "train-000001.json").unlink()
    data = bytearray(shard(path, index=2).read_bytes())
    data[5] ^= 1
    shard(path, index=2).write_bytes(data)
    with pytest.raises(AtomsError, match="incomplete, 6 of 7"):
        ActivationStore.open(path)
    writer = StoreWriter.resume(path, SPEC)
    assert writer.pending == [Span("train", 1, 32, 64)]
    assert not (path / "complete.json").exists()
    write(writer)
    writer.finalise()
    assert ActivationStore.open(path).content_digest() == before


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


def test_resume_of_a_complete_store_changes_nothing(path):
    writer = StoreWriter.resume(path, SPEC)
    assert writer.pending == []
    ActivationStore.open(path)


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
def test_other_settings_are_refused_by_name(path, asked, named):
    with pytest.raises(AtomsError) as caught:
        StoreWriter.open(path, asked)
    assert named in str(caught.value)
    assert "use the stored settings" in str(caught.value)
    assert asked.identity_hash != SPEC.identity_hash


def test_spec_survives_json(pristine):
    assert stored_spec(pristine) == SPEC
    assert StoreSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


def test_create_refuses_a_taken_path(path, tmp_path):
    with pytest.raises(AtomsError, match="exists; resume it"):
        StoreWriter.create(path, SPEC)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(AtomsError, match="not an activation store"):
        StoreWriter.open(tmp_path / "notes", SPEC)


def test_finalise_refuses_missing_blocks(tmp_path):
    writer = StoreWriter.create(tmp_path / "store", SPEC)
    write(writer, writer.pending[:-1])
    with pytest.raises(AtomsError, match=r"block 1 of val is not whole .*atoms cache"):
        writer.finalise()
    assert not (tmp_path / "store" / "complete.json").exists()


# --- rows that must not be stored ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", STORAGE)
def test_rows_that_are_not_finite(tmp_path, value, dtype):
    writer = StoreWriter.create(tmp_path / "store", replace(SPEC, dtype=dtype))
    span = SPEC.spans[1]
    rows = make_rows(SPEC, span)
    rows[ODD_SITE][[4, 9], 1] = value
    with pytest.raises(AtomsError, match=rf"NaN or infinite .*2 of 32 rows of site {ODD_SITE} in block 1 of train"):
        writer.write_block(span, rows, **make_tokens(span))
    assert len(writer.pending) == 7


def test_float16_overflow_says_what_to_use(tmp_path):
    writer = StoreWriter.create(tmp_path / "store", replace(SPEC, dtype="float16"))
    span = SPEC.spans[0]
    rows = make_rows(SPEC, span)
    rows[SITE][7, 0] = 70000.0
    with pytest.raises(AtomsError, match=r"data\.harvest\.dtype=float16: 1 of 32 .* 70000\); use bfloat16 or float32"):
        writer.write_block(span, rows, **make_tokens(span))


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


def test_space_of_committed_blocks_is_not_asked_for_again(path, monkeypatch):
    (path / "manifest" / "train-000001.json").unlink()
    usage = shutil.disk_usage(path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=SPEC.disk_bytes // 2))
    StoreWriter.resume(path, SPEC)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(AtomsError, match="free some disk"):
        StoreWriter.resume(path, SPEC)


def full_disk(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["zarr", "fsync", "manifest"])
def test_disk_that_fills_up_leaves_a_resumable_store(pristine, tmp_path, monkeypatch, where):
    writer = StoreWriter.create(tmp_path / "store", SPEC)
    write(writer, writer.pending[:2])
    with monkeypatch.context() as patch:
        if where == "zarr":
            patch.setattr("zarr.storage._local._put", full_disk)
        elif where == "fsync":
            patch.setattr("atoms.activations.writer.fsync", full_disk)
        else:
            patch.setattr("atoms.activations.manifest.write_json", full_disk)
        with pytest.raises(
            AtomsError, match=r"disk full, .* still to be written; free that much and run `atoms cache`"
        ):
            write(writer, writer.pending[:1])
    assert len(writer.pending) == 5
    writer = StoreWriter.resume(tmp_path / "store", SPEC)
    assert len(writer.pending) == 5
    write(writer)
    writer.finalise()
    assert ActivationStore.open(tmp_path / "store").content_digest() == ActivationStore.open(pristine).content_digest()


def test_full_disk_while_creating_leaves_nothing_under_the_name(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("zarr.storage._local._put", full_disk)
        with pytest.raises(AtomsError, match="disk full"):
            StoreWriter.create(tmp_path / "store", SPEC)
    assert not (tmp_path / "store").exists()
    StoreWriter.create(tmp_path / "store", SPEC)
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AtomsError, match=r"cannot be written .*choose a directory"):
        StoreWriter.create(tmp_path / "file" / "store", SPEC)


# --- opening what is not whole ---------------------------------------------------------------------------------------


def test_missing_path(tmp_path):
    with pytest.raises(AtomsError, match=r"no store there; make it with `atoms cache`"):
        ActivationStore.open(tmp_path / "none")


def test_not_a_store(tmp_path):
    zarr.create_group(tmp_path / "other")
    with pytest.raises(AtomsError, match="not an activation store"):
        ActivationStore.open(tmp_path / "other")


def test_newer_format(path):
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"]["atoms"]["format_version"] = 99
    (path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(AtomsError, match="format 99, this version of atoms reads 1"):
        ActivationStore.open(path)


def test_all_blocks_but_not_finalised(path):
    (path / "complete.json").unlink()
    with pytest.raises(AtomsError, match="incomplete, 7 of 7 blocks"):
        ActivationStore.open(path)


def test_being_written(path):
    (path / "complete.json").unlink()
    with StoreLock(path), pytest.raises(AtomsError, match=rf"process {os.getpid()} on .* is writing it, 7 of 7"):
        ActivationStore.open(path)


def test_missing_shard(path):
    shard(path, index=3).unlink()
    with pytest.raises(
        AtomsError, match=r"c/3/0 is missing \(expected \d+ bytes\); delete manifest/train-000001\.json"
    ):
        ActivationStore.open(path)


@pytest.mark.parametrize("size", [0, 100])
def test_truncated_shard(path, size):
    expected = shard(path, "val").stat().st_size
    os.truncate(shard(path, "val"), size)
    with pytest.raises(
        AtomsError, match=rf"expected {expected} bytes, found {size}\); delete manifest/val-000000\.json"
    ):
        ActivationStore.open(path)
    assert StoreWriter.resume(path, SPEC).pending == [Span("val", 0, 0, 32)]


def test_damage_after_opening_is_seen_too(path):
    store = ActivationStore.open(path)
    os.truncate(shard(path), 10)
    with pytest.raises(AtomsError, match="cut short"):
        store.read_chunk("train", SITE, 0)
    shard(path).unlink()
    with pytest.raises(AtomsError, match="the file is missing"):
        store.read_chunk("train", SITE, 1)


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_flipped_byte_names_file_and_chunk(path):
    offset = int(np.frombuffer(shard(path, index=1).read_bytes()[-68:-4], "<u8")[2])  # of the shard's second chunk
    flip(shard(path, index=1), offset + 9)
    store = ActivationStore.open(path)
    store.read_chunk("train", SITE, 4)
    message = r"chunk 5 in train/model\.layers\.3/acts/c/1/0 .*wrong checksum.*delete manifest/train-000000\.json"
    for _ in range(2):  # a failed check does not count as a check
        with pytest.raises(AtomsError, match=message):
            store.read_chunk("train", SITE, 5)
    with pytest.raises(AtomsError, match=message):
        store.read_rows("train", SITE, 0, 40)
    with pytest.raises(AtomsError, match=message):
        store.content_digest()


def test_flipped_byte_in_the_index(path):
    flip(shard(path), -10)
    with pytest.raises(AtomsError, match="index has a wrong checksum"):
        ActivationStore.open(path).read_chunk("train", SITE, 0)


def test_flipped_byte_in_norms_and_tokens(path):
    flip(path / "train" / site_folder(SITE) / "norm" / "c" / "0", 1)
    flip(path / "train" / "tokens" / "doc_id" / "c" / "0", 1)
    store = ActivationStore.open(path)
    with pytest.raises(AtomsError, match="norm/c/0"):
        store.norms("train", SITE)
    with pytest.raises(AtomsError, match="doc_id/c/0"):
        store.tokens("train")


def test_verify_always_sees_damage_after_the_first_read(path):
    first, always = ActivationStore.open(path), ActivationStore.open(path, verify="always")
    for store in (first, always):
        store.read_chunk("train", SITE, 0)
    offset = int(np.frombuffer(shard(path).read_bytes()[-68:-4], "<u8")[0])
    flip(shard(path), offset)
    first.read_chunk("train", SITE, 0)
    with pytest.raises(AtomsError, match="wrong checksum"):
        always.read_chunk("train", SITE, 0)


def test_absent_chunk_inside_a_shard_is_never_filled(path):
    """Zarr's own reader gives fill values here."""
    array = zarr.open_array(path / "train" / site_folder(SITE) / "acts", mode="r+")
    shard(path).unlink()
    array[4:8] = 1.0
    with pytest.raises(DamagedChunkError, match="never written"):
        ChunkReader(path / "train" / site_folder(SITE) / "acts").read(0)
    assert np.isnan(array[0:4]).all()


def test_chunks_that_look_like_fill_values_are_stored(tmp_path):
    """Imported matrices have no tokens: their columns are -1 throughout, which is also the fill value."""
    spec = replace(SPEC, sites={SITE: 8}, splits={"train": 20})
    writer = StoreWriter.create(tmp_path / "store", spec)
    span = spec.spans[0]
    none = np.full(span.rows, -1)
    writer.write_block(span, make_rows(spec, span), token_id=none, doc_id=none, position=none)
    writer.finalise()
    assert (ActivationStore.open(tmp_path / "store").tokens("train")["doc_id"] == -1).all()


@pytest.mark.parametrize("split_and_site", [("nope", SITE), ("train", "nope")])
def test_unknown_names_are_answered_with_the_known(pristine, split_and_site):
    with pytest.raises(AtomsError, match=r"data\.store=.* has no .*'nope'; name one of "):
        ActivationStore.open(pristine).read_chunk(*split_and_site, 0)


@pytest.mark.parametrize(
    ("change", "setting"),
    [({"dtype": "int8"}, r"data\.harvest\.dtype=int8"), ({"sites": {}}, r"data\.harvest\.sites")],
)
def test_impossible_specs(change, setting):
    with pytest.raises(AtomsError, match=setting):
        replace(SPEC, **change)


def test_impossible_split_names():
    with pytest.raises(ValueError, match="'a/b' cannot name a split"):
        replace(SPEC, splits={"a/b": 1})


def test_unknown_verify(pristine):
    with pytest.raises(AtomsError, match=r"data\.verify=never"):
        ActivationStore.open(pristine, verify="never")
