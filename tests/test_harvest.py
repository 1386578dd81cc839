"""The rows of a store are what the model shows, of every token once; what is dealt and said beforehand."""

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harvests import CONTEXT, make, run, watch_blocks
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

import atoms
from atoms.activations import harvest as harvest_module
from atoms.activations.grouping import near_duplicate_groups
from atoms.activations.store import ActivationStore

# ------------------------------------------------------------------------------------------ the rows are the model's

Key = tuple[int, int, int]  # document, position in the sequence, token


def reference(model: Path, text: Path, modules: dict[str, str]) -> dict[str, dict[Key, list[np.ndarray]]]:
    """What the model shows for every token, one sequence at a time: no batch, no padding, and no code under test."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModel.from_pretrained(model).eval()
    shown: dict[str, torch.Tensor] = {}
    for name, path in modules.items():
        module = network.get_submodule(path.removesuffix(":input"))
        if path.endswith(":input"):
            module.register_forward_pre_hook(lambda _, args, name=name: shown.update({name: args[0]}))
        else:
            module.register_forward_hook(lambda _, args, out, name=name: shown.update({name: out}))
    rows: dict[str, dict[Key, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for number, file in enumerate(sorted(text.glob("*.txt"))):
        tokens = tokenizer(file.read_text(), add_special_tokens=False)["input_ids"]
        for start in range(0, len(tokens), CONTEXT):
            own = tokens[start : start + CONTEXT]
            bert = tokenizer.cls_token_id is not None
            ids = [tokenizer.cls_token_id, *own, tokenizer.sep_token_id] if bert else own
            with torch.no_grad():
                states = network(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            # Entry 0 are the embeddings. The last entry is the output of the last block only without a final norm.
            for block, state in enumerate(states[1 : None if bert else -1]):
                shown[f"resid_post.{block}"] = state
            for site, state in shown.items():
                for place, token in enumerate(own):
                    rows[site][number, place, token].append(state[0, place + bert].numpy())
    return rows


def assert_rows_are(store: ActivationStore, rows: dict[str, dict[Key, list[np.ndarray]]]) -> None:
    """Every row of the reference is in the store exactly once over all splits, and nothing else is."""
    for site in store.sites:
        left = {key: list(values) for key, values in rows[site].items()}
        for split in store.splits:
            columns = store.tokens(split)
            keys = zip(columns["doc_id"], columns["position"], columns["token_id"], strict=True)
            stored = store.read_rows(split, site, 0, store.n_rows(split)).numpy()
            for key, row in zip(keys, stored, strict=True):
                candidates = left[key]  # several where a document repeats a word at the same place of two sequences
                errors = [np.abs(row - candidate).max() for candidate in candidates]
                assert min(errors) < 1e-5 * np.abs(row).max(), (site, split, key)  # batches round otherwise than one
                candidates.pop(int(np.argmin(errors)))
        assert not any(left.values())


def test_rows_of_an_encoder_are_its_hidden_states(tiny_bert, text_folder):
    sites = ["resid_post.0", "resid_post.2", "mlp_out.1", "encoder.layer.1.output.dense:input"]
    # small batches that mix lengths
    store = run(make(tiny_bert, text_folder, sites, batch_tokens=150, memory_mib=1))
    modules = {"mlp_out.1": "encoder.layer.1.output.dense", sites[3]: "encoder.layer.1.output.dense:input"}
    rows = reference(tiny_bert, text_folder, modules)
    assert_rows_are(store, rows)
    assert sum(store.n_rows(split) for split in store.splits) == sum(map(len, rows["resid_post.0"].values()))
    assert store.spec.sites == {"resid_post.0": 16, "resid_post.2": 16, "mlp_out.1": 16, sites[3]: 32}
    assert store.dtype == torch.float32


def test_rows_of_a_causal_model_are_its_hidden_states(tiny_gpt2, text_folder):
    sites = ["resid_post.1", "mlp_out.2", "h.0.mlp.c_proj:input"]
    store = run(make(tiny_gpt2, text_folder, sites, batch_tokens=200))
    modules = {"mlp_out.2": "h.2.mlp", sites[2]: "h.0.mlp.c_proj:input"}
    assert_rows_are(store, reference(tiny_gpt2, text_folder, modules))


def test_sequences_that_straddle_blocks_keep_their_rows(tiny_bert, text_folder, monkeypatch):
    grid = harvest_module.Grid(16, 112, 112)  # no multiple of the context, so that most blocks begin inside a sequence
    monkeypatch.setattr(harvest_module.Grid, "choose", classmethod(lambda *_: grid))
    store = run(make(tiny_bert, text_folder, ["resid_post.1"]))
    assert len(store.spec.spans) > 20
    assert_rows_are(store, reference(tiny_bert, text_folder, {}))


@pytest.fixture
def spelled(tmp_path: Path) -> Path:
    """Documents that spell special tokens."""
    folder = tmp_path / "spelled"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.txt").write_text(f"w{number} [SEP] w{2 * number} [CLS] [PAD] unheard-of [UNK] the")
    return folder


def tokens_of(store: ActivationStore) -> list[int]:
    return sorted(int(token) for split in store.splits for token in store.tokens(split)["token_id"])


def test_special_tokens_have_no_row_even_where_the_text_spells_them(tiny_bert, spelled):
    tokens = tokens_of(run(make(tiny_bert, spelled, ["resid_post.0"])))
    assert not {0, 2, 3} & set(tokens)
    # "unheard", "-", "of" and the spelled [UNK] are words the model reads, if without knowing them
    assert tokens.count(1) == 30 * 4
    assert len(tokens) == 30 * 7


def test_a_token_that_is_unknown_and_special_at_once_has_no_row(tiny_gpt2, spelled, tmp_path):
    model = Path(shutil.copytree(tiny_gpt2, tmp_path / "gpt2"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    assert tokens_of(run(make(model, spelled, ["resid_post.0"]))).count(0) > 0
    tokenizer.bos_token = tokenizer.eos_token = "[UNK]"  # as the published GPT-2 has it
    tokenizer.save_pretrained(model)
    tokens = tokens_of(run(make(model, spelled, ["resid_post.0"], root="second")))
    assert len(tokens) > 0
    assert 0 not in tokens


def test_the_model_runs_no_further_than_the_last_site(tiny_bert, text_folder, monkeypatch):
    ran = watch_blocks(monkeypatch)
    checked = harvest_module.check_sites

    def check(*args: Any) -> list[str]:
        """The check alone looks at the whole model."""
        notes = checked(*args)
        assert set(ran) == {0, 1, 2}
        ran.clear()
        return notes

    monkeypatch.setattr(harvest_module, "check_sites", check)
    run(make(tiny_bert, text_folder, ["resid_post.0", "mlp_out.1"]))
    assert set(ran) == {0, 1}


# ------------------------------------------------------------------------------------------ splits


def test_near_duplicates_never_part(tiny_bert, text_folder, tmp_path):
    text = Path(shutil.copytree(text_folder, tmp_path / "text"))
    originals = sorted(text.glob("*.txt"))
    for file in originals[:25]:  # a long piece of each in a document of its own
        words = file.read_text().split()
        (text / f"copy-{file.name}").write_text(" ".join(["the", "the", *words[:18], "w3"]))
    store = run(make(tiny_bert, text, ["resid_post.0"], val=0.25, test=0.25))
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    files = sorted(text.glob("*.txt"))
    number = {file.name: i for i, file in enumerate(files)}
    split_of = {doc: split for split in store.splits for doc in np.unique(store.tokens(split)["doc_id"])}
    assert len(split_of) == len(files)
    for file in originals[:25]:
        assert split_of[number[file.name]] == split_of[number[f"copy-{file.name}"]]
    documents = [np.array(tokenizer(f.read_text(), add_special_tokens=False)["input_ids"], np.int32) for f in files]
    groups = near_duplicate_groups(documents)
    assert len({(group, split_of[doc]) for doc, group in enumerate(groups)}) == len(set(groups)) == 60
    total = sum(store.n_rows(split) for split in store.splits)
    assert store.n_rows("val") / total == pytest.approx(0.25, abs=0.05)
    assert store.n_rows("test") / total == pytest.approx(0.25, abs=0.05)


def test_the_cost_is_said_beforehand(tiny_bert, text_folder, capfd):
    store = run(make(tiny_bert, text_folder, ["resid_post.0", "mlp_out.1"]))
    said = capfd.readouterr().err
    rows = {split: store.n_rows(split) for split in store.splits}
    assert "resid_post.0 (16), mlp_out.1 (16)" in said
    assert "60 documents in 60 groups" in said
    for split, count in rows.items():
        assert f"{split} {count:,}" in said
    shards = [file for file in Path(store.path).rglob("c/**/*") if file.is_file()]
    assert store.spec.disk_bytes == sum(file.stat().st_size for file in shards)
    assert f"disk     {atoms.progress.size(store.spec.disk_bytes)} in {store.path}" in said
    assert "memory   " in said
    assert "time     about" in said
    assert "Loading weights" not in said
    assert "REPORT" not in said


def test_shares_that_groups_do_not_allow_are_told(tiny_bert, tmp_path, capfd):
    text = tmp_path / "text"
    text.mkdir()
    for number, length in enumerate([200, 30, 30]):
        words = [f"w{(7 + number) * i % 199}" for i in range(length)]
        (text / f"{number}.txt").write_text(" ".join(words))
    run(make(tiny_bert, text, ["resid_post.0"], val=0.3, test=0.3))
    assert "note     split 'val' holds 11.5% of the tokens instead of 30.0%" in capfd.readouterr().err
