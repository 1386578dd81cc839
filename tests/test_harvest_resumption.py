"""A harvest that was killed, broken off or shared between two ranks leaves the store of one that nothing disturbed."""

import errno
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import forked, lightning_ranks, speak_into
from harvests import CPU, assert_same, make, run, watch_blocks
from lightning.pytorch.utilities import rank_zero_only
from stores import broken_off, die_at_commit

from atoms.activations import moments_writer
from atoms.activations.harvest import harvest
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.manifest import COMPLETE
from atoms.activations.store import ActivationStore, StoreWriter
from atoms.errors import AtomsError

WIDE_SITES = [f"encoder.layer.{block}.intermediate.dense" for block in range(3)]
BLOCKS = 9


def make_long(model: Path, text: Path, **settings: Any) -> HarvestSpec:
    return make(model, text, WIDE_SITES, **{"memory_mib": 1, "context": 55, **settings})


@pytest.fixture(scope="module")
def whole(tiny_bert: Path, much_text: Path, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """The store of a harvest that nothing interrupted."""
    store = run(make_long(tiny_bert, much_text, root=str(tmp_path_factory.mktemp("whole"))))
    assert len(store.spec.spans) == BLOCKS
    return store


def _killed(spec: HarvestSpec) -> None:
    die_at_commit(7)
    moments_writer.BLOCKS_BETWEEN_SAVES = 4  # so that some blocks are in the saved sums and some are not
    run(spec)


def test_a_killed_harvest_goes_on_to_the_same_store(tiny_bert, much_text, whole, monkeypatch):
    spec = make_long(tiny_bert, much_text)
    assert forked(_killed, (spec,)) == [-signal.SIGKILL]
    path = Path(spec.directory())
    assert len(list((path / "manifest").glob("*.json"))) == 6
    assert list((path / "moments" / "parts").glob("*-4.safetensors"))
    assert (path.parent / f"{path.name}.lock").exists()  # its holder is dead
    with pytest.raises(AtomsError, match=rf"incomplete, 6 of {BLOCKS} blocks are done; run `atoms cache`"):
        ActivationStore.open(path)
    written = []
    original = StoreWriter.write_block
    monkeypatch.setattr(
        StoreWriter, "write_block", lambda self, span, *a, **k: (written.append(span), original(self, span, *a, **k))
    )
    assert_same(run(spec), whole)
    assert len(written) == BLOCKS - 6
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


def _rank(spec: HarvestSpec) -> None:
    speak_into("said", "said")
    place = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    harvest(spec, spec.directory(), place)
    if rank_zero_only.rank == 0:  # one block is lost; the other rank has none to write
        (spec.directory() / COMPLETE).delete()
        (spec.directory() / "manifest" / "val-000000.json").delete()
    harvest(spec, spec.directory(), place)


def test_two_ranks_write_the_store_of_one(tiny_bert, much_text, whole):
    spec = make_long(tiny_bert, much_text)
    assert forked(_rank, (spec,), (spec,), environments=lightning_ranks(2)) == [0, 0]
    assert Path("said").read_text().count("400 documents in 400 groups") == 2  # one rank speaks, twice
    store = ActivationStore.open(spec.directory())
    assert store.content_digest() == whole.content_digest()
    for site in WIDE_SITES:  # added in another order, so not to the last bit
        mine, theirs = (s.moments(site) for s in (store, whole))
        assert mine.count == theirs.count
        torch.testing.assert_close(mine.outer, theirs.outer, rtol=1e-12, atol=0)


def test_a_full_disk_is_said_and_leaves_what_can_be_taken_up(tiny_bert, much_text, whole, monkeypatch):
    spec = make_long(tiny_bert, much_text)
    original, blocks = StoreWriter._shards, []

    def full(self: StoreWriter, path: str, column: Any, span: Any) -> Any:
        blocks.append(span)
        if len(set(blocks)) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, path, column, span)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "_shards", full)
        with pytest.raises(AtomsError, match=r"data\.store=.*: disk full, .* GB still to be written; free that much"):
            run(spec)
    assert len(list(Path(spec.directory(), "manifest").glob("*.json"))) == 3
    assert not (spec.directory() / COMPLETE).exists()
    assert_same(run(spec), whole)


def test_a_begun_store_keeps_its_blocks_when_the_memory_setting_changes(tiny_bert, much_text, whole, monkeypatch):
    with broken_off(2):
        run(make_long(tiny_bert, much_text))
    resumed = run(make_long(tiny_bert, much_text, memory_mib=512))
    assert resumed.grid == whole.grid
    assert_same(resumed, whole)


def test_a_store_killed_before_it_was_marked_complete_needs_no_forward(tiny_bert, text_folder, monkeypatch):
    spec = make(tiny_bert, text_folder, ["resid_post.0"])
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "finalise", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            harvest(spec, spec.directory(), CPU)
    ran = watch_blocks(monkeypatch)
    store = run(spec)
    assert ran == []
    rows = store.read_rows("train", "resid_post.0", 0, store.n_rows("train")).double()
    np.testing.assert_allclose(store.moments("resid_post.0").outer, rows.T @ rows, rtol=1e-12)
