"""Trainers that run loops and leave nothing behind."""

from pathlib import Path

import lightning as L
import pytest
import torch

from atoms.errors import AtomsError
from atoms.silent_trainer import silent_trainer
from atoms.training.progress_bar import FitProgress

HERE = {"accelerator": "cpu", "devices": 1}


class Line(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.map = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        return self.map(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(4, 1))


def test_nothing_is_left_behind(capfd):
    module = Line()
    before = module.map.weight.item()
    trainer = silent_trainer(HERE, max_epochs=1)
    trainer.fit(module)
    assert module.map.weight.item() != before
    assert list(Path.cwd().iterdir()) == []
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("callbacks", [[], [L.Callback()], [FitProgress("noise")]])
def test_a_bar_is_shown_where_one_is_given(callbacks):
    trainer = silent_trainer(HERE, callbacks)
    assert (trainer.progress_bar_callback is not None) == any(isinstance(each, FitProgress) for each in callbacks)
    assert set(callbacks) <= set(trainer.callbacks)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({"accelerator": "cpu", "devices": 0}, r"^trainer: .*devices"),
        ({"accelerator": "abacus"}, r"^trainer: .*abacus"),
        ({"accelerator": "cpu", "strategy": "telepathy"}, r"^trainer: .*telepathy"),
        ({"accelerator": "cpu", "sheets": 1}, r"^trainer: .*sheets"),
    ],
)
def test_places_that_do_not_exist(place, said):
    with pytest.raises(AtomsError, match=said) as caught:
        silent_trainer(place)
    assert "\n" not in str(caught.value)
