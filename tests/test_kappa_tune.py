"""KappaTune as a callback: only the chosen tensors move, and the choice belongs to its weights."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser
from tiny_models import write_experts, write_llama
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForCausalLM

from atoms.conditioning import Budget, candidates_of, select, survey, weights_of
from atoms.errors import AtomsError
from atoms.tuning import KappaTune
from atoms.tuning.language_model import CausalLM, batches
from atoms.tuning.text import Blocks


class Net(L.LightningModule):
    """Three linear layers, an embedding nobody chooses, a norm, and an optimizer over what requires gradients."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8), nn.LayerNorm(8), nn.Linear(8, 8))

    def training_step(self, batch, batch_idx):
        (ids,) = batch
        return self.layers(self.embed(ids)).square().mean()

    def configure_optimizers(self):
        self.given = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.Adam(self.given, lr=0.1)


def fit(net, *callbacks, steps=2, **settings):
    data = DataLoader(TensorDataset(torch.arange(10)), batch_size=10)
    chosen = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False, **settings}
    trainer = L.Trainer(
        max_steps=steps, enable_model_summary=False, callbacks=list(callbacks),
        **{"enable_checkpointing": False, **chosen},
    )  # fmt: skip
    trainer.fit(net, data, **({"ckpt_path": settings_ckpt} if (settings_ckpt := fit.ckpt) else {}))
    return trainer


fit.ckpt = None


def moved(net, before):
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def by_kappa(net):
    found = [each for each in candidates_of(survey(weights_of(net))) if each.kind == "linear"]
    return [each.name for each in sorted(found, key=lambda each: each.kappa)]


@pytest.mark.parametrize(
    ("settings", "places"),
    [
        ({"count": 1}, [0]),
        ({"count": 2}, [0, 1]),
        ({"fraction": 0.4}, [0]),
        ({"count": 1, "order": "reversed"}, [2]),
        ({"count": 3}, [0, 1, 2]),
        ({"count": 9}, [0, 1, 2]),
    ],
)
def test_nothing_but_the_chosen_tensors_moves(settings, places):
    net = Net()
    expected = {by_kappa(net)[place] for place in places}
    before = state(net)
    callback = KappaTune(**settings)
    fit(net, callback)
    assert moved(net, before) == expected == set(callback.selection.names)
    assert {id(each) for each in net.given} == {id(net.get_parameter(name)) for name in expected}


def test_parameters_names_and_embeddings_bound_the_choice():
    net = Net()
    callback = KappaTune(parameters=64, exclude=["layers.0.*"])
    fit(net, callback)
    assert callback.selection.names == ["layers.4.weight"]
    everything = KappaTune(fraction=1.0, embeddings=True, include=["embed.*"])
    fit(Net(), everything)
    assert everything.selection.names == ["embed.weight"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "the budget sets nothing: give one of count, fraction and parameters"),
        ({"count": 1, "fraction": 0.5}, "the budget sets count and fraction"),
        ({"count": 0}, "count is 0"),
        ({"count": 1, "include": ["nothing*"]}, r"no tensor of 4 may be chosen \(include=\['nothing\*'\]"),
        ({"parameters": 5}, "parameters is 5, and the smallest tensor has 64"),
        ({"count": 1, "max_dim": 4}, "only a bound is known: raise max_dim"),
        ({"count": 1, "selection": "choice.json"}, "selection is set beside a budget"),
        ({"selection": "choice.json"}, "choice.json cannot be read"),
    ],
)
def test_budgets_that_select_nothing(settings, said):
    with pytest.raises(AtomsError, match=said):
        fit(Net(), KappaTune(**settings))


def test_a_choice_made_before_is_held_to_its_weights(tmp_path):
    net = Net()
    chosen = select(candidates_of(survey(weights_of(net))), Budget(count=2))
    file = tmp_path / "choice.json"
    file.write_text(json.dumps(chosen.to_json()))
    before = state(net)
    fit(net, KappaTune(selection=str(file)))
    assert moved(net, before) == set(chosen.names)
    with pytest.raises(AtomsError, match=f"{chosen.names[0]} was chosen by other weights than this model has"):
        fit(Net(seed=1), KappaTune(selection=file))


