import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.activations.grid import CHUNK_BYTES, MIN_CHUNK_ROWS, SHARD_BYTES, SHUFFLE_CHUNKS, Grid, Span
from atoms.activations.permutation import permutation
from atoms.activations.plan import RowPlan
from atoms.activations.sequences import Frame, Sequences
from atoms.errors import AtomsError

grids = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)).map(
    lambda t: Grid(t[0], t[0] * t[1], t[0] * t[1] * t[2])
)


def make_documents(sizes: list[int]) -> list[np.ndarray]:
    """Documents whose tokens tell document and place."""
    return [np.arange(n, dtype=np.int32) + 1000 * i for i, n in enumerate(sizes)]


def make_plan(documents, splits, *, context, grid, seed) -> RowPlan:
    cut = {split: Sequences.cut(documents, docs, context=context) for split, docs in splits.items()}
    return RowPlan(cut, grid=grid, seed=seed)


Reference = list[tuple[list[int], list[int], list[int]]]
"""Sequences of a split: tokens, their documents, and the places that leave a row."""


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray] | None, dict[str, list[int]]]:
    """Documents, which of their tokens to keep, and how they are dealt."""
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12))
    keep = draw(st.none() | st.tuples(*(st.lists(st.booleans(), min_size=n, max_size=n) for n in sizes)))
    order = draw(st.permutations(range(len(sizes))))
    cut = draw(st.integers(0, len(order)))
    masks = None if keep is None else [np.array(mask, bool) for mask in keep]
    return make_documents(sizes), masks, {"train": order[:cut], "val": order[cut:]}


frames = st.builds(
    Frame, prefix=st.sampled_from([(), (-1,), (-1, -2)]), suffix=st.sampled_from([(), (-3,)]),
    separator=st.sampled_from([(-4,), (-5, -6)]), rows=st.sampled_from(["drop", "bos", "all"]),
)  # fmt: skip


def walk(documents, keep, docs, context, how, frame) -> Reference:
    """The sequences, told token by token: another way than the one under test."""
    keeps = {"drop": (False, False), "bos": (True, False), "all": (True, True)}[frame.rows]
    stream = [
        [(int(token), doc, bool(keep is None or keep[doc][i])) for i, token in enumerate(documents[doc])]
        for doc in docs
    ]
    gap = len(frame.separator)
    pieces: list[list[list[tuple[int, int, bool]]]] = []  # sequences of pieces of tokens
    for tokens in stream:
        if how == "windows":
            chosen = [i for i, (_, _, kept) in enumerate(tokens) if kept]
            if chosen:
                start = max(chosen[0] - context + 1, 0)
                pieces.append([tokens[start : start + context]])
        elif how == "pieces":
            pieces.extend([tokens[i : i + context]] for i in range(0, len(tokens), context))
        else:
            fresh = True
            for token in tokens:
                used = sum(map(len, pieces[-1])) + gap * (len(pieces[-1]) - 1) if pieces else context
                if fresh and used + gap < context:
                    pieces[-1].append([])
                elif used >= context or fresh:
                    pieces.append([[]])
                pieces[-1][-1].append(token)
                fresh = False
    told = []
    for sequence in pieces:
        if not any(kept for piece in sequence for _, _, kept in piece):
            continue
        whole = [(token, sequence[0][0][1], keeps[0]) for token in frame.prefix]
        for number, piece in enumerate(sequence):
            whole += [(token, whole[-1][1], keeps[1]) for token in frame.separator if number]
            whole += piece
        whole += [(token, whole[-1][1], keeps[1]) for token in frame.suffix]
        told.append(([t for t, _, _ in whole], [d for _, d, _ in whole], [i for i, (_, _, k) in enumerate(whole) if k]))
    return told


