import pytest
import torch
from torch import Tensor

from atoms.geometry import AtomicInnerProduct
from atoms.sae import Control, Objective, ThresholdSAE


def make(atoms: int = 40, rows: int = 1000, **options: float) -> tuple[ThresholdSAE, Control]:
    sae = ThresholdSAE(8, atoms, geometry=AtomicInnerProduct.from_atoms(torch.eye(8)), power=0.0)
    return sae, Control(sae, Objective(**options), rows=rows)  # type: ignore[arg-type]


def statistics(rows: float, active: float, energy: float, fired: Tensor, near: Tensor) -> Tensor:
    return torch.cat([torch.tensor([rows, active, energy]), fired, near]).double()


def test_statistics_are_sums_over_rows() -> None:
    sae, control = make()
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(64, 40, generator=generator) + 1.5
    codes = pre * (pre >= sae.threshold)
    whole = control.statistics(pre, codes, sae.threshold, torch.tensor(0.25))
    halves = [
        control.statistics(pre[half], codes[half], sae.threshold, torch.tensor(energy))
        for half, energy in ((slice(0, 32), 0.125), (slice(32, 64), 0.375))
    ]
    assert whole.dtype == torch.float64
    assert torch.equal(whole, halves[0] + halves[1])
    assert whole[:3].tolist() == [64, (codes > 0).sum().item(), 16]
    assert torch.equal(whole[3:43], (codes > 0).sum(0).double())
    assert torch.equal(whole[43:], ((pre - 2).abs() < 0.2).sum(0).double())


def test_silent_atoms_are_counted_in_rows_and_offered_longest_first() -> None:
    sae, control = make(dead_after=150)
    fired = torch.ones(40)
    fired[[3, 5]] = 0
    control.update(statistics(100, 320, 50, fired, fired))
    fired[5] = 1
    control.update(statistics(100, 320, 50, fired, fired))
    assert control.silent_rows.nonzero().squeeze().item() == 3
    assert control.silent_rows[3] == 200
    assert control.rows_seen == 200
    index, silent, count = control.spare(sae)
    assert index[0] == 3
    assert count == 1
    assert silent.tolist() == [1.0] + [0.0] * (control.num_spare - 1)


def test_silence_defaults_to_a_share_of_training_up_to_a_limit() -> None:
    assert make(rows=300_000)[1].dead_after == 15_000
    assert make(rows=10**9)[1].dead_after == 10_000_000


@pytest.mark.parametrize(("l0", "direction"), [(64.0, 1), (16.0, -1), (0.0, -1)])
def test_thresholds_answer_to_l0(l0: float, direction: int) -> None:
    sae, control = make(target_l0=32.0)
    before = sae.threshold.detach().clone()
    control.update(statistics(100, 100 * l0, 50, torch.ones(40), torch.ones(40)))
    control.after_step_(sae)
    assert ((sae.threshold - before).sign() == direction).all()
    assert sae.threshold.isfinite().all()


def test_price_leaves_no_pull_on_all_thresholds_together() -> None:
    sae, control = make(bandwidth=0.5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sae.threshold.copy_(0.5 + torch.rand(40, generator=generator))
    near = torch.randint(0, 50, (40,), generator=generator).float()
    control.update(statistics(100, 3200, 50, torch.ones(40), near))
    gradient = torch.rand(40, generator=generator)
    sae.threshold.grad = gradient.clone()
    control.project_gradients_(sae)
    assert (sae.threshold.grad * sae.threshold).sum().abs() < 1e-5
    # what was charged is a multiple of -dL0/dθ = near / (rows · bandwidth · θ)
    ratio = (gradient - sae.threshold.grad) / (near / sae.threshold.detach())
    torch.testing.assert_close(ratio[near > 0], ratio[near > 0].mean().expand(int((near > 0).sum())))


def test_gradients_survive_when_nothing_is_near_a_threshold() -> None:
    sae, control = make()
    sae.threshold.grad = torch.zeros(40)
    control.project_gradients_(sae)
    assert not sae.threshold.grad.any()


def test_state_resumes_exactly() -> None:
    _, control = make()
    fired = torch.arange(40) % 3
    control.update(statistics(100, 3300, 51, fired, fired + 1))
    _, fresh = make()
    fresh.load_state_dict(control.state_dict())
    for (name, one), (_, other) in zip(control.named_buffers(), fresh.named_buffers(), strict=True):
        assert torch.equal(one, other), name
        assert one.dtype == other.dtype
    assert fresh.silent_rows.dtype == torch.int64


def test_a_threshold_at_zero_rises_with_the_others() -> None:
    sae, control = make(target_l0=4)
    with torch.no_grad():
        sae.threshold[3] = 0
    control.mean_l0.fill_(8)
    control.after_step_(sae)
    first = sae.threshold[3].item()
    control.after_step_(sae)
    assert 0 < first < sae.threshold[3].item()
