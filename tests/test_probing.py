"""k-sparse probes: an atom that is a label tells it alone, and shuffled labels tell nothing."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from forked import in_a_group
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import Projections, find, judge, subject_of
from scipy import sparse

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.grid import Grid
from atoms.activations.store import StoreSpec, StoreWriter
from atoms.activations.writer import moments_name
from atoms.checks.claim import Section
from atoms.checks.probing import Task, Use, _codes, _projections, _raw, _scored
from atoms.checks.row_sample import Sampled
from atoms.errors import AtomsError
from atoms.geometry import Moments
from atoms.sae import SparseCodes
from atoms.units import Unit

SITE, WIDTH = "site", 24
TOKENS, LENGTH, PER_DOCUMENT = 6, 20, 60
ROWS = {"train": 3000, "val": 1500}
SEARCH = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(7)).double()
AXES = torch.linalg.qr(SEARCH).Q.float()  # tokens, then position, then documents modulo eight; the rest is noise


def labels(split: str) -> dict[str, np.ndarray]:
    """Documents of three sequences of 20 tokens; no document is in both splits."""
    index = np.arange(ROWS[split])
    token = np.random.default_rng(len(split)).permutation(index) % TOKENS + 100
    first = 0 if split == "train" else 1000
    return {"token_id": token, "doc_id": first + index // PER_DOCUMENT, "position": index % LENGTH}


def rows_of(split: str) -> torch.Tensor:
    """Every label stands on axes of its own, beneath noise."""
    about, count = labels(split), ROWS[split]
    generator = torch.Generator().manual_seed(100 + len(split))
    coordinates = 0.3 * torch.randn(count, WIDTH, generator=generator)
    coordinates[torch.arange(count), torch.from_numpy(about["token_id"] - 100)] += 3
    coordinates[:, TOKENS] += torch.from_numpy(about["position"] >= LENGTH // 2)
    coordinates[torch.arange(count), TOKENS + 1 + torch.from_numpy(about["doc_id"] % 8)] += 3
    return 2 + coordinates @ AXES.T


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write(tmp_path_factory.mktemp("probing") / "store", known=True)


def write(path, known: bool):
    spec = StoreSpec({SITE: WIDTH}, "float32", ROWS, Grid(chunk_rows=128, shard_rows=256, block_rows=512), 0)
    writer = StoreWriter.create(path, spec)
    for span in spec.spans:
        about = {name: column[span.start : span.stop] for name, column in labels(span.split).items()}
        if not known:
            about = {name: np.full(span.rows, -1) for name in about}
        writer.write_block(span, {SITE: rows_of(span.split)[span.start : span.stop]}, **about)
    writer.write_file(moments_name(SITE), Moments.from_rows(rows_of("train")).to_bytes())
    writer.finalise()
    return path


def use(store, unit: Unit, **asked) -> Use:
    return Use(
        subject_of(unit, ActivationDataModule(store=str(store), batch_size=8), SITE, train_rows=ROWS["train"], **asked)
    )


def section(check: Use):
    return judge(check)[1]


class Oracle(Projections):
    """Atoms of the axes: those of tokens fire where the token is, with no noise above the floor."""

    def __init__(self) -> None:
        super().__init__(AXES.T, floor=1.5, name="oracle")
        self.centre = torch.full((WIDTH,), 2.0)


class Noise(Oracle):
    """Codes that know nothing of the row."""

    def encode(self, rows):
        generator = torch.Generator().manual_seed(int(rows[0, 0].item() * 1e6) % 2**31)
        return SparseCodes.from_dense((torch.rand(len(rows), WIDTH, generator=generator) - 0.8).relu())


@pytest.fixture(scope="module")
def oracle(store):
    return section(use(store, Oracle()))


def of(found, family: str, features: str, k: int, measure: str = "auroc") -> float:
    table = found.tables["families"]
    (value,) = (
        table[measure][i]
        for i in range(len(table["k"]))
        if (table["family"][i], table["features"][i], table["k"][i]) == (family, features, k)
    )
    return value


def test_an_atom_that_is_the_label_tells_it_alone(oracle):
    for k in (1, 2, 5, 16):
        assert of(oracle, "token", "codes", k) == pytest.approx(1, abs=1e-3)
        assert of(oracle, "document", "codes", k) == pytest.approx(1, abs=1e-3)
    assert of(oracle, "token", "codes", 1, "accuracy") > 0.999
    assert of(oracle, "token", "codes", 1, "f1") > 0.999
    assert of(oracle, "token", "codes", 1, "majority") == pytest.approx(5 / 6, abs=0.01)
    assert of(oracle, "token", "raw", 1) < 0.97
    assert of(oracle, "token", "random", 1) < 0.97
    families = ("token", "position", "document")
    gaps = [of(oracle, family, "codes", 1) - of(oracle, family, "raw", 1) for family in families]
    assert oracle.numbers["gap_1"] == pytest.approx(np.mean(gaps))


def test_all_of_the_row_tells_all_that_is_there(oracle):
    for family in ("token", "position", "document"):
        assert of(oracle, family, "dense", WIDTH) > 0.94
    assert oracle.numbers["auroc_dense"] >= max(oracle.numbers[f"auroc_raw_{k}"] for k in (1, 2, 5, 16))
    assert of(oracle, "position", "codes", 16) < of(oracle, "position", "dense", WIDTH)  # no atom of it fires


def test_more_features_tell_no_less(oracle):
    for features in ("codes", "raw", "random"):
        told = [oracle.numbers[f"auroc_{features}_{k}"] for k in (1, 2, 5, 16)]
        assert all(later > earlier - 0.01 for earlier, later in pairwise(told))


def test_shuffled_labels_tell_nothing(oracle):
    table = oracle.tables["tasks"]
    nulls = [table["auroc"][i] for i in range(len(table["k"])) if table["features"][i] == "shuffled"]
    assert np.mean(nulls) == pytest.approx(0.5, abs=0.06)
    assert of(oracle, "position", "shuffled", 16) == pytest.approx(0.5, abs=0.1)


def test_codes_that_know_nothing_tell_nothing(store):
    found = section(use(store, Noise()))
    for k in (1, 2, 5, 16):
        assert found.numbers[f"auroc_codes_{k}"] == pytest.approx(0.5, abs=0.06)
    assert found.numbers["auroc_raw_16"] > 0.8


def test_what_is_reported(oracle):
    assert oracle.numbers["tasks"] == TOKENS + 1 + 8
    assert (oracle.numbers["train_rows"], oracle.numbers["held_out_rows"]) == (3000, 1500)
    for table in oracle.tables.values():
        assert len({len(column) for column in table.values()}) == 1
        assert all(isinstance(value, (float, str)) for column in table.values() for value in column)
    assert len(oracle.tables["tasks"]["k"]) == 15 * (4 * 4 + 1)
    assert [note for note in oracle.notes if "earlier half" in note] == list(oracle.notes)
    mean = np.mean([of(oracle, family, "codes", 2) for family in ("token", "position", "document")])
    assert oracle.numbers["auroc_codes_2"] == pytest.approx(mean)


def test_documents_are_scored_on_positions_not_fitted_on(store):
    check = use(store, Oracle())
    judge(check)
    sample = check._samples["val"].gather()
    tasks, fit, score = check._document_tasks(sample)
    about = labels("val")
    assert set(fit.index).isdisjoint(score.index)
    for document in {int(task.name) for task in tasks}:
        halves = [part.index[about["doc_id"][part.index] == document] for part in (fit, score)]
        assert about["position"][halves[0]].max() < about["position"][halves[1]].min()
        assert [len(half) for half in halves] == [30, 30]
    for task in tasks:
        assert (task.fit == (about["doc_id"][fit.index] == int(task.name))).all()
        assert (task.score == (about["doc_id"][score.index] == int(task.name))).all()


def test_token_labels_are_those_of_the_rows(store):
    check = use(store, Oracle(), probe_rows=400)
    judge(check)
    train, held_out = (check._samples[split].gather() for split in ("train", "val"))
    assert len(train.index) == len(held_out.index) == 400
    for task in check._token_tasks(train, held_out):
        assert (task.fit == (labels("train")["token_id"][train.index] == int(task.name))).all()
        assert torch.equal(torch.from_numpy(held_out.rows), rows_of("val")[held_out.index])


def test_rows_are_bounded_by_the_settings(store):
    found = section(use(store, Oracle(), probe_rows=600))
    assert (found.numbers["train_rows"], found.numbers["held_out_rows"]) == (600, 600)
    wide = use(store, Oracle(), probe_rows=10**9, memory_mib=1)
    assert wide.limit == 2**20 // (8 * (4 * WIDTH + 8 * WIDTH))  # its L0 is not known: each atom may fire
    steered = Oracle()
    steered.target_l0 = 2.0
    assert use(store, steered, probe_rows=10**9, memory_mib=1).limit == 2**20 // (8 * (4 * WIDTH + 8 * 8))
    assert any("as many as memory_mib=1 holds" in note for note in section(wide).notes)


def test_families_without_classes_are_named(store):
    found = section(use(store, Oracle(), probe_rows=100))
    assert any(note.startswith("Not probed for document") for note in found.notes)
    with pytest.raises(AtomsError, match="no token, position or document has 10 rows"):
        judge(use(store, Oracle(), probe_rows=12))


def test_a_store_without_tokens_says_so(tmp_path):
    path = write(tmp_path / "store", known=False)
    with pytest.raises(AtomsError, match=r"does not say which tokens its rows are \(token_id is -1\)"):
        use(path, Oracle())


def test_rows_of_one_split_alone_are_not_enough(store):
    with pytest.raises(AtomsError, match="training rows to fit on and held-out rows to score on"):
        use(store, Oracle()).compute()


def test_the_same_numbers_twice(store):
    first, second = (section(use(store, Oracle(), probe_rows=500)) for _ in range(2))
    assert first == second


def everything(rank: int | None, store: str) -> Section:
    """What is found by this rank, or alone; an odd number of batches of held-out rows."""
    check = use(store, Oracle(), probe_rows=500, batch_rows=300)
    return check.report({"use": find(check, rank=rank or 0, world_size=1 if rank is None else 2)})


def test_two_ranks_find_what_one_finds(store, tmp_path):
    assert in_a_group(everything, tmp_path, str(store)) == [everything(None, str(store))] * 2


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(5, 60))
def test_correlations_are_those_of_the_features(seed, count):
    """Sparse, dense and projected features alike; one that never changes has none."""
    generator = np.random.default_rng(seed)
    codes = np.where(generator.random((count, 5)) < 0.5, generator.standard_normal((count, 5)), 0).astype(np.float32)
    codes[:, 2] = 3
    sample = Sampled(np.arange(count), (codes[:, :4] + 1).astype(np.float32), sparse.csr_matrix(codes))
    answers = np.arange(count) % 3 == 0
    readers = generator.standard_normal((6, 4))
    for features in (_codes(sample, sample), _raw(sample, sample), _projections(sample, sample, readers)):
        found = features.correlations(answers)
        fitted, scored = features.columns(np.arange(len(found)))
        assert np.array_equal(fitted, scored)
        moving = features.deviation > 0
        assert np.allclose(fitted.mean(0), 0, atol=1e-4)
        assert np.allclose(fitted.std(0)[moving], 1, atol=1e-4)
        expected = [np.corrcoef(column, answers)[0, 1] for column in fitted.T[moving]]
        assert np.allclose(found[moving], expected, atol=1e-4)
        assert (found[~moving] == 0).all()
    assert _codes(sample, sample).deviation[2] == 0


def test_scores_by_hand():
    """A feature that is right on three rows of four."""
    x = np.array([[-1.0], [-1.0], [1.0], [1.0]] * 20)
    y = np.array([False, False, True, True] * 20)
    task = Task("token", "7", y, np.array([False, True, True, True]))
    found = _scored(task, "codes", 1, x, y, np.array([[-1.0], [-1.0], [1.0], [1.0]]))
    assert found.accuracy == 0.75
    assert found.majority == 0.75
    assert found.f1 == pytest.approx(2 * 2 / (2 + 3))
    assert found.auroc == pytest.approx(2 / 3 + 1 / 3 / 2)
