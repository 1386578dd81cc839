"""Lines come back in the order of their rows, whoever added them and in which batches."""

import pytest
import torch
from forked import in_a_group
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.checks.row_table import RowTable


@settings(deadline=None)
@given(st.permutations(range(12)), st.sets(st.integers(1, 11)))
def test_order_and_batches_do_not_matter(order, cuts):
    rows = torch.tensor(order)
    table = RowTable()
    for part in torch.tensor_split(rows, sorted(cuts)):
        table.add(part, square=part.double() ** 2, sign=part % 2 == 0)
    found = table.gather()
    assert list(found) == ["index", "square", "sign"]
    assert found["index"].tolist() == list(range(12))
    assert found["square"].tolist() == [i**2 for i in range(12)]
    assert found["sign"].tolist() == [i % 2 == 0 for i in range(12)]


@pytest.mark.parametrize(
    ("given_as", "kept_as"),
    [
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float64),
        (torch.float64, torch.float64),
        (torch.int32, torch.int64),
        (torch.int64, torch.int64),
        (torch.bool, torch.int64),
    ],
)
def test_numbers_are_kept_wide(given_as, kept_as):
    table = RowTable()
    table.add(torch.tensor([4]), value=torch.ones(1, dtype=given_as))
    assert table.gather()["value"].dtype == kept_as
    assert table.gather()["value"].item() == 1


def test_a_large_integer_survives():
    table = RowTable()
    table.add(torch.tensor([0]), value=torch.tensor([2**62 + 1]))
    assert table.gather()["value"].item() == 2**62 + 1


def test_no_graph_is_kept():
    table = RowTable()
    table.add(torch.tensor([0]), value=torch.ones(1, requires_grad=True) * 2)
    assert not table.gather()["value"].requires_grad


def test_gathering_takes_nothing_away():
    table = RowTable()
    table.add(torch.tensor([1]), value=torch.tensor([1.0]))
    assert table.gather()["value"].tolist() == table.gather()["value"].tolist() == [1.0]
    table.add(torch.tensor([0]), value=torch.tensor([0.0]))
    assert table.gather()["value"].tolist() == [0.0, 1.0]


def test_without_a_line_there_is_no_column():
    assert RowTable().gather() == {}


def test_what_does_not_fit_is_refused():
    table = RowTable()
    with pytest.raises(ValueError, match=r"not all of shape \(2,\)"):
        table.add(torch.tensor([0, 1]), value=torch.tensor([1.0]))
    table.add(torch.tensor([0]), value=torch.tensor([1.0]))
    with pytest.raises(ValueError, match=r"columns are \['other'\], not \['value'\]"):
        table.add(torch.tensor([1]), other=torch.tensor([1.0]))
    assert table.gather()["index"].tolist() == [0]


def plain(table: RowTable) -> dict[str, list[float]]:
    return {name: column.tolist() for name, column in table.gather().items()}


def gathered(rank: int) -> list[dict[str, list[float]]]:
    """Ranks take turns with batches of five rows, backwards; then one of them has none; then both."""
    whole, lone = RowTable(), RowTable()
    for batch in range(5, -1, -1):
        if batch % 2 == rank:
            index = torch.arange(5 * batch, 5 * batch + 5)
            whole.add(index, value=index / 7, count=index * 3)
    if rank == 1:
        lone.add(torch.tensor([2, 1]), value=torch.tensor([2.0, 1.0]))
    return [plain(whole), plain(lone), plain(RowTable())]


def test_two_ranks_have_the_table_of_one(tmp_path):
    alone = RowTable()
    index = torch.arange(30)
    alone.add(index, value=index / 7, count=index * 3)
    expected = [plain(alone), {"index": [1, 2], "value": [1.0, 2.0]}, {}]
    assert in_a_group(gathered, tmp_path) == [expected, expected]
