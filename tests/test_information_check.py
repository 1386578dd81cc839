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
from atoms.checks.information import numbers as tables
from atoms.checks.information.check import Information, Told
from atoms.checks.information.label_told import CODES, COORDINATES, RANDOM, SHUFFLED, WHOLE
from atoms.checks.information.label_told import ROWS as ROWS_AS_DIRECTIONS
from atoms.errors import AtomsError
from atoms.geometry import Moments
from atoms.information.reconstruction import Verdict as Outcome
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
ALONE = -sum(p * math.log2(p) for p in (1 / TOKENS, 1 - 1 / TOKENS))  # bits of an atom that is a token


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


def write(path, rows=rows_of, one_document: bool = False, **unknown: bool):
    """A store; of what is unknown every row says -1. Each split may be a single document."""
    spec = StoreSpec({SITE: WIDTH}, "float32", ROWS, Grid(chunk_rows=128, shard_rows=256, block_rows=512), 0)
    writer = StoreWriter.create(path, spec)
    values = {split: rows(split) for split in ROWS}
    for span in spec.spans:
        about = {name: column[span.start : span.stop] for name, column in labels(span.split).items()}
        about |= {name: np.full(span.rows, -1) for name in unknown}
        if one_document:
            about["doc_id"] = np.full(span.rows, 1000 * (span.split == "val"))
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
    assert numbers["token_left"] > 0
    assert math.isnan(numbers["token_fano"])  # a decoder that errs nowhere leaves bits, and bounds nothing by them
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
    assert oracle.numbers["token_functions"] == TOKENS
    assert oracle.numbers["token_rajski_min"] == pytest.approx(1 - ALONE / BITS, abs=0.01)
    table = oracle.tables["token codes"]
    assert table["atom"] == [float(atom) for atom in range(WIDTH - 1)]
    assert table["rajski"][:TOKENS] == pytest.approx([1 - ALONE / BITS] * TOKENS, abs=0.01)
    assert min(table["rajski"][TOKENS:]) > 0.98
    assert table["information"][:TOKENS] == pytest.approx([ALONE] * TOKENS, abs=0.01)
    assert max(map(abs, table["information"][TOKENS:])) < 0.02


def test_documents_are_told_and_positions_not(oracle):
    numbers = oracle.numbers
    assert numbers["document_classes"] == 8
    assert numbers["document_bits"] == pytest.approx(3, abs=0.02)
    assert numbers["document_told"] == pytest.approx(3, abs=0.35)  # a decoder of few rows to fit to
    assert numbers["document_error"] == 0
    assert numbers["document_functions"] == 8
    assert abs(numbers["position_told"]) < 0.03
    assert numbers["position_functions"] == 0
    assert numbers["position_told_whole"] > 0.2  # it is there
    assert numbers["document_told"] <= numbers["document_bits"]


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
        assert numbers[f"{label}_told_whole"] == oracle.numbers[f"{label}_told_whole"]
    assert numbers["token_told"] < numbers["token_told_random"]
    assert numbers["token_told_whole"] > 2
    claim = claims(found)["token"]
    assert claim.verdict is Verdict.NOT_APPLICABLE
    assert claim.value == 0
    assert claim.why == "none of 16 atoms that fire on 10 rows or more is a function of the token"


# ----------------------------------------------------------------------------------------- the token from its functions


def test_the_token_follows_from_an_atom_each(oracle):
    (claim,) = oracle.claims
    assert (claim.name, claim.verdict, claim.value) == ("token", Verdict.GUARANTEED, TOKENS)
    assert claim.statement == "Which of 7 classes of tokens a row has follows from the atoms that are functions of it."
    assert claim.computed_on == "720 held-out rows"
    assert claim.inputs == {"told": oracle.numbers["token_told"], "bits": oracle.numbers["token_bits"]}
    assert claim.nulls == {
        "random directions": oracle.numbers["token_told_random"],
        "training rows as directions": oracle.numbers["token_told_rows"],
        "shuffled labels": oracle.numbers["token_told_shuffled"],
    }


