import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard
from scipy.optimize import linprog

from atoms.checks.basis_pursuit import basis_pursuit
from atoms.checks.recovery_margins import CERTIFIED, recovery_margins
from atoms.geometry.inner_product import unit_rows

SOLVED = 1e-8


def random_directions(generator: torch.Generator, atoms: int, width: int) -> torch.Tensor:
    return unit_rows(torch.randn(atoms, width, generator=generator, dtype=torch.float64))


def random_codes(generator: torch.Generator, rows: int, atoms: int, k: int, positive: bool) -> torch.Tensor:
    support = torch.rand(rows, atoms, generator=generator).topk(k, dim=1).indices
    values = torch.randn(rows, k, generator=generator, dtype=torch.float64)
    return torch.zeros(rows, atoms, dtype=torch.float64).scatter_(1, support, values.abs() if positive else values)


def linear_program(directions: torch.Tensor, row: torch.Tensor, positive: bool) -> tuple[float, np.ndarray]:
    """Optimum and solution of ``min ‖a‖₁, a D = y`` by HiGHS, which shares nothing with our solver."""
    both = directions if positive else torch.cat([directions, -directions])
    found = linprog(np.ones(len(both)), A_eq=both.T.numpy(), b_eq=row.numpy(), bounds=(0, None), method="highs")
    assert found.status == 0, found.message
    code = found.x if positive else found.x[: len(directions)] - found.x[len(directions) :]
    return found.fun, code


def certified_rows_recover(cases: int, seed: int = 0) -> tuple[int, int]:
    """Solve random cases by the linear program and by our solver. Return how many are certified, and how many are not
    but recovered.
    """
    generator = torch.Generator().manual_seed(seed)
    certified, lucky, done = 0, 0, 0
    while done < cases:
        width, k = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((6, 33), (1, 7)))
        atoms = int(torch.randint(width, 3 * width, (), generator=generator))
        positive = bool(torch.rand((), generator=generator) < 0.5)
        directions = random_directions(generator, atoms, width)
        codes = random_codes(generator, 25, atoms, min(k, width // 2), positive)
        rows = codes @ directions
        support = (codes != 0).to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :k]
        margins = recovery_margins(directions, support, codes.gather(1, support))
        sure = (margins.one_sided if positive else margins.fuchs) < CERTIFIED
        ours = basis_pursuit(rows, directions, non_negative=positive)
        assert ours.gap.max() < SOLVED
        assert ours.feasible.all()
        for row in range(25):
            optimum, code = linear_program(directions, rows[row], positive)
            assert ours.primal[row].item() == pytest.approx(optimum, rel=1e-7)
            recovered = np.abs(code - codes[row].numpy()).max() < 1e-6
            assert recovered or not sure[row], (width, atoms, k, positive)
            if sure[row]:
                assert torch.allclose(ours.codes[row], codes[row], atol=1e-7)
            certified += int(sure[row])
            lucky += int(recovered and not sure[row])
        done += 25
    return certified, lucky


def test_certified_rows_recover_under_an_independent_linear_program():
    certified, lucky = certified_rows_recover(1000)
    assert certified > 300
    assert lucky > 100  # the certificate is of one sign pattern, by one dual vector: it is sufficient


@pytest.mark.slow
def test_thousands_of_certified_rows_recover_under_an_independent_linear_program():
    certified, lucky = certified_rows_recover(20_000, seed=1)
    print(f"\n{certified} certified rows of 20,000 recovered, none missed; {lucky} more without a certificate")
    assert certified > 6000


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 12), st.floats(0.5, 4), st.floats(0.01, 1.2), st.booleans())
def test_gap_feasibility_and_optimality_under_a_radius(seed, width, ratio, share, positive):
    generator = torch.Generator().manual_seed(seed)
    directions = random_directions(generator, max(1, round(ratio * width)), width)
    rows = torch.randn(10, width, generator=generator, dtype=torch.float64)
    radius = share * rows.norm(dim=1)
    found = basis_pursuit(rows, directions, radius, non_negative=positive)
    assert torch.allclose(found.residual, (rows - found.codes @ directions).norm(dim=1))
    assert torch.allclose(found.primal, found.codes.abs().sum(1))
    inside = found.feasible
    assert (found.gap[inside] > -1e-9).all()
    assert (found.gap[inside] < SOLVED).all()
    if positive:
        assert (found.codes >= 0).all()
    if share >= 1:
        assert inside.all()
        assert (found.codes == 0).all()
    # Where the solver says that no code is near enough, least squares on all atoms is not near enough either.
    for row in (~inside).nonzero().squeeze(1).tolist():
        best = torch.linalg.lstsq(directions.T, rows[row, :, None], driver="gelsd").solution.squeeze(1) @ directions
        assert positive or (rows[row] - best).norm() > radius[row]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.floats(1e-4, 1e4))
def test_solutions_scale_with_rows(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    directions, rows = (random_directions(generator, n, 8) for n in (20, 6))
    radius = torch.full((6,), 0.2, dtype=torch.float64)
    found, scaled = (basis_pursuit(c * rows, directions, c * radius) for c in (1.0, scale))
    assert torch.allclose(scaled.codes, scale * found.codes, rtol=1e-6, atol=1e-9 * scale)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("k", [1, 3, 12, 30])
def test_ties_everywhere(k, positive):
    """Spikes and waves: all coherences are equal, and so are the coefficients."""
    directions = torch.cat([torch.eye(64), torch.tensor(hadamard(64)).float() / 8]).double()
    generator = torch.Generator().manual_seed(k)
    codes = random_codes(generator, 40, 128, k, positive).sign()
    found = basis_pursuit(codes @ directions, directions, non_negative=positive)
    assert found.feasible.all()
    assert found.gap.max() < SOLVED
    if (2 * k - 1) / 8 < 1:
        assert torch.allclose(found.codes, codes, atol=1e-7)


def test_duplicates_and_antipodes():
    generator = torch.Generator().manual_seed(0)
    directions = random_directions(generator, 60, 20)
    directions = torch.cat([directions, directions[:10], -directions[10:20], torch.zeros(3, 20, dtype=torch.float64)])
    rows = torch.randn(40, 20, generator=generator, dtype=torch.float64)
    for positive in (False, True):
        for share in (0.0, 0.3):
            found = basis_pursuit(rows, directions, share * rows.norm(dim=1), non_negative=positive)
            assert found.feasible.all()
            assert found.gap.abs().max() < SOLVED
            assert (found.codes[:, -3:] == 0).all()


def test_what_cannot_be_reached_is_not_feasible():
    directions = torch.eye(3, dtype=torch.float64)[:2]
    rows = torch.tensor([[1.0, -1, 0], [1, -1, 1], [0, 0, 1], [0, 0, 0]], dtype=torch.float64)
    assert basis_pursuit(rows, directions).feasible.tolist() == [True, False, False, True]
    assert basis_pursuit(rows, directions, non_negative=True).feasible.tolist() == [False, False, False, True]
    assert basis_pursuit(rows, directions[:0]).feasible.tolist() == [False, False, False, True]


def test_a_solver_that_stops_early_says_how_far_it_is():
    generator = torch.Generator().manual_seed(4)
    directions, rows = (random_directions(generator, n, 32) for n in (96, 20))
    early = basis_pursuit(rows, directions, 0.1 * rows.norm(dim=1), max_steps=5)
    assert (early.steps == 5).all()
    assert not early.feasible.any()
    full = basis_pursuit(rows, directions, 0.1 * rows.norm(dim=1))
    assert (early.dual <= full.primal + 1e-9).all()
