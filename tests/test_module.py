"""`TSAEModule`: its members, their settings, and how each is kept from the others."""

from pathlib import Path

import lightning as L
import pytest
import torch

from atoms.checks import Certificate
from atoms.cli import main
from atoms.errors import AtomsError
from atoms.sae import ThresholdSAE
from atoms.training.members import MemberOverrides, member_configs
from atoms.training.module import TSAEModule

BASE = {
    "site": None, "expansion": 2.0, "power": 0.5, "error_power": 0.5, "encoder": "aligned", "target_l0": 2.0,
    "lr": 2e-3, "clip": 1.0, "seed": 0,
}  # fmt: skip


def train(data, module, **trainer) -> TSAEModule:
    L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0, **trainer,
    ).fit(module, datamodule=data)  # fmt: skip
    return module


class TestMemberConfigs:
    """What a member is, once the run's settings and its own are put together."""

    def test_one_member_is_the_run_itself(self):
        (config,) = member_configs(BASE, None, ["a"]).values()
        assert config.site == "a"
        assert config.num_atoms(24) == 48
        assert {name: getattr(config, name) for name in BASE if name != "site"} == {
            name: value for name, value in BASE.items() if name != "site"
        }

    def test_overrides_change_what_they_name_and_nothing_else(self):
        configs = member_configs(
            {**BASE, "site": "a"}, {"x": MemberOverrides(), "y": {"site": "b", "seed": 3}}, ["a", "b"]
        )
        assert (configs["x"].site, configs["x"].seed) == ("a", 0)
        assert (configs["y"].site, configs["y"].seed, configs["y"].lr) == ("b", 3, 2e-3)

    def test_fractions_of_atoms_are_dropped(self):
        (config,) = member_configs({**BASE, "expansion": 0.99}, None, ["a"]).values()
        assert [config.num_atoms(width) for width in (1, 2, 100)] == [1, 1, 99]

    @pytest.mark.parametrize("name", ["a/b", "a.b", "", "a b"])
    def test_names_that_metrics_and_modules_cannot_hold(self, name):
        with pytest.raises(AtomsError, match=r"model\.members has"):
            member_configs(BASE, {name: MemberOverrides()}, ["a"])

    def test_several_sites_and_none_named(self):
        with pytest.raises(AtomsError, match="name one of a, b"):
            member_configs(BASE, None, ["a", "b"])


PAIR = {
    "small": MemberOverrides(),
    "wide": MemberOverrides(expansion=4.0, target_l0=3.0, lr=0.3, clip=0.01, seed=5),
}


class TestMembersTogether:
    """Dictionaries that share batches and nothing else."""

    @pytest.fixture
    def together(self, planted_data):
        return train(planted_data(), TSAEModule({"planted": 16}, expansion=2.0, target_l0=2.0, members=PAIR))

    def test_each_learns_what_it_would_alone(self, together, planted_data):
        alone = {
            "small": TSAEModule({"planted": 16}, expansion=2.0, target_l0=2.0),
            "wide": TSAEModule({"planted": 16}, expansion=4.0, target_l0=3.0, lr=0.3, clip=0.01, seed=5),
        }
        for name, module in alone.items():
            train(planted_data(), module)
            (own,) = (module.member(member) for member in module.configs)
            for (key, value), (other, expected) in zip(
                together.member(name).named_parameters(), own.named_parameters(), strict=True
            ):
                assert key == other
                assert torch.equal(value, expected), (name, key)
            assert torch.equal(together.member(name).control.silent_rows, own.control.silent_rows)

    def test_order_in_which_they_are_named_does_not_matter(self, together, planted_data):
        swapped = dict(reversed(PAIR.items()))
        other = train(planted_data(), TSAEModule({"planted": 16}, expansion=2.0, target_l0=2.0, members=swapped))
        for name in PAIR:
            assert torch.equal(together.member(name).sae.decoder, other.member(name).sae.decoder)

    def test_every_member_has_its_own_curves_and_scores(self, planted_data):
        module = TSAEModule({"planted": 16}, members=PAIR)
        data = planted_data()
        trainer = L.Trainer(
            accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, val_check_interval=2,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        names = set(trainer.callback_metrics)
        for name in PAIR:
            assert {f"train/{name}/loss", f"train/{name}/l0", f"val/{name}/r2", f"val/{name}/dead"} <= names
        assert "train/loss" not in names

    def test_the_only_member_has_no_name_in_them(self):
        module = TSAEModule({"planted": 16})
        assert module.label("val", "tsae") == "val"


def test_gradients_are_clipped_member_by_member(planted_data):
    """A member's norm is at most its own limit, and one that is small enough is left alone, whatever the others do."""
    norms = {}

    class Record(L.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            for name in pl_module.configs:
                grads = [p.grad for p in pl_module.member(name).parameters() if p.grad is not None]
                if grads:
                    norms.setdefault(name, []).append(float(torch.stack([grad.norm() for grad in grads]).norm()))

    members = {"tight": MemberOverrides(clip=1e-3), "loose": MemberOverrides(clip=1e6)}
    train(planted_data(), TSAEModule({"planted": 16}, target_l0=2.0, members=members), callbacks=[Record()])
    assert len(norms["tight"]) >= 17
    assert max(norms["tight"]) <= 1e-3 * (1 + 1e-4)
    assert min(norms["loose"]) > 1e-2


def test_accumulated_batches_are_one_batch(planted_data):
    """Two batches of 128 before a step are one of 256, up to rounding, if they hold the same rows."""
    captured = {}

    class Same(L.Callback):
        """Gives both trainings the same rows: as one batch, or as its halves."""

        def __init__(self, halves):
            self.halves = halves

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            number = batch_idx // self.halves
            rows = torch.randn(256, 16, generator=torch.Generator().manual_seed(number)) + 1
            size = 256 // self.halves
            start = (batch_idx % self.halves) * size
            batch["planted"].copy_(rows[start : start + size])

    for halves in (1, 2):
        module = TSAEModule({"planted": 16}, target_l0=2.0)
        data = planted_data(batch_size=256 // halves)
        train(data, module, accumulate_grad_batches=halves, limit_train_batches=10 * halves, callbacks=[Same(halves)])
        captured[halves] = module.member("tsae")
    one, two = captured[1], captured[2]
    assert int(one.control.rows_seen) == int(two.control.rows_seen) == 2560
    assert torch.equal(one.control.silent_rows, two.control.silent_rows)
    torch.testing.assert_close(one.sae.decoder, two.sae.decoder, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.sae.threshold, two.sae.threshold, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_epochs": 2}, 36),
        ({"max_epochs": 2, "max_steps": 20}, 20),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": 1, "limit_train_batches": 5}, 5),
        ({"max_epochs": 1, "limit_train_batches": 0.5}, 9),
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, 10),
    ],
)
def test_total_steps_are_the_steps_taken(planted_data, settings, steps):
    module = TSAEModule({"planted": 16}, target_l0=2.0)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, **settings,
    )  # fmt: skip
    trainer.fit(module, datamodule=planted_data())
    assert module.total_steps == trainer.global_step == steps
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0