def tokens_told_by(*groups: tuple[int, ...]) -> Unit:
    """An atom for every group of tokens, which fires where the token is one of them."""
    atoms = torch.stack([AXES[:, list(group)].sum(1) for group in groups])

    def codes(rows: torch.Tensor) -> torch.Tensor:
        return torch.stack([(rows @ AXES[:, list(group)]).amax(1) - 1.5 for group in groups], 1).relu()

    return Given(atoms, codes, centre=torch.full((WIDTH,), 2.0))


@pytest.mark.parametrize(
    ("groups", "verdict"),
    [
        ([(0,), (1,), (2,), (3,), (4,)], Verdict.GUARANTEED),  # the last token is where no other is
        ([(1, 3, 5), (2, 3), (4, 5)], Verdict.GUARANTEED),  # in code
        ([(0,), (1,), (2,), (3,)], Verdict.REFUTED),
        ([(0,)], Verdict.REFUTED),
        ([(0, 1, 2)] * 4, Verdict.REFUTED),  # the condition is met, and the token is not determined
    ],
)
def test_whether_the_token_follows_is_whether_atoms_tell_all_tokens_apart(store, tokens_alone, groups, verdict):
    found = section(store, tokens_told_by(*groups), classes=1)
    (claim,) = found.claims
    assert found.numbers["token_functions"] == claim.value == len(groups)
    assert claim.verdict is verdict
    patterns = {tuple(token in group for group in groups) for token in range(TOKENS)}
    assert (verdict is Verdict.GUARANTEED) == (len(patterns) == TOKENS)


def test_atoms_that_hardly_fire_are_no_functions_to_go_by(store, tokens_alone, monkeypatch):
    """On a few rows any atom is one: it must fire on so many."""
    assert module.LEAST == 10
    check = information(store, Oracle(), classes=1, probe_rows=300)
    told, found = judge(check)
    assert found.claims[0].value == TOKENS
    (label,) = told.labels
    scored = np.bincount(label.question.score.labels, minlength=TOKENS)[:TOKENS]
    outcomes = set()
    for least in range(scored.min(), scored.max() + 2):
        monkeypatch.setattr(module, "LEAST", least)
        verdict, why, functions = check._token(label, label.question.score.sample)
        assert functions == (scored >= least).sum()
        told_apart = {0: Verdict.NOT_APPLICABLE, 5: Verdict.GUARANTEED, 6: Verdict.GUARANTEED}
        assert verdict is told_apart.get(functions, Verdict.REFUTED)
        assert why
        outcomes.add(verdict)
    assert outcomes == {Verdict.NOT_APPLICABLE, Verdict.GUARANTEED, Verdict.REFUTED}


def test_only_the_atoms_that_tell_most_of_the_token_are_put_together(store, tokens_alone, monkeypatch):
    monkeypatch.setattr(module, "_FUNCTIONS", 3)
    unit = tokens_told_by((0,), (1,), (1, 3, 5), (2, 3), (4, 5))
    (claim,) = section(store, unit, classes=1).claims
    assert (claim.verdict, claim.value) == (Verdict.GUARANTEED, 5)
    monkeypatch.setattr(module, "_FUNCTIONS", 2)
    (claim,) = section(store, unit, classes=1).claims
    assert (claim.verdict, claim.value) == (Verdict.REFUTED, 5)


# ------------------------------------------------------------------------------------------ classes


