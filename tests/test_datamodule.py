from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from atoms.activations import TextFiles, harvest_spec, language_model
from atoms.activations import datamodule as datamodule_module
from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.grid import Grid
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.model_source import ModelSpec
from atoms.activations.moments_writer import MomentsWriter
from atoms.activations.planted import SITE, PlantedSpec
from atoms.activations.store import ActivationStore, StoreSpec, StoreWriter
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments

CPU: dict[str, Any] = {"accelerator": "cpu", "devices": 1}


def make_spec(model: Path, text: Path, **settings: Any) -> HarvestSpec:
    spec = {"sites": ["resid_post.0", "h.1.mlp.c_fc"], "context": 40, **settings}
    return HarvestSpec(ModelSpec(str(model)), TextFiles([str(text)]), **spec)


def refuse(*_: Any, **__: Any) -> Any:
    pytest.fail("this must not be called")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail wherever a language model would be looked for or run."""
    monkeypatch.setattr(harvest_spec, "resolve", refuse)
    monkeypatch.setattr(datamodule_module, "harvest_store", refuse)


# ------------------------------------------------------------------------------------------ where rows come from


def test_widths_are_known_before_there_is_a_store_and_without_weights(tiny_gpt2, text_folder, monkeypatch):
    monkeypatch.setattr(language_model.AutoModel, "from_pretrained", refuse)
    data = ActivationDataModule(harvest=make_spec(tiny_gpt2, text_folder))
    assert data.width == {"resid_post.0": 16, "h.1.mlp.c_fc": 64}
    assert not data.complete
    assert not data.path.exists()


def test_it_makes_the_store_once(tiny_gpt2, text_folder, monkeypatch):
    first = ActivationDataModule(harvest=make_spec(tiny_gpt2, text_folder), batch_size=64)
    with pytest.raises(AtomsError, match=r"data\.store=.*: no store there; make it with `atoms cache`"):
        first.prepare_data()
    first.ensure(CPU)
    assert first.complete
    first.prepare_data()
    monkeypatch.setattr(datamodule_module, "harvest_store", refuse)
    monkeypatch.setattr(language_model.AutoModel, "from_pretrained", refuse)
    first.ensure(CPU)
    second = ActivationDataModule(harvest=make_spec(tiny_gpt2, text_folder), batch_size=64)
    second.ensure(CPU)
    assert second.width == first.width
    assert second.store.content_digest() == first.store.content_digest()


def test_a_bare_store_needs_no_model_and_no_text(planted_data, no_model):
    data = planted_data()
    assert data.width == {SITE: 16}
    data.ensure(CPU)
    data.prepare_data()
    assert data.store.n_rows("train") == 4800
    assert data.truth.shape == (24, 16)


def test_a_store_can_be_named_and_made(tiny_gpt2, text_folder):
    spec = make_spec(tiny_gpt2, text_folder)
    data = ActivationDataModule(store="here/mine", harvest=spec)
    data.ensure(CPU)
    assert ActivationStore.open("here/mine").provenance == spec.identity
    assert not Path("activations").exists()


def test_a_store_made_by_other_settings_is_not_taken_for_this_one(tiny_gpt2, text_folder):
    ActivationDataModule(store="mine", harvest=make_spec(tiny_gpt2, text_folder)).ensure(CPU)
    ActivationDataModule(store="mine", harvest=make_spec(tiny_gpt2, text_folder, memory_mib=7))
    other = make_spec(tiny_gpt2, text_folder, seed=3)
    with pytest.raises(
        AtomsError, match=r"data\.store=mine: made by other settings \(provenance\.seed: stored 0, asked 3\)"
    ):
        ActivationDataModule(store="mine", harvest=other)
    with pytest.raises(
        AtomsError, match=r"data\.store=mine: made by other settings .*kind: stored 'harvest', asked 'planted'"
    ):
        ActivationDataModule(store="mine", planted=PlantedSpec())


def test_a_planted_source(no_model):
    data = ActivationDataModule(planted=PlantedSpec(width=8, atoms=10, active=2.0, rows=1000), batch_size=80)
    assert data.width == {SITE: 8}
    data.ensure(CPU)
    assert data.num_train_batches == 10
    assert torch.equal(data.truth, PlantedSpec(width=8, atoms=10, active=2.0, rows=1000).truth()[0])


def test_a_block_that_was_thrown_away_is_made_anew():
    data = ActivationDataModule(planted=PlantedSpec(width=8, atoms=10, active=2.0, rows=1000), batch_size=80)
    data.ensure(CPU)
    before = data.store.content_digest()
    (data.path / "manifest/val-000000.json").delete()  # what the message about a damaged chunk tells users to do
    assert not data.complete
    data.ensure(CPU)
    assert ActivationStore.open(data.path).content_digest() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"data has neither store, harvest, matrix nor planted: set data\.store"),
        ({"store": "nowhere"}, r"data\.store is nowhere, where there is no store: mend the path, or set data\.harvest"),
        ({"planted": PlantedSpec(), "batch_size": 0}, r"data\.batch_size=0"),
        ({"planted": PlantedSpec(), "batch_size": 100}, r"data\.batch_size=100: not a multiple of data\.lanes=8"),
        ({"planted": PlantedSpec(), "lanes": 0}, r"data\.lanes=0"),
        ({"planted": PlantedSpec(), "pool_mib": 0}, r"data\.pool_mib is 0: give at least 1"),
        ({"planted": PlantedSpec(), "max_norm": 0.5}, r"data\.max_norm is 0\.5: give a multiple of the median above 1"),
        ({"planted": PlantedSpec(), "max_norm": float("nan")}, r"data\.max_norm is nan"),
        ({"planted": PlantedSpec(), "train_rows": 0}, r"data\.train_rows is 0: give at least 1, or null for all"),
        ({"planted": PlantedSpec(), "cache_gib": -1}, r"data\.cache_gib is -1: give a number of GiB"),
        ({"store": "ftp://host/x"}, r"data\.store=ftp://…: unknown kind of store"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(AtomsError, match=message):
        ActivationDataModule(**{"batch_size": 4096, **settings})
    assert not Path("activations").exists()


def test_two_sources(tiny_gpt2, text_folder):
    with pytest.raises(AtomsError, match=r"data\.harvest and data\.planted are both set: keep one"):
        ActivationDataModule(harvest=make_spec(tiny_gpt2, text_folder), planted=PlantedSpec())


def test_an_incomplete_store_and_nothing_to_make_it_with(tmp_path):
    StoreWriter.create(tmp_path / "s", StoreSpec({"x": 4}, "float32", {"train": 64}, Grid(16, 16, 16), seed=0))
    data = ActivationDataModule(store=str(tmp_path / "s"))
    with pytest.raises(AtomsError, match=r"data\.store=.*: incomplete, 0 of 4 blocks are done; run `atoms cache`"):
        data.ensure(CPU)


# ------------------------------------------------------------------------------------------ masks and moments

SITES = {"a": 6, "b": 3}


@pytest.fixture(params=["float32", "bfloat16"])
def outliers(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store of two sites in which a few rows are a hundred times as long as the others."""
    path = tmp_path / "outliers"
    spec = StoreSpec(SITES, request.param, {"train": 500, "val": 90}, Grid(16, 64, 128), seed=0)
    writer = StoreWriter.create(path, spec)
    sums = {site: Moments.zeros(width) for site, width in SITES.items()}
    for span in spec.spans:
        generator = torch.Generator().manual_seed(span.start)
        rows = {site: torch.randn(span.rows, width, generator=generator) + 5 for site, width in SITES.items()}
        if span.split == "val":
            rows = {site: 4 * values for site, values in rows.items()}  # its median is not the one that counts
        rows["a"][3] *= 100
        rows["b"][[7, 11]] *= 100
        none = np.full(span.rows, -1)
        writer.write_block(span, rows, token_id=none, doc_id=none, position=none)
        if span.split == "train":
            for site in SITES:
                sums[site] = sums[site] + Moments.from_rows(rows[site].to(spec.torch_dtype))
    for site in SITES:
        writer.write_moments(site, sums[site])
    writer.finalise()
    return path


