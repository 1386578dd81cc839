"""How a harvest treats the machine: batches, memory, number types, and what it leaves behind."""

import gc
import re
import weakref
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from harvests import CONTEXT, CPU, assert_same, limit_memory, make, run
from transformers.utils import logging as transformers_logging

import atoms
from atoms.activations import TextFiles
from atoms.activations import harvest as harvest_module
from atoms.activations.harvest import HarvestModule, harvest
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.model_source import ModelSpec
from atoms.activations.store import ActivationStore, StoreWriter


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
