"""Harvests of small models that several test files make, watch and disturb."""

from pathlib import Path
from typing import Any

import pytest
import torch

from atoms.activations import TextFiles
from atoms.activations import harvest as harvest_module
from atoms.activations.harvest import harvest
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.model_source import ModelSpec
from atoms.activations.store import ActivationStore

CPU: dict[str, Any] = {"accelerator": "cpu", "devices": 1}
CONTEXT = 30


def run(spec: HarvestSpec) -> ActivationStore:
    harvest(spec, spec.directory(), CPU)
    return ActivationStore.open(spec.directory())


def make(model: Path, text: Path, sites: list[str], **settings: Any) -> HarvestSpec:
    """A spec with a store in the test's own directory."""
    return HarvestSpec(ModelSpec(str(model)), TextFiles([str(text)]), sites, **{"context": CONTEXT, **settings})


def assert_same(store: ActivationStore, other: ActivationStore) -> None:
    assert store.content_digest() == other.content_digest()
    for site in other.sites:
        mine, theirs = (s.moments(site) for s in (store, other))
        assert mine.count == theirs.count
        assert torch.equal(mine.total, theirs.total)
        assert torch.equal(mine.outer, theirs.outer)


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
