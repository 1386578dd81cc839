import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments
from atoms.sae import ThresholdSAE
from atoms.sae.artefact import DESCRIPTION, WEIGHTS, read_description


def activations(rows: int = 2000, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(0, 2, width)
    return torch.randn(rows, width, generator=generator) @ mixing + 500 * torch.randn(width, generator=generator)


def make(encoder: str = "aligned", power: float = 0.5, **options: object) -> ThresholdSAE:
    geometry = AtomicInnerProduct.from_moments(Moments.from_rows(activations().double()))
    sae = ThresholdSAE(16, 40, geometry=geometry, power=power, encoder=encoder, seed=3, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    sae.normalise_()
    return sae


@pytest.mark.parametrize("encoder", ["tied", "aligned", "free"])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_folding_keeps_the_function(encoder: str, power: float) -> None:
    x, sae = activations(), make(encoder, power)
    folded = sae.fold()
    codes, plain = sae.encode(x), folded.encode(x)
    # float32 rounding of x·w; outside it supports agree
    margin = 32 * torch.finfo(torch.float32).eps * x.norm(dim=1, keepdim=True) * folded.w_enc.norm(dim=1)
    clear = (sae.pre_activations(sae.standardise(x)) - sae.threshold).abs() > margin
    assert clear.float().mean() > 0.99
    assert torch.equal((codes > 0)[clear], (plain > 0)[clear])
    assert ((codes - plain).abs() <= margin)[clear].all()
    assert (codes > 0).any()
    torch.testing.assert_close(folded.decode(codes), sae.decode(codes), rtol=1e-4, atol=1e-5 * x.abs().max().item())
    torch.testing.assert_close(folded.w_dec, sae.atoms)
    torch.testing.assert_close(folded.b_dec, sae.centre)


@pytest.mark.parametrize("encoder", ["tied", "aligned", "free"])
def test_round_trip_is_bit_exact(tmp_path: Path, encoder: str) -> None:
    x, sae = activations(), make(encoder)
    sae.save(tmp_path / "deep" / "sae", metadata={"site": "block-3"})
    loaded = ThresholdSAE.load(tmp_path / "deep" / "sae")
    assert loaded.geometry == sae.geometry
    assert (loaded.encoder, loaded.power) == (sae.encoder, sae.power)
    for (name, one), (other_name, other) in zip(sae.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    assert torch.equal(sae.encode(x), loaded.encode(x))
    assert torch.equal(sae(x), loaded(x))
    assert read_description(tmp_path / "deep" / "sae")["metadata"] == {"site": "block-3"}
    assert sorted(path.name for path in (tmp_path / "deep" / "sae").iterdir()) == [DESCRIPTION, WEIGHTS]


@pytest.mark.parametrize(("activation", "k"), [("relu", None), ("topk", 5), ("batch_topk", None)])
def test_every_activation_is_kept(tmp_path: Path, activation: str, k: int | None) -> None:
    x, sae = activations(), make(activation=activation, k=k)
    sae.save(tmp_path)
    loaded = ThresholdSAE.load(tmp_path)
    assert (loaded.activation, loaded.k) == (activation, k)
    assert not loaded.threshold.requires_grad
    assert torch.equal(sae.encode(x), loaded.encode(x))
    assert torch.equal(sae.encode(x), sae.encode_sparse(x).to_dense())
    plain = sae.fold().encode(x)
    torch.testing.assert_close(plain.sum(1), sae.encode(x).sum(1), rtol=1e-2, atol=0.1)  # supports may differ at a tie
    if k is not None:
        assert ((plain > 0).sum(1) == k).all()


def test_an_artefact_of_the_first_format_is_a_threshold(tmp_path: Path) -> None:
    sae = make()
    sae.save(tmp_path)
    description = read_description(tmp_path)
    old = {key: value for key, value in description.items() if key not in ("activation", "k")} | {"format_version": 1}
    digest = hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()
    (tmp_path / DESCRIPTION).write_text(json.dumps(old | {"sha256": digest}))
    loaded = ThresholdSAE.load(tmp_path)
    assert (loaded.activation, loaded.k) == ("threshold", None)
    assert torch.equal(loaded.encode(activations()), sae.encode(activations()))


def test_saving_again_replaces(tmp_path: Path) -> None:
    make("tied").save(tmp_path)
    make("free", power=0.25).save(tmp_path)
    assert ThresholdSAE.load(tmp_path).power == 0.25


def test_what_is_not_an_artefact_is_named(tmp_path: Path) -> None:
    with pytest.raises(AtomsError, match=r"tsae\.json is missing"):
        ThresholdSAE.load(tmp_path / "nowhere")
    make().save(tmp_path)
    description = json.loads((tmp_path / DESCRIPTION).read_text())

    (tmp_path / DESCRIPTION).write_text(json.dumps(description | {"format_version": 99}))
    with pytest.raises(AtomsError, match="format_version 99"):
        ThresholdSAE.load(tmp_path)

    for broken in ("{", "[]", '{"width": 3}'):
        (tmp_path / DESCRIPTION).write_text(broken)
        with pytest.raises(AtomsError, match="does not describe"):
            ThresholdSAE.load(tmp_path)

    (tmp_path / DESCRIPTION).write_text(json.dumps(description))
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(AtomsError, match=r"is not the file tsae\.json describes"):
        ThresholdSAE.load(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(AtomsError, match="no readable"):
        ThresholdSAE.load(tmp_path)
