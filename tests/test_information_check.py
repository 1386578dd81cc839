"""Bits of rows and labels: atoms that are the token tell all of it, atoms that know nothing tell none."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from forked import in_a_group
from judging import Given, Projections, dead, dense, find, judge, subject_of

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.grid import Grid
from atoms.activations.store import StoreSpec, StoreWriter
from atoms.activations.writer import moments_name
from atoms.checks.claim import Section, Verdict
from atoms.checks.information import check as module
from atoms.checks.information.check import Information, Told
from atoms.errors import AtomsError
from atoms.geometry import Moments
from atoms.sae import SparseCodes
from atoms.units import Unit

SITE, WIDTH = "site", 16
TOKENS, LENGTH, PER_DOCUMENT = 6, 20, 60
ROWS = {"train": 1200, "val": 720}
SEARCH = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(7)).double()
AXES = torch.linalg.qr(SEARCH).Q.float()  # tokens, then position, then documents modulo eight; the last is noise
BITS = math.log2(TOKENS)
QUICK = {"bootstrap": 20, "classes": 24}
ARMS = ("codes", "random", "shuffled")


def labels(split: str) -> dict[str, np.ndarray]:
    """Documents of three sequences of 20 tokens; no document is in both splits."""
    index = np.arange(ROWS[split])
    token = np.random.default_rng(len(split)).permutation(index) % TOKENS + 100
    first = 0 if split == "train" else 1000
    return {"token_id": token, "doc_id": first + index // PER_DOCUMENT, "position": index % LENGTH}


def rows_of(split: str, noise: float = 0.3, tokens_alone: bool = False) -> torch.Tensor:
    """Every label stands on axes of its own, beneath noise."""
    about, count = labels(split), ROWS[split]
    generator = torch.Generator().manual_seed(100 + len(split))
    coordinates = noise * torch.randn(count, WIDTH, generator=generator)
    coordinates[torch.arange(count), torch.from_numpy(about["token_id"] - 100)] += 3
    if not tokens_alone:
        coordinates[:, TOKENS] += torch.from_numpy(about["position"] >= LENGTH // 2)
        coordinates[torch.arange(count), TOKENS + 1 + torch.from_numpy(about["doc_id"] % 8)] += 3
    return 2 + coordinates @ AXES.T


def write(path, rows=rows_of, **unknown: bool):
    """A store; of what is unknown every row says -1."""
    spec = StoreSpec({SITE: WIDTH}, "float32", ROWS, Grid(chunk_rows=128, shard_rows=256, block_rows=512), 0)
    writer = StoreWriter.create(path, spec)
    values = {split: rows(split) for split in ROWS}
    for span in spec.spans:
        about = {name: column[span.start : span.stop] for name, column in labels(span.split).items()}
        about |= {name: np.full(span.rows, -1) for name in unknown}
        writer.write_block(span, {SITE: values[span.split][span.start : span.stop]}, **about)
    writer.write_file(moments_name(SITE), Moments.from_rows(values["train"]).to_bytes())
    writer.finalise()
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write(tmp_path_factory.mktemp("information") / "store")


@pytest.fixture(scope="module")
def clusters(tmp_path_factory):
    """A store of six tight clusters that says nothing of its rows."""
    path = tmp_path_factory.mktemp("clusters") / "store"
    return write(path, partial(rows_of, noise=0.05, tokens_alone=True), token_id=True, doc_id=True, position=True)


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


def information(store, unit: Unit, **asked) -> Information:
    data = ActivationDataModule(store=str(store), batch_size=8)
    return Information(subject_of(unit, data, SITE, **{"train_rows": ROWS["train"], **QUICK, **asked}))


def section(store, unit: Unit, **asked) -> Section:
    return judge(information(store, unit, **asked))[1]


def claims(found: Section) -> dict:
    return {claim.name: claim for claim in found.claims}


@pytest.fixture(scope="module")
def judged(store) -> tuple[Information, Told, Section]:
    check = information(store, Oracle())
    return check, *judge(check)


@pytest.fixture(scope="module")
def oracle(judged) -> Section:
    return judged[2]


@pytest.fixture
def tokens_alone(monkeypatch):
    """Nothing else is asked, where nothing else matters."""
    original = module.questions
    monkeypatch.setattr(module, "questions", lambda *given: (q for q in original(*given) if q.name == "token"))


# ------------------------------------------------------------------------------------------ labels


def test_atoms_that_are_the_token_tell_all_of_it(oracle):
    numbers = oracle.numbers
    assert numbers["token_classes"] == TOKENS + 1
    assert numbers["token_bits"] == pytest.approx(BITS, abs=0.01)
    assert numbers["token_told"] == pytest.approx(BITS, abs=0.1)
    assert numbers["token_left"] == pytest.approx(numbers["token_bits"] - numbers["token_told"])
    assert numbers["token_error"] == 0
    assert numbers["token_fano"] < 0.03
    assert numbers["token_told_low"] <= numbers["token_told"] <= numbers["token_told_high"]


def test_with_an_atom_each(oracle):
    """The last token is where no other is."""
    for k in (1, 5):
        left = (TOKENS - k) / TOKENS * math.log2(TOKENS - k)
        assert oracle.numbers[f"token_told_{k}"] == pytest.approx(BITS - left, abs=0.03)
    table = oracle.tables["greedy"]
    taken = [
        (table["k"][row], table["atom"][row])
        for row in range(len(table["k"]))
        if (table["label"][row], table["features"][row]) == ("token", "codes")
    ]
    assert [k for k, _ in taken] == [1, 2, 3, 4, 5]
    assert len({atom for _, atom in taken}) == 5
    assert {atom for _, atom in taken} <= set(range(TOKENS))


def test_atoms_that_are_functions_of_the_token(oracle):
    claim = claims(oracle)["token"]
    alone = -sum(p * math.log2(p) for p in (1 / TOKENS, 1 - 1 / TOKENS))
    assert oracle.numbers["token_functions"] == claim.value == TOKENS
    assert oracle.numbers["token_rajski_min"] == pytest.approx(1 - alone / BITS, abs=0.01)
    assert claim.verdict is Verdict.NOT_GUARANTEED
    assert "6 of 15 atoms that fire are functions of the token" in claim.why  # the others are of documents, or noise
    assert claim.inputs == {"told": oracle.numbers["token_told"], "bits": oracle.numbers["token_bits"]}
    assert claim.nulls == {
        "random directions": oracle.numbers["token_told_random"],
        "shuffled labels": oracle.numbers["token_told_shuffled"],
    }
    table = oracle.tables["token codes"]
    assert table["atom"] == [float(atom) for atom in range(WIDTH - 1)]
    assert table["rajski"][:TOKENS] == pytest.approx([1 - alone / BITS] * TOKENS, abs=0.01)
    assert min(table["rajski"][TOKENS:]) > 0.98


def test_documents_are_told_and_positions_not(oracle):
    numbers = oracle.numbers
    assert numbers["document_classes"] == 8
    assert numbers["document_bits"] == pytest.approx(3, abs=0.02)
    assert numbers["document_told"] == pytest.approx(3, abs=0.35)  # a decoder of few rows to fit to
    assert numbers["document_error"] == 0
    assert numbers["document_functions"] == 8
    assert abs(numbers["position_told"]) < 0.03
    assert numbers["position_functions"] == 0
    assert numbers["position_told_row"] > 0.2  # it is there


def test_random_directions_tell_less_and_shuffled_labels_nothing(oracle):
    numbers = oracle.numbers
    for label in ("token", "document"):
        assert 0.1 < numbers[f"{label}_told_random"] < 0.8 * numbers[f"{label}_told"]
        assert numbers[f"{label}_told_5_random"] < numbers[f"{label}_told_5"]
        assert numbers[f"{label}_rajski_min_random"] > numbers[f"{label}_rajski_min"]
        assert numbers[f"{label}_functions_random"] == 0
        assert numbers[f"{label}_error_random"] > numbers[f"{label}_error"]
    for label in ("token", "document", "position"):
        assert numbers[f"{label}_told_shuffled"] == pytest.approx(0, abs=0.2 if label == "document" else 0.03)
        assert -0.05 < numbers[f"{label}_told_1_shuffled"] < 0.05
        assert -0.3 < numbers[f"{label}_told_5_shuffled"] < 0.2  # of few rows with the same signs
        assert numbers[f"{label}_rajski_min_shuffled"] > 0.95
        assert numbers[f"{label}_functions_shuffled"] == 0


def test_codes_that_know_nothing_tell_nothing_beyond_controls(store, oracle):
    found = section(store, Noise())
    numbers = found.numbers
    for label in ("token", "document", "position"):
        assert -0.03 < numbers[f"{label}_told"] < 0.03
        assert -0.05 < numbers[f"{label}_told_1"] < 0.05
        assert -0.3 < numbers[f"{label}_told_5"] < 0.1  # of few rows with the same signs
        assert numbers[f"{label}_functions"] == 0
        assert numbers[f"{label}_rajski_min"] > 0.95
        assert numbers[f"{label}_bits"] == oracle.numbers[f"{label}_bits"]
        assert numbers[f"{label}_told_row"] == oracle.numbers[f"{label}_told_row"]
    assert numbers["token_told"] < numbers["token_told_random"]
    assert numbers["token_told_row"] > 2
    claim = claims(found)["token"]
    assert claim.verdict is Verdict.NOT_APPLICABLE
    assert claim.value == 0
    assert "so the condition on distances speaks of none" in claim.why


# ------------------------------------------------------------------------------------------ classes


def test_an_atom_a_cluster_determines_the_class(clusters):
    found = section(clusters, Oracle(), classes=TOKENS)
    (claim,) = found.claims
    assert (claim.name, claim.verdict, claim.value, claim.threshold) == ("classes", Verdict.GUARANTEED, 0, 0)
    assert claim.statement.startswith("Which of 6 classes a row is in follows from which atoms fire")
    assert claim.computed_on == "720 held-out rows, 6 representatives among training rows"
    assert claim.inputs["atoms"] == 6
    assert claim.inputs["slack"] == pytest.approx(claim.inputs["redundancy"], abs=1e-9)
    numbers = found.numbers
    alone = -sum(p * math.log2(p) for p in (1 / TOKENS, 1 - 1 / TOKENS))
    assert numbers["classes"] == 6
    assert numbers["class_bits"] == pytest.approx(BITS)
    assert numbers["class_gap"] == 0
    assert numbers["class_slack"] == pytest.approx(6 * alone - BITS)
    assert numbers["class_redundancy"] == pytest.approx(6 * alone - BITS)
    assert numbers["class_rajski"] == numbers["class_rajski_min"] == pytest.approx(1 - alone / BITS)
    assert numbers["class_atoms"] == 5
    assert numbers["class_told_1"] == pytest.approx(alone)
    assert numbers["class_told_5"] == numbers["class_told_64"] == pytest.approx(BITS)
    assert numbers["class_of_firing"] == pytest.approx(1)
    assert numbers["class_functions"] == 6
    assert numbers["class_functions_random"] < 6
    table = found.tables["classes"]
    own = [row for row in range(len(table["k"])) if table["features"][row] == "codes"]
    assert [table["k"][row] for row in own] == [1, 2, 3, 4, 5]
    assert {table["atom"][row] for row in own} <= set("012345")
    told = [BITS - (6 - k) / 6 * math.log2(6 - k) for k in range(1, 6)]
    assert [table["bits"][row] for row in own] == pytest.approx(told)


def test_a_dead_unit_tells_no_classes_apart(clusters):
    found = section(clusters, dead(WIDTH), classes=TOKENS)
    (claim,) = found.claims
    assert claim.verdict is Verdict.NOT_APPLICABLE
    assert claim.why == "no atom tells any two classes apart"
    assert claim.value is None
    assert "class_gap" not in found.numbers
    assert "class_gap_random" in found.numbers
    assert claim.nulls == {"random directions": found.numbers["class_gap_random"]}


def test_too_few_atoms_are_ruled_out(clusters):
    unit = Given(AXES.T[:1], lambda rows: (rows @ AXES[:, :1] - 1.5).relu(), centre=torch.full((WIDTH,), 2.0))
    (claim,) = section(clusters, unit, classes=TOKENS).claims
    assert claim.verdict is Verdict.REFUTED
    assert claim.value == pytest.approx(5 / 6 * math.log2(5))
    assert "too far from class" in claim.why
    assert claim.inputs["slack"] < 0


def test_the_same_atom_twice_meets_the_condition_and_is_refuted_by_a_witness(clusters):
    """Three times the same bit is as many bits as there are to tell."""
    readers = AXES[:, :3].sum(1, keepdim=True).repeat(1, 3)
    unit = Given(readers.T, lambda rows: (rows @ readers - 1.5).relu(), centre=torch.full((WIDTH,), 2.0))
    (claim,) = section(clusters, unit, classes=TOKENS).claims
    assert claim.verdict is Verdict.REFUTED
    assert claim.value == pytest.approx(math.log2(3))
    assert "have the same components" in claim.why
    assert claim.inputs["slack"] == pytest.approx(3 - BITS)


def test_fewer_classes_than_asked_for_are_said(oracle, clusters):
    assert oracle.numbers["classes"] == 24
    assert not any("classes, as many as" in note for note in oracle.notes)
    found = section(clusters, Oracle(), classes=1000)
    assert found.numbers["classes"] <= 720 // 20
    assert any(note.startswith(f"There are {found.numbers['classes']:.0f} classes, as") for note in found.notes)


# ------------------------------------------------------------------------------------------ purposes


def test_no_row_serves_two_purposes_and_no_group_two_splits(judged):
    check, told, _ = judged
    train, held_out = check.subject.train.groups(), check.subject.held_out.groups()
    assert set(train).isdisjoint(held_out)
    for label in told.labels:
        question = label.question
        fit, select, score = (
            part.sample.index[part.chosen] for part in (question.fit, question.select, question.score)
        )
        assert set(fit).isdisjoint(select)
        if question.name == "document":
            assert set(score).isdisjoint({*fit, *select})
            assert question.fit.sample is question.score.sample
        else:
            assert set(train[fit]).isdisjoint(train[select])
            assert question.score.sample is not question.fit.sample
            assert len(score) == ROWS["val"]
            assert len(fit) + len(select) == ROWS["train"]
            assert (question.score.labels >= 0).all()


def test_rows_are_bounded_by_the_settings(clusters):
    found = section(clusters, Oracle(), probe_rows=500)
    assert (found.numbers["train_rows"], found.numbers["held_out_rows"]) == (500, 500)
    wide = information(clusters, Oracle(), probe_rows=10**9, memory_mib=1)
    assert wide.limit == 2**20 // (8 * (4 * WIDTH + 8 * WIDTH))  # its L0 is not known: each atom may fire
    _, found = judge(wide)
    assert (found.numbers["train_rows"], found.numbers["held_out_rows"]) == (wide.limit, wide.limit)
    assert any("as many as memory_mib=1 holds" in note for note in found.notes)


# ------------------------------------------------------------------------------------------ what is reported


def test_what_is_reported(oracle):
    assert (oracle.name, oracle.title) == ("information", "Information: bits of rows and labels")
    assert [claim.name for claim in oracle.claims] == ["classes", "token"]
    assert all("2306.15540" in claim.source for claim in oracle.claims)
    assert (oracle.numbers["train_rows"], oracle.numbers["held_out_rows"]) == (1200, 720)
    kinds = ("token", "position", "document")
    assert oracle.tables.keys() == {
        "classes", "greedy", "decoders", *(f"{kind} {arm}" for kind in kinds for arm in ARMS),
    }  # fmt: skip
    for kind in kinds:
        for name in (
            "classes", "rows", "bits", "told", "told_low", "told_high", "told_random", "told_random_low",
            "told_random_high", "told_shuffled", "told_row", "left", "error", "fano", "error_random", "told_1",
            "told_5", "told_1_random", "told_5_random", "told_1_shuffled", "told_5_shuffled", "rajski_min",
            "rajski_min_random", "rajski_min_shuffled", "functions", "functions_random", "functions_shuffled",
        ):  # fmt: skip
            assert f"{kind}_{name}" in oracle.numbers
    decoders = oracle.tables["decoders"]
    lines = list(zip(decoders["label"], decoders["features"], strict=True))
    assert lines == [(kind, arm) for kind in kinds for arm in (*ARMS, "row")]
    for line, (kind, arm) in enumerate(lines):
        assert decoders["told"][line] == pytest.approx(decoders["bits"][line] - decoders["left"][line])
        assert decoders["bits"][line] == oracle.numbers[f"{kind}_bits"]
        suffix = "" if arm == "codes" else f"_{arm}"
        assert decoders["told"][line] == pytest.approx(oracle.numbers[f"{kind}_told{suffix}"])
    assert oracle.notes == ()


def test_atoms_shown_are_so_many_evenly_spread(store, tokens_alone, monkeypatch):
    monkeypatch.setattr(module, "_SHOWN", 4)
    found = section(store, Oracle(), probe_rows=300)
    assert found.tables["token codes"]["atom"] == [0.0, 3.0, 7.0, 11.0]  # of the fifteen that fire


def test_codes_of_either_sign(store, tokens_alone):
    """All coordinates of the row, of which the signs are looked at."""
    found = section(store, dense(WIDTH))
    assert any("Nearly all atoms fire on every row" in note for note in found.notes)
    assert found.numbers["token_told"] == pytest.approx(found.numbers["token_told_row"], abs=0.3)
    rates = found.tables["token codes"]["rate"]
    assert min(rates) > 0.99
    assert min(found.tables["token random"]["rate"]) > 0.99  # the control has as many, of either sign
    assert found.numbers["token_functions"] == 0


def test_signs_are_what_is_looked_at(clusters):
    """Atoms that fire on all rows, negative on half of the clusters, are told apart from atoms that never change."""
    signs = torch.tensor([[-1.0, 1, -1], [-1, 1, 1], [-1, -1, -1], [1, -1, 1], [1, 1, -1], [1, -1, -1]])
    readers = AXES[:, :TOKENS] @ signs
    unit = Given(readers.T, lambda rows: rows @ readers, centre=torch.full((WIDTH,), 2.0))
    (claim,) = section(clusters, unit, classes=TOKENS).claims
    assert claim.verdict is Verdict.GUARANTEED
    assert claim.inputs["atoms"] == 3


def test_the_random_control_is_as_sparse(judged):
    _, told, found = judged
    rates = found.tables["token random"]["rate"]
    assert sum(rates) == pytest.approx(round(told.per_row), abs=0.05)
    assert sum(found.tables["token codes"]["rate"]) == pytest.approx(told.per_row)
    assert told.per_row == pytest.approx(2, abs=0.05)


# ------------------------------------------------------------------------------------------ what cannot be asked


def test_a_store_that_knows_nothing_of_its_rows(clusters):
    found = section(clusters, Oracle(), classes=TOKENS)
    assert found.notes == (
        "Not asked for token, position, document: the store does not know it of its rows, or no two classes have 10 "
        "rows to fit to and to score on.",
    )
    assert [claim.name for claim in found.claims] == ["classes"]
    assert found.tables.keys() == {"classes"}


def test_positions_of_rows_whose_documents_are_not_known(tmp_path):
    """All might be of one: none can be set aside to choose by."""
    found = section(write(tmp_path / "store", token_id=True, doc_id=True), Oracle())
    assert found.notes[0].startswith("Not asked for token, position, document: ")


def test_labels_without_classes(store, tokens_alone):
    found = section(store, Oracle(), classes=1, probe_rows=300)
    assert found.numbers["classes"] == 0
    assert [claim.verdict for claim in found.claims] == [Verdict.NOT_APPLICABLE, Verdict.NOT_GUARANTEED]
    assert found.claims[0].value is None
    assert found.claims[0].nulls == {}
    assert "classes" not in found.tables


def test_too_few_rows(store, clusters):
    with pytest.raises(AtomsError) as error:
        section(store, Oracle(), probe_rows=12)
    assert str(error.value) == (
        "12 training and 12 held-out rows make no two classes and no two labels with rows enough: judge more rows "
        "(checks.rows, checks.probe_rows)"
    )
    with pytest.raises(AtomsError, match="39 training and 39 held-out rows make no two classes"):
        section(clusters, Oracle(), probe_rows=39)


def test_rows_of_one_split_alone_are_not_enough(store):
    for splits in ((), ("val",), ("train",)):
        with pytest.raises(AtomsError, match="there must be training rows to learn classes and labels from"):
            find(information(store, Oracle()), splits)


# ------------------------------------------------------------------------------------------ again


def test_the_same_numbers_twice_and_others_with_another_seed(store):
    first, second, other = (section(store, Oracle(), probe_rows=300, seed=seed) for seed in (0, 0, 1))
    assert repr(first) == repr(second)  # NaN is no equal of itself
    assert other.numbers["token_told_random"] != first.numbers["token_told_random"]
    assert other.numbers["token_told"] == pytest.approx(first.numbers["token_told"], abs=0.1)


def everything(rank: int | None, store: str) -> Section:
    """What is found by this rank, or alone; an odd number of batches of held-out rows."""
    check = information(store, Oracle(), probe_rows=200, batch_rows=300)
    return check.report({"information": find(check, rank=rank or 0, world_size=1 if rank is None else 2)})


def test_two_ranks_find_what_one_finds(store, tmp_path):
    found = in_a_group(everything, tmp_path, str(store))
    assert list(map(repr, found)) == [repr(everything(None, str(store)))] * 2
