import os

import google_crc32c
import numpy as np
import pytest
import zarr
from stores import SITE, flip, shard
from zarr.codecs import ZstdCodec

from atoms.activations.spec import site_folder
from atoms.activations.store import ActivationStore
from atoms.errors import AtomsError


def test_buffer_is_reused(pristine):
    store = ActivationStore.open(pristine)
    buffer = np.empty((4, 8), np.float32)
    rows = store.read_chunk("train", SITE, 37, out=buffer)
    assert rows.base is buffer
    assert rows.shape == (2, 8)  # the last chunk is shorter
    with pytest.raises(ValueError, match="out must be contiguous"):
        store.read_chunk("train", SITE, 0, out=np.empty((4, 16), np.float32)[:, ::2])


def test_flipped_byte_names_file_and_chunk(own_store):
    offset = int(np.frombuffer(shard(own_store, index=1).read_bytes()[-68:-4], "<u8")[2])  # of the shard's second chunk
    flip(shard(own_store, index=1), offset + 9)
    store = ActivationStore.open(own_store)
    store.read_chunk("train", SITE, 4)
    message = r"chunk 5 in train/model\.layers\.3/acts/c/1/0 .*wrong checksum.*delete manifest/train-000000\.json"
    for _ in range(2):  # a failed check does not count as a check
        with pytest.raises(AtomsError, match=message):
            store.read_chunk("train", SITE, 5)
    with pytest.raises(AtomsError, match=message):
        store.read_rows("train", SITE, 0, 40)
    with pytest.raises(AtomsError, match=message):
        store.content_digest()


def test_flipped_byte_in_norms_and_tokens(own_store):
    flip(own_store / "train" / site_folder(SITE) / "norm" / "c" / "0", 1)
    flip(own_store / "train" / "tokens" / "doc_id" / "c" / "0", 1)
    store = ActivationStore.open(own_store)
    with pytest.raises(AtomsError, match="norm/c/0"):
        store.norms("train", SITE)
    with pytest.raises(AtomsError, match="doc_id/c/0"):
        store.tokens("train")


def test_damage_after_opening_is_seen_too(own_store):
    store = ActivationStore.open(own_store)
    os.truncate(shard(own_store), 10)
    with pytest.raises(AtomsError, match="cut short"):
        store.read_chunk("train", SITE, 0)
    shard(own_store).unlink()
    with pytest.raises(AtomsError, match="the file is missing"):
        store.read_chunk("train", SITE, 1)


def test_verify_always_sees_damage_after_the_first_read(own_store):
    first, always = ActivationStore.open(own_store), ActivationStore.open(own_store, verify="always")
    for store in (first, always):
        store.read_chunk("train", SITE, 0)
    offset = int(np.frombuffer(shard(own_store).read_bytes()[-68:-4], "<u8")[0])
    flip(shard(own_store), offset)
    first.read_chunk("train", SITE, 0)
    with pytest.raises(AtomsError, match="wrong checksum"):
        always.read_chunk("train", SITE, 0)


def test_absent_chunk_inside_a_shard_is_never_filled(own_store):
    """Zarr's own reader gives fill values here."""
    array = zarr.open_array(own_store / "train" / site_folder(SITE) / "acts", mode="r+")
    store = ActivationStore.open(own_store)
    shard(own_store).unlink()
    array[4:8] = 1.0
    for chunk in range(4):
        with pytest.raises(AtomsError, match=rf"chunk {chunk} in .* is damaged"):
            store.read_chunk("train", SITE, chunk)
    assert np.isnan(array[0:4]).all()
    with pytest.raises(AtomsError, match=r"c/0/0 is damaged \(expected \d+ bytes, found \d+\)"):
        ActivationStore.open(own_store)


def test_a_shard_rewritten_with_another_codec_is_refused(own_store):
    """Nothing but what this package writes is ever decoded."""
    folder = own_store / "train" / site_folder(SITE) / "acts"
    values = zarr.open_array(folder, mode="r")[:]
    store = ActivationStore.open(own_store)
    array = zarr.create_array(
        folder, shape=values.shape, chunks=(4, 8), shards=(16, 8), dtype="f4", compressors=[ZstdCodec()], overwrite=True
    )
    array[:] = values
    for chunk in range(3):
        with pytest.raises(AtomsError, match="is damaged"):
            store.read_chunk("train", SITE, chunk)
    with pytest.raises(AtomsError, match="is damaged"):
        ActivationStore.open(own_store)


def test_chunks_in_another_order_are_refused(own_store):
    """Every checksum is right, yet rows would come under wrong numbers."""
    data = bytearray(shard(own_store).read_bytes())
    stride = 4 * 8 * 4 + 4
    data[:stride], data[stride : 2 * stride] = data[stride : 2 * stride], data[:stride]
    index = np.frombuffer(data[-68:-4], "<u8").reshape(4, 2).copy()
    index[[0, 1]] = index[[1, 0]]
    data[-68:-4] = index.tobytes()
    data[-4:] = google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    before = ActivationStore.open(own_store).read_rows("train", SITE, 0, 8)
    shard(own_store).write_bytes(data)
    array = zarr.open_array(own_store / "train" / site_folder(SITE) / "acts", mode="r")
    np.testing.assert_array_equal(array[:8], before)  # a store that zarr reads as before
    with pytest.raises(AtomsError, match="the shard's index is wrong"):
        ActivationStore.open(own_store).read_chunk("train", SITE, 0)


def test_flipped_byte_in_the_index(own_store):
    flip(shard(own_store), -10)
    with pytest.raises(AtomsError, match="index is wrong"):
        ActivationStore.open(own_store).read_chunk("train", SITE, 0)
