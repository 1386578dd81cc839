import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments
from atoms.sae import Control, Objective, ThresholdSAE, eager_step


def activations(rows: int = 500, width: int = 12, seed: int = 0) -> Tensor:
    """Correlated rows far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(0, 1, width)
    return torch.randn(rows, width, generator=generator) @ mixing + 20


def geometry(x: Tensor, **options: object) -> AtomicInnerProduct:
    return AtomicInnerProduct.from_moments(Moments.from_rows(x.double()), **options)  # type: ignore[arg-type]


def make(x: Tensor, atoms: int = 30, **options: object) -> ThresholdSAE:
    sae = ThresholdSAE(x.shape[1], atoms, geometry=geometry(x), **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # nothing at its initial, special value
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    sae.normalise_()
    return sae


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["second_moment", "covariance"])
def test_standardised_rows_are_centred_with_unit_mean_square(power: float, kind: str) -> None:
    x = activations()
    sae = ThresholdSAE(12, 30, geometry=geometry(x, kind=kind), power=power)
    z = sae.standardise(x)
    assert z.square().mean().item() == pytest.approx(1, rel=1e-4)
    assert z.mean(0).abs().max() < 1e-3
    torch.testing.assert_close(sae.restore(z), x, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_inner_products_in_z_are_those_of_the_metric(power: float) -> None:
    x = activations()
    sae = make(x, power=power)
    u, v = (x[:50] - sae.mean).double(), (x[50:100] - sae.mean).double()
    z = sae.standardise(x[:100]).double()
    expected = ((u @ sae.geometry.matrix(power)) * v).sum(1)
    products = (z[:50] * z[50:]).sum(1)
    torch.testing.assert_close(products / products.norm(), expected / expected.norm(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.5])
@pytest.mark.parametrize("error_power", [0.0, 0.5, 1.0])
def test_predicting_the_mean_costs_one_in_every_metric(power: float, error_power: float) -> None:
    x = activations()
    sae = ThresholdSAE(12, 30, geometry=geometry(x), power=power)
    control = Control(sae, Objective(error_power=error_power), rows=1000)
    assert control.energy(sae.standardise(x)).item() == pytest.approx(1, rel=1e-3)
    error = (x - x.mean(0)).double()
    metric = sae.geometry.matrix(error_power)
    share = ((error[:7] @ metric) * error[:7]).sum() / 7 / ((error @ metric) * error).sum(1).mean()
    assert control.energy(sae.standardise(x[:7])).item() == pytest.approx(share.item(), rel=1e-3)


def test_codes_are_what_the_definition_says() -> None:
    x = activations()
    sae = make(x, encoder="free")
    assert sae.directions is not None
    pre = sae.standardise(x) @ sae.directions.T + sae.bias
    expected = torch.where(pre >= sae.threshold, pre, 0)
    torch.testing.assert_close(sae.encode(x), expected)
    assert 0 < (expected > 0).float().mean() < 1
    torch.testing.assert_close(
        sae.decode(expected), expected @ sae.atoms + sae.centre, rtol=1e-4, atol=1e-3 * x.std().item()
    )


def test_encoder_kinds() -> None:
    x = activations()
    tied, aligned, free = (make(x, encoder=kind) for kind in ("tied", "aligned", "free"))
    assert tied.encoder_rows() is tied.decoder
    assert free.encoder_rows() is free.directions
    torch.testing.assert_close((aligned.encoder_rows() * aligned.decoder).sum(1), torch.ones(30))
    assert (free.encoder_rows() * free.decoder).sum(1).sub(1).abs().max() > 0.01


def test_initial_directions_depend_on_the_seed_alone() -> None:
    g = geometry(activations())
    before = torch.random.get_rng_state()
    one, same, other = (ThresholdSAE(12, 30, geometry=g, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.decoder, same.decoder)
    assert not torch.equal(one.decoder, other.decoder)


def test_sparse_encoding_equals_dense_across_chunks() -> None:
    x = activations(rows=5000)
    sae = make(x)
    torch.testing.assert_close(sae.encode_sparse(x).to_dense(), sae.encode(x))
    assert len(sae.encode_sparse(x[:0])) == 0


@settings(max_examples=20, deadline=None)
@given(exponent=st.integers(-30, 30), power=st.sampled_from([0.0, 0.5, 0.7, 1.0]))
def test_a_power_of_two_changes_no_bit(exponent: int, power: float) -> None:
    x = activations(rows=64)
    factor = 2.0**exponent
    one = ThresholdSAE(12, 30, geometry=geometry(x), power=power)
    other = ThresholdSAE(12, 30, geometry=geometry(x * factor), power=power)
    assert torch.equal(one.standardise(x), other.standardise(x * factor))
    assert torch.equal(one.encode(x), other.encode(x * factor))
    assert torch.equal(one(x) * factor, other(x * factor))
    assert torch.equal(one.atoms * factor, other.atoms)
    assert torch.equal(one.error_map(0.25), other.error_map(0.25))


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()])
def test_casting_leaves_the_geometry_alone(cast: Callable[[ThresholdSAE], ThresholdSAE]) -> None:
    x = activations()
    sae = make(x)
    digest = sae.geometry.digest
    state = cast(sae).state_dict()
    fresh = ThresholdSAE(12, 30, geometry=geometry(activations(seed=1)))
    fresh.load_state_dict(state)
    assert fresh.geometry.digest == digest
    assert torch.equal(fresh.standardise(x), make(x).standardise(x))


def test_state_dict_loads_with_weights_only(tmp_path: object) -> None:
    x = activations()
    sae = make(x)
    path = f"{tmp_path}/state.pt"
    torch.save(sae.state_dict(), path)
    fresh = ThresholdSAE(12, 30, geometry=geometry(activations(seed=1)))
    fresh.load_state_dict(torch.load(path, weights_only=True))
    assert torch.equal(fresh.encode(x), sae.encode(x))


def test_autocast_lowers_only_the_products() -> None:
    x = activations()
    sae = make(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pre, codes, decoded = sae.pre_activations(sae.standardise(x)), sae.encode(x), sae(x)
    assert {pre.dtype, codes.dtype, decoded.dtype} == {torch.float32}
    assert torch.equal(sae.standardise(x), sae.standardise(x))
    assert torch.equal(codes > 0, pre >= sae.threshold)
    torch.testing.assert_close(pre, sae.pre_activations(sae.standardise(x)), rtol=0.05, atol=0.05)


def test_decoder_gradients_stay_on_the_sphere() -> None:
    x = activations()
    sae = make(x)
    eager_step(sae, Control(sae, Objective(), rows=1000), x).loss.backward()
    sae.project_gradients_()
    assert sae.decoder.grad is not None
    assert (sae.decoder.grad * sae.decoder).sum(1).abs().max() < 1e-6
    with torch.no_grad():
        sae.decoder.mul_(3)
        sae.threshold.sub_(5)
    sae.normalise_()
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(30))
    assert sae.threshold.min() == 0


def test_refit_is_least_squares_in_the_metric() -> None:
    x = activations(rows=300)
    sae = make(x, power=0.5)
    codes = sae.encode(x).double()
    refitted = sae.refit(x, codes)
    assert torch.equal(refitted != 0, codes != 0)
    metric = sae.geometry.map(1.0)
    for i in (0, 131, 299):
        support = codes[i].nonzero().squeeze(1)
        dictionary = (sae.atoms[support].double() @ metric).T
        target = (x[i].double() - sae.centre.double()) @ metric
        expected = torch.linalg.lstsq(dictionary, target.unsqueeze(1), driver="gelsd").solution
        torch.testing.assert_close(dictionary @ refitted[i, support], dictionary @ expected.squeeze(1))
    assert not sae.refit(x[:3], torch.zeros(3, 30)).any()


def test_refit_survives_an_atom_that_occurs_twice() -> None:
    x = activations(rows=20)
    sae = make(x)
    with torch.no_grad():
        sae.decoder[1] = sae.decoder[0]
    codes = torch.zeros(20, 30, dtype=torch.float64)
    codes[:, :3] = 1
    refitted = sae.refit(x, codes)
    assert refitted.isfinite().all()
    torch.testing.assert_close(refitted[:, 0], refitted[:, 1])  # the least-norm solution shares evenly


def test_toy_of_the_identifiability_theorem() -> None:
    # Fully whitened and tied is the theorem's encoder: supports come out exactly, amplitudes only after a refit.
    generator = torch.Generator().manual_seed(0)
    width, count, active = 256, 512, 3
    # Nearly tight, moderately coherent atoms: an identity and a Hadamard basis, μ = 1/16.
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(8):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    atoms = torch.cat([torch.eye(width, dtype=torch.float64), hadamard / 16])
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    atoms = atoms @ rotation
    delta = torch.zeros(200, count, dtype=torch.float64)
    where = torch.rand(200, count, generator=generator).topk(active, dim=1).indices
    delta.scatter_(1, where, 0.8 + 0.2 * torch.rand(200, active, generator=generator, dtype=torch.float64))
    rows = delta @ atoms

    sae = ThresholdSAE(
        width, count, geometry=AtomicInnerProduct.from_atoms(atoms), power=1.0, encoder="tied"
    ).requires_grad_(False)
    length = 1 / sae.atoms.double().norm(dim=1).mean()  # z-units per activation unit
    sae.decoder.copy_(atoms)
    sae.threshold.fill_(length * 0.5)  # inside (εKδmax, δmin - ε(K-1)δmax) = (.19, .68)
    codes = sae.encode(rows.float()).double()
    assert torch.equal(codes > 0, delta > 0)
    raw = (sae.decode(codes.float()).double() - rows).norm(dim=1) / rows.norm(dim=1)
    refitted = sae.refit(rows, codes)
    exact = (refitted @ atoms / length - rows).norm(dim=1) / rows.norm(dim=1)
    assert raw.max() > 0.01
    assert exact.max() < 1e-6  # the atoms are stored in float32
    torch.testing.assert_close(refitted / length, delta, rtol=1e-4, atol=1e-5)


def test_mistakes_are_named() -> None:
    g = geometry(activations())
    with pytest.raises(AtomsError, match="width is 13"):
        ThresholdSAE(13, 30, geometry=g)
    with pytest.raises(AtomsError, match="atoms is 0"):
        ThresholdSAE(12, 0, geometry=g)
    with pytest.raises(AtomsError, match="power is 2"):
        ThresholdSAE(12, 30, geometry=g, power=2.0)
    with pytest.raises(AtomsError, match="encoder is 'loose'"):
        ThresholdSAE(12, 30, geometry=g, encoder="loose")  # type: ignore[arg-type]
    assert math.isfinite(ThresholdSAE(12, 30, geometry=g).error_map(1.0).sum())