def test_an_atom_a_cluster_determines_the_class(clusters):
    check = information(clusters, Oracle(), classes=TOKENS)
    told, found = judge(check)
    assert found.claims == ()  # coins that tell rows apart would earn it as well
    assert told.classes[CODES].found.verdict is Outcome.PERFECT
    assert told.classes[CODES].searched == 6
    numbers = found.numbers
    assert numbers["classes"] == 6
    assert numbers["class_bits"] == pytest.approx(BITS)
    assert numbers["class_gap"] == 0
    assert numbers["class_slack"] == pytest.approx(6 * ALONE - BITS)
    assert numbers["class_redundancy"] == pytest.approx(6 * ALONE - BITS)
    assert numbers["class_rajski"] == numbers["class_rajski_min"] == pytest.approx(1 - ALONE / BITS)
    assert numbers["class_atoms"] == 5
    assert numbers["class_told_1"] == pytest.approx(ALONE)
    assert numbers["class_told_5"] == numbers["class_told_64"] == pytest.approx(BITS)
    assert numbers["class_of_firing"] == pytest.approx(1)
    assert numbers["class_functions"] == 6
    assert numbers["class_functions_random"] < 6
    assert numbers["class_functions_shuffled"] == 0
    table = found.tables["classes"]
    own = [row for row in range(len(table["k"])) if table["features"][row] == "codes"]
    assert [table["k"][row] for row in own] == [1, 2, 3, 4, 5]
    assert {table["atom"][row] for row in own} <= set("012345")
    told = [BITS - (6 - k) / 6 * math.log2(6 - k) for k in range(1, 6)]
    assert [table["bits"][row] for row in own] == pytest.approx(told)


def test_signs_dealt_to_other_classes_keep_their_rates(clusters, monkeypatch):
    """Every atom by itself fires on as many classes as before, and on others."""
    given = []
    original = module.classes_told

    def spying(classes, on_representatives, on_rows):
        given.append((classes, on_representatives, on_rows))
        return original(classes, on_representatives, on_rows)

    monkeypatch.setattr(module, "classes_told", spying)
    signs = torch.tensor([[-1.0, 1, -1], [-1, 0, 1], [-1, -1, -1], [-1, -1, 0], [1, 1, -1], [1, -1, -1]])
    readers = AXES[:, :TOKENS] @ signs
    unit = Given(readers.T, lambda rows: (rows @ readers).round(), centre=torch.full((WIDTH,), 2.0))
    told, found = judge(information(clusters, unit, classes=TOKENS))
    (own, on_own, codes), (_, on_random, other), (dealt, on_dealt, again) = given
    assert list(told.classes) == [CODES, RANDOM, SHUFFLED]
    assert on_own.dtype == on_dealt.dtype == on_random.dtype == np.int8
    assert on_own.shape == on_dealt.shape == (TOKENS, 3)
    assert codes is again is not other
    for before, after in zip(on_own.T, on_dealt.T, strict=True):
        assert sorted(before) == sorted(after)
        assert sorted(before) != sorted(-before)  # their order matters
    assert (on_own != on_dealt).any()
    assert len({tuple(np.flatnonzero(column)) for column in (on_own != on_dealt).T}) > 1  # each by lots of its own
    assert np.array_equal(np.bincount(own.of_held_out), np.bincount(dealt.of_held_out))
    assert (own.of_held_out != dealt.of_held_out).mean() > 0.7
    entropies = [[part.entropy for part in told.classes[arm].found.components] for arm in (CODES, SHUFFLED)]
    assert entropies[0] == pytest.approx(entropies[1], abs=1e-9)  # as clusters are of equal size
    assert found.numbers["class_bits_shuffled"] == pytest.approx(found.numbers["class_bits"])
    assert found.numbers["class_of_firing"] == pytest.approx(1)
    assert abs(found.numbers["class_of_firing_shuffled"]) < 0.02
    assert found.numbers["class_functions_shuffled"] == 0 < found.numbers["class_functions"]


def test_a_dead_unit_tells_no_classes_apart(clusters):
    found = section(clusters, dead(WIDTH), classes=TOKENS)
    assert found.claims == ()
    assert "class_gap" not in found.numbers
    assert "class_gap_shuffled" not in found.numbers
    assert "class_gap_random" in found.numbers
    assert set(found.tables["classes"]["features"]) == {"random"}


