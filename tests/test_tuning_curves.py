"""Losses on the way: the same for any number of ranks, in any batches, and without a trace in what is trained."""

from itertools import pairwise
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from atoms.tuning.curves import Curve, Recorder, mean_loss
from atoms.tuning.language_model import CausalLM, batches
from atoms.tuning.text import IGNORED, Blocks

laws = settings(deadline=None, max_examples=40)


class Bigram(nn.Module):
    """The next token's logits are a row of a table, so that every loss is known."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(20, 20, generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids, use_cache):
        assert use_cache is False
        assert not self.training
        return SimpleNamespace(logits=self.table[input_ids])


def some(count, context=6, padding=0):
    ids = torch.randint(0, 20, (count, context), generator=torch.Generator().manual_seed(count))
    labels = ids.clone()
    if padding:
        labels[-1, -padding:] = IGNORED
    return Blocks(ids, labels)


def exact(table, blocks):
    """Mean over targets in float64, one after the other."""
    logs = table.detach().double().log_softmax(1)
    found = [
        -logs[before, after] for row in blocks.labels.tolist() for before, after in pairwise(row) if after != IGNORED
    ]
    assert len(found) == blocks.targets
    return float(sum(found) / len(found))


def on_ranks(module, blocks, batch_size, world):
    """What every rank of so many finds, their sums added up as a strategy would."""
    shares = []
    for rank in range(world):
        strategy = SimpleNamespace(reduce=lambda sums, reduce_op: shares.append(sums) or sums)
        trainer = SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy)
        mean_loss(module, blocks, batch_size, trainer)  # also where there are more ranks than blocks
    total, count = sum(shares)
    return float(total / count)


@laws
@given(st.integers(1, 9), st.integers(1, 12), st.integers(2, 5), st.integers(0, 4))
def test_a_mean_loss_is_over_all_targets_for_any_batches_and_ranks(count, batch_size, world, padding):
    module, blocks = CausalLM(Bigram(), 0.0), some(count, padding=padding)
    expected = exact(module.model.table, blocks)
    assert mean_loss(module, blocks, batch_size) == pytest.approx(expected, rel=1e-6)
    assert on_ranks(module, blocks, batch_size, world) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_a_module_is_left_in_its_mode(training):
    module = CausalLM(Bigram(), 0.0).train(training)
    mean_loss(module, some(3), 2)
    assert module.training is module.model.training is training
    assert module.model.table.grad is None


def test_many_batches_lose_no_digits():
    """Sums over batches are kept in float64; in float32 they would drift off."""
    module = CausalLM(Bigram(), 0.0)
    ids = torch.randint(0, 20, (4000, 26), generator=torch.Generator().manual_seed(9))
    found = mean_loss(module, Blocks(ids, ids), 40)
    logs = module.model.table.detach().double().log_softmax(1)
    expected = -logs[ids[:, :-1], ids[:, 1:]].mean().item()
    assert found == pytest.approx(expected, rel=1e-7)


def test_forgetting_is_what_general_text_costs_more():
    made = Curve([0, 1, 2], [0, 8, 16], {"general": [3.0, 3.5, 2.75]})
    assert made.forgetting() == [0.0, 0.5, -0.25]
    assert Curve([0], [0], {"val": [1.0]}).forgetting() == []
    assert Curve(**made.to_json()) == made


def dropping():
    """A model whose training is random."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=1, n_positions=16, use_cache=False)
    return GPT2LMHeadModel(config).train()


def fitted(at, measured):
    torch.manual_seed(3)
    module, text = CausalLM(dropping(), 1e-2), some(12, 9)
    done = []
    recorder = Recorder({name: some(5, 9) for name in measured}, at, 2, 36, done.append)
    trainer = L.Trainer(
        max_steps=5, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[recorder],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, batches(text, 4, 5, 0))
    return module, recorder.curve, done


def test_measuring_takes_no_random_numbers_from_training():
    """With dropout, a run that is looked at often ends where one that is hardly looked at does."""
    often, curve, done = fitted([0, 1, 2, 3, 4, 5], ["train", "general"])
    seldom, _, _ = fitted([], [])
    assert curve.steps == [0, 1, 2, 3, 4, 5]
    assert done == [36] * 5
    assert all(torch.equal(a, b) for a, b in zip(often.parameters(), seldom.parameters(), strict=True))
    start = dropping()
    assert not all(torch.equal(a, b) for a, b in zip(often.model.parameters(), start.parameters(), strict=True))
    losses = [exact_loss(model, some(5, 9)) for model in (start, often.model)]
    assert [curve.losses["train"][0], curve.losses["train"][-1]] == pytest.approx(losses, rel=1e-5)


def exact_loss(model, blocks):
    with torch.no_grad():
        return model.eval()(input_ids=blocks.ids, labels=blocks.labels).loss.item()
