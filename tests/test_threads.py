"""How many threads compute."""

import pytest
import torch

from atoms.conditioning import survey
from atoms.conditioning.weights import named_weight
from atoms.threads import one_thread


@pytest.fixture(autouse=True)
def _three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_one_thread_and_then_as_many_as_before():
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(ValueError, match="lost"), one_thread():
        raise ValueError("lost")
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("shape", "threads"),
    [((8, 4), 1), ((600, 512), 1), ((513, 600), 3), ((4096, 512), 1), ((4097, 512), 3), ((8, 300_000), 3)],
)
def test_small_matrices_are_surveyed_on_one(shape, threads):
    """One side alone makes no matrix small: a table of tokens has many rows."""
    seen = []

    def read():
        seen.append(torch.get_num_threads())
        return torch.randn(*shape)

    survey([named_weight("w.weight", shape, read)])
    assert seen == [threads]
