import pytest
import torch

from atoms.sae.threshold import threshold_activation, window


def test_keeps_what_reaches_its_threshold() -> None:
    pre = torch.tensor([[0.5, 1.0, 2.0, -3.0]])
    threshold = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert threshold_activation(pre, threshold, 0.5).tolist() == [[0.0, 1.0, 2.0, 0.0]]


def test_gradients_are_the_straight_through_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(200, 7, generator=generator).requires_grad_()
    threshold = torch.rand(7, generator=generator).requires_grad_()
    weight = torch.randn(200, 7, generator=generator)
    (threshold_activation(pre, threshold, 0.4) * weight).sum().backward()

    width = 0.4 * threshold.detach()
    kernel = ((pre.detach() - threshold.detach()) / width).abs() < 0.5
    expected = -(threshold.detach() / width * kernel * weight).sum(0)  # -(θ/ε) K((z-θ)/ε), summed over rows
    assert threshold.grad is not None
    assert pre.grad is not None
    torch.testing.assert_close(threshold.grad, expected)
    torch.testing.assert_close(pre.grad, weight * (pre.detach() >= threshold.detach()))


def test_gradient_estimates_the_derivative_of_the_expected_code() -> None:
    # For pre-activations spread evenly, d/dθ E[pre·1[pre >= θ]] = -θ·density, whatever the bandwidth.
    pre = torch.linspace(0, 4, 400_001, dtype=torch.float64).unsqueeze(1)
    threshold = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    threshold_activation(pre, threshold, 0.3).mean().backward()
    assert threshold.grad is not None
    assert threshold.grad.item() == pytest.approx(-1.5 / 4, rel=0.01)


def test_window_of_a_zero_threshold_is_empty() -> None:
    assert not window(torch.zeros(3, 2), torch.zeros(2), 0.5).any()
