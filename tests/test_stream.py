"""Batches of the training stream and of stored order, where they stand, and the thread that reads ahead."""

import gc
import threading
from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
import torch
from dealing import dealt

from atoms.activations.grid import Grid
from atoms.activations.store import ActivationStore, StoreSpec, StoreWriter
from atoms.activations.stream import OrderedStream, TrainStream
from atoms.errors import AtomsError

ROWS, WIDE, NARROW = 1000, 6, 2
POOL_BYTES = 2 * 5 * 64 * (WIDE + NARROW) * 4  # two pools of five batches of 64


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Row i holds i in every column, 2i at the second site."""
    return make_store(tmp_path_factory.mktemp("stream") / "store", "float32")


def make_store(path, dtype, rows=ROWS):
    spec = StoreSpec(
        sites={"wide": WIDE, "narrow": NARROW},
        dtype=dtype,
        splits={"train": rows, "val": 83},
        grid=Grid(chunk_rows=16, shard_rows=64, block_rows=256),
        seed=0,
    )
    writer = StoreWriter.create(path, spec)
    for span in spec.spans:
        index = torch.arange(span.start, span.stop).float()[:, None]
        none = np.full(span.rows, -1)
        rows_of = {"wide": index.expand(-1, WIDE), "narrow": 2 * index.expand(-1, NARROW)}
        writer.write_block(span, rows_of, token_id=none, doc_id=none, position=none)
    writer.finalise()
    return ActivationStore.open(path)


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "activation-reader"]


def abandoned_readers():
    """Those that go on although nobody can ask for another batch."""
    if readers():
        gc.collect()  # which takes a second where much has been imported
    return readers()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert abandoned_readers() == []


def stream(store, **changes):
    options = {"batch_size": 64, "lanes": 8, "seed": 3, "pool_bytes": POOL_BYTES}
    return TrainStream(store, **(options | changes))


def rows_of(batches):
    """Which rows of the store each batch holds."""
    return [batch["wide"][:, 0].long().tolist() for batch in batches]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 60}, r"data\.batch_size=60: not a multiple of data\.lanes=8"),
        ({"world_size": 3}, r"data\.lanes=8: cannot be shared evenly by 3 ranks; use a multiple of 3"),
        ({"batch_size": 1024}, r"data\.batch_size=1024: fewer rows than a batch \(1000\); use a smaller batch"),
        ({"batch_size": 0}, r"data\.batch_size=0"),
        ({"valid": np.arange(ROWS) < 10}, r"fewer rows than a batch \(10\)"),
        ({"sites": ["nope"]}, r"data\.store=.* has no site 'nope'"),
        ({"split": "nope"}, r"data\.store=.* has no split 'nope'"),
    ],
)
def test_settings_that_do_not_fit(store, changes, message):
    with pytest.raises(AtomsError, match=message):
        stream(store, **changes)


# --- the training stream ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool_bytes", [1, POOL_BYTES, 2**30])
def test_an_epoch_has_every_row_at_most_once_and_whole(store, pool_bytes):
    batches = []
    train = stream(store, pool_bytes=pool_bytes)
    for batch in train:
        assert torch.equal(batch["wide"], batch["wide"][:, :1].expand(-1, WIDE))
        assert torch.equal(batch["narrow"], 2 * batch["wide"][:, :NARROW])
        batches += rows_of([batch])
    assert len(batches) == len(train) == ROWS // 64
    rows = [row for batch in batches for row in batch]
    assert len(set(rows)) == len(rows) == ROWS // 64 * 64


def test_stream_follows_the_plan(store):
    order = stream(store).order
    assert order.pool_batches == 5
    chunks = store.chunks("train")
    expected = [
        [chunks[chunk][place] for chunk, place in batch] for batch in dealt(order, 0, [len(c) for c in chunks], 1)
    ]
    assert [rows_of([batch])[0] for batch in stream(store)] == expected


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_together_make_the_same_global_batches(store, world_size):
    alone = [rows_of([batch])[0] for batch in stream(store)]
    ranks = [
        [rows_of([batch])[0] for batch in stream(store, rank=rank, world_size=world_size)] for rank in range(world_size)
    ]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone


def test_only_the_sites_asked_for(store):
    batch = next(iter(stream(store, sites=["narrow"])))
    assert list(batch) == ["narrow"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_batches_have_the_dtype_of_the_store(tmp_path, dtype):
    store = make_store(tmp_path / "store", dtype, rows=200)
    batches = [{site: rows.clone() for site, rows in batch.items()} for batch in stream(store)]
    assert batches[0]["wide"].dtype == getattr(torch, dtype)
    rows = torch.cat([batch["wide"][:, 0] for batch in batches]).long()  # integers up to 200 are exact in both
    assert len(set(rows.tolist())) == 192


def test_masked_rows_never_come(store):
    valid = np.random.default_rng(0).random(ROWS) < 0.6
    valid[32:64] = False  # two chunks without any valid row
    train = stream(store, valid=valid)
    rows = [row for batch in train for row in rows_of([batch])[0]]
    assert len(train) == valid.sum() // 64
    assert len(set(rows)) == len(rows) == len(train) * 64
    assert valid[rows].all()


def test_mask_must_cover_the_split(store):
    with pytest.raises(ValueError, match=r"valid must be \(1000,\) bool"):
        stream(store, valid=np.ones(ROWS - 1, bool))


def test_same_command_twice(store):
    first, second = stream(store), stream(store)
    for _ in range(2):
        assert [rows_of([b])[0] for b in first] == [rows_of([b])[0] for b in second]


def test_iterations_are_epochs(store):
    train = stream(store)
    epochs = [[rows_of([batch])[0] for batch in train] for _ in range(2)]
    assert epochs[0] != epochs[1]
    again = stream(store)
    again.set_epoch(1)
    assert [rows_of([batch])[0] for batch in again] == epochs[1]
    list(islice(train, 3))  # broken off, as by limit_train_batches
    again.set_epoch(3)
    assert rows_of([next(iter(train))]) == rows_of([next(iter(again))])


@pytest.mark.parametrize("pool_bytes", [1, POOL_BYTES])
def test_the_last_two_batches_stay_valid(store, pool_bytes):
    """Also across pools and epochs, with the reader given every chance to run ahead."""
    train = stream(store, pool_bytes=pool_bytes)
    held: list[tuple[dict, dict]] = []
    for _ in range(3):
        for batch in train:
            held.append((batch, {site: rows.clone() for site, rows in batch.items()}))
            threading.Event().wait(0.004)
            held = held[-2:]
            for kept, copy in held:
                assert all(torch.equal(kept[site], copy[site]) for site in kept)


def test_pools_are_refilled_and_not_replaced(store):
    train = stream(store)
    pointers = {batch["wide"].untyped_storage().data_ptr() for _ in range(3) for batch in train}
    assert len(pointers) == 2


# --- position --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [0, 1, 4, 5, 6, 14, 15, 16, 20])
def test_resume_is_exact(store, taken):
    def endless(train):
        while True:
            for batch in train:
                yield rows_of([batch])[0]

    whole = list(islice(endless(stream(store)), 40))
    train = stream(store)
    running = endless(train)
    assert list(islice(running, taken)) == whole[:taken]
    state = train.state_dict()
    running.close()
    resumed = stream(store)
    resumed.load_state_dict(state)
    assert list(islice(endless(resumed), 40 - taken)) == whole[taken:]


def test_state_counts_batches_handed_out(store):
    train = stream(store)
    assert train.state_dict()["batch"] == 0
    batches = iter(train)
    assert train.state_dict()["batch"] == 0  # nothing is read, let alone counted, before it is asked for
    for count in range(1, len(train) + 1):
        next(batches)
        assert (train.state_dict()["epoch"], train.state_dict()["batch"]) == (0, count)
    next(iter(train))
    assert (train.state_dict()["epoch"], train.state_dict()["batch"]) == (1, 1)


def test_seek_works_until_the_first_batch(store):
    train = stream(store)
    batches = iter(train)
    train.seek(2, 7)
    other = stream(store)
    other.set_epoch(2)
    assert rows_of([next(batches)]) == rows_of(islice(iter(other), 7, 8))


def test_seek_reads_only_from_the_pool_it_lands_in(store, monkeypatch):
    reads = Counter()
    read_chunk = ActivationStore.read_chunk

    def counted(self, split, site, chunk, out=None):
        reads[chunk] += 1
        return read_chunk(self, split, site, chunk, out)

    monkeypatch.setattr(ActivationStore, "read_chunk", counted)
    train = stream(store, sites=["wide"], pool_bytes=2 * 5 * 64 * WIDE * 4)
    train.seek(0, 12)  # of 15, in the third pool of 5
    assert len(list(train)) == 3
    assert sum(reads.values()) <= 5 * 64 // 16 + 2


@pytest.mark.parametrize(("epoch", "batch"), [(0, 16), (0, -1), (-1, 0)])
def test_seek_to_nowhere(store, epoch, batch):
    with pytest.raises(ValueError, match="no batch"):
        stream(store).seek(epoch, batch)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 32}, "batch_size was 64, is 32"),
        ({"seed": 4}, "seed was 3, is 4"),
        ({"lanes": 4}, "lanes was 8"),
    ],
)
def test_state_of_another_order_is_refused(store, changes, named):
    state = stream(store).state_dict()
    with pytest.raises(AtomsError, match=named):
        stream(store, **changes).load_state_dict(state)


def test_state_moves_between_numbers_of_ranks(store):
    train = stream(store)
    list(islice(iter(train), 7))
    expected = rows_of([next(iter_from(store, train.state_dict()))])[0]
    parts = [rows_of([next(iter_from(store, train.state_dict(), rank=r, world_size=2))])[0] for r in range(2)]
    assert parts[0] + parts[1] == expected


def iter_from(store, state, **changes):
    train = stream(store, **changes)
    train.load_state_dict(state)
    return iter(train)


# --- the thread ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["close", "forget", "break", "stream"])
def test_thread_ends_with_its_consumer(store, ending):
    train = stream(store)
    batches = iter(train)
    assert readers() == []
    next(batches)
    assert len(readers()) == 1
    if ending == "close":
        batches.close()
    elif ending == "forget":
        del batches
    elif ending == "stream":
        train.close()
    else:
        del batches
        for _ in train:
            break
    assert abandoned_readers() == []


def test_thread_ends_with_the_epoch(store):
    train = stream(store)
    for _ in train:
        pass
    assert readers() == []


def test_a_new_iteration_ends_the_one_before(store):
    train = stream(store)
    first = iter(train)
    next(first)
    second = iter(train)
    next(second)
    with pytest.raises(RuntimeError, match="iterated anew"):
        next(first)
    assert len(list(second)) == len(train) - 1


def test_errors_of_the_reader_surface_in_the_consumer(store, monkeypatch):
    read_chunk = ActivationStore.read_chunk
    calls = 0

    def failing(self, split, site, chunk, out=None):
        nonlocal calls
        calls += 1
        if calls == 60:
            raise AtomsError("chunk is damaged")
        return read_chunk(self, split, site, chunk, out)

    monkeypatch.setattr(ActivationStore, "read_chunk", failing)
    train = stream(store)
    with pytest.raises(AtomsError, match="chunk is damaged"):
        list(train)
    assert 0 < calls < 2 * len(store.chunks("train"))
    assert len(list(train)) == len(train)  # and the stream is usable afterwards


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_pools_wait_for_copies_in_flight(store):
    train = stream(store, pool_bytes=1, pin_memory=True)
    copies = []
    for batch in train:
        assert batch["wide"].is_pinned()
        torch.cuda._sleep(50_000_000)  # the device is far behind when the host asks for more
        copies.append(batch["wide"].to("cuda", non_blocking=True))
    assert [copy[:, 0].long().tolist() for copy in copies] == [rows_of([batch])[0] for batch in iter_epoch_zero(store)]


def iter_epoch_zero(store):
    return iter(stream(store, pool_bytes=1))


# --- stored order ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 7, 16, 50, 200])
def test_ordered_ranks_share_every_batch(store, world_size, batch_size):
    ranks = [
        list(OrderedStream(store, "val", batch_size=batch_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {-(-83 // batch_size)}
    seen = []
    for parts in zip(*ranks, strict=True):
        sizes = [len(part.row_index) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        for part in parts:
            seen += part.row_index.tolist()
            assert part.rows["wide"].shape == (len(part.row_index), WIDE)
            assert part.rows["wide"][:, 0].long().tolist() == part.row_index.tolist()
            assert part.rows["narrow"][:, 1].long().tolist() == (2 * part.row_index).tolist()
    assert seen == list(range(83))


def test_ordered_batches_are_copies(store):
    batches = list(OrderedStream(store, "val", batch_size=10))
    assert [row for batch in batches for row in batch.rows["wide"][:, 0].long().tolist()] == list(range(83))


def test_ordered_mask_and_limit(store):
    valid = np.arange(83) % 3 == 0
    valid[16:48] = False
    ordered = OrderedStream(store, "val", batch_size=4, valid=valid, limit_rows=15)
    rows = torch.cat([batch.rows["wide"][:, 0] for batch in ordered]).long()
    assert len(ordered) == 4
    assert rows.tolist() == np.flatnonzero(valid)[:15].tolist()
    assert torch.cat([batch.row_index for batch in ordered]).tolist() == rows.tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 7, 16, 50, 200])
def test_whole_batches_are_the_same_for_any_number_of_ranks(store, world_size, batch_size):
    valid = np.arange(83) % 5 != 2
    options = {"batch_size": batch_size, "valid": valid, "limit_rows": 60, "whole_batches": True}
    alone = list(OrderedStream(store, "val", **options))
    assert [index for batch in alone for index in batch.row_index.tolist()] == np.flatnonzero(valid)[:60].tolist()
    assert {len(batch.row_index) for batch in alone[:-1]} <= {batch_size}
    streams = [OrderedStream(store, "val", rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    ranks = [list(stream) for stream in streams]
    assert [len(stream) for stream in streams] == [len(batches) for batches in ranks]
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
    for number, whole in enumerate(alone):
        dealt = ranks[number % world_size][number // world_size]
        assert dealt.row_index.tolist() == whole.row_index.tolist()
        assert dealt.rows["wide"][:, 0].long().tolist() == whole.row_index.tolist()
        assert torch.equal(dealt.rows["narrow"], whole.rows["narrow"])
    assert sum(map(len, ranks)) == len(alone)


def test_ordered_reads_a_chunk_once(store, monkeypatch):
    reads = Counter()
    read_chunk = ActivationStore.read_chunk

    def counted(self, split, site, chunk, out=None):
        reads[site, chunk] += 1
        return read_chunk(self, split, site, chunk, out)

    monkeypatch.setattr(ActivationStore, "read_chunk", counted)
    list(OrderedStream(store, "val", batch_size=5))
    assert set(reads.values()) == {1}
    assert len(reads) == 2 * 6


def test_ordered_needs_a_batch(store):
    with pytest.raises(AtomsError, match=r"data\.batch_size=0"):
        OrderedStream(store, "val", batch_size=0)