def open_outliers(path: Path, **settings: Any) -> ActivationDataModule:
    return ActivationDataModule(store=str(path), **{"batch_size": 32, **settings})


def kept(data: ActivationDataModule, split: str, factor: float) -> np.ndarray:
    """Which rows are kept, from the rows themselves."""
    keep = np.ones(data.store.n_rows(split), bool)
    for site in SITES:
        norms = {
            name: np.linalg.norm(data.store.read_rows(name, site, 0, data.store.n_rows(name)).double().numpy(), axis=1)
            for name in ("train", split)
        }
        keep &= norms[split] <= factor * np.median(norms["train"])
    return keep


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_row_is_left_out_if_any_site_says_so(outliers, split):
    data = open_outliers(outliers)
    mask = data.valid(split)
    np.testing.assert_array_equal(mask, kept(data, split, 10.0))
    assert (~mask).sum() == 3 * len([span for span in data.store.spec.spans if span.split == split])
    assert data.num_rows(split) == mask.sum()


def test_the_limit_is_a_multiple_of_the_median_of_training_rows(outliers):
    assert kept(open_outliers(outliers), "val", 2.0).sum() == 0
    assert open_outliers(outliers, max_norm=2.0).num_rows("val") == 0


def test_without_a_limit_every_row_is_used(outliers):
    data = open_outliers(outliers, max_norm=None)
    assert data.valid("train") is None
    assert data.num_rows("train") == 500
    # a limit that excludes nothing is no mask
    assert open_outliers(outliers, max_norm=1e6).valid("train") is None


