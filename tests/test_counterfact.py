"""Prompts about subjects, where the subject stands in them, and who is held out together."""

import json
from pathlib import Path
from typing import Any

import pytest

from atoms.activations import CounterFact
from atoms.errors import AtomsError


def record(case: int, prompt: str, subject: str, **listed: Any) -> dict[str, Any]:
    return {
        "case_id": case,
        "requested_rewrite": {
            "prompt": prompt, "subject": subject, "relation_id": "P1",
            "target_new": {"str": "x", "id": "Q1"}, "target_true": {"str": "y", "id": "Q2"},
        },
        **listed,
    }  # fmt: skip


RECORDS = [
    record(
        0, "The mother tongue of {} is", "Ada Byron",
        paraphrase_prompts=["Shayna does this. Ada Byron is fond of Ada Byron, a native", "Unlike ada byron, they"],
        neighborhood_prompts=["Max, a native speaker of"], attribute_prompts=["Ada Byron knows"],
        generation_prompts=["Ada Byron lives in"],
    ),
    record(7, "{} is {} of", "Bo", paraphrase_prompts=[]),
    record(9, "Where is", "Bo"),
]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps(RECORDS[:2]))
    return path


def test_prompts_and_paraphrases_with_their_subject(file):
    documents = list(CounterFact(str(file)).documents())
    assert [(d.name, d.text) for d in documents] == [
        ("0/prompt", "The mother tongue of Ada Byron is"),
        ("0/paraphrase#0", "Shayna does this. Ada Byron is fond of Ada Byron, a native"),
        ("0/paraphrase#1", "Unlike ada byron, they"),
        ("7/prompt", "Bo is {} of"),
    ]
    assert [d.subject for d in documents] == [(21, 30), (39, 48), None, (0, 2)]  # the last of two; not spelled so
    assert documents[1].text[slice(*documents[1].subject)] == "Ada Byron"


def test_other_kinds_in_the_order_asked(file):
    documents = list(CounterFact(str(file), ["generation", "neighborhood", "attribute"], limit=1).documents())
    assert [d.name for d in documents] == ["0/generation#0", "0/neighborhood#0", "0/attribute#0"]
    # the format does not say whom neighborhood and attribute prompts are about
    assert [d.subject for d in documents] == [(0, 9), None, None]


def test_all_that_is_about_a_subject_is_one_group(tmp_path):
    path = tmp_path / "facts.jsonl"
    subjects = ["Ada  Byron", "ADA BYRON ", "Bo"]
    lines = [record(i, "{} is", subject, paraphrase_prompts=["x"]) for i, subject in enumerate(subjects)]
    path.write_text("\n".join(map(json.dumps, lines)))
    groups = [document.group for document in CounterFact(str(path)).documents()]
    assert groups == ["ada byron"] * 4 + ["bo"] * 2


def test_digest_is_of_content_and_settings(file, tmp_path):
    moved = tmp_path / "moved.jsonl"
    moved.write_text("\n".join(map(json.dumps, RECORDS[:2])))
    digest = CounterFact(str(file)).digest()
    assert CounterFact(str(moved)).digest() == digest
    file.write_text(json.dumps([{**RECORDS[0], "target": "does not matter"}, RECORDS[1]]))
    assert CounterFact(str(file)).digest() == digest
    others = {CounterFact(str(file), ["prompt"]).digest(), CounterFact(str(file), limit=1).digest()}
    renamed = json.loads(json.dumps(RECORDS[:2]).replace('"subject": "Bo"', '"subject": "Bo is"'))
    renamed[1]["requested_rewrite"]["prompt"] = "{} {} of"  # the same text about another subject
    file.write_text(json.dumps(renamed))
    others.add(CounterFact(str(file)).digest())
    assert len(others | {digest}) == 4


def test_describe(file):
    assert CounterFact(str(file), limit=3).describe() == {
        "corpus": "CounterFact", "prompts": ["prompt", "paraphrase"], "limit": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RECORDS, r"counterfact\.json record 2 is no record of CounterFact; it needs requested_rewrite with a prompt"),
        ([{"text": "x"}], r"record 0 is no record of CounterFact"),
        (["x"], r"record 0 is no record of CounterFact"),
        ([record(0, "{}", " ")], r"record 0 is no record of CounterFact"),
        ([record(0, "{}", "a", paraphrase_prompts=[1])], r"record 0: paraphrase_prompts is not a list of texts"),
        ({"a": 1}, r"does not hold a JSON list"),
        ([], r"holds no prompt or paraphrase prompts; there is nothing to harvest"),
    ],
)
def test_what_is_no_counterfact(file, content, message):
    file.write_text(json.dumps(content))
    with pytest.raises(AtomsError, match=message) as caught:
        list(CounterFact(str(file)).documents())
    assert "\n" not in str(caught.value)


def test_a_missing_file():
    with pytest.raises(AtomsError, match=r"corpus\.path: nowhere\.json is not a file"):
        list(CounterFact("nowhere.json").documents())


@pytest.mark.parametrize("prompts", [[], ["promt"], ["prompt", "prompt"]])
def test_prompts_must_be_kinds(prompts):
    with pytest.raises(AtomsError, match=r"corpus\.prompts is \[.*\]: name one or more of prompt, paraphrase, neigh"):
        CounterFact("x.json", prompts)