def test_too_few_atoms_are_ruled_out(clusters):
    unit = Given(AXES.T[:1], lambda rows: (rows @ AXES[:, :1] - 1.5).relu(), centre=torch.full((WIDTH,), 2.0))
    told, found = judge(information(clusters, unit, classes=TOKENS))
    assert told.classes[CODES].found.verdict is Outcome.RULED_OUT
    assert found.numbers["class_gap"] == pytest.approx(5 / 6 * math.log2(5))
    assert found.numbers["class_slack"] < 0
    assert math.isnan(found.numbers["class_atoms"])
    for arm in ("", "_shuffled"):  # a single atom tells as much of whichever class it is dealt to
        assert found.numbers[f"class_told_1{arm}"] == found.numbers[f"class_told_64{arm}"] == pytest.approx(ALONE)


def test_the_same_atom_twice_meets_the_condition_and_is_refuted_by_a_witness(clusters):
    """Three times the same bit is as many bits as there are to tell; dealt apart, it is not the same any more."""
    told, found = judge(information(clusters, tokens_told_by(*[(0, 1, 2)] * 3), classes=TOKENS))
    assert told.classes[CODES].found.verdict is Outcome.NOT_PERFECT
    assert found.numbers["class_gap"] == pytest.approx(math.log2(3))
    assert found.numbers["class_slack"] == pytest.approx(3 - BITS)
    assert found.numbers["class_told_5"] == pytest.approx(1)
    assert found.numbers["class_told_5_shuffled"] > 1.2


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
    assert [claim.name for claim in oracle.claims] == ["token"]
    assert all("2306.15540" in claim.source for claim in oracle.claims)
    assert (oracle.numbers["train_rows"], oracle.numbers["held_out_rows"]) == (1200, 720)
    kinds = ("token", "position", "document")
    assert oracle.tables.keys() == {
        "classes", "greedy", "decoders", *(f"{kind} {arm}" for kind in kinds for arm in ARMS),
    }  # fmt: skip
    for kind in kinds:
        for name in (
            "classes", "rows", "bits", "told", "told_low", "told_high", "told_random", "told_random_low",
            "told_random_high", "told_rows", "told_shuffled", "told_whole", "left", "error", "fano", "error_random",
            *(f"{name}{arm}" for name in ("told_1", "told_5", "rajski_min", "functions")
              for arm in ("", "_random", "_rows", "_coordinates", "_shuffled")),
        ):  # fmt: skip
            assert f"{kind}_{name}" in oracle.numbers
        assert f"{kind}_told_row" not in oracle.numbers
        assert f"{kind}_told_coordinates" not in oracle.numbers  # no decoder: it would be the row's
    decoders = oracle.tables["decoders"]
    lines = list(zip(decoders["label"], decoders["features"], strict=True))
    assert lines == [(kind, arm) for kind in kinds for arm in ("codes", "random", "rows", "whole", "shuffled")]
    for line, (kind, arm) in enumerate(lines):
        assert decoders["told"][line] == pytest.approx(decoders["bits"][line] - decoders["left"][line])
        assert decoders["bits"][line] == oracle.numbers[f"{kind}_bits"]
        suffix = "" if arm == "codes" else f"_{arm}"
        assert decoders["told"][line] == pytest.approx(oracle.numbers[f"{kind}_told{suffix}"])
    assert oracle.notes == ()


def test_atoms_shown_are_so_many_evenly_spread(store, tokens_alone, monkeypatch):
    monkeypatch.setattr(tables, "_SHOWN", 4)
    found = section(store, Oracle(), probe_rows=300)
    assert found.tables["token codes"]["atom"] == [0.0, 3.0, 7.0, 11.0]  # of the fifteen that fire


def test_codes_of_either_sign(store, tokens_alone):
    """All coordinates of the row, of which the signs are looked at."""
    found = section(store, dense(WIDTH))
    assert any("Nearly all atoms fire on every row" in note for note in found.notes)
    assert found.numbers["token_told"] == pytest.approx(found.numbers["token_told_whole"], abs=0.3)
    rates = found.tables["token codes"]["rate"]
    assert min(rates) > 0.99
    assert min(found.tables["token random"]["rate"]) > 0.99  # the control has as many, of either sign
    assert found.numbers["token_functions"] == 0


