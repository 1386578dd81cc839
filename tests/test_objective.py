import pytest
import torch

from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct
from atoms.sae import Objective, ThresholdSAE, learning_rate_factor, parameter_groups


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_l0", 0.0),
        ("error_power", 1.5),
        ("bandwidth", 0.0),
        ("gain", 2.0),
        ("revival", -1.0),
        ("dead_after", 0),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(AtomsError, match=f"{name} is {value}: give"):
        Objective(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("encoder", ["tied", "aligned"])
def test_groups_hold_every_parameter_once(encoder: str) -> None:
    sae = ThresholdSAE(4, 8, geometry=AtomicInnerProduct.from_atoms(torch.eye(4)), encoder=encoder)  # type: ignore[arg-type]
    assert [group["lr"] for group in parameter_groups(sae)] == pytest.approx([0.06, 0.006])
    weights, thresholds = parameter_groups(sae, 1e-3, 5e-4)
    assert (weights["lr"], thresholds["lr"]) == (1e-3, 5e-4)
    assert [p is sae.threshold for p in thresholds["params"]] == [True]
    held = {id(p) for p in weights["params"]} | {id(sae.threshold)}
    assert held == {id(p) for p in sae.parameters()}


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 100_000])
def test_learning_rate_rises_stays_and_falls(steps: int) -> None:
    factors = [learning_rate_factor(step, steps) for step in range(steps)]
    assert max(factors) == 1
    assert min(factors) > 0  # no step is wasted on a rate of zero
    peak = factors.index(1)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert learning_rate_factor(steps, steps) == 0
    if steps == 100_000:
        assert peak == 999  # warm-up is capped
