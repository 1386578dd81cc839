"""Stores behind URLs: as good as local ones, byte for byte."""

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import torch
from forked import forked
from servers import environment
from stores import ODD_SITE, SITE, die_at_commit, flip, make_rows, make_store, make_tokens, write
from stores import SPEC as LARGER

from atoms.activations import reader
from atoms.activations.cache import ChunkCache
from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.location import locate
from atoms.activations.lock import StoreLock
from atoms.activations.planted import SITE as PLANTED
from atoms.activations.planted import PlantedSpec, load_truth, plant
from atoms.activations.spec import acts_path, shard_path, stored_spec
from atoms.activations.store import ActivationStore, StoreWriter
from atoms.activations.stream import OrderedStream, TrainStream
from atoms.checks import Certificate
from atoms.cli import main
from atoms.errors import AtomsError
from atoms.training import checkpoint

SPEC = replace(LARGER, sites={ODD_SITE: 3, SITE: 8}, splits={"train": 70, "val": 18})  # 4 blocks
SHARD = shard_path(acts_path("train", SITE), 0)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("pristine") / "store", SPEC)


@pytest.fixture(scope="module")
def copied(s3_server, pristine):
    """The small store, copied to the object store; whoever changes it puts it right again."""
    url = f"s3://bucket/{uuid4().hex}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(s3_server).items():
            patch.setenv(name, value)
        for name in locate(pristine).files():
            (locate(url) / name).write((pristine / name).read_bytes())
    return url


@pytest.fixture
def far(s3, copied):
    """Its URL, with the environment that reaches it."""
    return copied


@pytest.fixture
def shard_there(far):
    """One shard of it, to spoil."""
    shard = locate(far) / SHARD
    data = shard.read()
    yield shard
    shard.write(data)


@pytest.fixture
def cache(tmp_path):
    return ChunkCache(tmp_path / "cache", 2**20)


@pytest.fixture(params=["whole shards", "chunks"])
def ranges(request, monkeypatch):
    """Fetch small shards whole, as they are, or chunk by chunk, as large ones are."""
    if request.param == "chunks":
        monkeypatch.setattr(reader, "WHOLE_BYTES", 0)
    return request.param


def test_a_store_written_there_is_the_one_written_here(s3, pristine):
    make_store(s3, SPEC)
    here, there = locate(pristine), locate(s3)
    assert there.files() == here.files()
    for name in here.files():
        assert (there / name).read() == (here / name).read(), name


def test_every_row_comes_back(far, pristine, cache, ranges):
    here, there = ActivationStore.open(pristine), ActivationStore.open(far, cache=cache)
    assert there.content_digest() == here.content_digest()
    assert there.sealed == here.sealed
    for split in ("train", "val"):
        for site in (SITE, ODD_SITE):
            assert torch.equal(there.read_rows(split, site, 3, 18), here.read_rows(split, site, 3, 18))
            np.testing.assert_array_equal(there.norms(split, site), here.norms(split, site))


@pytest.mark.parametrize("cached", [True, False])
def test_streams_give_the_same_batches(far, pristine, cache, ranges, cached):
    options = {"batch_size": 16, "lanes": 4, "seed": 1, "pool_bytes": 2**12}
    stores = ActivationStore.open(pristine), ActivationStore.open(far, cache=cache if cached else None)
    here, there = ([batch[SITE].clone() for batch in TrainStream(store, **options)] for store in stores)
    assert len(here) == 4
    assert all(map(torch.equal, here, there))
    here, there = (list(OrderedStream(store, "val", batch_size=10)) for store in stores)
    assert all(torch.equal(one.rows[ODD_SITE], other.rows[ODD_SITE]) for one, other in zip(here, there, strict=True))


def test_what_is_cached_is_not_fetched_again(far, cache, ranges, s3_server):
    prefix = far.removeprefix("s3:/")
    first = ActivationStore.open(far, cache=cache).content_digest()
    asked = s3_server.count("GET", f"{prefix}/train")
    shards = sum("/c/" in name for name in locate(far).files() if name.startswith("train/"))
    assert asked >= shards if ranges == "whole shards" else asked >= 7 * 18
    assert ActivationStore.open(far, cache=cache).content_digest() == first
    assert s3_server.count("GET", f"{prefix}/train") == asked


def test_another_store_under_the_same_url_is_not_taken_from_the_cache(s3, cache):
    make_store(s3, SPEC)
    before = ActivationStore.open(s3, cache=cache).read_rows("train", SITE, 0, 8)
    writer = StoreWriter.resume(s3, SPEC)
    span = SPEC.spans[0]
    writer.write_block(span, {site: rows + 1 for site, rows in make_rows(SPEC, span).items()}, **make_tokens(span))
    writer.finalise()
    assert torch.equal(ActivationStore.open(s3, cache=cache).read_rows("train", SITE, 0, 8), before + 1)