@given(
    corpora(), grids, st.integers(1, 17), st.integers(0, 3), st.sampled_from(["pieces", "packed", "windows"]), frames
)
@settings(max_examples=300, deadline=None)
def test_every_kept_token_has_exactly_one_row(corpus, grid, context, seed, how, frame):
    documents, keep, splits = corpus
    if how == "windows":  # one token of each document, the first that is marked
        masks = [np.ones(len(d), bool) for d in documents] if keep is None else keep
        keep = [np.arange(len(mask)) == (mask.argmax() if mask.any() else -1) for mask in masks]
    sequences = {
        split: Sequences.cut(documents, docs, context=context, keep=keep, how=how, frame=frame)
        for split, docs in splits.items()
    }
    told = {split: walk(documents, keep, docs, context, how, frame) for split, docs in splits.items()}
    if not any(told.values()):
        with pytest.raises(AtomsError, match="no document has a token"):
            RowPlan(sequences, grid=grid, seed=seed)
        return
    plan = RowPlan(sequences, grid=grid, seed=seed)
    origin = 0 if frame.rows != "drop" else len(frame.prefix)
    forwarded = 0
    for split in splits:
        reference = [(ids[place], docs[place], place - origin) for ids, docs, places in told[split] for place in places]
        assert plan.n_rows[split] == len(reference)
        blocks = [block for block in plan if block.span.split == split]
        assert [block.span.start for block in blocks] == list(range(0, len(reference), grid.block_rows))
        for block in blocks:
            expected = [reference[i] for i in range(block.span.start, block.span.stop)]
            assert sorted(block.slots) == list(range(block.span.rows))
            stored = list(zip(block.token_id, block.doc_id, block.position, strict=True))
            assert [stored[slot] for slot in block.slots] == expected
            assert block.token_id.dtype == block.position.dtype == np.int32
            assert block.doc_id.dtype == np.int64
            rows = np.full(block.span.rows, 10**9)  # as the harvest scatters them
            for i in range(len(block)):
                tokens = block.sequence(i)
                assert tokens.tolist() == told[split][block.begin + i][0]
                assert len(tokens) == block.length[i]
                assert block.first[i] < block.stop[i]  # no sequence is forwarded for nothing
                rows[block.slots_of(i)] = tokens[block.places(i)]
                forwarded += len(tokens)
            np.testing.assert_array_equal(rows, block.token_id)
    assert plan.n_forward_tokens == forwarded


@given(corpora(), st.integers(1, 17), frames)
@settings(max_examples=100, deadline=None)
def test_packing_loses_no_token_and_fills_what_it_can(corpus, context, frame):
    documents, _, splits = corpus
    packed = Sequences.cut(documents, splits["train"], context=context, how="packed", frame=frame)
    text = [token for i in range(len(packed)) for token in packed.ids(i) if token >= 0]
    assert text == [token for doc in splits["train"] for token in documents[doc]]
    around = len(frame.prefix) + len(frame.suffix)
    for length in packed.lengths(0, len(packed))[:-1]:
        assert context - len(frame.separator) <= length - around <= context


def test_a_window_ends_with_its_token_only_where_it_must():
    documents = make_documents([10, 10, 3])
    keep = [np.arange(len(d)) == chosen for d, chosen in zip(documents, (2, 8, 9), strict=True)]
    windows = Sequences.cut(documents, range(3), context=4, keep=keep, how="windows")
    assert [windows.ids(i).tolist() for i in range(len(windows))] == [[0, 1, 2, 3], [1005, 1006, 1007, 1008]]


def test_the_window_depends_on_seed_split_and_block():
    documents = make_documents([64, 64])

    def slots(seed: int) -> dict[tuple[str, int], list[int]]:
        plan = make_plan(documents, {"train": [0], "val": [1]}, context=8, grid=Grid(16, 16, 32), seed=seed)
        return {(block.span.split, block.span.index): list(block.slots) for block in plan}

    assert slots(0) == slots(0)
    distinct = {tuple(order) for seed in (0, 1) for order in slots(seed).values()}
    assert len(distinct) == 8


def test_a_block_is_built_without_the_others():
    plan = make_plan(make_documents([50, 50]), {"train": [1, 0]}, context=7, grid=Grid(4, 8, 16), seed=3)
    alone = plan.block(Span("train", 2, 32, 48))
    among = list(plan)[2]
    np.testing.assert_array_equal(alone.token_id, among.token_id)
    np.testing.assert_array_equal(alone.slots, among.slots)


@pytest.mark.parametrize("splits", [{"train": [0, 1], "val": [1]}, {"train": [0, 0], "val": [1]}])
def test_documents_dealt_twice_are_refused(splits):
    with pytest.raises(ValueError, match="dealt twice"):
        make_plan(make_documents([3, 3]), splits, context=4, grid=Grid(1, 1, 1), seed=0)


def test_context_must_be_positive():
    with pytest.raises(AtomsError, match=r"data\.harvest\.context=0"):
        Sequences.cut(make_documents([3]), [0], context=0)


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
    # a chunk is as large as the data and 8 MiB allow, and no larger than memory allows unless it is the smallest block
    assert grid.chunk_rows == MIN_CHUNK_ROWS or n_rows >= SHUFFLE_CHUNKS * grid.chunk_rows
    assert 2 * grid.chunk_rows * widest > CHUNK_BYTES or n_rows < SHUFFLE_CHUNKS * 2 * grid.chunk_rows
    assert grid.block_rows * total <= memory or grid.block_rows == grid.chunk_rows


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
