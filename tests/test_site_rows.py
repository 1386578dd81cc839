"""Rows of one split at one site: which, in which order, and with whose geometry."""

import numpy as np
import pytest
import torch

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.grid import Grid
from atoms.activations.site_rows import SiteRows
from atoms.activations.store import StoreSpec, StoreWriter
from atoms.activations.writer import moments_name
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments

SITE, OTHER = "first", "second"
ROWS = {"train": 100, "val": 45, "test": 0}
OUTLIERS = {"train": [7, 50], "val": [0, 3, 44], "test": []}


def values(split: str, site: str) -> torch.Tensor:
    """Rows of norm about 5 whose first coordinate is their number; outliers are a hundred times as long."""
    generator = torch.Generator().manual_seed(len(split) + len(site))
    rows = 5 + 0.5 * torch.randn(ROWS[split], 4, generator=generator)
    rows[:, 0] = torch.arange(ROWS[split]) / 64
    rows[OUTLIERS[split]] *= 100
    return rows.half().float() if site == SITE else -rows.half().float()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "store"
    spec = StoreSpec({SITE: 4, OTHER: 4}, "float16", ROWS, Grid(chunk_rows=8, shard_rows=16, block_rows=32), 0)
    writer = StoreWriter.create(path, spec)
    for span in spec.spans:
        rows = {site: values(span.split, site)[span.start : span.stop] for site in spec.sites}
        index = np.arange(span.start, span.stop)
        writer.write_block(span, rows, token_id=index % 7, doc_id=index // 10, position=index % 10)
    for site in spec.sites:
        writer.write_file(moments_name(site), Moments.from_rows(values("train", site)).to_bytes())
    writer.finalise()
    return path


@pytest.fixture
def data(store):
    return ActivationDataModule(store=str(store), batch_size=8)


def used(split: str) -> list[int]:
    return [i for i in range(ROWS[split]) if i not in OUTLIERS[split]]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
def test_batches_are_the_rows_used_in_order(data, split, batch_rows):
    rows = SiteRows(data, SITE, split)
    batches = list(rows.batches(batch_rows))
    assert {len(batch) for batch in batches[:-1]} <= {batch_rows}
    assert batches[0].dtype == torch.float32
    assert torch.equal(torch.cat(batches), values(split, SITE)[used(split)])
    assert len(rows) == len(used(split))
    assert rows.places.tolist() == used(split)


def test_a_limit_takes_the_first_rows(data):
    rows = SiteRows(data, OTHER, "train")
    assert torch.equal(torch.cat(list(rows.batches(8, limit=13))), values("train", OTHER)[used("train")[:13]])


def test_all_rows_are_used_where_none_is_left_out(store):
    rows = SiteRows(ActivationDataModule(store=str(store), batch_size=8, max_norm=None), SITE, "val")
    assert len(rows) == 45
    assert rows.places.tolist() == list(range(45))
    assert torch.equal(torch.cat(list(rows.batches(20))), values("val", SITE))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_take_turns_with_the_same_batches(data, world_size):
    rows = SiteRows(data, SITE, "val")
    whole = list(rows.stream(8, [OTHER]))
    dealt = [list(rows.stream(8, [OTHER], rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sum(map(len, dealt)) == len(whole)
    for number, batch in enumerate(whole):
        same = dealt[number % world_size][number // world_size]
        assert torch.equal(batch.row_index, same.row_index)
        assert list(same.rows) == [SITE, OTHER]
        for site in (SITE, OTHER):
            assert torch.equal(same.rows[site].float(), values("val", site)[same.row_index])


@pytest.mark.parametrize("split", ["train", "val"])
def test_geometry_is_that_of_the_training_rows_used(data, split):
    rows = SiteRows(data, OTHER, split)
    expected = Moments.from_rows(values("train", OTHER)[used("train")])
    assert rows.moments.count == expected.count == 98
    assert torch.allclose(rows.moments.outer, expected.outer, rtol=1e-9)
    geometry = AtomicInnerProduct.from_moments(expected)
    assert torch.allclose(rows.geometry.matrix(), geometry.matrix(), rtol=1e-6)


@pytest.mark.parametrize("count", [1, 5, 41, 42, 500])
def test_a_sample_is_spread_evenly_and_holds_each_row_once(data, count):
    rows = SiteRows(data, SITE, "val")
    found = rows.sample(count, [OTHER, SITE])
    places = found[""]
    assert list(found) == ["", SITE, OTHER]
    assert len(places) == min(count, 42)
    assert len(places.unique()) == len(places)
    assert set(places.tolist()) <= set(used("val"))
    for site in (SITE, OTHER):
        assert torch.equal(found[site], values("val", site)[places])
    ranks = torch.searchsorted(torch.tensor(used("val")), places)
    steps = ranks.diff()
    assert count == 1 or steps.max() - steps.min() <= 1
    assert torch.equal(rows.sample(count)[SITE], found[SITE])


def test_a_sample_reads_no_chunk_it_does_not_need(data, monkeypatch):
    rows = SiteRows(data, SITE, "train")
    read, original = [], type(data.store).read_chunk

    def counted(self, split, site, chunk, out=None):
        read.append((site, chunk))
        return original(self, split, site, chunk, out)

    monkeypatch.setattr(type(data.store), "read_chunk", counted)
    rows.sample(2)
    assert len(read) == 2


def test_tokens_are_those_of_all_rows(data):
    tokens = SiteRows(data, SITE, "val").tokens()
    assert tokens["token_id"].tolist() == [i % 7 for i in range(45)]
    assert tokens["doc_id"].tolist() == [i // 10 for i in range(45)]
    assert tokens["position"].tolist() == [i % 10 for i in range(45)]


def test_a_split_without_rows_is_refused(data):
    with pytest.raises(AtomsError, match="split 'test' has no rows; harvest with a share for it"):
        SiteRows(data, SITE, "test")


@pytest.mark.parametrize(("site", "split"), [("nowhere", "val"), (SITE, "night")])
def test_what_the_store_lacks_is_refused(data, site, split):
    with pytest.raises(AtomsError, match=r"nowhere|night"):
        SiteRows(data, site, split)
