import errno
import gc
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import weakref
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stores import broken_off
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

import atoms
from atoms.activations import TextFiles
from atoms.activations import harvest as harvest_module
from atoms.activations.grouping import near_duplicate_groups
from atoms.activations.harvest import HarvestModule, harvest
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.language_model import ModelSpec
from atoms.activations.lock import StoreLock
from atoms.activations.manifest import COMPLETE
from atoms.activations.store import ActivationStore, StoreWriter
from atoms.errors import AtomsError

CPU: dict[str, Any] = {"accelerator": "cpu", "devices": 1}
CONTEXT = 30


def run(spec: HarvestSpec) -> ActivationStore:
    harvest(spec, spec.directory(), CPU)
    return ActivationStore.open(spec.directory())


def make(model: Path, text: Path, sites: list[str], **settings: Any) -> HarvestSpec:
    """A spec with a store in the test's own directory."""
    return HarvestSpec(ModelSpec(str(model)), TextFiles([str(text)]), sites, **{"context": CONTEXT, **settings})


@pytest.fixture
def own_bert(tiny_bert: Path, tmp_path: Path) -> Path:
    """A model of one's own to spoil."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "own-bert"))


def spoil(model: Path, change: Callable[[torch.Tensor], None]) -> None:
    file = model / "model.safetensors"
    weights = load_file(file)
    change(weights["embeddings.LayerNorm.weight"])
    save_file(weights, file, metadata={"format": "pt"})


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


def watch_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the index of every block of BERT that runs."""
    ran: list[int] = []
    original = harvest_module.load_model

    def load(resolved: Any) -> Any:
        model = original(resolved)
        for index, layer in enumerate(model.encoder.layer):
            layer.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
        return model

    monkeypatch.setattr(harvest_module, "load_model", load)
    return ran


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


# ------------------------------------------------------------------------------------------ kills and resumption

WIDE_SITES = [f"encoder.layer.{block}.intermediate.dense" for block in range(3)]
BLOCKS = 9


@pytest.fixture(scope="module")
def much_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many rows as make several training blocks of one MiB."""
    folder = tmp_path_factory.mktemp("much")
    picks = torch.randint(0, 200, (400, 55), generator=torch.Generator().manual_seed(2))
    for number, row in enumerate(picks.tolist()):
        (folder / f"{number:03}.txt").write_text(" ".join(f"w{pick}" for pick in row))
    return folder


def make_long(model: Path, text: Path, **settings: Any) -> HarvestSpec:
    return make(model, text, WIDE_SITES, **{"memory_mib": 1, "context": 55, **settings})


@pytest.fixture(scope="module")
def whole(tiny_bert: Path, much_text: Path, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """The store of a harvest that nothing interrupted."""
    store = run(make_long(tiny_bert, much_text, root=str(tmp_path_factory.mktemp("whole"))))
    assert len(store.spec.spans) == BLOCKS
    return store


def assert_same(store: ActivationStore, other: ActivationStore) -> None:
    assert store.content_digest() == other.content_digest()
    for site in other.sites:
        mine, theirs = (s.moments(site) for s in (store, other))
        assert mine.count == theirs.count
        assert torch.equal(mine.total, theirs.total)
        assert torch.equal(mine.outer, theirs.outer)


KILLED = """
import os, signal, sys
from atoms.activations import TextFiles, harvest, moments_writer, writer
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.language_model import ModelSpec

commit, commits = writer.commit, []
def kill_at(*args):
    commits.append(args)
    if len(commits) == 7:  # the shards of this block are written, and nothing says so
        os.kill(os.getpid(), signal.SIGKILL)
    commit(*args)
writer.commit = kill_at
moments_writer.BLOCKS_BETWEEN_SAVES = 4  # so that some blocks are in the saved sums and some are not

