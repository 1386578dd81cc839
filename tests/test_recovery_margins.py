import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.checks.recovery_margins import CERTIFIED, Margins, recovery_margins
from atoms.geometry.inner_product import unit_rows

SEEDS = st.integers(0, 10_000)


def random_directions(seed: int, atoms: int, width: int) -> torch.Tensor:
    return unit_rows(torch.randn(atoms, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def random_codes(seed: int, rows: int, atoms: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Supports of k atoms with normal coefficients; every third row has one atom fewer, padded amid the others."""
    generator = torch.Generator().manual_seed(seed + 1)
    support = torch.rand(rows, atoms, generator=generator).topk(k, dim=1).indices
    coefficients = torch.randn(rows, k, generator=generator, dtype=torch.float64)
    coefficients[::3, 0] = 0.0
    return support, coefficients


def literally(directions: torch.Tensor, support: torch.Tensor, coefficients: torch.Tensor) -> tuple[float, ...]:
    """The definitions, for one row."""
    on = support[coefficients != 0]
    if not len(on):
        return 0.0, 0.0, 0.0
    signs = coefficients[coefficients != 0].sign()
    atoms = directions[on]
    inverse = torch.linalg.inv(atoms @ atoms.T)
    off = torch.tensor([j for j in range(len(directions)) if j not in on.tolist()])
    products = directions[off] @ atoms.T @ inverse
    dual = products @ signs
    one_sided = max(0.0, dual.max().item()) if (signs > 0).all() else math.inf
    return dual.abs().max().item(), one_sided, products.abs().sum(1).max().item()


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 6), st.booleans(), st.sampled_from([1, 512]))
def test_margins_are_the_definitions(seed, k, positive, memory_mib):
    directions, (support, coefficients) = random_directions(seed, 20, 8), random_codes(seed, 12, 20, k)
    coefficients = coefficients.abs() if positive else coefficients
    found = recovery_margins(directions, support, coefficients, memory_mib=memory_mib)
    assert not found.singular.any()
    for row in range(12):
        fuchs, one_sided, erc = literally(directions, support[row], coefficients[row])
        assert found.fuchs[row].item() == pytest.approx(fuchs, rel=1e-8)
        assert found.one_sided[row].item() == pytest.approx(one_sided, rel=1e-8)
        assert found.erc[row] >= found.fuchs[row] - 1e-12
        if erc < 1:
            assert found.erc[row].item() == pytest.approx(erc, rel=1e-8)
        else:  # a lower bound that decides
            assert 1 - 1e-9 <= found.erc[row] <= erc * (1 + 1e-9)


def test_an_orthonormal_dictionary_has_margins_of_zero():
    support, coefficients = random_codes(3, 10, 16, 5)
    found = recovery_margins(torch.eye(16, dtype=torch.float64), support, coefficients.abs())
    assert found.fuchs.abs().max() == found.erc.abs().max() == found.one_sided.abs().max() == 0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_two_atoms_and_a_third_between_them(sign):
    """``d3 = (d1 + d2) / √2`` of orthogonal atoms: the margin is √2 for equal signs and 0 for opposite ones."""
    directions = unit_rows(torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=torch.float64))
    found = recovery_margins(directions, torch.tensor([[0, 1]]), torch.tensor([[2.0, sign]]))
    assert found.fuchs.item() == pytest.approx(math.sqrt(2) if sign > 0 else 0.0, abs=1e-12)
    assert found.erc.item() == pytest.approx(math.sqrt(2))  # of equal signs, whichever the row's are


@given(st.floats(-0.99, 0.99))
def test_one_atom_beside_another(cosine):
    """A single atom's margin is the |cos| to its neighbour; one-sided, only a positive one counts."""
    directions = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
    found = recovery_margins(directions, torch.tensor([[0]]), torch.tensor([[3.0]]))
    assert found.fuchs.item() == pytest.approx(abs(cosine))
    assert found.one_sided.item() == pytest.approx(max(cosine, 0.0))
    assert found.erc.item() == pytest.approx(abs(cosine))


def test_a_duplicated_atom_certifies_nobody_that_uses_it():
    directions = random_directions(0, 6, 12)
    directions = torch.cat([directions, directions[:1], -directions[1:2]])
    support = torch.tensor([[0, 6, 2], [0, 3, 4], [1, 3, 4], [2, 3, 4]])
    found = recovery_margins(directions, support, torch.ones(4, 3))
    assert found.singular.tolist() == [True, False, False, False]
    assert found.smallest[0].abs() < 1e-12
    assert found.smallest[1:].isnan().all()
    assert found.fuchs[0] == found.one_sided[0] == found.erc[0] == math.inf
    assert found.fuchs[1:3].tolist() == pytest.approx([1.0, 1.0])  # the duplicate off the support
    assert not (found.fuchs[:3] < CERTIFIED).any()
    assert (found.one_sided < CERTIFIED).tolist() == [False, False, True, True]  # an antipode is no rival there
    assert found.fuchs[3] < CERTIFIED


def test_more_atoms_than_dimensions_are_dependent_and_no_atom_is_no_risk():
    directions = random_directions(1, 9, 4)
    support = torch.arange(9).expand(2, 9)
    coefficients = torch.stack([torch.ones(9), torch.zeros(9)])
    found = recovery_margins(directions, support, coefficients)
    assert found.singular.tolist() == [True, False]
    assert found.smallest[0] == 0
    assert found.fuchs.tolist() == [math.inf, 0.0]
    assert len(recovery_margins(directions, support[:0], coefficients[:0]).fuchs) == 0


def test_dead_atoms_are_no_rivals():
    directions = random_directions(2, 10, 6)
    support, coefficients = random_codes(2, 8, 10, 2)
    with_dead = recovery_margins(torch.cat([directions, torch.zeros(5, 6, dtype=torch.float64)]), support, coefficients)
    without = recovery_margins(directions, support, coefficients)
    assert torch.allclose(with_dead.fuchs, without.fuchs, rtol=1e-12)
    assert torch.allclose(with_dead.erc, without.erc, rtol=1e-12)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.floats(1e-6, 1e6))
def test_scale_of_codes_and_order_of_atoms_and_rows_do_not_matter(seed, scale):
    directions, (support, coefficients) = random_directions(seed, 24, 10), random_codes(seed, 9, 24, 4)
    found = recovery_margins(directions, support, coefficients)
    generator = torch.Generator().manual_seed(seed)
    atoms, rows, places = (torch.randperm(n, generator=generator) for n in (24, 9, 4))
    other = recovery_margins(
        directions[atoms], atoms.argsort()[support][rows][:, places], scale * coefficients[rows][:, places]
    )
    for name in ("fuchs", "one_sided"):
        assert torch.allclose(getattr(other, name), getattr(found, name)[rows], rtol=1e-9)
    assert torch.allclose(other.erc.clamp_max(1), found.erc[rows].clamp_max(1), rtol=1e-9)


def shares(k: int, rows: int) -> tuple[float, float]:
    """Rows certified by Fuchs and by Tropp on a random dictionary of H = 384, A = 1,536 with K atoms a row."""
    directions = random_directions(7, 1536, 384)
    generator = torch.Generator().manual_seed(k)
    support = torch.stack([torch.randperm(1536, generator=generator)[:k] for _ in range(rows)])
    found: Margins = recovery_margins(directions, support, torch.randn(rows, k, generator=generator))
    return (found.fuchs < CERTIFIED).double().mean().item(), (found.erc < CERTIFIED).double().mean().item()


def test_random_dictionaries_are_certified_as_far_as_known():
    """Shares of 200 supports of a random dictionary, measured before with other code; three standard errors."""
    assert shares(12, 200)[1] == pytest.approx(0.97, abs=0.05)
    assert shares(16, 200)[0] == 1.0
    assert shares(20, 200)[0] == pytest.approx(0.95, abs=0.06)
    assert shares(32, 200)[0] == pytest.approx(0.34, abs=0.12)
