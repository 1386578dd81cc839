import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stores import SITE, SPEC, flip, make_rows, make_store, make_tokens, shard

from atoms.activations.location import locate
from atoms.activations.manifest import BlockRecord, Seal
from atoms.activations.planted import PlantedSpec, plant
from atoms.activations.sealed import seal, sha256_of
from atoms.activations.store import ActivationStore, StoreWriter
from atoms.activations.verify import Verification, find_stores
from atoms.errors import AtomsError
from atoms.geometry import Moments


def found(path: Path | str) -> list[str]:
    return [finding.what for finding in Verification(path).findings()]


def with_moments(path: Path) -> Path:
    """The small store with moments, as a harvest leaves it."""
    writer = StoreWriter.create(path, SPEC)
    sums = {site: Moments.zeros(width) for site, width in SPEC.sites.items()}
    for span in writer.pending:
        rows = make_rows(SPEC, span)
        rows[SITE][1, 1] = torch.nan
        writer.write_block(span, rows, **make_tokens(span))
        if span.split == "train":
            for site, values in rows.items():
                sums[site] = sums[site] + Moments.from_rows(values[values.isfinite().all(1)])
    for site, moments in sums.items():
        writer.write_moments(site, moments)
    writer.write_file("planted.safetensors", b"some atoms")
    writer.finalise({"versions": "1"})
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return with_moments(tmp_path_factory.mktemp("verify") / "store")


@pytest.fixture
def own(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "store"))


def test_a_whole_store_has_no_fault_and_every_byte_was_read(whole):
    verification = Verification(whole)
    read = 0

    def advance(n_bytes):
        nonlocal read
        read += n_bytes

    assert list(verification.findings(advance)) == []
    sizes = locate(whole).files()
    assert read == verification.total == sum(sizes.values()) - sizes["complete.json"]
    assert verification.strays == []


def spoil(file: Path, how: str, at: int) -> None:
    if how == "delete":
        file.unlink()
    elif how == "truncate":
        file.write_bytes(file.read_bytes()[:at])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        flip(file, at)


def everything(path: Path) -> list:
    """All that a fit could ask of a store."""
    store = ActivationStore.open(path)
    moments = [store.moments(site) for site in store.sites]
    return [
        store.spec.to_dict(),
        store.extra,
        store.content_digest(),
        store.read_file("planted.safetensors"),
        [(m.count, m.outer.numpy().tobytes(), m.total.numpy().tobytes()) for m in moments],
    ]


def test_nothing_spoiled_is_read_as_data_and_everything_is_reported(own):
    """Each kind of file in each kind of way."""
    expected = everything(own)
    draw = random.Random(0)
    names = sorted(locate(own).files())
    shards = [name for name in names if "/c/" in name]
    cases = [name for name in names if "/c/" not in name] + draw.sample(shards, 30)
    for number, name in enumerate(cases):
        file = own / name
        data = file.read_bytes()
        spoil(file, ["flip", "flip", "delete", "truncate", "empty"][number % 5], draw.randrange(len(data)))
        try:
            read = everything(own)
        except AtomsError:
            read = None
        assert read in (None, expected), f"{name}, case {number}: read as data"
        try:
            assert any(name in what for what in found(own)), f"{name}, case {number}: not reported"
        except AtomsError:
            assert name == "zarr.json"
        file.write_bytes(data)
    assert found(own) == []


def test_it_goes_on_after_the_first_fault_and_names_chunks_and_cures(own):
    flip(shard(own, index=1), 200)  # the second chunk
    shard(own, "val").unlink()
    flip(own / "moments" / "model.layers.3.safetensors", 300)
    flip(own / "manifest" / "train-000002.json", 20)
    findings = {finding.what: finding.cure for finding in Verification(own).findings()}
    assert sorted(findings) == [
        "manifest/train-000002.json is damaged (wrong checksum)",
        "moments/model.layers.3.safetensors is damaged (wrong checksum)",
        "train/model.layers.3/acts/c/1/0 is damaged (chunk 5: wrong checksum)",
        "val/model.layers.3/acts/c/0/0 is missing",
    ]
    cures = [findings[what] for what in sorted(findings)]
    assert [cure.partition(" in the store")[0] for cure in cures] == [
        "delete manifest/train-000002.json",
        "delete complete.json",
        "delete manifest/train-000000.json",
        "delete manifest/val-000000.json",
    ]


def test_another_shards_copy_is_told(own):
    """Every chunk's checksum is right, and yet these are other rows."""
    shutil.copy(shard(own, index=0), shard(own, index=1))
    assert found(own) == ["train/model.layers.3/acts/c/1/0 is whole, but it is not the file that was written"]