model, text, context, *sites = sys.argv[1:]
spec = HarvestSpec(ModelSpec(model), TextFiles([text]), sites, context=int(context), memory_mib=1)
harvest.harvest(spec, spec.directory(), {"accelerator": "cpu", "devices": 1})
"""


def test_a_killed_harvest_goes_on_to_the_same_store(tiny_bert, much_text, whole, monkeypatch):
    spec = make_long(tiny_bert, much_text)
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(tiny_bert), str(much_text), str(spec.context), *WIDE_SITES],
        env={**os.environ, "PYTHONPATH": str(Path(atoms.__file__).parents[1])},
        capture_output=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    path = Path(spec.directory())
    assert len(list((path / "manifest").glob("*.json"))) == 6
    assert list((path / "moments" / "parts").glob("*-4.safetensors"))
    assert (path.parent / f"{path.name}.lock").exists()  # its holder is dead
    with pytest.raises(AtomsError, match=rf"incomplete, 6 of {BLOCKS} blocks are done; run `atoms cache`"):
        ActivationStore.open(path)
    written = []
    original = StoreWriter.write_block
    monkeypatch.setattr(
        StoreWriter, "write_block", lambda self, span, *a, **k: (written.append(span), original(self, span, *a, **k))
    )
    assert_same(run(spec), whole)
    assert len(written) == BLOCKS - 6
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


TWO_RANKS = """
import sys
from lightning.pytorch.utilities import rank_zero_only
from atoms.activations import TextFiles, harvest
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.language_model import ModelSpec

if __name__ == "__main__":
    model, text, context, *sites = sys.argv[1:]
    spec = HarvestSpec(ModelSpec(model), TextFiles([text]), sites, context=int(context), memory_mib=1)
    place = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    harvest.harvest(spec, spec.directory(), place)
    if rank_zero_only.rank == 0:  # one block is lost; the other rank has none to write
        (spec.directory() / "complete.json").delete()
        (spec.directory() / "manifest" / "val-000000.json").delete()
    harvest.harvest(spec, spec.directory(), place)
