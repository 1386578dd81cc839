import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr
from stores import ODD_SITE, SITE, SPEC, make_rows, make_store, make_tokens, shard

from atoms.activations.grid import Span
from atoms.activations.lock import StoreLock
from atoms.activations.spec import STORAGE, site_folder
from atoms.activations.store import ActivationStore, StoreWriter
from atoms.errors import AtomsError


@pytest.mark.parametrize("dtype", STORAGE)
def test_rows_come_back_as_rounded(tmp_path, dtype):
    spec = replace(SPEC, dtype=dtype)
    store = ActivationStore.open(make_store(tmp_path / "store", spec))
    assert store.dtype == STORAGE[dtype][1]
    for split in ("train", "val"):
        expected = {site: [] for site in spec.sites}
        for span in spec.grid.spans(split, spec.splits[split]):
            for site, rows in make_rows(spec, span).items():
                expected[site].append(rows.to(store.dtype))
        for site, parts in expected.items():
            rows = torch.cat(parts)
            chunks = [store.to_torch(store.read_chunk(split, site, i)) for i in range(len(store.chunks(split)))]
            assert [len(chunk) for chunk in chunks] == [len(r) for r in store.chunks(split)]
            assert torch.equal(torch.cat(chunks), rows)
            assert torch.equal(store.read_rows(split, site, 3, 35), rows[3:35].float())
            assert store.read_rows(split, site, 9, 9).shape == (0, spec.sites[site])
            norms = np.linalg.norm(rows.double().numpy(), axis=1).astype(np.float32)
            np.testing.assert_array_equal(store.norms(split, site), norms)
        whole = make_tokens(Span(split, 0, 0, spec.splits[split]))
        for name, column in store.tokens(split).items():
            np.testing.assert_array_equal(column, whole[name])


def test_metadata(pristine):
    store = ActivationStore.open(pristine)
    assert store.sites == [SITE, ODD_SITE]
    assert store.splits == ["train", "val", "test"]
    assert [store.n_rows(split) for split in store.splits] == [150, 37, 0]
    assert (store.width(SITE), store.width(ODD_SITE)) == (8, 3)
    assert store.provenance == SPEC.provenance
    assert store.extra == {"versions": "1"}
    assert store.identity_hash == SPEC.identity_hash
    assert len(store.norms("test", SITE)) == 0


def test_any_zarr_reader_opens_it(pristine):
    store = ActivationStore.open(pristine)
    group = zarr.open_group(pristine, mode="r")
    for split in ("train", "val"):
        for site in SPEC.sites:
            array = group[f"{split}/{site_folder(site)}/acts"]
            assert array.attrs["site"] == site
            assert array.metadata.dimension_names == ("token", "hidden")
            rows = store.read_rows(split, site, 0, SPEC.splits[split])
            np.testing.assert_array_equal(rows, array[:])
            np.testing.assert_array_equal(store.norms(split, site), group[f"{split}/{site_folder(site)}/norm"][:])
        for name, column in store.tokens(split).items():
            np.testing.assert_array_equal(column, group[f"{split}/tokens/{name}"][:])


def test_bfloat16_says_what_its_bits_mean(tmp_path):
    make_store(tmp_path / "store", replace(SPEC, dtype="bfloat16"))
    array = zarr.open_array(tmp_path / "store" / "train" / site_folder(SITE) / "acts", mode="r")
    assert array.dtype == np.uint16
    assert array.attrs["logical_dtype"] == "bfloat16"
    assert torch.tensor([int(array.fill_value)], dtype=torch.uint16).view(torch.bfloat16).isnan()


def test_missing_path(tmp_path):
    with pytest.raises(AtomsError, match=r"no store there; make it with `atoms cache`"):
        ActivationStore.open(tmp_path / "none")


def test_all_blocks_but_not_finalised(own_store):
    (own_store / "complete.json").unlink()
    with pytest.raises(AtomsError, match="incomplete, 7 of 7 blocks"):
        ActivationStore.open(own_store)


def test_being_written(own_store):
    (own_store / "complete.json").unlink()
    with StoreLock(own_store), pytest.raises(AtomsError, match=rf"process {os.getpid()} on .* is writing it, 7 of 7"):
        ActivationStore.open(own_store)


def test_missing_shard(own_store):
    shard(own_store, index=3).unlink()
    with pytest.raises(
        AtomsError, match=r"c/3/0 is missing \(expected \d+ bytes\); delete manifest/train-000001\.json"
    ):
        ActivationStore.open(own_store)


@pytest.mark.parametrize("size", [0, 100])
def test_truncated_shard(own_store, size):
    expected = shard(own_store, "val").stat().st_size
    os.truncate(shard(own_store, "val"), size)
    with pytest.raises(
        AtomsError, match=rf"expected {expected} bytes, found {size}\); delete manifest/val-000000\.json"
    ):
        ActivationStore.open(own_store)
    assert StoreWriter.resume(own_store, SPEC).pending == [Span("val", 0, 0, 32)]


@pytest.mark.parametrize("split_and_site", [("nope", SITE), ("train", "nope")])
def test_unknown_names_are_answered_with_the_known(pristine, split_and_site):
    with pytest.raises(AtomsError, match=r"data\.store=.* has no .*'nope'; name one of "):
        ActivationStore.open(pristine).read_chunk(*split_and_site, 0)


def test_unknown_verify(pristine):
    with pytest.raises(AtomsError, match=r"data\.verify=never"):
        ActivationStore.open(pristine, verify="never")