def test_a_fit_goes_on_with_the_choice_of_its_checkpoint(tmp_path, monkeypatch):
    whole = Net()
    fit(whole, KappaTune(count=2), steps=4)
    first = Net()
    trainer = fit(first, KappaTune(count=2), steps=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    stored = torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"]["KappaTune"]["selection"]
    assert [each["name"] for each in stored["chosen"]] == by_kappa(Net())[:2]

    monkeypatch.setattr(fit, "ckpt", tmp_path / "half.ckpt")
    again = Net()
    fit(again, KappaTune(count=2), steps=4)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    with pytest.raises(AtomsError, match="the checkpoint trains tensors chosen from other weights or by other"):
        fit(Net(seed=1), KappaTune(count=2), steps=4)
    with pytest.raises(AtomsError, match=f"first: {by_kappa(Net())[1]}"):
        fit(Net(), KappaTune(count=1), steps=4)


def test_experts_of_sixteen_bits_are_trained_in_thirty_two(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(write_experts(tmp_path / "m", torch.bfloat16), dtype="bfloat16")
    model.train()
    module = CausalLM(model, 1e-2)
    before = state(module)
    callback = KappaTune(count=1, include=["*experts*"], submodule="model")
    ids = torch.randint(3, 200, (4, 12), generator=torch.Generator().manual_seed(0))

    def run(precision):
        trainer = L.Trainer(
            max_steps=1, accelerator="cpu", devices=1, precision=precision, logger=False, callbacks=[callback],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, batches(Blocks(ids, ids), 2, 1, 0))

    with pytest.raises(AtomsError, match="is bfloat16 and trained in float32, which precision 32-true cannot mix"):
        run("32-true")
    run("bf16-mixed")
    (name,) = callback.selection.names
    assert name.startswith("model.layers.0.mlp.experts.")  # as the model names it, not as the module around it does
    assert module.get_parameter(f"model.{name}").dtype == torch.float32
    assert moved(module, before) == {f"model.{name}"}


def test_judging_a_tuned_module_chooses_nothing_anew(tmp_path):
    """A test after a fit would find other weights than those the choice was made from."""
    data = DataLoader(TensorDataset(torch.arange(10)), batch_size=10)
    for choice in ({"count": 1}, {"selection": select(candidates_of(survey(weights_of(Net()))), Budget(count=1))}):
        net, callback = Net(), KappaTune(**choice)
        trainer = fit(net, callback)
        net.test_step = net.validation_step = lambda batch, batch_idx: None
        chosen, after = callback.selection, state(net)
        trainer.test(net, data, verbose=False)
        trainer.validate(net, data, verbose=False)
        assert callback.selection == chosen
        assert not moved(net, after)
        assert [name for name, value in net.named_parameters() if value.requires_grad] == chosen.names
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["KappaTune"]["selection"]
        assert stored == chosen.to_json()


def test_a_module_that_is_only_judged_stays_as_it_was():
    net, callback = Net(), KappaTune(count=1)
    net.test_step = lambda batch, batch_idx: None
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[callback],
    )  # fmt: skip
    trainer.test(net, DataLoader(TensorDataset(torch.arange(10)), batch_size=10), verbose=False)
    assert callback.selection is None
    assert all(value.requires_grad for value in net.parameters())


@pytest.mark.parametrize("changed", ["kappa", "relative"])
def test_a_checkpoint_of_another_machine_is_taken(changed, tmp_path, monkeypatch):
    """Singular values differ in their last digits between machines; weights do not."""
    trainer = fit(Net(), KappaTune(count=2), steps=2)
    trainer.save_checkpoint(tmp_path / "here.ckpt")
    content = torch.load(tmp_path / "here.ckpt", weights_only=True)
    for each in content["callbacks"]["KappaTune"]["selection"]["chosen"]:
        each[changed] *= 1 + 1e-12
    torch.save(content, tmp_path / "there.ckpt")
    monkeypatch.setattr(fit, "ckpt", tmp_path / "there.ckpt")
    net = Net()
    fit(net, KappaTune(count=2), steps=3)
    assert moved(net, state(Net())) == set(by_kappa(Net())[:2])


def test_a_fit_in_sixteen_bits_goes_on_where_it_stopped(tmp_path):
    """Chosen tensors are kept in float32 by the checkpoint too, and all others as they were."""
    write_experts(tmp_path / "m", torch.bfloat16)
    ids = torch.randint(3, 200, (8, 12), generator=torch.Generator().manual_seed(0))

    def run(steps, checkpoint=None):
        module = CausalLM(AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="bfloat16").train(), 1e-2)
        trainer = L.Trainer(
            max_steps=steps, accelerator="cpu", devices=1, precision="bf16-mixed", logger=False,
            callbacks=[KappaTune(count=3, submodule="model")], enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(ids, ids), batch_size=8), ckpt_path=checkpoint)
        return module, trainer

    whole, _ = run(4)
    _, half = run(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    again, _ = run(4, tmp_path / "half.ckpt")
    assert {value.dtype for value in again.parameters() if value.requires_grad} == {torch.float32}
    for name, value in whole.state_dict().items():
        assert value.dtype == again.state_dict()[name].dtype
        assert torch.equal(value, again.state_dict()[name]), name
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="bfloat16").state_dict()
    frozen = {name for name, value in again.model.named_parameters() if not value.requires_grad}
    assert all(torch.equal(again.model.state_dict()[name], start[name]) for name in frozen)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_precision_of_sixteen_bits_throughout_is_refused(precision):
    """Lightning would cast what was just held in float32."""
    net = Net()
    with pytest.raises(AtomsError, match=rf"^trainer.precision is {precision}, which would hold layers.*bf16-mixed"):
        fit(net, KappaTune(count=1), precision=precision)
    assert {value.dtype for value in net.parameters()} == {torch.float32}