MIXED = {name: MemberOverrides(activation=name) for name in ("threshold", "relu", "topk", "batch_topk")}


class TestActivations:
    """Members of every activation in one pass, and what of them a checkpoint holds."""

    @pytest.fixture
    def words(self, fit_words, tmp_path):
        members = "{" + ", ".join(f"{name}: {{activation: {name}}}" for name in MIXED) + "}"
        more = (f"--model.members={members}", "--trainer.max_epochs=1", "--trainer.logger=false")
        return [*fit_words, *more, "--checkpoint.every_n_train_steps=10", "--checkpoint.save_top_k=-1"]

    def test_each_learns_what_it_would_alone(self, planted_data):
        module = TSAEModule({"planted": 16}, expansion=2.0, target_l0=2.0, members=MIXED)
        together = train(planted_data(), module)
        for name in MIXED:
            alone = train(planted_data(), TSAEModule({"planted": 16}, expansion=2.0, target_l0=2.0, activation=name))
            states = together.member(name).state_dict(), alone.member("tsae").state_dict()
            assert states[0].keys() == states[1].keys()
            for key, value in states[0].items():
                assert not isinstance(value, torch.Tensor) or torch.equal(value, states[1][key]), (name, key)

    def test_a_checkpoint_resumes_to_the_bit_and_is_judged_alone(self, words, capsys):
        main(words)
        first, last = (next(Path("runs").rglob(f"step-{step:07}.ckpt")) for step in (10, 18))
        (line,) = (line for line in capsys.readouterr().out.splitlines() if "R² centred, raw" in line)
        scores = dict(zip(MIXED, line.split()[-len(MIXED) :], strict=True))
        for name in MIXED:
            (folder,) = Path("runs").rglob(f"atoms/{name}")
            assert ThresholdSAE.load(folder).activation == name
        expected = torch.load(last, weights_only=True)
        first, last = first.rename("first.ckpt"), last.rename("last.ckpt")
        main([*words, f"--ckpt_path={first}"])
        (again,) = Path("runs").rglob("step-0000018.ckpt")
        found = torch.load(again, weights_only=True)
        for key, value in expected["state_dict"].items():
            assert not isinstance(value, torch.Tensor) or torch.equal(value, found["state_dict"][key]), key
        skip = "[joint, rows, l1, isometry, identifiability, separability, uniqueness, shift, metric, use, stability]"
        main(["validate", f"--ckpt_path={last}", "--trainer.accelerator=cpu", f"--checks.skip={skip}"])
        for name, score in scores.items():
            assert f"{Certificate.load(f'certificates/{name}').numbers()['representability/r2']:.3f}" == score
