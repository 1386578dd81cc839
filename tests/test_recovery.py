from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.metrics import planted_recovery


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 5))
def test_the_matching_is_the_best_of_all(seed, learned_count, planted_count):
    learned, planted = normal(seed, learned_count, 4), normal(seed + 1, planted_count, 4)
    cosines = torch.nn.functional.cosine_similarity(planted[:, None], learned, dim=-1).abs()
    if learned_count < planted_count:
        cosines = torch.nn.functional.pad(cosines, (0, planted_count - learned_count))
    best = max(
        sum(cosines[t, a].item() for t, a in enumerate(choice))
        for choice in permutations(range(cosines.shape[1]), planted_count)
    )
    found = planted_recovery(learned, planted)
    assert found.matched.sum().item() == pytest.approx(best, abs=1e-12)
    assert found.mcc == pytest.approx(best / planted_count)


def test_order_sign_scale_and_spare_atoms_do_not_matter():
    planted = normal(0, 20, 32)
    learned = torch.cat([normal(1, 15, 32), planted.flip(0) * -1e-3, torch.zeros(3, 32)])
    found = planted_recovery(learned.float(), planted)
    assert found.mcc == pytest.approx(1)
    assert found.recovered == 1


def test_one_learned_atom_cannot_stand_for_two():
    planted = torch.tensor([[1.0, 0.1], [1.0, -0.1]])
    found = planted_recovery(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), planted)
    assert (found.matched > 0.9).sum() == 1
    assert found.recovered == 0.5


def test_missing_and_dead_atoms_recover_nothing():
    planted = torch.eye(4)
    found = planted_recovery(torch.cat([torch.eye(4)[:2], torch.zeros(1, 4)]), planted)
    assert found.matched.tolist() == [1, 1, 0, 0]
    assert (found.mcc, found.recovered) == (0.5, 0.5)
    assert planted_recovery(torch.empty(0, 4), planted).matched.tolist() == [0] * 4


def test_bad_input_is_refused():
    for learned, planted in [
        (torch.eye(3), torch.eye(4)),
        (torch.eye(3), torch.empty(0, 3)),
        (torch.ones(3), torch.eye(3)),
    ]:
        with pytest.raises(ValueError, match="not \\(A, H\\)"):
            planted_recovery(learned, planted)