def test_an_unfinished_store(own):
    (own / "complete.json").unlink()
    (own / "manifest" / "val-000001.json").unlink()
    flip(shard(own), 3)
    assert found(own) == [
        "complete.json is missing: the store was never finished",
        "manifest/val-000001.json is missing: its block was never finished",
        "train/model.layers.3/acts/c/0/0 is damaged (chunk 0: wrong checksum)",
    ]


def test_a_damaged_seal_does_not_hide_the_rest(own):
    flip(own / "complete.json", (own / "complete.json").read_bytes().index(b'"versions": "1"') + 13)
    flip(shard(own), 3)
    assert found(own) == [
        "complete.json is damaged (its checksum is wrong)",
        "train/model.layers.3/acts/c/0/0 is damaged (chunk 0: wrong checksum)",
    ]
    assert Verification(own).strays == []


def reseal(path: Path, name: str, data: bytes) -> None:
    """Change a file and its record alike, as a wrong program would; the bytes are as they were written."""
    (path / name).write_bytes(data)
    sealed = Seal.parse((path / "complete.json").read_bytes())
    record = replace(sealed.files[name], size=len(data), digest=sha256_of(data))
    (path / "complete.json").write_bytes(replace(sealed, files={**sealed.files, name: record}).encode())


def test_moments_of_other_rows(own):
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((12, 8)))
    reseal(own, "moments/model.layers.3.safetensors", Moments.from_rows(rows).to_bytes())
    assert found(own) == ["moments/model.layers.3.safetensors holds 12 rows of width 8, not 145 of 8"]
    reseal(own, "moments/model.layers.3.safetensors", b"no moments")
    assert len(found(own)) == 1


def test_metadata_of_other_arrays(own):
    name = f"train/{'blocks%2F1%3Apost'}/acts/zarr.json"
    metadata = json.loads((own / name).read_bytes())
    reseal(own, name, json.dumps({**metadata, "shape": [150, 4]}).encode())
    assert found(own) == [f"{name} does not say what the store holds"]


def test_manifests_that_disagree_or_belong_elsewhere(own):
    name = "manifest/train-000000.json"
    record = BlockRecord.parse((own / name).read_bytes())
    changed = {file: {"size": 1, "digest": "crc32c:0"} for file in record.files}
    content = {"identity_hash": record.identity_hash, "rows": 32, "files": changed, "nonfinite": {}}
    reseal(own, name, seal(content))
    assert found(own) == [f"{name} and complete.json do not agree"]
    reseal(own, name, seal({**content, "identity_hash": "0"}))
    assert found(own) == [f"{name} is of another store"]


def test_tokens_below_none(tmp_path):
    spec = replace(SPEC, splits={"train": 40})
    writer = StoreWriter.create(tmp_path / "s", spec)
    for span in writer.pending:
        tokens = make_tokens(span)
        tokens["position"][3] = -7
        writer.write_block(span, make_rows(spec, span), **tokens)
    writer.finalise()
    assert found(tmp_path / "s") == ["train/tokens/position holds -7 in chunk 0, below -1 for none"]


def test_strays_are_listed_and_are_no_fault(own):
    (own / "notes.txt").write_text("mine")
    (own / "train" / "x.partial").write_text("")
    verification = Verification(own)
    assert verification.strays == ["notes.txt", "train/x.partial"]
    assert list(verification.findings()) == []


def test_nothing_there(tmp_path):
    with pytest.raises(AtomsError, match=r"no store there; mend the path"):
        Verification(tmp_path / "none")


def test_a_store_far_away(s3):
    plant(PlantedSpec(width=12, atoms=8, active=2.0, rows=500), s3)
    assert found(s3) == []
    name = "train/planted/acts/c/0/0"
    (locate(s3) / name).write((locate(s3) / name).read()[:-1] + b"?")
    (locate(s3) / "val/planted/norm/c/0").delete()
    (locate(s3) / "notes.txt").write(b"mine")
    assert [what.partition(" ")[0] for what in found(s3)] == [name, "val/planted/norm/c/0"]
    assert Verification(s3).strays == ["notes.txt"]
    assert str(next(find_stores(locate(s3.rpartition("/")[0])))).startswith("s3://bucket/")


def test_stores_are_found_at_any_depth(tmp_path):
    for name in ("a", "deep/er/b"):
        make_store(tmp_path / name, replace(SPEC, splits={"train": 8}))
    (tmp_path / "deep" / "notes").mkdir()
    assert [str(place) for place in find_stores(locate(tmp_path))] == [f"{tmp_path}/a", f"{tmp_path}/deep/er/b"]
    assert [str(place) for place in find_stores(locate(tmp_path / "a"))] == [f"{tmp_path}/a"]
    with pytest.raises(AtomsError, match="cannot be listed"):
        list(find_stores(locate(tmp_path / "none")))
