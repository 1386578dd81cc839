"""Which tokens leave rows and how documents are laid into sequences, from the corpus to the store.

The stored rows are compared with forwards of whole sequences that are written out here, one at a time.
"""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stores import broken_off
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from atoms.activations import Corpus, CounterFact, TableFiles, TextFiles, TokenFiles
from atoms.activations import harvest as harvest_module
from atoms.activations.harvest import harvest
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.model_source import ModelSpec
from atoms.activations.store import ActivationStore
from atoms.activations.text import document_order
from atoms.cli import main
from atoms.errors import AtomsError

CPU: dict[str, Any] = {"accelerator": "cpu", "devices": 1}
SITE = "resid_post.1"
BOS, EOS, USER = 202, 203, 204


@pytest.fixture(scope="module")
def chat_gpt2(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny GPT-2 with a tokenizer that puts <s> in front, ends texts with </s> and knows a chat template."""
    folder = Path(shutil.copytree(tiny_gpt2, tmp_path_factory.mktemp("chat") / "gpt2"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": ["<user>"]})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.chat_template = "<s>{% for m in messages %}<user> {{ m.content }} </s>{% endfor %}"
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("w0 <user></s>")["input_ids"] == [BOS, 2, USER, EOS]
    return folder


def run(model: Path, corpus: Corpus, **settings: Any) -> ActivationStore:
    spec = HarvestSpec(ModelSpec(str(model)), corpus, [SITE], **{"context": 30, **settings})
    harvest(spec, spec.directory(), CPU)
    return ActivationStore.open(spec.directory())


Row = tuple[int, int, int]  # document, position, token


def rows_of(store: ActivationStore) -> dict[Row, np.ndarray]:
    """Every stored row under its place; no two may have one place."""
    rows = {}
    for split in store.splits:
        columns = store.tokens(split)
        keys = zip(*(columns[name].tolist() for name in ("doc_id", "position", "token_id")), strict=True)
        values = store.read_rows(split, SITE, 0, store.n_rows(split)).numpy()
        for key, value in zip(keys, values, strict=True):
            assert key not in rows
            rows[key] = value
    return rows


def forward(model: Path, sequences: list[list[int]]) -> list[np.ndarray]:
    """What the model shows for every token of every sequence."""
    network = AutoModel.from_pretrained(model).eval()
    shown = []
    with torch.no_grad():
        for ids in sequences:
            states = network(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            shown.append(states[2][0].numpy())  # entry 0 are the embeddings
    return shown


def assert_rows(stored: dict[Row, np.ndarray], expected: dict[Row, np.ndarray]) -> None:
    assert stored.keys() == expected.keys()
    for key, row in expected.items():
        np.testing.assert_allclose(stored[key], row, rtol=0, atol=1e-5 * np.abs(row).max(), err_msg=str(key))


def read(text: Path) -> list[str]:
    return [file.read_text() for file in sorted(text.glob("*.txt"))]


def ids_of(model: Path, texts: list[str]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


# ------------------------------------------------------------------------------------------ one token of a document


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Facts about thirty subjects of one to three words, two records each, with long paraphrases."""
    picks = torch.randint(0, 200, (60, 80), generator=torch.Generator().manual_seed(3)).tolist()
    records = []
    for number, words in enumerate(picks):
        subject = " ".join(f"w{word}" for word in picks[number // 2][: 1 + number // 2 % 3])
        text = " ".join(f"w{word}" for word in words)
        records.append(
            {
                "case_id": number,
                "requested_rewrite": {"prompt": f"the w{words[5]} {{}} w{words[6]} the", "subject": subject},
                "paraphrase_prompts": [f"{subject} {text[: 3 * number]} . {subject} the {text[:60]}", "w1 w2"],
            }
        )
    path = tmp_path_factory.mktemp("facts") / "facts.json"
    path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize("tokens", ["subject_last", "subject_first"])
def test_rows_at_the_subject(tiny_bert, facts, tokens, capfd):
    context = 30
    store = run(tiny_bert, CounterFact(str(facts)), tokens=tokens, context=context)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    sequences, places, keys = [], [], []
    for number, document in enumerate(CounterFact(str(facts)).documents()):
        if document.subject is None:
            continue
        before, subject = (document.text[a:b] for a, b in ((0, document.subject[0]), document.subject))
        start = len(tokenizer(before, add_special_tokens=False)["input_ids"])
        words = len(subject.split())
        place = start if tokens == "subject_first" else start + words - 1
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        cut = max(place + 1 - context, 0)
        sequences.append([2, *ids[cut : cut + context], 3])
        places.append(place - cut)
        keys.append((number, place - cut, ids[place]))
    assert max(map(len, sequences)) == context + 2  # some are cut
    shown = forward(tiny_bert, sequences)
    expected = {key: rows[place + 1] for key, place, rows in zip(keys, places, shown, strict=True)}
    assert len(expected) == 120
    assert_rows(rows_of(store), expected)
    assert "note     60 of 180 documents do not hold their subject and leave no row" in capfd.readouterr().err


def test_a_subject_is_held_out_as_a_whole(tiny_bert, facts):
    store = run(tiny_bert, CounterFact(str(facts)), tokens="subject_last", val=0.2, test=0.2)
    subject = {i: d.group for i, d in enumerate(CounterFact(str(facts)).documents())}
    held = {split: {subject[doc] for doc in store.tokens(split)["doc_id"].tolist()} for split in store.splits}
    assert all(held.values())
    assert not held["train"] & held["val"]
    assert not held["train"] & held["test"]
    total = sum(store.n_rows(split) for split in store.splits)
    assert store.n_rows("val") / total == pytest.approx(0.2, abs=0.05)  # a share of rows, not of what is read


def test_the_last_token_of_every_document(chat_gpt2, text_folder):
    store = run(chat_gpt2, TextFiles([str(text_folder)]), tokens="last")
    documents = ids_of(chat_gpt2, read(text_folder))
    shown = forward(chat_gpt2, [[BOS, *ids[-30:]] for ids in documents])
    ends = [min(len(ids), 30) - 1 for ids in documents]
    assert_rows(
        rows_of(store),
        {(i, end, documents[i][-1]): rows[-1] for i, (end, rows) in enumerate(zip(ends, shown, strict=True))},
    )


def test_only_sequences_with_a_row_are_read(tiny_bert, text_folder, monkeypatch):
    seen: list[int] = []
    original = harvest_module.SiteReader.read

    def watch(self: Any, **inputs: torch.Tensor) -> Any:
        if not inputs["input_ids"].is_meta:  # the widths are found without weights
            seen.append(len(inputs["input_ids"]))
        return original(self, **inputs)

    monkeypatch.setattr(harvest_module.SiteReader, "read", watch)
    monkeypatch.setattr(harvest_module.HarvestModule, "on_predict_start", _start_without_probe)
    run(tiny_bert, TextFiles([str(text_folder)]), tokens="last", context=10)
    assert sum(seen) == 60


def _start_without_probe(self: Any) -> None:
    self.buffer = {}
    self.started = 0.0
    self.running.enter_context(self.reader)


# ------------------------------------------------------------------------------------------ special tokens and packing


@pytest.mark.parametrize("special", ["drop", "bos", "all"])
def test_special_tokens_leave_rows_when_asked(tiny_bert, text_folder, special):
    store = run(tiny_bert, TextFiles([str(text_folder)], limit=20), special=special, context=60)
    documents = [ids[:60] for ids in ids_of(tiny_bert, read(text_folder)[:20])]
    rest = [ids[60:] for ids in ids_of(tiny_bert, read(text_folder)[:20])]
    expected = {}
    for parts in (documents, rest):
        shown = forward(tiny_bert, [[2, *ids, 3] for ids in parts])
        for number, (ids, rows) in enumerate(zip(parts, shown, strict=True)):
            if not ids:
                continue
            whole = [2, *ids, 3]
            kept = {"drop": range(1, len(ids) + 1), "bos": range(len(ids) + 1), "all": range(len(whole))}[special]
            for place in kept:
                key = (number, place - (special == "drop"), whole[place])
                expected.setdefault(key, []).append(rows[place])
    total = sum(store.n_rows(split) for split in store.splits)
    assert total == sum(map(len, expected.values()))
    for split in store.splits:
        columns = store.tokens(split)
        values = store.read_rows(split, SITE, 0, store.n_rows(split)).numpy()
        keys = zip(*(columns[name].tolist() for name in ("doc_id", "position", "token_id")), strict=True)
        for key, row in zip(keys, values, strict=True):
            errors = [np.abs(row - candidate).max() for candidate in expected[key]]  # several where pieces agree
            assert min(errors) < 1e-5 * np.abs(row).max()
            expected[key].pop(int(np.argmin(errors)))
    assert not any(expected.values())


@pytest.mark.parametrize("special", ["drop", "all"])
def test_packed_documents_are_read_end_to_end(chat_gpt2, text_folder, special, monkeypatch):
    grid = harvest_module.Grid(16, 112, 112)  # no multiple of the context, so that sequences straddle blocks
    monkeypatch.setattr(harvest_module.Grid, "choose", classmethod(lambda *_: grid))
    store = run(chat_gpt2, TextFiles([str(text_folder)]), packing=True, special=special, context=40)
    documents = ids_of(chat_gpt2, read(text_folder))
    rows, found = rows_of_sequences(store), 0
    # Each split's documents, in the order in which they were laid end to end, are read off its sequences.
    for split in store.splits:
        order = split_order(store, split)
        sequences: list[list[tuple[int, int]]] = []  # document and token; the separator is the document's before it
        room = 0
        for doc in order:
            room = max(room - 2, 0)
            for place, token in enumerate(documents[doc]):
                if not room:
                    sequences.append([(doc, BOS)])
                    room = 40
                elif place == 0:
                    before = sequences[-1][-1][0]
                    sequences[-1] += [(before, EOS), (before, BOS)]
                sequences[-1].append((doc, token))
                room -= 1
        for sequence, shown in zip(sequences, forward(chat_gpt2, [[t for _, t in s] for s in sequences]), strict=True):
            for place, ((doc, token), row) in enumerate(zip(sequence, shown, strict=True)):
                if special == "drop" and token in (BOS, EOS):
                    continue
                candidates = rows[split, doc, place - (special == "drop"), token]
                errors = [np.abs(row - candidate).max() for candidate in candidates]
                assert min(errors) < 1e-5 * np.abs(row).max()
                candidates.pop(int(np.argmin(errors)))
                found += 1
        longest = max(map(len, sequences))
        assert longest == 41
    assert found == sum(store.n_rows(split) for split in store.splits)
    assert {split for split, *_ in rows} == {"train", "val", "test"}


def rows_of_sequences(store: ActivationStore) -> dict[tuple[str, int, int, int], list[np.ndarray]]:
    rows: dict[tuple[str, int, int, int], list[np.ndarray]] = {}
    for split in store.splits:
        columns = store.tokens(split)
        values = store.read_rows(split, SITE, 0, store.n_rows(split)).numpy()
        keys = zip(*(columns[name].tolist() for name in ("doc_id", "position", "token_id")), strict=True)
        for key, value in zip(keys, values, strict=True):
            rows.setdefault((split, *key), []).append(value)
    return rows


def split_order(store: ActivationStore, split: str) -> list[int]:
    """A split's documents as the plan lays them: the shuffle fixed by the seed."""
    return document_order(np.unique(store.tokens(split)["doc_id"]), seed=0).tolist()


def test_packing_mixes_no_splits(chat_gpt2, text_folder):
    store = run(chat_gpt2, TextFiles([str(text_folder)]), packing=True, context=40)
    documents = [set(store.tokens(split)["doc_id"].tolist()) for split in store.splits]
    assert sum(map(len, documents)) == len(set.union(*documents)) == 60


# ------------------------------------------------------------------------------------------ what stands in the way


def refused(model: Path, corpus: Corpus, message: str, **settings: Any) -> None:
    with pytest.raises(AtomsError, match=message) as caught:
        run(model, corpus, **settings)
    assert "\n" not in str(caught.value)
    assert not Path("activations").exists() or not list(Path("activations").iterdir())


def test_an_encoder_is_not_packed(tiny_bert, text_folder):
    refused(tiny_bert, TextFiles([str(text_folder)]), r"packing: .* reads in both directions", packing=True)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9}


@pytest.mark.parametrize(
    ("kind", "causal"),
    [
        ("gpt2", True), ("gpt_neox", True), ("llama", True), ("opt", True), ("gemma2", True), ("qwen3", True),
        ("bert", False), ("roberta", False), ("modernbert", False), ("distilbert", False),
    ],
)  # fmt: skip
def test_what_may_be_packed_is_seen_from_the_model(chat_gpt2, text_folder, kind, causal, monkeypatch):
    """Its tokenizer here has nothing that closes a sequence, which encoders' own have."""
    model = AutoModel.from_config(AutoConfig.for_model(kind, **SMALL, pad_token_id=0))
    monkeypatch.setattr(harvest_module, "meta_model", lambda _: model)
    spec = HarvestSpec(ModelSpec(str(chat_gpt2)), TextFiles([str(text_folder)]), [SITE], packing=True)
    with nullcontext() if causal else pytest.raises(AtomsError, match="reads in both directions"):
        harvest_module._check_causal(spec, AutoTokenizer.from_pretrained(chat_gpt2))


def test_packing_needs_an_end_of_text(tiny_gpt2, text_folder):
    refused(tiny_gpt2, TextFiles([str(text_folder)]), r"packing: .* has no token that ends a text", packing=True)


def test_bos_needs_a_special_token_in_front(tiny_gpt2, text_folder):
    refused(tiny_gpt2, TextFiles([str(text_folder)]), r"special=bos, but .* without a special token", special="bos")


def test_text_has_no_subject(tiny_bert, text_folder):
    message = r"tokens=subject_last needs documents with a subject, and TextFiles gives none; use CounterFact"
    refused(tiny_bert, TextFiles([str(text_folder)]), message, tokens="subject_last")


# ------------------------------------------------------------------------------------------ how much is read


def test_the_corpus_is_read_as_far_as_asked(tiny_bert, text_folder, capfd):
    lengths = np.cumsum([len(ids) for ids in ids_of(tiny_bert, read(text_folder))])
    store = run(tiny_bert, TextFiles([str(text_folder)]), max_tokens=int(lengths[39]))
    said = capfd.readouterr().err
    assert f"note     reading stopped after 40 documents with {lengths[39]:,} tokens (data.harvest.max_tokens" in said
    assert sum(store.n_rows(split) for split in store.splits) == lengths[39]
    assert max(store.tokens(split)["doc_id"].max() for split in store.splits) == 39


# ------------------------------------------------------------------------------------------ conversations and token ids


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    picks = torch.randint(0, 200, (40, 24), generator=torch.Generator().manual_seed(4)).tolist()
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    turns = [
        [" ".join(f"w{i}" for i in row[a : a + 8]) for a in (0, 8, 16)[: 1 + n % 3]] for n, row in enumerate(picks)
    ]
    lines = [{"messages": [{"role": "user", "content": text} for text in chat]} for chat in turns]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.parametrize(("special", "front"), [("drop", 1), ("bos", 0), ("all", 0)])
def test_conversations_are_run_as_rendered(chat_gpt2, conversations, special, front):
    store = run(chat_gpt2, TableFiles([str(conversations)], column="messages"), special=special, context=31)
    tokenizer = AutoTokenizer.from_pretrained(chat_gpt2)
    chats = [json.loads(line)["messages"] for line in conversations.read_text().splitlines()]
    whole = [tokenizer.apply_chat_template(chat)["input_ids"] for chat in chats]
    assert all(ids.count(BOS) == 1 for ids in whole)  # the template's own
    expected = {}
    for number, (ids, rows) in enumerate(zip(whole, forward(chat_gpt2, whole), strict=True)):
        for place, (token, row) in enumerate(zip(ids, rows, strict=True)):
            dropped = {"drop": (BOS, EOS, USER), "bos": (EOS, USER), "all": ()}[special]
            if token not in dropped:
                expected[number, place - front, token] = row
    assert_rows(rows_of(store), expected)


def test_a_long_conversation_goes_on_in_another_sequence(chat_gpt2, conversations):
    store = run(chat_gpt2, TableFiles([str(conversations)], column="messages"), tokens="last", context=12)
    tokenizer = AutoTokenizer.from_pretrained(chat_gpt2)
    chats = [json.loads(line)["messages"] for line in conversations.read_text().splitlines()]
    inner = [tokenizer.apply_chat_template(chat)["input_ids"][1:-1] for chat in chats]  # ends with its last word
    shown = forward(chat_gpt2, [[BOS, *ids[-12:]] for ids in inner])
    rows = {(n, min(len(ids), 12) - 1, ids[-1]): row[-1] for n, (ids, row) in enumerate(zip(inner, shown, strict=True))}
    assert_rows(rows_of(store), rows)


def test_conversations_need_a_template(tiny_bert, conversations):
    corpus = TableFiles([str(conversations)], column="messages")
    refused(tiny_bert, corpus, r"corpus holds conversations, and the tokenizer of .* has no chat template")


def test_another_template_is_another_store(chat_gpt2, conversations, tmp_path):
    corpus = TableFiles([str(conversations)], column="messages")
    model = Path(shutil.copytree(chat_gpt2, tmp_path / "other"))
    before = HarvestSpec(ModelSpec(str(model)), corpus, [SITE]).directory()
    (template,) = model.glob("chat_template*")
    template.write_text(template.read_text().replace("</s>", ""))
    assert HarvestSpec(ModelSpec(str(model)), corpus, [SITE]).directory() != before


def test_ids_leave_the_rows_of_their_text(chat_gpt2, text_folder, tmp_path):
    """Of a table with BOS, of an array without, and of a stream that ends documents with EOS."""
    documents = [ids[:20] for ids in ids_of(chat_gpt2, read(text_folder))]
    table = tmp_path / "ids.jsonl"
    table.write_text("\n".join(json.dumps({"input_ids": [BOS, *ids]}) for ids in documents))
    np.save(tmp_path / "ids.npy", np.array(documents, np.uint16))
    np.array([token for ids in documents for token in [*ids, EOS]], np.uint16).tofile(tmp_path / "ids.bin")

    def expected(front: list[int]) -> dict[Row, np.ndarray]:
        shown = forward(chat_gpt2, [[*front, *ids] for ids in documents])
        return {
            (number, place, token): rows[place + len(front)]
            for number, (ids, rows) in enumerate(zip(documents, shown, strict=True))
            for place, token in enumerate(ids)
        }

    assert_rows(rows_of(run(chat_gpt2, TableFiles([str(table)], column="input_ids"))), expected([BOS]))
    assert_rows(rows_of(run(chat_gpt2, TokenFiles([str(tmp_path / "ids.npy")]))), expected([]))
    assert_rows(rows_of(run(chat_gpt2, TokenFiles([str(tmp_path / "ids.bin")], separator=EOS))), expected([]))


def test_ids_of_another_model(tiny_bert, tmp_path):
    np.save(tmp_path / "ids.npy", np.array([[5, 6], [7, 205]]))
    message = r"corpus: ids\.npy#1 holds token id 205, and the vocabulary of .* has 205; tokenise with this model's"
    refused(tiny_bert, TokenFiles([str(tmp_path / "ids.npy")]), message)


# ------------------------------------------------------------------------------------------ resumption


@pytest.mark.parametrize("settings", [{"tokens": "subject_last"}, {"packing": True, "special": "all"}])
def test_a_harvest_broken_off_goes_on_to_the_same_store(chat_gpt2, facts, text_folder, monkeypatch, settings):
    grid = harvest_module.Grid(16, 32, 32)
    monkeypatch.setattr(harvest_module.Grid, "choose", classmethod(lambda *_: grid))
    settings = {**settings, "context": 50, "max_tokens": 3000, "batch_tokens": 200}
    corpus = TextFiles([str(text_folder)]) if "packing" in settings else CounterFact(str(facts))
    whole = run(chat_gpt2, corpus, root="whole", **settings)
    with broken_off(2):
        run(chat_gpt2, corpus, **settings)
    assert len(whole.spec.spans) > 3
    assert run(chat_gpt2, corpus, **settings).content_digest() == whole.content_digest()


# ------------------------------------------------------------------------------------------ from a command line


def test_a_config_names_corpus_and_tokens(tiny_bert, facts, tmp_path):
    config = tmp_path / "facts.yaml"
    config.write_text(
        f"""
        data:
          harvest:
            model: {{name: {tiny_bert}}}
            corpus:
              class_path: atoms.activations.CounterFact
              init_args: {{path: {facts}, prompts: [prompt]}}
            sites: [{SITE}]
            context: 30
            tokens: subject_last
        """
    )
    main(["cache", "--config", str(config)])
    (path,) = Path("activations").iterdir()
    store = ActivationStore.open(path)
    assert sum(store.n_rows(split) for split in store.splits) == 60
    assert store.spec.provenance["tokens"] == "subject_last"
    assert store.spec.provenance["corpus_settings"]["prompts"] == ["prompt"]
