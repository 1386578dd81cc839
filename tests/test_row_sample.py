"""The sample is the same however rows come, and no row is likelier than another."""

import numpy as np
import torch
from forked import in_a_group
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.checks.row_sample import RowSample, lots, most_frequent
from atoms.sae import SparseCodes


def add(sample: RowSample, index: torch.Tensor) -> None:
    """Row i is (i, -i); atom i modulo 7 fires with i + 1, and the last with 1."""
    codes = torch.zeros(len(index), 8)
    codes[torch.arange(len(index)), index % 7] = index + 1.0
    codes[:, 7] = 1
    sample.add(index, torch.stack([index, -index], 1).float(), SparseCodes.from_dense(codes))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 120), st.integers(1, 40), st.integers(1, 130), st.integers(0, 3), st.booleans())
def test_batches_and_their_order_do_not_matter(rows, batch, limit, seed, backwards):
    whole, parts = RowSample(limit, seed), RowSample(limit, seed)
    add(whole, torch.arange(rows))
    pieces = torch.arange(rows).split(batch)
    for piece in reversed(pieces) if backwards else pieces:
        add(parts, piece)
        assert sum(len(part.index) for part in parts._parts) < 2 * limit + batch
    found, same = whole.gather(), parts.gather()
    expected = np.sort(np.argsort(lots(np.arange(rows), seed))[:limit])
    for sample in (found, same):
        assert sample.index.tolist() == expected.tolist()
        assert sample.rows.tolist() == [[i, -i] for i in expected]
        dense = sample.codes.toarray()
        assert dense[np.arange(len(expected)), expected % 7].tolist() == (expected + 1.0).tolist()
        assert (dense[:, 7] == 1).all()
        assert (dense != 0).sum() == 2 * len(expected)


def test_the_sample_is_even():
    """Neither a stretch of rows nor a residue is favoured: 2,000 of 20,000, five deviations allowed."""
    sample = RowSample(2000, seed=1)
    for index in torch.arange(20_000).split(1024):
        add(sample, index)
    index = sample.gather().index
    assert len(index) == 2000
    for classes in (index // 2000, index % 10, index % 16 // 2):
        counts = np.bincount(classes)
        assert np.abs(counts - 2000 / len(counts)).max() < 5 * np.sqrt(2000 / len(counts))


def test_lots_differ_by_row_and_seed():
    places = np.arange(100_000)
    assert len(np.unique(lots(places, 0))) == len(places)
    first, second = (set(np.argsort(lots(places, seed))[:1000]) for seed in (0, 1))
    assert len(first & second) < 40  # ten by chance


def test_nothing_gives_nothing():
    assert RowSample(5).gather() is None


def test_some_rows_of_a_sample():
    sample = RowSample(9)
    add(sample, torch.arange(6))
    taken = sample.gather().take(np.array([4, 1]))
    assert taken.index.tolist() == [4, 1]
    assert taken.rows[:, 0].tolist() == [4, 1]
    assert taken.codes.toarray()[0, 4] == 5


def gathered(rank: int) -> list[list[list[float]] | None]:
    """Ranks take turns with batches of 16 rows; then one of them has none; then both."""

    def plain(sample):
        return [sample.index.tolist(), sample.rows.tolist(), sample.codes.toarray().tolist()]

    sample, lone = RowSample(20, 3), RowSample(20, 3)
    for batch in range(9):
        index = torch.arange(16 * batch, 16 * batch + 16)
        codes = SparseCodes.from_dense(torch.nn.functional.one_hot(index % 4, 5) * (index[:, None] + 1.0))
        if batch % 2 == rank:
            sample.add(index, index[:, None].float(), codes)
        if rank:
            lone.add(index, index[:, None].float(), codes)
    return [plain(sample.gather()), plain(lone.gather()), RowSample(2).gather()]


def test_two_ranks_keep_the_rows_of_one(tmp_path):
    kept = np.sort(np.argsort(lots(np.arange(144), 3))[:20])
    codes = [[i + 1.0 if i % 4 == a else 0.0 for a in range(5)] for i in kept]
    whole = [kept.tolist(), [[float(i)] for i in kept], codes]
    assert in_a_group(gathered, tmp_path) == [[whole, whole, None]] * 2


def testmost_frequent_labels():
    assert most_frequent(np.array([3, 1, 1, -1, -1, -1, 2, 2, 5]), 3).tolist() == [1, 2, 3]
