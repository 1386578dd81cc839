"""The order of rows, as a pure function of seed, epoch and batch."""

from collections import Counter

import numpy as np
from dealing import dealt
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from atoms.activations.order import Order, epoch_plan

orders = st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 5), st.integers(1, 6), st.integers(0, 9)).map(
    lambda t: Order(seed=t[3], batch_size=t[0] * t[1], lanes=t[0], pool_batches=t[2])
)
chunk_counts = st.lists(st.integers(0, 9), min_size=1, max_size=25)


@given(orders, st.integers(0, 3), chunk_counts)
@settings(max_examples=120, deadline=None)
def test_global_batches_do_not_depend_on_the_number_of_ranks(order, epoch, counts):
    assume(sum(counts) >= order.batch_size)
    alone = dealt(order, epoch, counts, 1)
    for world_size in (2, 4):
        if order.lanes % world_size == 0:
            assert dealt(order, epoch, counts, world_size) == alone


@given(orders, st.integers(0, 3), chunk_counts)
@settings(max_examples=120, deadline=None)
def test_every_row_comes_at_most_once_and_few_are_left_over(order, epoch, counts):
    assume(sum(counts) >= order.batch_size)
    batches = dealt(order, epoch, counts, 1)
    assert all(len(batch) == order.batch_size for batch in batches)
    rows = [row for batch in batches for row in batch]
    assert len(set(rows)) == len(rows)
    assert sum(counts) - len(rows) == sum(counts) % order.batch_size
    assert all(0 <= place < counts[chunk] for chunk, place in rows)


def test_ranks_read_few_chunks_twice():
    """A rank reads the chunks its lanes touch, so together they read each little more than once."""
    order = Order(seed=0, batch_size=64, lanes=8, pool_batches=10)
    plan = epoch_plan(order, 0, [16] * 400)
    reads = Counter(
        piece.chunk
        for pool in range(plan.n_pools)
        for rank in range(4)
        for piece in plan.pieces(pool, order.lanes_of(rank, 4))
    )
    assert len(reads) == 400
    assert sum(reads.values()) <= 400 + plan.n_pools * 4


def test_rows_of_a_chunk_are_spread_over_batches():
    """Beyond what chance would do to them, rows of one chunk do not meet in a batch."""
    order = Order(seed=1, batch_size=64, lanes=4, pool_batches=32)
    batches = dealt(order, 0, [64] * 64, 1)
    together = sum(n * (n - 1) for batch in batches for n in Counter(chunk for chunk, _ in batch).values())
    # a chunk lies within one lane and pool (borders aside), where its 64 rows fall into 32 batches at random
    by_chance = 64 * 64 * 63 / 32
    assert 0.8 * by_chance < together < 1.2 * by_chance


def test_epochs_seeds_pools_and_lanes_differ():
    def flat(seed: int, epoch: int) -> list:
        return [row for batch in dealt(Order(seed, 16, 4, 3), epoch, [16] * 12, 1) for row in batch]

    assert flat(0, 0) == flat(0, 0)
    assert len({tuple(flat(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_every_lane_of_every_pool_is_shuffled_its_own_way():
    order = Order(seed=0, batch_size=32, lanes=4, pool_batches=4)
    slots = {
        tuple(
            np.concatenate([piece.slots for piece in epoch_plan(order, epoch, [16] * 24).pieces(pool, range(v, v + 1))])
        )
        for epoch in range(2)
        for pool in range(3)
        for v in range(4)
    }
    assert len(slots) == 2 * 3 * 4