@pytest.mark.parametrize("how", ["flip", "empty", "short", "garbage"])
def test_damaged_cache_entries_are_fetched_anew(far, pristine, cache, ranges, how):
    expected = ActivationStore.open(pristine).read_rows("train", SITE, 0, 70)
    assert torch.equal(ActivationStore.open(far, cache=cache).read_rows("train", SITE, 0, 70), expected)
    entries = [path for path in cache.folder.rglob("*") if path.is_file()]
    assert len(entries) == (5 if ranges == "whole shards" else 18)
    for number, entry in enumerate(entries):
        if how == "flip":
            flip(entry, number)
        else:
            data = entry.read_bytes()
            entry.write_bytes({"empty": b"", "short": data[: len(data) // 2], "garbage": bytes(len(data))}[how])
    assert torch.equal(ActivationStore.open(far, cache=cache).read_rows("train", SITE, 0, 70), expected)


@pytest.mark.parametrize("at", [0, 100, -10])
def test_a_flipped_byte_is_refused(far, shard_there, cache, ranges, at):
    data = bytearray(shard_there.read())
    data[at] ^= 1
    shard_there.write(bytes(data))
    store = ActivationStore.open(far, cache=cache)
    message = rf"data\.store={far}: chunk 0 in {SHARD} is damaged \((wrong checksum|the shard's index is wrong)\); "
    for _ in range(2):
        with pytest.raises(AtomsError, match=message + r"delete manifest/train-000000\.json"):
            store.read_chunk("train", SITE, 0)


def test_missing_and_short_objects_are_refused(far, shard_there, cache, ranges):
    store = ActivationStore.open(far, cache=cache)
    shard_there.write(shard_there.read()[:40])
    with pytest.raises(AtomsError, match=r"is damaged \(the file is cut short\)"):
        store.read_chunk("train", SITE, 0)
    with pytest.raises(AtomsError, match=rf"{SHARD} is damaged \(expected \d+ bytes, found 40\)"):
        ActivationStore.open(far)
    shard_there.delete()
    with pytest.raises(AtomsError, match="the file is missing"):
        store.read_chunk("train", SITE, 0)
    with pytest.raises(AtomsError, match=rf"{SHARD} is missing"):
        ActivationStore.open(far)


def _killed(s3):
    die_at_commit(4)
    with StoreLock(s3):
        write(StoreWriter.open(s3, SPEC))


def test_a_killed_writer_is_resumed(s3, pristine):
    assert forked(_killed, (s3,)) == [-signal.SIGKILL]
    with pytest.raises(AtomsError, match=r"incomplete, 3 of 4 blocks are done; run `atoms cache`"):
        ActivationStore.open(s3)
    with StoreLock(s3):  # the dead one's is taken over
        writer = StoreWriter.open(s3, SPEC)
        assert len(writer.pending) == 1
        write(writer)
        writer.finalise({"versions": "1"})
    assert ActivationStore.open(s3).sealed == ActivationStore.open(pristine).sealed


def test_creation_that_was_broken_off_is_begun_again(s3, monkeypatch):
    from atoms.activations.object_location import ObjectLocation

    original = ObjectLocation.write

    def broken(self, content):
        if self.name == "zarr.json" and str(self) == f"{s3}/zarr.json":
            raise KeyboardInterrupt
        original(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectLocation, "write", broken)
        with pytest.raises(KeyboardInterrupt):
            StoreWriter.create(s3, SPEC)
    assert locate(s3).files()
    assert stored_spec(s3) is None
    make_store(s3, SPEC)
    assert ActivationStore.open(s3).spec == SPEC


def test_a_prefix_with_something_else_is_left_alone(s3):
    (locate(s3) / "thesis.tex").write(b"keep")
    with pytest.raises(AtomsError, match=rf"data\.store={s3}: not an activation store"):
        StoreWriter.open(s3, SPEC)
    assert locate(s3).files() == {"thesis.tex": 4}


def test_planted_atoms_and_moments_come_from_there(s3, tmp_path):
    spec = PlantedSpec(width=12, atoms=8, active=2.0, rows=500)
    for where in (s3, tmp_path / "s"):
        plant(spec, where)
    here, there = (ActivationDataModule(store=str(where), batch_size=80) for where in (tmp_path / "s", s3))
    assert there.path.absolute == s3
    assert torch.equal(here.truth, there.truth)
    assert torch.equal(load_truth(there.store), spec.truth()[0])
    assert torch.equal(here.moments(PLANTED).outer, there.moments(PLANTED).outer)
    assert not any("parts" in name for name in locate(s3).files())
    data = locate(s3) / "planted.safetensors"
    data.write(data.read()[:-8] + bytes(8))
    with pytest.raises(AtomsError, match=r"planted\.safetensors is damaged \(wrong checksum\); delete complete\.json"):
        _ = there.truth


def test_a_store_in_the_cache_directory_of_the_environment(far, tmp_path, monkeypatch):
    monkeypatch.setenv("ATOMS_CACHE", str(tmp_path / "mine"))
    data = ActivationDataModule(store=far, batch_size=16, pool_mib=1)
    assert sum(1 for _ in data.train_dataloader()) == 4
    assert list((tmp_path / "mine").rglob("*/*"))
    other = ActivationDataModule(store=far, batch_size=16, pool_mib=1, cache_gib=0)
    shutil.rmtree(tmp_path / "mine")
    assert sum(1 for _ in other.train_dataloader()) == 4
    assert not (tmp_path / "mine").exists()


# --- plain HTTP ------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(web_server, pristine, request):
    """The small store on a web server."""
    server, folder = web_server
    shutil.copytree(pristine, folder / request.node.name / "store")
    return f"{server.address}/{request.node.name}/store", folder / request.node.name / "store"


def test_a_web_server_is_read(published, pristine, cache):
    url, _ = published
    here, there = ActivationStore.open(pristine), ActivationStore.open(url, cache=cache)
    assert there.content_digest() == here.content_digest()
    assert ActivationDataModule(store=url, batch_size=16).complete


def test_a_web_server_is_read_by_ranges(published, web_server, monkeypatch):
    monkeypatch.setattr(reader, "WHOLE_BYTES", 0)
    url, _ = published
    store = ActivationStore.open(url)
    store.read_chunk("train", SITE, 5)
    place = url.removeprefix(web_server[0].address)
    assert web_server[0].count("GET", f"{place}/{shard_path(acts_path('train', SITE), 1)}") == 2  # index and chunk


def test_what_a_web_server_lacks_is_refused(published):
    url, folder = published
    store = ActivationStore.open(url)
    (folder / SHARD).unlink()
    with pytest.raises(AtomsError, match="the file is missing"):
        store.read_chunk("train", SITE, 0)
    (folder / "complete.json").unlink()
    with pytest.raises(AtomsError, match="incomplete"):
        ActivationStore.open(url)
    with pytest.raises(AtomsError, match="no store there"):
        ActivationStore.open(url + "x")


def test_a_web_server_is_never_written(published):
    url, _ = published
    attempts = (
        lambda: StoreWriter.open(url + "x", SPEC),
        lambda: StoreWriter.attach(url, SPEC),
        lambda: plant(PlantedSpec(rows=100), url),
    )
    for attempt in attempts:
        with pytest.raises(AtomsError, match=rf"data\.store={url}.*: plain HTTP can only be read; write to a dir"):
            attempt()


def test_other_settings_are_refused_there_too(far):
    with pytest.raises(AtomsError, match=rf"data\.store={far}: made by other settings \(seed: stored 5, asked 6\)"):
        StoreWriter.open(far, replace(SPEC, seed=6))


# --- the commands ----------------------------------------------------------------------------------------------------


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    (last,) = folder.glob("runs/checkpoints/step-*.ckpt")
    return torch.load(last, weights_only=True)["state_dict"]


def same_bits(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(value, other[key]) for key, value in one.items())
    return one == other


def test_harvest_fit_and_validate_there_are_those_here(s3, tiny_bert, text_folder, tmp_path, monkeypatch, capsys):
    """A store harvested to the object store, and a fit from it: the same bits as from a directory."""
    monkeypatch.setenv("ATOMS_CACHE", str(tmp_path / "cache"))
    weights = []
    for where, store in (("here", "store"), ("there", s3)):
        Path(where).mkdir()
        monkeypatch.chdir(tmp_path / where)
        main([
            "fit", f"--data.store={store}", f"--data.harvest.model.name={tiny_bert}",
            "--data.harvest.sites=[mlp_out.1]", "--data.harvest.corpus=atoms.activations.TextFiles",
            f"--data.harvest.corpus.paths=[{text_folder}]", "--data.harvest.context=30", "--data.batch_size=256",
            "--data.pool_mib=1", "--model.site=mlp_out.1", "--model.target_l0=2", "--trainer.max_epochs=1",
            "--trainer.accelerator=cpu", "--trainer.logger=false",
        ])  # fmt: skip
        weights.append(final_weights(Path()))
        monkeypatch.chdir(tmp_path)
    here, there = weights
    assert here.keys() == there.keys()
    for name in here:
        assert same_bits(here[name], there[name]), name
    out = capsys.readouterr().out
    (last,) = Path("there").glob("runs/checkpoints/step-*.ckpt")
    assert checkpoint.read(last)[1].store == s3
    assert b"hidden-word" not in last.read_bytes()
    assert not any(b"hidden-word" in (locate(s3) / name).read() for name in locate(s3).files())
    main(["validate", f"--ckpt_path={last}", "--trainer.accelerator=cpu"])
    assert "R² held out" in capsys.readouterr().out
    found = Certificate.load("certificates/mlp_out.1")
    assert found.rows.store == s3
    (line,) = {line for line in out.splitlines() if "R² centred, raw" in line}
    assert line.split()[-1] == f"{found.numbers()['representability/r2']:.3f}"
    main(["store", "verify", s3])
    main(["store", "ls", s3.rpartition("/")[0]])
    assert s3 in capsys.readouterr().out
