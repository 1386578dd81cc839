"""Dictionaries trained again on noise."""

import lightning as L
import pytest
import torch

from atoms.activations.site_rows import SiteRows
from atoms.errors import AtomsError
from atoms.sae import ThresholdSAE
from atoms.training import noise_control
from atoms.training.members import MemberOverrides
from atoms.training.module import TSAEModule
from atoms.training.noise_control import train_on_noise

PLACE = {"accelerator": "cpu", "devices": 1}


def r2(sae: ThresholdSAE, rows: torch.Tensor) -> float:
    with torch.no_grad():
        error = (rows - sae(rows)).double()
    return 1 - float(error.square().sum() / (rows - rows.mean(0)).double().square().sum())


def held_out(data) -> torch.Tensor:
    return torch.cat(list(SiteRows(data, "planted", "val").batches(1000)))


def test_the_same_training_finds_less_in_noise(planted_data, tmp_path, capsys):
    data = planted_data(max_norm=1.5)
    left_out = data.store.n_rows("train") - data.num_rows("train")
    assert left_out > 0
    module = TSAEModule({"planted": 16}, expansion=2.0, target_l0=2.0)
    L.Trainer(
        **PLACE, max_epochs=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    ).fit(module, datamodule=data)  # fmt: skip
    real = module.member("tsae").sae
    settings = {**module.hparams, "_instantiator": "as Lightning notes it"}
    found, noise = train_on_noise(settings, data, tmp_path / "noise", {**PLACE, "max_steps": module.total_steps})
    (twin,) = found.values()

    # the same unit
    assert (twin.num_atoms, twin.power, twin.encoder, twin.activation) == (32, 0.5, "free", "threshold")
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    # on the same numbers of rows, with the same moments
    assert {split: noise.num_rows(split) for split in noise.store.splits} == {
        split: data.num_rows(split) for split in ("train", "val")
    }
    assert noise.num_train_batches == data.num_train_batches
    wanted, drawn = data.moments("planted"), noise.moments("planted")
    assert drawn.count == wanted.count
    scale = wanted.covariance.diagonal().sqrt()
    torch.testing.assert_close(drawn.mean / scale, wanted.mean / scale, rtol=0, atol=5 / wanted.count**0.5)
    gap = (drawn.covariance - wanted.covariance) / torch.outer(scale, scale)
    assert gap.abs().max() < 5 * (2 / wanted.count) ** 0.5
    # what it learnt
    scores = {(name, rows): r2(sae, held_out(where)) for name, sae in (("real", real), ("twin", twin))
              for rows, where in (("real", data), ("noise", noise))}  # fmt: skip
    assert scores["real", "real"] > scores["twin", "real"] + 0.1
    assert 0.1 < scores["twin", "noise"] < 1
    assert scores["real", "real"] > scores["twin", "noise"] + 0.1
    said = capsys.readouterr().err
    assert f"noise    {noise.num_rows('train') + noise.num_rows('val'):,} rows, " in said
    assert f"training {module.total_steps} steps of 256 rows" in said


def test_members_train_together_and_noise_already_drawn_is_taken(planted_data, tmp_path):
    data = planted_data()
    members = {"one": MemberOverrides(), "other": {"activation": "topk", "expansion": 1.0}}
    settings = dict(TSAEModule({"planted": 16}, expansion=2.0, target_l0=2.0, members=members).hparams)
    first, noise = train_on_noise(settings, data, tmp_path / "noise", {**PLACE, "max_steps": 3})
    digest = noise.store.content_digest()
    again, noise = train_on_noise(settings, data, tmp_path / "noise", {**PLACE, "max_steps": 3})
    assert noise.store.content_digest() == digest
    assert (first["other"].activation, first["other"].num_atoms) == ("topk", 16)
    for name, sae in first.items():
        assert torch.equal(sae.decoder, again[name].decoder)
    with pytest.raises(AtomsError, match="made by other settings"):
        train_on_noise(settings, data, tmp_path / "noise", {**PLACE, "max_steps": 3}, seed=1)


def test_where_and_how_long_are_told_apart(planted_data, tmp_path, monkeypatch):
    told, silent_trainer = [], noise_control.silent_trainer

    def noted(place, callbacks, **settings):
        told.append((place, settings))
        return silent_trainer(place, callbacks, **settings)

    monkeypatch.setattr(noise_control, "silent_trainer", noted)
    settings = dict(TSAEModule({"planted": 16}, target_l0=2.0).hparams)
    train_on_noise(settings, planted_data(), tmp_path / "noise", {**PLACE, "max_steps": 2, "max_epochs": None})
    assert told == [(PLACE, {"max_steps": 2, "num_sanity_val_steps": 0, "limit_val_batches": 0})]


def test_a_training_of_unknown_length(planted_data, tmp_path):
    settings = dict(TSAEModule({"planted": 16}, target_l0=2.0).hparams)
    with pytest.raises(AtomsError, match="not told its length: set max_steps or max_epochs"):
        train_on_noise(settings, planted_data(), tmp_path / "noise", {**PLACE, "max_epochs": -1})
    assert not (tmp_path / "noise").exists()