def test_moments_are_those_of_the_rows_that_are_used(outliers):
    for factor in (None, 10.0, 1.2):
        data = open_outliers(outliers, max_norm=factor)
        for site, width in SITES.items():
            rows = data.store.read_rows("train", site, 0, 500).double().numpy()
            if factor is not None:
                rows = rows[kept(data, "train", factor)]
                assert len(rows) < 500
            moments = data.moments(site)
            assert moments.count == len(rows)
            np.testing.assert_allclose(moments.total, rows.sum(0), rtol=1e-11)
            np.testing.assert_allclose(moments.outer, rows.T @ rows, rtol=1e-10)
            assert moments.width == width
            direct = AtomicInnerProduct.from_moments(Moments.from_rows(torch.from_numpy(rows)))
            torch.testing.assert_close(data.geometry(site).matrix(), direct.matrix(), rtol=1e-7, atol=1e-9)


@pytest.fixture
def no_numbers(tmp_path: Path) -> Path:
    """A float16 store in which a few values overflowed and a few are NaN."""
    path = tmp_path / "no-numbers"
    spec = StoreSpec(SITES, "float16", {"train": 500, "val": 90}, Grid(16, 64, 128), seed=0)
    writer = StoreWriter.create(path, spec)
    moments = MomentsWriter(writer, spec.spans, 0, 1, torch.device("cpu"))
    for span in writer.pending:
        generator = torch.Generator().manual_seed(span.start)
        rows = {site: torch.randn(span.rows, width, generator=generator) + 5 for site, width in SITES.items()}
        rows["a"][3, 1] = 1e5
        rows["a"][5] *= 100  # long, and finite
        rows["b"][[7, 11], 0] = float("nan")
        none = np.full(span.rows, -1)
        writer.write_block(span, rows, token_id=none, doc_id=none, position=none)
        moments.after(span)
    moments.finish()
    moments.pool()
    writer.finalise()
    return path


@pytest.mark.parametrize("max_norm", [None, 10.0])
def test_rows_that_are_not_finite_are_never_used(no_numbers, max_norm):
    data = open_outliers(no_numbers, max_norm=max_norm)
    for split, blocks in (("train", 4), ("val", 1)):
        mask = data.valid(split)
        assert mask is not None
        finite = np.ones(len(mask), bool)
        for site in SITES:
            rows = data.store.read_rows(split, site, 0, len(mask))
            finite &= rows.isfinite().all(1).numpy()
            assert rows[torch.from_numpy(mask)].isfinite().all()
        assert (~mask).sum() == blocks * (3 if max_norm is None else 4)
        assert not (mask & ~finite).any()
        for site in SITES:
            if split == "train":
                rows = data.store.read_rows(split, site, 0, len(mask))[torch.from_numpy(mask)].double().numpy()
                moments = data.moments(site)
                assert moments.count == len(rows) == data.num_rows("train")
                np.testing.assert_allclose(moments.outer, rows.T @ rows, rtol=1e-10)
    batches = [batch for loader in (data.train_dataloader(), *data.val_dataloader()) for batch in loader]
    assert all(batch[site].isfinite().all() for batch in batches for site in SITES)


def test_masked_rows_are_in_no_batch(outliers):
    data = open_outliers(outliers)
    longest = {site: 10 * np.median(data.store.norms("train", site)) for site in SITES}
    seen = 0
    for batches in (data.train_dataloader(), *data.val_dataloader()):
        for batch in batches:
            for site in SITES:
                norms = batch[site].double().norm(dim=1)
                seen += len(norms)
                assert bool((norms <= longest[site]).all())
    assert seen == 2 * (data.num_train_batches * 32 + data.num_rows("val"))


# ------------------------------------------------------------------------------------------ loaders


def ranks_of(data: ActivationDataModule, world_size: int, method: str) -> list[Any]:
    """A loader of every rank, as its trainer would ask for it."""
    loaders = []
    for rank in range(world_size):
        root = SimpleNamespace(root_device=torch.device("cpu"))
        shares = {"rank": rank, "num_replicas": world_size}
        data.trainer = SimpleNamespace(distributed_sampler_kwargs=shares, strategy=root)  # type: ignore[assignment]
        loaders.append(getattr(data, method)())
    data.trainer = None
    return loaders


