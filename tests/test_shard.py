import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from atoms.activations.grid import Grid
from atoms.activations.shard import checksums, encode


@given(
    st.sampled_from([("<f4", float("nan")), ("<f2", float("nan")), ("<u2", 0xFFFF), ("<i8", -1), ("<i4", -1)]),
    st.sampled_from([(), (1,), (7,)]),
    st.integers(1, 40),
    st.sampled_from([(1, 1), (1, 4), (4, 4), (4, 16), (3, 9)]),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_byte_for_byte_what_zarr_writes(kind, rest, n_rows, cut, seed):
    (dtype, hole), (chunk, shard) = kind, cut
    rows = (100 * np.random.default_rng(seed).standard_normal((n_rows, *rest))).astype(dtype)
    held = {}
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.create_array(
            MemoryStore(held), shape=rows.shape, dtype=dtype, chunks=(chunk, *rest), shards=(shard, *rest),
            filters=None, compressors=[Crc32cCodec()], fill_value=hole,
        )  # fmt: skip
        array[:] = rows
    shards = {name: buffer.to_bytes() for name, buffer in held.items() if name.startswith("c/")}
    grid = Grid(chunk, shard, shard)
    assert shards == {
        "/".join(["c", str(i), *("0" for _ in rest)]): encode(rows[i * shard : (i + 1) * shard], grid, hole).tobytes()
        for i in range(-(-n_rows // shard))
    }


@pytest.mark.parametrize("fill", [-1, 5])
def test_values_equal_to_the_fill_value_are_there_all_the_same(fill):
    """Imported matrices have no tokens: their columns are -1 throughout, which is also the fill value."""
    data = encode(np.full(8, fill, np.int64), Grid(4, 8, 8), -1)
    index = data[-36:-4].view("<u8").reshape(2, 2)
    assert index.tolist() == [[0, 36], [36, 36]]
    assert (data[:32].view("<i8") == fill).all()


def test_a_crc32c_of_the_whole_file_would_tell_nothing():
    """Why the records hold the chunks' checksums instead."""
    rows = np.random.default_rng(0).standard_normal((2, 16, 5)).astype(np.float32)
    grid = Grid(4, 16, 16)
    one, other = (encode(part, grid, np.nan) for part in rows)
    assert google_crc32c.value(one) == google_crc32c.value(other)
    assert not np.array_equal(checksums(one, 16, 20, grid), checksums(other, 16, 20, grid))
    for number, held in enumerate(checksums(one, 16, 20, grid)):
        body = one[number * 84 : number * 84 + 80]
        np.testing.assert_array_equal(body.view("<f4").reshape(4, 5), rows[0, 4 * number : 4 * number + 4])
        assert google_crc32c.value(body) == int.from_bytes(held.tobytes(), "little")
