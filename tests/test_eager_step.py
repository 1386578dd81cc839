import copy

import pytest
import torch
from torch import Tensor

from atoms.geometry import AtomicInnerProduct, Moments
from atoms.sae import Control, Objective, StepOutput, ThresholdSAE, eager_step, learning_rate_factor, parameter_groups


def planted(
    rows: int = 4096, width: int = 16, atoms: int = 32, active: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Sparse non-negative combinations of random unit atoms, away from the origin, and the atoms."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.normalize(torch.randn(atoms, width, generator=generator), dim=1)
    codes = torch.zeros(rows, atoms)
    where = torch.rand(rows, atoms, generator=generator).topk(active, dim=1).indices
    codes.scatter_(1, where, 0.5 + torch.rand(rows, active, generator=generator))
    return codes @ truth + 3, truth


def make(x: Tensor, atoms: int, rows: int, *, encoder: str = "free", **options: object) -> tuple[ThresholdSAE, Control]:
    geometry = AtomicInnerProduct.from_moments(Moments.from_rows(x.double()))
    sae = ThresholdSAE(x.shape[1], atoms, geometry=geometry, encoder=encoder)  # type: ignore[arg-type]
    return sae, Control(sae, Objective(**options), rows=rows)  # type: ignore[arg-type]


def train(
    sae: ThresholdSAE,
    control: Control,
    x: Tensor,
    steps: int,
    *,
    batch: int = 256,
    ranks: int = 1,
    lr: float | None = None,
) -> list[StepOutput]:
    """The loop of a trainer; several ranks take equal parts of a batch, average gradients and add statistics."""
    optimizer = torch.optim.Adam(parameter_groups(sae, lr))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    generator = torch.Generator().manual_seed(0)
    outputs = []
    for _ in range(steps):
        rows = x[torch.randint(len(x), (batch,), generator=generator)]
        parts = [eager_step(sae, control, part) for part in rows.chunk(ranks)]
        optimizer.zero_grad()
        for part in parts:
            (part.loss / ranks).backward()
        control.update(torch.stack([part.stats for part in parts]).sum(0))
        control.project_gradients_(sae)
        optimizer.step()
        schedule.step()
        control.after_step_(sae)
        outputs.append(parts[0])
    return outputs


def test_loss_is_the_share_of_variance_left_and_parts_are_detached() -> None:
    x, _ = planted()
    sae, control = make(x, 40, 10_000, error_power=0.5)
    out = eager_step(sae, control, x)
    residual = sae.standardise(x) - sae.reconstruct(sae.encode(x))
    expected = residual.square().sum(1).mean() / 16  # r = p: plain squares in z
    assert out.parts["reconstruction"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-4)  # nothing is silent yet
    assert out.parts["l0"].item() == pytest.approx((sae.encode(x) > 0).sum(1).double().mean().item())
    assert not any(part.requires_grad for part in out.parts.values())
    assert not out.stats.requires_grad


@pytest.mark.parametrize("encoder", ["tied", "aligned", "free"])
def test_gradients_equal_finite_differences(encoder: str) -> None:
    # In double, with every pre-activation clear of its threshold, the loss is smooth in all but the thresholds.
    x, _ = planted(rows=8)
    sae, control = make(x, 40, 10_000, encoder=encoder, error_power=0.25)
    sae, control, x = sae.double(), control.double(), x.double()
    eager_step(sae, control, x).loss.backward()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in sae.named_parameters():
        if name == "threshold":
            continue
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter.add_(1e-6 * direction)
            above = eager_step(sae, control, x).loss.item()
            parameter.sub_(2e-6 * direction)
            below = eager_step(sae, control, x).loss.item()
            parameter.add_(1e-6 * direction)
        assert parameter.grad is not None
        slope = (parameter.grad * direction).sum().item()
        assert (above - below) / 2e-6 == pytest.approx(slope, rel=1e-3), name


@pytest.mark.parametrize("exponent", [-20, 9])
def test_a_power_of_two_trains_bit_identically(exponent: int) -> None:
    x, _ = planted()
    options = {"target_l0": 2.0, "error_power": 0.25, "dead_after": 500}
    one, other = make(x, 48, 5000, **options), make(x * 2.0**exponent, 48, 5000, **options)
    losses = [
        [out.loss.item() for out in train(*pair, rows, steps=8)]
        for pair, rows in ((one, x), (other, x * 2.0**exponent))
    ]
    assert losses[0] == losses[1]
    for (name, first), (_, second) in zip(one[0].named_parameters(), other[0].named_parameters(), strict=True):
        assert torch.equal(first, second), name


def test_two_ranks_with_half_the_batch_equal_one() -> None:
    x, _ = planted()
    alone = make(x, 64, 10_000, target_l0=2.0, dead_after=600)
    with torch.no_grad():
        alone[0].threshold[:8] += 30
    train(*alone, x, steps=4)
    assert (alone[1].silent_rows >= 600).any()  # revival takes part in what follows
    # Start both from there with a fresh optimizer; double takes Adam's amplification of rounding out of the comparison.
    alone = alone[0].double(), alone[1].double()
    together = copy.deepcopy(alone)
    first = train(*alone, x.double(), steps=10)
    train(*together, x.double(), steps=10, ranks=2)
    assert any(out.parts["revival"] > 0 for out in first)
    for one, other in zip(alone, together, strict=True):
        for name, value in one.state_dict().items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-5, atol=1e-7, msg=name)