def test_a_part_that_is_not_there():
    with pytest.raises(AtomsError, match=r"^submodule is 'model', which is no part of Net: name one$"):
        fit(Net(), KappaTune(count=1, submodule="model"))


def test_weights_of_a_part_are_named_as_the_part_names_them():
    net = Net()
    before, callback = state(net), KappaTune(count=1, submodule="layers")
    fit(net, callback)
    assert f"layers.{callback.selection.names[0]}" == by_kappa(Net())[0]
    assert moved(net, before) == {by_kappa(Net())[0]}
    assert not net.embed.weight.requires_grad  # frozen all the same


class Params4bit(nn.Parameter):
    """As bitsandbytes names it."""


def test_quantised_tensors_take_adapters_alone(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    values = torch.randn(8, 8)
    module = ModuleType("bitsandbytes")
    module.functional = SimpleNamespace(dequantize_4bit=lambda data, state: values)
    monkeypatch.setitem(sys.modules, "bitsandbytes", module)
    net = Net()
    weight = Params4bit(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    weight.quant_state = SimpleNamespace(shape=torch.Size([8, 8]))
    net.layers[4].weight = weight
    with pytest.raises(AtomsError, match=r"^layers.4.weight is quantised \(uint8\).*: put an adapter on it$"):
        fit(net, KappaTune(count=1, include=["layers.4.*"]))


@pytest.mark.parametrize(
    ("settings", "places"),
    [
        ({"count": 1}, [0]),
        ({"fraction": 0.7, "order": "reversed", "include": ["layers.*"], "exclude": ["nothing"]}, [2, 1]),
        ({"selection": "choice.json"}, [1]),
    ],
)
def test_a_config_names_it_by_its_class_path(settings, places):
    chosen = select(candidates_of(survey(weights_of(Net()))), Budget(count=1), include=[by_kappa(Net())[1]])
    Path("choice.json").write_text(json.dumps(chosen.to_json()))
    parser = LightningArgumentParser()
    parser.add_argument("--callback", type=L.Callback)
    given = {"class_path": "atoms.tuning.KappaTune", "init_args": settings}
    callback = parser.instantiate_classes(parser.parse_object({"callback": given})).callback
    net = Net()
    before = state(net)
    fit(net, callback)
    assert callback.selection.names == [by_kappa(Net())[place] for place in places]
    assert moved(net, before) == set(callback.selection.names)


def test_tied_embeddings_move_together_and_only_if_asked(tmp_path):
    folder = write_llama(tmp_path / "m")
    tied = AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=True, ignore_mismatched_sizes=True)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    module = CausalLM(tied.train(), 1e-2)
    before = state(module)
    ids = torch.randint(3, 200, (4, 12), generator=torch.Generator().manual_seed(0))
    callback = KappaTune(count=1, embeddings=True, include=["*embed*"], submodule="model")
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[callback],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, batches(Blocks(ids, ids), 4, 1, 0))
    assert moved(module, before) == {"model.model.embed_tokens.weight", "model.lm_head.weight"}
    with pytest.raises(AtomsError, match="no tensor of 15 may be chosen"):
        KappaTune(count=1, include=["*embed*", "lm_head*"], submodule="model").freeze_before_training(module)
