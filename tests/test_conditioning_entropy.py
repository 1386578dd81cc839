"""Entropies through linear maps and element-wise functions, against determinants, integrals and samples."""

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from atoms.conditioning import (
    entropy_after,
    entropy_loss,
    gaussian_entropy,
    isotropic_entropy,
    log_volume,
    output_entropy,
    spectrum,
)
from atoms.errors import AtomsError

laws = settings(deadline=None, max_examples=50)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(seed: int, n: int) -> torch.Tensor:
    root = normal(seed, n, n + 2)
    return root @ root.T


def tanh_entropy(deviation: float) -> float:
    """Entropy of tanh of a Gaussian from its density, which is known, by an integral over (-1, 1)."""

    def density(t: float) -> float:
        return float(stats.norm.pdf(math.atanh(t), scale=deviation)) / (1 - t**2)

    def surprise(t: float) -> float:
        found = density(t)
        return -found * math.log(found) if found > 0 else 0.0

    return float(integrate.quad(surprise, -1, 1, limit=400)[0])


@laws
@given(st.integers(1, 8), st.integers(0, 1000))
def test_gaussian_entropy_is_scipys(n, seed):
    sigma = covariance(seed, n)
    expected = stats.multivariate_normal(cov=sigma.numpy()).entropy()
    assert gaussian_entropy(sigma) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_gaussian_entropy_of_a_singular_covariance():
    assert gaussian_entropy(torch.ones(2, 2)) == -math.inf
    assert gaussian_entropy(torch.diag(torch.tensor([1.0, 0.0, 2.0]))) == -math.inf


@pytest.mark.parametrize("variance", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("n", [1, 7])
def test_isotropic_entropy(n, variance):
    assert isotropic_entropy(n, variance) == pytest.approx(n * stats.norm(scale=math.sqrt(variance)).entropy())
    identity = torch.eye(n, dtype=torch.float64)
    assert isotropic_entropy(n, variance) == pytest.approx(gaussian_entropy(variance * identity))
    assert isotropic_entropy(n) == pytest.approx(gaussian_entropy(identity))


@laws
@given(st.integers(1, 6), st.integers(0, 1000))
def test_a_square_map_adds_its_log_volume(n, seed):
    weight, sigma = normal(seed, n, n), covariance(seed + 1, n)
    after = gaussian_entropy(weight @ sigma @ weight.T)
    added = log_volume(torch.linalg.svdvals(weight))
    assert after == pytest.approx(gaussian_entropy(sigma) + added, abs=1e-6)


@pytest.mark.parametrize("variance", [0.3, 1.0])
@pytest.mark.parametrize("shape", [(5, 5), (3, 8)])
def test_output_entropy_is_the_outputs_determinants(shape, variance):
    weight = normal(1, *shape)
    found = output_entropy(torch.linalg.svdvals(weight), variance)
    assert found == pytest.approx(gaussian_entropy(variance * weight @ weight.T), rel=1e-12)


def test_output_entropy_of_a_tall_map_is_that_in_its_range():
    weight = normal(2, 9, 4)
    basis = torch.linalg.qr(weight).Q
    inside = basis.T @ weight
    assert output_entropy(torch.linalg.svdvals(weight)) == pytest.approx(gaussian_entropy(inside @ inside.T))


def test_output_entropy_is_the_mean_surprise_of_outputs():
    weight = normal(3, 3, 5)
    outputs = 0.7 * normal(4, 200_000, 5) @ weight.T
    surprise = -stats.multivariate_normal(cov=(0.49 * weight @ weight.T).numpy()).logpdf(outputs.numpy())
    error = surprise.std() / math.sqrt(len(surprise))
    assert output_entropy(torch.linalg.svdvals(weight), 0.49) == pytest.approx(surprise.mean(), abs=4 * error)


def test_output_entropy_of_a_singular_map():
    assert output_entropy(torch.tensor([2.0, 0.0])) == -math.inf


@pytest.mark.parametrize("deviation", [0.5, 1.0])
def test_entropy_after_tanh_is_that_of_its_density(deviation):
    y = deviation * normal(5, 200_000, 1)
    gain = (1 - y.tanh().square()).log()
    error = gain.std().item() / math.sqrt(len(y))
    before = isotropic_entropy(1, deviation**2)
    found = entropy_after(before, 1 - y.tanh().square())
    assert found == pytest.approx(tanh_entropy(deviation), abs=4 * error)
    assert found < before


def test_entropies_of_independent_coordinates_add_up():
    y = normal(6, 100_000, 3) * torch.tensor([0.4, 0.8, 1.2])
    before = sum(isotropic_entropy(1, deviation**2) for deviation in (0.4, 0.8, 1.2))
    found = entropy_after(before, 1 - y.tanh().square())
    assert found == pytest.approx(sum(map(tanh_entropy, (0.4, 0.8, 1.2))), abs=0.03)


@laws
@given(st.floats(-5, 5).filter(lambda slope: abs(slope) > 1e-3), st.integers(1, 5), st.floats(-50, 50))
def test_a_constant_slope_adds_its_logarithm(slope, n, entropy):
    derivative = torch.full((10, n), slope)
    assert entropy_after(entropy, derivative) == pytest.approx(entropy + n * math.log(abs(slope)), abs=1e-5)
    assert (entropy_after(entropy, derivative) <= entropy) == (abs(slope) <= 1)


@pytest.mark.parametrize("function", [torch.tanh, torch.nn.functional.softsign, torch.sigmoid])
def test_a_contraction_never_adds_entropy(function):
    y = (3 * normal(7, 500, 4)).requires_grad_()
    (derivative,) = torch.autograd.grad(function(y).sum(), y)
    assert entropy_after(1.5, derivative) < 1.5


def test_relu_has_no_such_entropy():
    y = normal(8, 100, 3)
    with pytest.raises(AtomsError, match="derivative is 0 at a sample: the function is not invertible"):
        entropy_after(1.0, (y > 0).double())
    with pytest.raises(AtomsError, match="not invertible"):
        entropy_after(1.0, torch.tensor([[1.0, 0.0]]))


def test_examples_of_the_page():
    page = (Path(__file__).parents[1] / "docs" / "conditioning.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page.partition("## From Python")[2].partition("\n# ")[0], re.DOTALL)
    matrix = normal(9, 6, 4)
    names = {"model": torch.nn.Linear(4, 6), "matrix": matrix, "derivative": torch.full((3, 4), 0.5)}
    exec("\n".join(blocks), names)
    assert names["worst"].name == "weight"
    assert names["lost"] == pytest.approx(entropy_loss(spectrum(matrix).values))
    assert names["through"] == pytest.approx(isotropic_entropy(4) + log_volume(spectrum(matrix).values))
    assert len(blocks) == 2