def test_signs_are_what_is_looked_at(clusters):
    """Atoms that fire on all rows, negative on half of the clusters, are told apart from atoms that never change."""
    signs = torch.tensor([[-1.0, 1, -1], [-1, 1, 1], [-1, -1, -1], [1, -1, 1], [1, 1, -1], [1, -1, -1]])
    readers = AXES[:, :TOKENS] @ signs
    unit = Given(readers.T, lambda rows: rows @ readers, centre=torch.full((WIDTH,), 2.0))
    told, found = judge(information(clusters, unit, classes=TOKENS))
    assert told.classes[CODES].found.verdict is Outcome.PERFECT
    assert (told.classes[CODES].searched, found.numbers["class_atoms"]) == (3, 3)


def test_documents_have_no_interval_and_others_have(oracle):
    """The classes are the groups that would be drawn."""
    for arm in ("told", "told_random"):
        assert math.isnan(oracle.numbers[f"document_{arm}_low"])
        assert math.isnan(oracle.numbers[f"document_{arm}_high"])
        for kind in ("token", "position"):
            low, value, high = (oracle.numbers[f"{kind}_{arm}{end}"] for end in ("_low", "", "_high"))
            assert low <= value <= high
            assert low < high


def test_no_more_is_told_than_there_is_to_tell(oracle):
    decoders, greedy = oracle.tables["decoders"], oracle.tables["greedy"]
    assert all(told <= bits for told, bits in zip(decoders["told"], decoders["bits"], strict=True))
    for label, told in zip(greedy["label"], greedy["told"], strict=True):
        assert told <= oracle.numbers[f"{label}_bits"]


def test_bits_are_the_entropy_of_the_labels_scored(judged):
    _, told, found = judged
    for label in told.labels:
        share = np.bincount(label.question.score.labels) / len(label.question.score.labels)
        entropy = -sum(p * math.log2(p) for p in share if p > 0)
        assert found.numbers[f"{label.question.name}_bits"] == pytest.approx(entropy, abs=1e-12)


def test_a_bound_by_fano_is_none_above_the_error(oracle):
    decoders = oracle.tables["decoders"]
    for fano, error in zip(decoders["fano"], decoders["error"], strict=True):
        assert math.isnan(fano) or fano <= error


def test_controls_are_read_from_the_rows(store, tokens_alone, monkeypatch):
    """Whitened, projected on whitened training rows, and the coordinates that vary most about their mean."""
    given = []
    original = module.label_told

    def spying(question, features, groups, **settings):
        given.append((question, features))
        return original(question, features, groups, **settings)

    monkeypatch.setattr(module, "label_told", spying)
    monkeypatch.setattr(module, "_COORDINATES", 5)
    check = information(store, Oracle(), classes=1)
    told, found = judge(check)
    ((question, features),) = given
    assert features.keys() == {CODES, RANDOM, ROWS_AS_DIRECTIONS, COORDINATES, WHOLE}
    learnt, judged = question.fit.sample.rows, question.score.sample.rows
    widest = sorted(np.argsort(-learnt.var(0))[:5])
    assert features[COORDINATES](question.score) == pytest.approx((judged - learnt.mean(0))[:, widest], abs=1e-4)
    assert {step.feature for step in told.labels[0].greedy[COORDINATES]} <= set(range(5))
    of_fit = question.fit.sample.codes[question.fit.chosen].toarray()
    assert np.array_equal(features[CODES](question.fit).toarray(), of_fit)
    own, moments = check.subject, check.subject.train.moments
    white = own.geometry.whiten(torch.from_numpy(judged).double() - moments.mean).numpy()
    whole = features[WHOLE](question.score).astype(float)
    assert whole == pytest.approx(white * np.linalg.norm(whole) / np.linalg.norm(white), abs=1e-3)
    places = np.arange(WIDTH) * len(learnt) // WIDTH
    directions = own.geometry.whiten(torch.from_numpy(learnt[places]).double() - moments.mean).numpy()
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    projections = whole @ directions.T
    codes = features[ROWS_AS_DIRECTIONS](question.score).toarray()
    k = round(told.per_row)
    assert ((codes != 0).sum(1) <= k).all()
    assert codes.max(1) == pytest.approx(projections.max(1).clip(0), rel=1e-3, abs=1e-3)
    assert codes.sum(1) == pytest.approx(np.sort(projections, 1)[:, -k:].clip(0).sum(1), rel=1e-2, abs=1e-2)
    assert 0.1 < found.numbers["token_told_rows"] < found.numbers["token_told"]


