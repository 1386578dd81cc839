import torch
from hypothesis import given
from hypothesis import strategies as st

from atoms.sae import SparseCodes


@given(
    rows=st.integers(0, 9),
    width=st.integers(1, 12),
    density=st.floats(0, 1),
    cut=st.integers(0, 9),
    seed=st.integers(0),
)
def test_round_trip_and_concatenation(rows: int, width: int, density: float, cut: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**31)
    dense = torch.rand(rows, width, generator=generator) + 0.1
    dense *= torch.rand(rows, width, generator=generator) < density
    codes = SparseCodes.from_dense(dense)

    assert (codes.offsets.dtype, codes.indices.dtype, codes.values.dtype) == (torch.int64, torch.int32, torch.float32)
    assert torch.equal(codes.to_dense(), dense)
    assert codes.l0.tolist() == (dense > 0).sum(1).tolist()

    pieces = [SparseCodes.from_dense(part) for part in (dense[:cut], dense[cut:])]
    assert torch.equal(SparseCodes.concatenate(pieces).to_dense(), dense)


def test_lists_of_atoms_are_sorted_and_what_is_absent_left_out() -> None:
    support = torch.tensor([[4, 0, 2], [3, -1, -1], [-1, -1, -1], [1, 5, 0]])
    coefficients = torch.tensor([[1.0, -2.0, 3.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0], [7.0, 0.0, 9.0]]).double()
    codes = SparseCodes.from_support(support, coefficients, 6)

    assert (codes.offsets.dtype, codes.indices.dtype, codes.values.dtype) == (torch.int64, torch.int32, torch.float32)
    assert codes.offsets.tolist() == [0, 3, 4, 4, 6]
    assert codes.indices.tolist() == [0, 2, 4, 3, 0, 1]
    assert codes.values.tolist() == [-2, 3, 1, 5, 9, 7]
    assert codes.width == 6
