"""Groups of documents reach the rows: what is grouped in the corpus is grouped beside every row."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import broken_off, flip

from atoms.activations import harvest as harvesting
from atoms.activations.corpus import Corpus
from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.document_groups import GROUPS_FILE, DocumentGroups
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.model_source import ModelSpec
from atoms.activations.site_rows import SiteRows
from atoms.activations.store import ActivationStore
from atoms.activations.text import TextFiles
from atoms.cli import main
from atoms.errors import AtomsError

CPU = {"accelerator": "cpu", "devices": 1}


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 50), st.integers(-3, 3)), st.lists(st.integers(-1, 55)))
def test_rows_are_of_one_group_where_their_documents_are(labels: dict[int, int], rows: list[int]) -> None:
    documents = np.array(list(labels), np.int64)
    groups = DocumentGroups.from_labels(documents, np.array(list(labels.values()), np.int64))
    found = DocumentGroups.from_bytes(groups.to_bytes()).of(np.array(rows, np.int64))
    for row, group in zip(rows, found, strict=True):
        alike = [other for other in labels if row in labels and labels[other] == labels[row]]
        assert group == min(alike, default=row)  # a document nobody listed, and no document at all, stand alone
    listed = groups.doc_id.tolist()
    assert listed == sorted(d for d in labels if list(labels.values()).count(labels[d]) > 1)


def test_what_is_no_groups_file():
    with pytest.raises(AtomsError, match=r"groups\.safetensors holds no groups of documents .*harvest again"):
        DocumentGroups.from_bytes(b"nonsense")
    with pytest.raises(ValueError, match="once each in ascending order"):
        DocumentGroups(np.array([3, 3]), np.array([3, 3]))


@pytest.fixture
def repeated(text_folder: Path, tmp_path: Path) -> Path:
    """The sixty documents, and behind each of the first ten a copy; no other two are alike."""
    text = Path(shutil.copytree(text_folder, tmp_path / "text"))
    for file in sorted(text.glob("*.txt"))[:10]:
        shutil.copy(file, text / f"{file.stem}-copy.txt")
    return text


def harvest(model: Path, corpus: Corpus, root: str) -> Path:
    spec = HarvestSpec(ModelSpec(str(model)), corpus, ["resid_post.0"], context=24, memory_mib=1, root=root)
    harvesting.harvest(spec, spec.directory(), CPU)
    return Path(spec.directory())


def test_a_harvest_keeps_its_groups_and_a_broken_one_the_same(tiny_bert, repeated):
    path = harvest(tiny_bert, TextFiles([str(repeated)]), "whole")
    store = ActivationStore.open(path)
    names = [file.stem for file in sorted(repeated.glob("*.txt"))]
    stems = [name.removesuffix("-copy") for name in names]
    first = {name: stems.index(name.removesuffix("-copy")) for name in names}
    seen = set()
    for split in store.splits:
        documents, groups = store.tokens(split)["doc_id"], store.groups(split)
        assert groups is not None
        assert groups.dtype == np.int64
        assert groups.tolist() == [first[names[document]] for document in documents]
        seen |= set(groups.tolist())
    assert len(seen) == 60
    with broken_off(1):
        harvest(tiny_bert, TextFiles([str(repeated)]), "parts")
    other = harvest(tiny_bert, TextFiles([str(repeated)]), "parts")
    assert (other / GROUPS_FILE).read_bytes() == (path / GROUPS_FILE).read_bytes()
    assert ActivationStore.open(other).sealed.files == store.sealed.files


def test_documents_of_a_matrix_and_rows_of_a_planted_store_are_groups(planted_store):
    generator = np.random.default_rng(0)
    np.save("acts.npy", generator.standard_normal((600, 4)).astype(np.float32))
    np.save("docs.npy", np.sort(generator.integers(0, 40, 600)) * 3)
    main(["cache", "--data.matrix={files: {s: acts.npy}, doc_ids: docs.npy}", "--data.store=m"])
    main(["cache", "--data.matrix={files: {s: acts.npy}}", "--data.store=stand-ins"])
    for path in ("m", "stand-ins", planted_store):
        store = ActivationStore.open(path)
        for split in store.splits:
            assert np.array_equal(store.groups(split), store.tokens(split)["doc_id"])
    notes = [
        SiteRows(ActivationDataModule(store=str(path)), site, "val").groups_note
        for path, site in (("m", "s"), (planted_store, "planted"), ("stand-ins", "s"))
    ]
    assert notes[:2] == [None, None]
    assert "each 6 consecutive rows stand in" in notes[2]


def test_a_store_of_before_is_read_with_documents_in_their_place_and_can_be_mended(tmp_path, capsys):
    cache = ["cache", "--data.planted={width: 8, rows: 400}", "--data.store=s"]
    main(cache)
    new = ActivationStore.open("s").sealed
    Path("s", "complete.json").unlink()
    with pytest.MonkeyPatch.context() as patch:  # what wrote stores before
        patch.setattr("atoms.activations.writer.StoreWriter.write_file", lambda *_: None)
        main(cache)
    Path("s", GROUPS_FILE).unlink()
    old = ActivationStore.open("s")
    assert old.groups("val") is None
    rows = SiteRows(ActivationDataModule(store="s"), "planted", "val")
    assert np.array_equal(rows.groups(), rows.tokens()["doc_id"])
    assert "documents stand in for groups" in rows.groups_note
    capsys.readouterr()
    main(["store", "info", "s"])
    assert "groups     not recorded: documents stand in for groups; delete complete.json" in capsys.readouterr().out
    Path("s", "complete.json").unlink()
    main(cache)
    assert ActivationStore.open("s").sealed == new
    main(["store", "info", "s"])
    assert "groups     recorded\n" in capsys.readouterr().out
    flip(Path("s", GROUPS_FILE), 9)
    with pytest.raises(AtomsError, match=r"groups\.safetensors is damaged \(wrong checksum\); delete complete\.json"):
        ActivationStore.open("s").groups("val")