def test_the_random_control_is_as_sparse(judged):
    _, told, found = judged
    rates = found.tables["token random"]["rate"]
    assert sum(rates) == pytest.approx(round(told.per_row), abs=0.05)
    assert sum(found.tables["token codes"]["rate"]) == pytest.approx(told.per_row)
    assert told.per_row == pytest.approx(2, abs=0.05)


# ------------------------------------------------------------------------------------------ what cannot be asked


def test_a_store_that_knows_nothing_of_its_rows(clusters):
    found = section(clusters, Oracle(), classes=TOKENS)
    assert found.notes == tuple(
        f"Not asked for {name}: the store does not say it of every row." for name in ("token", "position", "document")
    )
    assert found.claims == ()
    assert found.tables.keys() == {"classes"}


def test_every_label_left_out_has_its_own_reason(tmp_path):
    """Tokens of too few rows, and documents of none."""

    def notes(name: str, **asked) -> tuple[str, ...]:
        return tuple(note for note in section(tmp_path / name, Oracle(), **asked).notes if note.startswith("Not"))

    write(tmp_path / "nameless", doc_id=True)
    assert notes("nameless", probe_rows=45, classes=2) == (
        "Not asked for token: no two classes have 10 rows to fit to and to score on.",
        "Not asked for position: no two classes have 10 rows to fit to and to score on.",
        "Not asked for document: the store does not say it of every row.",
    )
    write(tmp_path / "unplaced", position=True)
    unsaid = "the store does not say it of every row"
    assert notes("unplaced") == (f"Not asked for position: {unsaid}.", f"Not asked for document: {unsaid}.")


@pytest.mark.parametrize("known", ["one", "none"])
def test_a_store_of_one_document_still_asks_for_token_and_position(tmp_path, known):
    """Or of documents that are not known, which may be one: rows are set aside to choose by."""
    path = write(tmp_path / "store", one_document=True) if known == "one" else write(tmp_path / "store", doc_id=True)
    told, found = judge(information(path, Oracle()))
    assert [label.question.name for label in told.labels] == ["token", "position"]
    reason = "no two classes have 10 rows to fit to and to score on" if known == "one" else "the store does not say it"
    assert [note.startswith(f"Not asked for document: {reason}") for note in found.notes] == [True]
    for label in told.labels:
        fit, select = (part.sample.index[part.chosen] for part in (label.question.fit, label.question.select))
        assert (len(fit), len(select)) == (900, 300)
        assert set(fit).isdisjoint(select)
    numbers = found.numbers
    assert numbers["token_told"] == pytest.approx(BITS, abs=0.1)
    assert abs(numbers["position_told"]) < 0.03
    assert numbers["position_told_whole"] > 0.2
    for kind in ("token", "position"):
        assert math.isnan(numbers[f"{kind}_told_low"])
        assert math.isnan(numbers[f"{kind}_told_random_high"])
    assert claims(found)["token"].verdict is Verdict.GUARANTEED


def test_labels_without_classes(store, tokens_alone):
    found = section(store, Oracle(), classes=1, probe_rows=300)
    assert found.numbers["classes"] == 0
    assert [claim.verdict for claim in found.claims] == [Verdict.GUARANTEED]
    assert not any(name.startswith("class_") for name in found.numbers)
    assert "classes" not in found.tables
    assert "There are too few rows for classes of them." in found.notes


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