"""


def test_two_ranks_write_the_store_of_one(tiny_bert, much_text, whole):
    spec = make_long(tiny_bert, much_text)
    Path("two_ranks.py").write_text(TWO_RANKS)  # a file, because Lightning starts the second rank from it
    child = subprocess.run(
        [sys.executable, "two_ranks.py", str(tiny_bert), str(much_text), str(spec.context), *WIDE_SITES],
        env={**os.environ, "PYTHONPATH": str(Path(atoms.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stderr.count("400 documents in 400 groups") == 2  # one rank speaks, twice
    store = ActivationStore.open(spec.directory())
    assert store.content_digest() == whole.content_digest()
    for site in WIDE_SITES:  # added in another order, so not to the last bit
        mine, theirs = (s.moments(site) for s in (store, whole))
        assert mine.count == theirs.count
        torch.testing.assert_close(mine.outer, theirs.outer, rtol=1e-12, atol=0)


def test_a_full_disk_is_said_and_leaves_what_can_be_taken_up(tiny_bert, much_text, whole, monkeypatch):
    spec = make_long(tiny_bert, much_text)
    original, blocks = StoreWriter._shards, []

    def full(self: StoreWriter, path: str, column: Any, span: Any) -> Any:
        blocks.append(span)
        if len(set(blocks)) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, path, column, span)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "_shards", full)
        with pytest.raises(AtomsError, match=r"data\.store=.*: disk full, .* GB still to be written; free that much"):
            run(spec)
    assert len(list(Path(spec.directory(), "manifest").glob("*.json"))) == 3
    assert not (spec.directory() / COMPLETE).exists()
    assert_same(run(spec), whole)


def test_a_begun_store_keeps_its_blocks_when_the_memory_setting_changes(tiny_bert, much_text, whole, monkeypatch):
    with broken_off(2):
        run(make_long(tiny_bert, much_text))
    resumed = run(make_long(tiny_bert, much_text, memory_mib=512))
    assert resumed.grid == whole.grid
    assert_same(resumed, whole)


def test_a_store_killed_before_it_was_marked_complete_needs_no_forward(tiny_bert, text_folder, monkeypatch):
    spec = make(tiny_bert, text_folder, ["resid_post.0"])
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "finalise", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            harvest(spec, spec.directory(), CPU)
    ran = watch_blocks(monkeypatch)
    store = run(spec)
    assert ran == []
    rows = store.read_rows("train", "resid_post.0", 0, store.n_rows("train")).double()
    np.testing.assert_allclose(store.moments("resid_post.0").outer, rows.T @ rows, rtol=1e-12)


# ------------------------------------------------------------------------------------------ manners


def test_the_probe_of_the_time_changes_nothing(tiny_bert, text_folder, monkeypatch):
    with_probe = run(make(tiny_bert, text_folder, ["resid_post.0"], root="with"))

    def start(self: HarvestModule) -> None:
        self.buffer = {}
        self.started = 0.0
        self.running.enter_context(self.reader)

    monkeypatch.setattr(HarvestModule, "on_predict_start", start)
    assert_same(run(make(tiny_bert, text_folder, ["resid_post.0"], root="without")), with_probe)


def test_the_language_model_is_freed(tiny_bert, text_folder, monkeypatch):
    models, modules = [], []
    original, prepare = harvest_module.load_model, harvest_module._prepare

    def load(resolved: Any) -> Any:
        model = original(resolved)
        models.append(weakref.ref(model))
        return model

    def keep(*args: Any) -> HarvestModule:
        modules.append(prepare(*args))  # as a trainer or a strategy that lives on may
        return modules[0]

    monkeypatch.setattr(harvest_module, "load_model", load)
    monkeypatch.setattr(harvest_module, "_prepare", keep)
    spec = make(tiny_bert, text_folder, ["resid_post.0"])
    harvest(spec, spec.directory(), CPU)
    gc.collect()
    assert [model() for model in models] == [None]


def test_settings_of_transformers_are_left_as_they_were(tiny_bert, text_folder):
    before = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    run(make(tiny_bert, text_folder, ["resid_post.0"]))
    assert (transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()) == before
    transformers_logging.disable_progress_bar()
    try:
        run(make(tiny_bert, text_folder, ["resid_post.0"], root="second"))
        assert not transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.enable_progress_bar()


def watch_batches(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Note the shape of every batch that the model reads with its weights."""
    seen: list[torch.Size] = []
    original = harvest_module.SiteReader.read

    def read(self: Any, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        if not inputs["input_ids"].is_meta:
            seen.append(inputs["input_ids"].shape)
        return original(self, **inputs)

    monkeypatch.setattr(harvest_module.SiteReader, "read", read)
    return seen


def test_batches_hold_no_more_tokens_than_asked(tiny_bert, text_folder, monkeypatch):
    seen = watch_batches(monkeypatch)
    run(make(tiny_bert, text_folder, ["resid_post.0"], batch_tokens=100))
    assert max(rows * length for rows, length in seen) <= 100
    assert max(length for _, length in seen) == CONTEXT + 2


def test_a_sequence_longer_than_a_batch_still_makes_one(tiny_bert, text_folder, monkeypatch):
    seen = watch_batches(monkeypatch)
    spec = make(tiny_bert, text_folder, ["resid_post.0"], batch_tokens=1)
    spec.corpus = TextFiles([str(text_folder)], limit=12)
    run(spec)
    assert {rows for rows, _ in seen} == {1}


def rows_of(store: ActivationStore, split: str, site: str) -> torch.Tensor:
    return store.read_rows(split, site, 0, store.n_rows(split))


def limit_memory(monkeypatch: pytest.MonkeyPatch, tokens: int) -> list[int]:
    """Let the model run out of memory beyond so many tokens; the list grows by the size of each try."""
    tried: list[int] = []
    original = harvest_module.SiteReader.read

    def read(self: Any, **inputs: torch.Tensor) -> Any:
        tried.append(inputs["input_ids"].numel())
        if tried[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more lines")
        return original(self, **inputs)

    monkeypatch.setattr(harvest_module.SiteReader, "read", read)
    return tried


def test_batches_too_large_for_the_device_are_halved(tiny_bert, text_folder, monkeypatch, capfd):
    sites = ["resid_post.1", "mlp_out.0"]
    whole = run(make(tiny_bert, text_folder, sites, root="whole", batch_tokens=2000))
    tried = limit_memory(monkeypatch, 300)
    halved = run(make(tiny_bert, text_folder, sites, root="halved", batch_tokens=2000))
    assert 1 <= sum(size > 300 for size in tried) <= 3  # 2,000, 1,000 and 500; never again
    line = r"note     cpu has too little memory for data.harvest.batch_tokens=2,000; going on with (\d+)"
    said = re.findall(line, capfd.readouterr().err)
    assert len(said) == 1
    assert 150 <= int(said[0]) <= 300
    for split in whole.splits:
        ours, theirs = halved.tokens(split), whole.tokens(split)
        assert all(np.array_equal(ours[name], column) for name, column in theirs.items())
        for site in sites:  # a product over other rows may round otherwise
            torch.testing.assert_close(rows_of(halved, split, site), rows_of(whole, split, site), rtol=1e-5, atol=1e-5)


def test_many_sites_stay_within_the_memory_of_a_block(tiny_bert, much_text, monkeypatch, capfd):
    layers = [
        f"encoder.layer.{block}.{part}"
        for block in range(3)
        for part in (
            "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
            "attention.output", "intermediate.dense", "output.dense", "output",
        )
    ]  # fmt: skip
    held = []
    original = StoreWriter.write_block

    def write(self: StoreWriter, span: Any, rows: dict[str, torch.Tensor], **columns: Any) -> None:
        held.append(sum(values.nbytes for values in rows.values()))
        original(self, span, rows, **columns)

    monkeypatch.setattr(StoreWriter, "write_block", write)
    store = run(make(tiny_bert, much_text, layers, memory_mib=1, context=55, dtype="float16"))
    assert len(store.sites) == 24
    assert len(held) > 20
    # What is stored in another type is held in both.
    assert 0.4 * 2**20 < max(held) * 6 // 4 <= 2**20
    moments = 8 * sum(width**2 for width in store.spec.sites.values())
    assert f", {atoms.progress.size(moments)} for moments" in capfd.readouterr().err


@pytest.mark.parametrize("spread", [None, "auto"])
def test_a_bfloat16_store_holds_the_bits_of_a_bfloat16_model(tiny_gpt2, text_folder, monkeypatch, spread):
    read: dict[Any, list[Any]] = defaultdict(list)
    original = HarvestModule.predict_step

    def step(self: HarvestModule, batch: Any, batch_idx: int) -> Any:
        rows = self.read(batch)
        read[batch.block.span].append((batch.slots, rows["resid_post.1"]))
        with monkeypatch.context() as once:  # the very rows the step will write
            once.setattr(self, "read", lambda _: rows)
            return original(self, batch, batch_idx)

    monkeypatch.setattr(HarvestModule, "predict_step", step)
    model = ModelSpec(str(tiny_gpt2), dtype="bfloat16", device_map=spread)
    store = run(HarvestSpec(model, TextFiles([str(text_folder)]), ["resid_post.1"], context=CONTEXT, batch_tokens=256))
    assert store.dtype == torch.bfloat16
    assert sum(span.rows for span in read) == sum(map(store.n_rows, store.splits))
    for span, parts in read.items():
        rows = rows_of(store, span.split, "resid_post.1")[span.start : span.stop]
        for slots, values in parts:
            assert values.dtype == torch.bfloat16
            assert torch.equal(rows[slots], values.float())  # float32 holds every bfloat16


def test_a_model_spread_over_devices_writes_the_same_store(tiny_gpt2, text_folder):
    digests = set()
    for device_map in (None, "auto"):
        spec = make(tiny_gpt2, text_folder, ["resid_post.1"], root=str(device_map))
        spec.model = ModelSpec(str(tiny_gpt2), device_map=device_map)
        digests.add((run(spec).content_digest(), spec.directory().name))
    assert len(digests) == 1


# ------------------------------------------------------------------------------------------ what stands in the way


def test_a_spread_model_needs_accelerate(tiny_bert, text_folder, monkeypatch):
    spec = make(tiny_bert, text_folder, ["resid_post.0"])
    spec.model = ModelSpec(str(tiny_bert), device_map="auto")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "accelerate" else found(name, *a))
    refused(
        spec, r"data\.harvest\.model\.device_map is auto, which needs accelerate: pip install 'atoms\[device-map\]'"
    )


def refused(spec: HarvestSpec, message: str) -> None:
    with pytest.raises(AtomsError, match=message) as caught:
        harvest(spec, spec.directory(), CPU)
    assert "\n" not in str(caught.value)


def assert_nothing_written() -> None:
    assert not Path("activations").exists() or not list(Path("activations").iterdir())


def test_unknown_model(text_folder, tmp_path):
    missing = tmp_path / "brt"
    (tmp_path / "bert").mkdir()
    refused(
        make(missing, text_folder, ["resid_post.0"]),
        r"data\.harvest\.model\.name='.*brt' is not a folder; did you mean '.*bert'",
    )
    assert_nothing_written()


def test_unknown_site(tiny_bert, text_folder):
    message = r"data\.harvest\.sites: BertModel has no place 'resid_post\.3'; .* nearest names: resid_post\.2"
    refused(make(tiny_bert, text_folder, ["resid_post.3"]), message)
    assert_nothing_written()


def test_context_too_long(tiny_bert, text_folder):
    message = (
        r"data\.harvest\.context is 63, but .* reads at most 62 tokens beside its special ones: set it to 62 or less"
    )
    refused(make(tiny_bert, text_folder, ["resid_post.0"], context=63), message)
    assert_nothing_written()


def test_wrong_digest(tiny_bert, text_folder):
    spec = make(tiny_bert, text_folder, ["resid_post.0"])
    spec.model = ModelSpec(str(tiny_bert), sha256="0" * 64)
    refused(spec, r"data\.harvest\.model\.sha256=0{64} but model\.safetensors .* has [0-9a-f]{64}; fetch")
    assert_nothing_written()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_gives_no_numbers(own_bert, text_folder, value):
    spoil(own_bert, lambda weight: weight.fill_(value))
    spec = make(own_bert, text_folder, ["resid_post.0"])
    refused(spec, r"data\.harvest\.sites=resid_post\.0: the model gives NaN or infinite values in \d+ of \d+ rows")
    assert not list(Path(spec.directory(), "manifest").iterdir())
    assert not (spec.directory() / COMPLETE).exists()


def test_rows_too_large_for_float16(own_bert, text_folder):
    spoil(own_bert, lambda weight: weight.mul_(1e6))
    message = r"data\.harvest\.dtype=float16: .* overflow it \(largest value .*\); use bfloat16 or float32"
    spec = make(own_bert, text_folder, ["embeddings"], dtype="float16")
    refused(spec, message)
    assert not (spec.directory() / COMPLETE).exists()


def test_a_few_values_too_large_for_float16_are_counted_and_said(own_bert, text_folder, capfd):
    def outlier(weight: torch.Tensor) -> None:
        weight[:2] *= 1e6  # two words of the vocabulary

    spoil(own_bert, outlier)
    store = run(make(own_bert, text_folder, ["embeddings"], dtype="float16"))
    counts = store.sealed.nonfinite["train"]["embeddings"]
    assert counts.infinite >= counts.rows > 0 == counts.nan
    said = capfd.readouterr().err
    assert f"train embeddings: {counts.infinite:,} infinities and 0 NaN in {counts.rows:,} rows" in said
    assert "harvest with data.harvest.dtype: bfloat16" in said
    assert store.moments("embeddings").count == store.n_rows("train") - counts.rows


def test_a_disk_too_small(tiny_bert, text_folder, monkeypatch):
    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(
        make(tiny_bert, text_folder, ["resid_post.0"]),
        r"data\.store=.*: needs .* GB, only 0\.000 GB are free; free",
    )
    assert_nothing_written()


def test_a_directory_that_cannot_be_written(tiny_bert, text_folder):
    Path("file").write_text("in the way")
    refused(
        make(tiny_bert, text_folder, ["resid_post.0"], root="file"),
        r"data\.store=file/.*: cannot create the lock",
    )


def test_a_store_that_is_being_written(tiny_bert, text_folder):
    spec = make(tiny_bert, text_folder, ["resid_post.0"])
    with StoreLock(spec.directory()):
        refused(spec, rf"data\.store=.*: being written by process {os.getpid()} .*; wait for it or stop it")


def test_a_store_made_by_other_settings(tiny_bert, text_folder):
    first = make(tiny_bert, text_folder, ["resid_post.0"])
    harvest(first, first.directory(), CPU)
    with pytest.raises(AtomsError, match=r"data\.store=.*made by other settings \(.*context: stored 30, asked 20"):
        harvest(make(tiny_bert, text_folder, ["resid_post.0"], context=20), first.directory(), CPU)


@pytest.mark.parametrize("content", [None, "  \n ", "[SEP] [CLS]"])
def test_a_corpus_without_text(tiny_bert, tmp_path, content):
    text = tmp_path / "text"
    text.mkdir()
    if content is not None:
        (text / "a.txt").write_text(content)
    with pytest.raises(AtomsError, match=r"data\.harvest\.corpus[.: ]"):
        run(make(tiny_bert, text, ["resid_post.0"]))
    assert_nothing_written()


def test_a_corpus_of_too_few_groups(tiny_bert, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for number in range(5):  # five copies are one group
        (text / f"{number}.txt").write_text(" ".join(f"w{i}" for i in range(40)) + f" w{100 + number}")
    refused(
        make(tiny_bert, text, ["resid_post.0"]),
        r"data\.harvest\.corpus: split '\w+' would get no text, because .* falls into 1 groups .*data\.harvest\.val",
    )
    assert_nothing_written()


def test_a_device_with_too_little_memory(tiny_bert, text_folder, monkeypatch):
    limit_memory(monkeypatch, 0)
    spec = make(tiny_bert, text_folder, ["resid_post.0"], batch_tokens=777)
    refused(spec, r"data\.harvest\.context: one sequence of 32 tokens is too much for the memory of cpu: lower it")