def test_an_epoch_has_as_many_batches_as_it_says(planted_data):
    data = planted_data()
    batches = [batch[SITE].clone() for batch in data.train_dataloader()]
    assert len(batches) == data.num_train_batches == len(data.train_dataloader()) == 4800 // 256
    assert {tuple(batch.shape) for batch in batches} == {(256, 16)}
    stored = data.store.read_rows("train", SITE, 0, 4800)
    assert len(set(map(bytes, torch.cat(batches).numpy())) & set(map(bytes, stored.numpy()))) == 18 * 256


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batches_of_one(planted_data, world_size):
    data = planted_data()
    alone = [batch[SITE].clone() for batch in data.train_dataloader()]
    shares = [[batch[SITE].clone() for batch in loader] for loader in ranks_of(data, world_size, "train_dataloader")]
    for number, batch in enumerate(alone):
        assert torch.equal(torch.cat([share[number] for share in shares]), batch)
    predicted = [list(loader) for loader in ranks_of(data, world_size, "predict_dataloader")]
    assert len({len(batches) for batches in predicted}) == 1
    index = torch.cat([batch.row_index for batches in predicted for batch in batches])
    assert sorted(index.tolist()) == list(range(600))


def test_more_ranks_than_lanes_can_be_shared_by(planted_data):
    with pytest.raises(AtomsError, match=r"data\.lanes=8: cannot be shared evenly by 3 ranks"):
        ranks_of(planted_data(), 3, "train_dataloader")


def test_only_the_sites_in_use_are_read(outliers):
    data = open_outliers(outliers)
    assert set(next(iter(data.train_dataloader()))) == {"a", "b"}
    data.used_sites = ["b"]
    assert set(next(iter(data.train_dataloader()))) == {"b"}
    assert set(next(iter(data.val_dataloader()[0]))) == {"b"}
    assert set(next(iter(data.predict_dataloader())).rows) == {"b"}
    data.used_sites = ["c"]
    with pytest.raises(AtomsError, match=r"has no site 'c'; name one of a, b"):
        data.train_dataloader()


def test_learning_from_few_rows_spread_over_all(planted_data):
    data, whole = planted_data(train_rows=700), planted_data()
    rows = np.flatnonzero(data.valid("train"))
    assert data.num_rows("train") == len(rows) == 700
    assert set(np.diff(rows)) == {6, 7}
    assert data.num_train_batches == 700 // data.batch_size
    assert data.num_rows("val") == 600
    assert data.geometry(SITE) == whole.geometry(SITE)
    assert planted_data(train_rows=10**9).num_rows("train") == 4800


def test_rows_that_are_left_out_are_not_learnt_from_either(outliers):
    few = open_outliers(outliers, train_rows=100).valid("train")
    assert few.sum() == 100
    assert (open_outliers(outliers).valid("train") >= few).all()


def test_the_training_rows_beside_the_held_out_ones_are_as_many(planted_data):
    data = planted_data()
    assert len(data.val_dataloader()) == 1
    data.train_rows_beside = True
    held_out, beside = (torch.cat([batch[SITE] for batch in loader]) for loader in data.val_dataloader())
    assert torch.equal(held_out, data.store.read_rows("val", SITE, 0, 600))
    assert torch.equal(beside, data.store.read_rows("train", SITE, 0, 600))


def test_each_split_is_predicted_on_its_own_and_test_is_the_test_split(planted_data):
    data = planted_data()
    for split, rows in (("train", 4800), ("val", 600), ("test", 600)):
        data.predict_split = split
        got = torch.cat([batch.rows[SITE] for batch in data.predict_dataloader()])
        assert torch.equal(got, data.store.read_rows(split, SITE, 0, rows))
    tested = torch.cat([batch[SITE] for batch in data.test_dataloader()])
    assert torch.equal(tested, data.store.read_rows("test", SITE, 0, 600))


def test_a_resumed_stream_goes_on_where_it_was(planted_data):
    stream = planted_data().train_dataloader()
    through = [batch[SITE].clone() for _ in range(2) for batch in stream]
    stream = planted_data().train_dataloader()
    batches = iter(stream)
    for _ in range(5):
        next(batches)
    state = stream.state_dict()
    stream.close()
    resumed = planted_data().train_dataloader()
    resumed.load_state_dict(state)
    rest = [batch[SITE].clone() for _ in range(2) for batch in resumed]
    assert torch.equal(torch.cat(rest), torch.cat(through[5:]))


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"batch_size": 128}, {"lanes": 4}, {"max_norm": 1.01}, {"train_rows": 600}]
)
def test_the_settings_of_the_order_are_those_that_change_it(planted_data, change):
    def first(**settings: Any) -> list[bytes]:
        rows = torch.cat([batch[SITE].clone() for batch in planted_data(**settings).train_dataloader()])
        return [row.tobytes() for row in rows.numpy()]

    assert first(**change) != first()
    settings = planted_data(**change).order_settings()
    assert settings != planted_data().order_settings()
    assert first(**settings) == first(**change)
