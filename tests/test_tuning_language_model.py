"""Losses, batches and the steps at which losses are measured."""

import lightning as L
import pytest
import torch
from tiny_models import write_llama
from transformers import AutoModelForCausalLM

from atoms.tuning.curves import Recorder, mean_loss
from atoms.tuning.language_model import CausalLM, batches
from atoms.tuning.text import IGNORED, Blocks


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
