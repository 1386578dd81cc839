"""Losses, batches and the steps at which losses are measured."""

from itertools import chain

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import write_llama
from transformers import AutoModelForCausalLM

from atoms.tuning.curves import Recorder, mean_loss
from atoms.tuning.language_model import CausalLM, batches
from atoms.tuning.text import IGNORED, Blocks

laws = settings(deadline=None, max_examples=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llama"))


def module(folder, lr=0.01, warmup=0):
    return CausalLM(AutoModelForCausalLM.from_pretrained(folder).train(), lr, warmup)


def blocks(count=6, context=10, seed=0, padding=0):
    ids = torch.randint(3, 200, (count, context), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    if padding:
        labels[-1, -padding:] = IGNORED
    return Blocks(ids, labels)


def test_a_loss_is_that_of_transformers(folder):
    own, text = module(folder), blocks()
    total, count = own.losses(text.ids, text.labels)
    expected = own.model(input_ids=text.ids, labels=text.labels).loss
    assert count == 6 * 9
    assert (total / count).item() == pytest.approx(expected.item(), rel=1e-6)


def test_padding_is_no_target(folder):
    own, text = module(folder), blocks(padding=4)
    logits = own.model(input_ids=text.ids).logits.double().log_softmax(-1)
    kept = [
        -logits[row, place, text.labels[row, place + 1]].item()
        for row in range(6)
        for place in range(9)
        if text.labels[row, place + 1] != IGNORED
    ]
    assert len(kept) == 6 * 9 - 4
    assert mean_loss(own, text, 4) == pytest.approx(sum(kept) / len(kept), rel=1e-5)
    assert mean_loss(own, text, 1) == pytest.approx(mean_loss(own, text, 100), rel=1e-6)
    assert own.training  # as it was


def test_every_block_comes_once_a_pass_and_ranks_share_a_batch():
    text = blocks(count=8, context=3)
    text.ids[:, 0] = torch.arange(8)

    def order(rank, world):
        return [ids[:, 0].tolist() for ids, _ in batches(text, 4, 6, 5, rank, world)]

    whole, first, second = order(0, 1), order(0, 2), order(1, 2)
    assert [len(batch) for batch in whole] == [4] * 6
    assert all(sorted(a + b) == list(range(8)) for a, b in zip(whole[::2], whole[1::2], strict=True))
    assert whole[:2] != whole[2:4]
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(batch) for batch in whole]
    assert order(0, 1) == whole


def test_a_batch_may_be_larger_than_the_text():
    drawn = [ids for ids, _ in batches(blocks(count=3), 8, 2, 0)]
    assert [len(ids) for ids in drawn] == [8, 8]


def trained(folder, at, warmup=0):
    own, text = module(folder, warmup=warmup), blocks(count=12)
    names = {"train": text, "general": blocks(seed=1)}
    recorder = Recorder(names, at, 4, 40)
    trainer = L.Trainer(
        max_steps=6, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[recorder],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(own, batches(text, 4, 6, 0))
    return own, recorder.curve


def test_losses_are_measured_at_the_steps_asked_for_and_change_nothing(folder):
    often, curve = trained(folder, [0, 1, 2, 4, 6])
    once, last = trained(folder, [6])
    assert curve.steps == [0, 1, 2, 4, 6]
    assert curve.tokens == [0, 40, 80, 160, 240]
    assert curve.losses["train"][0] == mean_loss(module(folder), blocks(count=12), 4)
    assert curve.losses["train"][-1] == last.losses["train"][-1] < curve.losses["train"][0]
    assert all(torch.equal(a, b) for a, b in zip(often.parameters(), once.parameters(), strict=True))
    assert curve.forgetting() == [value - curve.losses["general"][0] for value in curve.losses["general"]]


def test_the_rate_rises_and_then_stays(folder):
    own = module(folder, lr=0.4, warmup=3)
    built = own.configure_optimizers()
    schedule, rates = built["lr_scheduler"]["scheduler"], []
    for _ in range(6):
        rates.append(built["optimizer"].param_groups[0]["lr"])
        built["optimizer"].step()
        schedule.step()
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


@laws
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 12), st.integers(0, 5))
def test_ranks_deal_out_the_batches_of_one_process(count, share, world, steps, seed):
    """Whatever the numbers: ranks have equal parts, and every block comes once before any comes again."""
    text = blocks(count=count, context=2)
    text.ids[:, 0] = torch.arange(count)

    def order(rank, ranks):
        return [ids[:, 0].tolist() for ids, _ in batches(text, share * world, steps, seed, rank, ranks)]

    whole, parts = order(0, 1), [order(rank, world) for rank in range(world)]
    assert all(len(batch) == share for part in parts for batch in part)
    assert [sorted(chain(*found)) for found in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]
    flat = [block for batch in whole for block in batch]
    assert len(flat) == steps * share * world
    for begin in range(0, len(flat), count):
        one_pass = flat[begin : begin + count]
        assert len(set(one_pass)) == len(one_pass)


def test_the_mean_of_ranks_gradients_is_the_gradient_of_the_batch(folder):
    """Every block of a training text is full, so a mean over ranks of means is the mean over all targets."""
    text = blocks(count=4)
    own = module(folder)

    def gradients(ids):
        own.zero_grad()
        own.training_step((ids, ids), 0).backward()
        return [value.grad.clone() for value in own.parameters()]

    whole, first, second = (gradients(ids) for ids in (text.ids, text.ids[::2], text.ids[1::2]))
    for one, a, b in zip(whole, first, second, strict=True):
        assert torch.allclose(one, (a + b) / 2, rtol=1e-4, atol=1e-7)


def test_nothing_decays_and_what_is_frozen_is_not_given_to_the_optimizer(folder):
    own = module(folder, lr=0.1)
    frozen = own.model.model.embed_tokens.weight.requires_grad_(False)
    optimizer = own.configure_optimizers()["optimizer"]
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.AdamW)
    assert group["weight_decay"] == 0
    assert {id(value) for value in group["params"]} == {id(value) for value in own.parameters()} - {id(frozen)}
    before = [value.detach().clone() for value in group["params"]]
    for value in group["params"]:
        value.grad = torch.zeros_like(value)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(group["params"], before, strict=True))


def test_steps_of_a_fit_have_the_size_that_the_warm_up_gives_them(folder):
    """Adam's first steps are as large as the rate where gradients keep their sign."""
    sizes = []

    class Witness(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = pl_module.model.lm_head.weight.detach().clone()

        def on_train_batch_end(self, trainer, pl_module, *rest):
            sizes.append((pl_module.model.lm_head.weight - self.before).abs().max().item())

    own, text = module(folder, lr=1e-4, warmup=3), blocks(count=4)
    trainer = L.Trainer(
        max_steps=6, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[Witness()],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(own, batches(text, 4, 6, 0))
    assert sizes == pytest.approx([0.25e-4, 0.5e-4, 0.75e-4, 1e-4, 1e-4, 1e-4], rel=0.05)
