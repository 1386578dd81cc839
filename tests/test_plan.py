import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.activations.grid import CHUNK_BYTES, MIN_CHUNK_ROWS, SHARD_BYTES, SHUFFLE_CHUNKS, Grid, Span
from atoms.activations.permutation import permutation
from atoms.activations.plan import RowPlan
from atoms.errors import AtomsError

lengths = st.lists(st.integers(0, 40), min_size=1, max_size=12)
grids = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)).map(
    lambda t: Grid(t[0], t[0] * t[1], t[0] * t[1] * t[2])
)


def make_documents(sizes: list[int]) -> list[np.ndarray]:
    """Documents whose tokens tell document and place."""
    return [np.arange(n, dtype=np.int32) + 1000 * i for i, n in enumerate(sizes)]


@given(lengths, grids, st.integers(1, 17), st.integers(0, 3), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_every_token_has_exactly_one_row(sizes, grid, context, seed, random):
    documents = make_documents(sizes)
    order = random.sample(range(len(sizes)), len(sizes))
    cut = random.randint(0, len(order))
    splits = {"train": order[:cut], "val": order[cut:]}
    if not sum(sizes):
        with pytest.raises(AtomsError, match="no document has a token"):
            RowPlan(documents, splits, context=context, grid=grid, seed=seed)
        return
    plan = RowPlan(documents, splits, context=context, grid=grid, seed=seed)
    assert plan.n_rows == RowPlan.count(documents, splits)
    for split, docs in splits.items():
        # the independent reference: walk documents and sequences in order, one row per token
        reference = [
            (documents[doc][i], doc, i - start)
            for doc in docs
            for start in range(0, sizes[doc], context)
            for i in range(start, min(start + context, sizes[doc]))
        ]
        blocks = [block for block in plan if block.span.split == split]
        assert [block.span.start for block in blocks] == list(range(0, len(reference), grid.block_rows))
        for block in blocks:
            expected = [reference[i] for i in range(block.span.start, block.span.stop)]
            assert sorted(block.slots) == list(range(block.span.rows))
            stored = list(zip(block.token_id, block.doc_id, block.position, strict=True))
            assert [stored[slot] for slot in block.slots] == expected
            assert block.token_id.dtype == block.position.dtype == np.int32
            assert block.doc_id.dtype == np.int64


@given(lengths.filter(any), grids, st.integers(1, 17))
@settings(max_examples=80, deadline=None)
def test_rows_scattered_by_sequence_land_where_the_tokens_say(sizes, grid, context):
    plan = RowPlan(make_documents(sizes), {"train": range(len(sizes))}, context=context, grid=grid, seed=0)
    forwarded = 0
    for block in plan:
        rows = np.full(block.span.rows, -1)
        for i in range(len(block)):
            tokens = block.sequence(i)
            assert 0 < len(tokens) == block.length[i] <= context
            assert block.first[i] < block.stop[i]  # no sequence is forwarded for nothing
            rows[block.slots_of(i)] = tokens[block.first[i] : block.stop[i]]
            forwarded += len(tokens)
        np.testing.assert_array_equal(rows, block.token_id)
    assert plan.n_forward_tokens == forwarded
    borders = len(plan.spans) - 1
    assert plan.n_rows["train"] <= forwarded <= plan.n_rows["train"] + borders * context


def test_the_window_depends_on_seed_split_and_block():
    documents = make_documents([64, 64])

    def slots(seed: int) -> dict[tuple[str, int], list[int]]:
        plan = RowPlan(documents, {"train": [0], "val": [1]}, context=8, grid=Grid(16, 16, 32), seed=seed)
        return {(block.span.split, block.span.index): list(block.slots) for block in plan}

    assert slots(0) == slots(0)
    distinct = {tuple(order) for seed in (0, 1) for order in slots(seed).values()}
    assert len(distinct) == 8


def test_a_block_is_built_without_the_others():
    plan = RowPlan(make_documents([50, 50]), {"train": [1, 0]}, context=7, grid=Grid(4, 8, 16), seed=3)
    alone = plan.block(Span("train", 2, 32, 48))
    among = list(plan)[2]
    np.testing.assert_array_equal(alone.token_id, among.token_id)
    np.testing.assert_array_equal(alone.slots, among.slots)


def test_overlapping_splits_are_refused():
    with pytest.raises(ValueError, match="dealt twice"):
        RowPlan(make_documents([3, 3]), {"train": [0, 1], "val": [1]}, context=4, grid=Grid(1, 1, 1), seed=0)


def test_context_must_be_positive():
    with pytest.raises(AtomsError, match=r"data\.harvest\.context=0"):
        RowPlan(make_documents([3]), {"train": [0]}, context=0, grid=Grid(1, 1, 1), seed=0)


@given(
    st.lists(st.integers(2, 65536), min_size=1, max_size=4),
    st.integers(0, 10**9),
    st.integers(1, 2**35),
)
@settings(deadline=None)
def test_chosen_grids_keep_their_bounds(row_bytes, n_rows, memory):
    grid = Grid.choose(row_bytes, {"train": n_rows, "val": n_rows // 10}, memory)
    widest, total = max(row_bytes), sum(row_bytes)
    assert grid.chunk_rows & (grid.chunk_rows - 1) == 0
    assert grid.chunk_rows >= MIN_CHUNK_ROWS
    assert grid.chunk_rows * widest <= CHUNK_BYTES
    assert grid.shard_rows * widest <= SHARD_BYTES
    # a chunk is as large as the data, 8 MiB and memory allow, but for the smallest there is
    assert grid.chunk_rows == MIN_CHUNK_ROWS or n_rows >= SHUFFLE_CHUNKS * grid.chunk_rows
    twice = 2 * grid.chunk_rows
    assert twice * widest > CHUNK_BYTES or twice * total > memory or n_rows < SHUFFLE_CHUNKS * twice
    assert grid.block_rows * total <= memory or grid.block_rows == MIN_CHUNK_ROWS


def test_grid_of_a_large_store():
    grid = Grid.choose([2048], {"train": 10**8}, 2**30)
    assert grid == Grid(chunk_rows=4096, shard_rows=65536, block_rows=524288)


def test_grid_parts_must_nest():
    with pytest.raises(ValueError, match="must divide"):
        Grid(4, 6, 12)


@given(st.integers(0, 2000), st.integers(0, 2**64), st.text(max_size=5))
@settings(deadline=None)
def test_permutation_is_a_permutation_fixed_by_its_key(n, seed, name):
    order = permutation(n, seed, name)
    assert sorted(order) == list(range(n))
    np.testing.assert_array_equal(order, permutation(n, seed, name))


def test_permutation_does_not_change_between_versions():
    # written down once: stores on people's disks and runs being resumed depend on it
    assert permutation(8, 0, "train", 0).tolist() == [0, 2, 3, 1, 6, 7, 4, 5]