def test_alignment_holds_throughout_training() -> None:
    x, _ = planted()
    sae, control = make(x, 48, 256 * 30, encoder="aligned", target_l0=2.0)
    before = sae.encoder_rows().detach().clone()
    train(sae, control, x, steps=30)
    assert (sae.encoder_rows() - before).norm() > 0.1
    torch.testing.assert_close((sae.encoder_rows() * sae.decoder).sum(1), torch.ones(48))


def test_l0_reaches_its_target() -> None:
    x, _ = planted(active=4)
    sae, control = make(x, 64, 256 * 150, target_l0=4.0)
    outputs = train(sae, control, x, steps=150)
    late = torch.stack([out.parts["l0"] for out in outputs[-50:]]).mean()
    assert late.item() == pytest.approx(4.0, rel=0.03)
    assert (sae.encode(x) > 0).sum(1).double().mean().item() == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("fault", ["threshold", "bias"])
def test_silent_atoms_come_back(fault: str) -> None:
    x, _ = planted()
    sae, control = make(x, 64, 128 * 60, target_l0=2.0, dead_after=500)
    with torch.no_grad():
        if fault == "threshold":
            sae.threshold[:20] += 30
        else:
            sae.bias[:20] -= 30
    train(sae, control, x, steps=4, batch=128)
    assert (control.silent_rows[:20] == 512).all()
    train(sae, control, x, steps=60, batch=128, lr=1e-2)
    assert (control.silent_rows[:20] < 2000).float().mean() > 0.9


def test_a_tiny_set_can_be_learnt_by_heart() -> None:
    x, _ = planted(rows=48)
    sae, control = make(x, 64, 64 * 200, target_l0=6.0)
    train(sae, control, x, steps=200, batch=64, lr=2e-2)
    assert eager_step(sae, control, x).parts["reconstruction"] < 0.02


def test_planted_atoms_are_found() -> None:
    x, truth = planted(rows=10_000, width=16, atoms=24, active=2)
    sae, control = make(x, 24, 256 * 200, target_l0=2.0)
    train(sae, control, x, steps=200, lr=2e-2)
    cosines = torch.nn.functional.normalize(sae.atoms, dim=1) @ truth.T
    assert (cosines.max(0).values > 0.9).float().mean() > 0.9


def test_autocast_trains() -> None:
    x, _ = planted()
    sae, control = make(x, 48, 10_000, target_l0=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = eager_step(sae, control, x)
    full = eager_step(sae, control, x)
    assert lowered.loss.dtype == torch.float32
    assert lowered.loss.item() == pytest.approx(full.loss.item(), rel=0.02)
    lowered.loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in sae.parameters())
