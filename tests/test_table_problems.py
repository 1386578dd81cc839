"""Columns of tables as variables: whatever the file, the same problem; whatever is wrong, one line."""

import datetime
import decimal
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from atoms.errors import AtomsError
from atoms.information import Problem, determines, entropy, equivalent, perfect_reconstruction
from atoms.information.tables import table_problem
from atoms.information.variable import Variable

ROWS = {
    "word": ["b", "a", "b", "c", "a", "c"],
    "number": [7, 7, -3, 0, 2**40, 0],
    "flag": [True, False, True, True, False, False],
    "real": [0.5, 0.25, -1.0, 0.5, 1e300, 0.25],
    "day": [datetime.date(2020, 1, 1 + place % 3) for place in range(6)],
    "moment": [datetime.datetime(2020, 1, 1, place % 2, 30) for place in range(6)],
}


def parquet(columns, name="table.parquet") -> str:
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), name)
    return name


def text(content: str | bytes, name="table.csv") -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def values(variable: Variable) -> list:
    """Of every outcome what it is."""
    return [variable.symbol(int(at)) for at in variable.labels]


def everything(problem: Problem) -> dict[str, list]:
    return {each.name: values(each) for each in (problem.x, *problem.components)}


def refused(*given, **named) -> str:
    with pytest.raises(AtomsError) as error:
        table_problem(*given, **named)
    line = str(error.value)
    assert "\n" not in line
    assert ": " in line
    return line


# ------------------------------------------------------------------------------------------ what is read


def test_the_same_problem_from_every_kind_of_file():
    table = pa.table(ROWS)
    paths = [parquet(table)]
    for name, delimiter in (("table.csv", ","), ("table.tsv", "\t"), ("LOUD.CSV", ",")):
        pc.write_csv(table, name, pc.WriteOptions(delimiter=delimiter))
        paths.append(name)
    for path in paths:
        problem = table_problem(path, "word")
        assert everything(problem) == ROWS
        assert [each.name for each in problem.components] == list(ROWS)[1:]
        assert problem.x.space.draws == 6
        assert problem.title == f"word of {path}"
        assert problem.source == path
        assert problem.groups is None


def test_columns_of_other_types():
    columns = {
        "list": [[1, 2], [3], [1, 2], []],
        "nested": [[["a"], []], [["a"]], [[]], [["a"], []]],
        "record": [{"p": 1, "q": [2]}, {"p": 1, "q": [3]}, {"p": 1, "q": [2]}, {"p": 2, "q": [2]}],
        "decimal": [decimal.Decimal("1.50"), decimal.Decimal("2.25"), decimal.Decimal("1.50"), decimal.Decimal("0.00")],
        "bytes": [b"x", b"y", b"x", b"z"],
        "category": pa.array(["u", "v", "u", "w"]).dictionary_encode(),
        "half": pa.array(np.array([1, 2, 1, 3], np.float16)),
        "large": pa.array([2**64 - 1, 0, 2**64 - 1, 1], pa.uint64()),
        "time": [datetime.time(1), datetime.time(2), datetime.time(1), datetime.time(3)],
    }
    problem = table_problem(parquet(columns), "list")
    found = everything(problem)
    assert found["list"] == [(1, 2), (3,), (1, 2), ()]
    assert found["nested"] == [(("a",), ()), (("a",),), ((),), (("a",), ())]
    assert found["record"][0] == (("p", 1), ("q", (2,)))
    assert found["large"] == [2**64 - 1, 0, 2**64 - 1, 1]
    for variable in problem.components:
        if variable.name != "nested":
            assert equivalent(problem.x, variable), variable.name


def test_many_values_in_several_chunks():
    words = [f"w{place % 997}" for place in range(40_000)]
    chunks = pa.chunked_array([words[:15_000], words[15_000:]])
    codes = pa.chunked_array([chunks.chunk(0).dictionary_encode(), chunks.chunk(1).dictionary_encode()])
    problem = table_problem(parquet({"word": chunks, "code": codes, "place": range(40_000)}), "word", ["code"])
    assert problem.x.size == 997
    assert values(problem.x)[:3] + values(problem.x)[-1:] == ["w0", "w1", "w2", words[-1]]
    assert equivalent(problem.x, problem.components[0])


def test_components_are_those_asked_for_in_their_order():
    problem = table_problem(parquet(ROWS), "number", ["flag", "word", "number"])
    assert [each.name for each in problem.components] == ["flag", "word"]


def test_text_of_other_programs():
    marked = text(b"\xef\xbb\xbfone,two\n1,x\n2,y\n")  # with a byte order mark
    assert everything(table_problem(marked, "one")) == {"one": [1, 2], "two": ["x", "y"]}
    quoted = text('"a, b",c\n"x\ny",1\n"z ""q""",2\n')
    assert everything(table_problem(quoted, "a, b")) == {"a, b": ["x\ny", 'z "q"'], "c": [1, 2]}
    assert everything(table_problem(text("é,ü\r\nß,1\r\n名,2\r\n"), "é"))["é"] == ["ß", "名"]


# ------------------------------------------------------------------------------------------ weights


def test_counts_are_rows_as_often():
    once = table_problem(text("x,y\n" + "a,1\n" * 3 + "b,2\n" + "a,2\n" * 4), "x")
    counted = table_problem(text("y,n,x\n1,3,a\n2,1,b\n2,4,a\n1,0,c\n"), "x", counts="n")
    assert counted.x.space.draws == once.x.space.draws == 8
    assert [each.name for each in counted.components] == ["y"]
    assert values(counted.x) == ["a", "b", "a"]  # a row that was never drawn is none
    for own, other in zip((once.x, *once.components), (counted.x, *counted.components), strict=True):
        assert entropy(own) == pytest.approx(entropy(other))
    assert entropy(counted.x, *counted.components) == pytest.approx(entropy(once.x, *once.components))


def test_counts_may_be_whole_numbers_of_any_type():
    assert table_problem(text("x,y,n\n1,2,3.0\n2,3,4.0\n"), "x", counts="n").x.space.draws == 7


def test_probabilities_are_known():
    problem = table_problem(text("x,y,p\na,1,0.5\nb,1,0.25\nc,2,0.25\nd,3,0\n"), "x", probabilities="p")
    assert problem.x.space.draws is None
    assert entropy(problem.x) == 1.5
    assert entropy(problem.components[0]) == pytest.approx(2 - 0.75 * math.log2(3))
    assert [each.name for each in problem.components] == ["y"]
    assert perfect_reconstruction(problem.x, problem.components).estimates == {}


# ------------------------------------------------------------------------------------------ bins


def test_bins_hold_about_as_many_rows_each():
    generator = np.random.default_rng(0)
    table = pa.table({"x": generator.permutation(1000), "skew": np.exp(3 * generator.standard_normal(1000))})
    problem = table_problem(parquet(table), "x", bins=8)
    assert problem.x.size == 1000  # whole numbers stay
    (binned,) = problem.components
    assert np.bincount(binned.labels).tolist() == [125] * 8
    real = table.column("skew").to_numpy()
    edges = [-np.inf, *(float(word.split(", ")[1][:-1]) for word in map(binned.symbol, range(7))), np.inf]
    for at in range(8):
        low, high = (edges[at + side] for side in (0, 1))
        inside = real[binned.labels == at]
        assert low * 0.999 <= inside.min()
        assert inside.max() <= high * 1.001
        assert binned.symbol(at).startswith(f"({low:.4g}, ")


def test_equal_values_are_in_one_bin():
    problem = table_problem(parquet({"x": [1, 2, 3, 4, 5, 6], "y": [0.5] * 4 + [1.5, 2.5]}), "x", bins=3)
    (binned,) = problem.components
    assert binned.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert table_problem(parquet({"x": [1, 2], "y": [0.5, 0.5]}), "x", bins=9).components[0].size == 1


def test_a_number_between_two_bins_is_in_the_lower_one():
    (binned,) = table_problem(parquet({"x": [1, 2, 3], "y": [0.0, 1.0, 2.0]}), "x", bins=2).components
    assert values(binned) == ["(-inf, 1]", "(-inf, 1]", "(1, inf]"]


def test_bins_are_of_equally_many_samples_not_rows():
    table = pa.table({"x": range(1003), "y": np.arange(1003.0), "n": [1000, *[1] * 1002]})
    problem = table_problem(parquet(table), "x", ["y"], counts="n", bins=2)
    assert [problem.components[0].symbol(at) for at in range(2)] == ["(-inf, 1]", "(1, inf]"]
    assert problem.components[0].probabilities.tolist() == pytest.approx([1001 / 2002, 1001 / 2002])


def test_without_bins_numbers_are_what_they_are():
    assert table_problem(parquet(ROWS), "word", ["real"]).components[0].size == 4
    assert table_problem(parquet(ROWS), "word", ["real"], bins=2).components[0].size == 2
    binned = table_problem(parquet(ROWS), "real", ["number"], bins=2)
    assert (binned.x.size, binned.components[0].size) == (2, 4)


def test_bins_are_functions_of_the_numbers():
    real = [0.125 * place for place in range(40)]
    path = parquet({"x": real, "y": list(range(40)), "z": [place // 10 for place in range(40)]})
    problem = table_problem(path, "y", ["x"], bins=4)
    assert determines(problem.x, *problem.components)
    other = table_problem(path, "z", ["x"], bins=4)
    assert equivalent(other.x, other.components[0])


# ------------------------------------------------------------------------------------------ what is wrong

HEAD = "a,b,n,p\n"


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        (HEAD + "1,2,3,1\n", {"target": "z"}, "table: table.csv has no column 'z' but a, b, n, p: name one of these"),
        (HEAD + "1,2,3,1\n", {"components": ["b", "z"]}, "table: table.csv has no column 'z'"),
        (HEAD + "1,2,3,1\n", {"counts": "z"}, "table: table.csv has no column 'z'"),
        (HEAD + "1,2,3,1\n", {"counts": "n", "probabilities": "p"}, "counts is n and probabilities is p: give one"),
        (HEAD + "1,2,3,1\n", {"bins": 1}, "bins is 1: give at least 2"),
        (HEAD + "1,2,3,1\n", {"bins": -4}, "bins is -4: give at least 2"),
        (HEAD + "1,2,3,1\n", {"components": ["a"]}, "components is ['a'], and table.csv has no other column"),
        ("a\n1\n", {}, "table.csv has no other column: name what a is known by"),
        (HEAD, {}, "table: table.csv has no rows: give at least one"),
        ("", {}, "table: table.csv cannot be read (Empty CSV file): mend or rewrite it"),
        ("a,b,b\n1,2,3\n", {}, "table: table.csv names a column twice in its header: rename one"),
        (HEAD + "1,2,3,1\n4\n", {}, "table: table.csv cannot be read (CSV parse error: Expected 4 columns, got 1: 4)"),
        ("a;b\n1;2\n", {}, "has no column 'a' but a;b"),
        ("a,b\n1,\n,3\n2,4\n", {}, "table: column a has 1 missing values among 3: fill them or leave these rows out"),
        ("a,b\n1,x\n2,\n", {}, "table: column b has 1 missing values among 2"),
        ("a,b\n1,2.5\n2,NaN\n", {}, "table: column b has 1 missing values among 2"),
        ("a,b\n1,\n2,\n", {}, "table: column b has 2 missing values among 2"),
        (HEAD + "1,2,3,0.5\n2,3,4,0.4\n", {"probabilities": "p"}, "probabilities sum to 0.9, not to 1: divide them by"),
        (HEAD + "1,2,3,0.5\n2,3,4,-0.5\n", {"probabilities": "p"}, "probabilities hold -0.5: give numbers"),
        (HEAD + "1,2,3,\n2,3,4,1\n", {"probabilities": "p"}, "column p of table.csv does not hold a number in"),
        (HEAD + "1,2,x,1\n", {"counts": "n"}, "table: column n of table.csv does not hold a number in every row"),
        (HEAD + "1,2,1.5,1\n", {"counts": "n"}, "counts are not whole numbers: give probabilities as such"),
        (HEAD + "1,2,-1,1\n2,2,3,1\n", {"counts": "n"}, "counts hold -1: give numbers that are not negative"),
        (HEAD + "1,2,0,1\n", {"counts": "n"}, "counts are all zero: give at least one that is positive"),
        ("é,b\n1,2\n".encode("latin-1"), {"target": "b"}, "table: the header of table.csv is not UTF-8 text"),
        ("a,b\n1,2\n".encode("utf-16"), {}, "table: table.csv cannot be read"),
    ],
)  # fmt: skip
def test_text_that_is_no_problem(content, settings, said):
    assert said in refused(text(content), **{"target": "a", **settings})


@pytest.mark.parametrize(
    ("columns", "settings", "said"),
    [
        ({"a": [1.0, math.nan], "b": [1, 2]}, {}, "variable a has 1 missing values (NaN or null) among 2: fill them"),
        ({"a": [1.0, math.inf], "b": [1, 2]}, {"bins": 2}, "column a has values that are not finite: leave these rows"),
        ({"a": [1.0, math.nan], "b": [1, 2]}, {"bins": 2}, "column a has values that are not finite"),
        ({"a": [1, None], "b": [1, 2]}, {}, "table: column a has 1 missing values among 2: fill them"),
        ({"a": [[1, None], [2, 3]], "b": [1, 2]}, {}, "variable a has 1 missing values (NaN or null) among 2"),
        ({"a": [[1], None], "b": [1, 2]}, {}, "table: column a has 1 missing values among 2"),
        ({"a": [1, 2], "b": [1, 2], "p": [0.5, math.nan]}, {"probabilities": "p"}, "probabilities hold 1 NaN"),
        ({"a": [1, 2], "b": [1, 2], "n": [True, True]}, {"counts": "n"}, "column n of table.parquet does not hold a"),
        ({"a": pa.array([], pa.int64()), "b": pa.array([], pa.int64())}, {}, "table: table.parquet has no rows"),
        (pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), {}, "names a column twice"),
    ],
)
def test_tables_that_are_no_problem(columns, settings, said):
    assert said in refused(parquet(columns), "a", **settings)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere.csv", "table: nowhere.csv cannot be read (No such file or directory): mend the path"),
        ("nowhere.parquet", "table: nowhere.parquet cannot be read (No such file or directory): mend the path"),
        ("table.xlsx", "table: table.xlsx is of no kind that can be read: give .csv, .tsv, .parquet"),
        ("table", "table: table is of no kind that can be read"),
        ("words.parquet", "table: words.parquet cannot be read"),
        ("folder.csv", "table: folder.csv cannot be read"),
        ("folder.parquet", "table: folder.parquet cannot be read"),
    ],
)
def test_what_is_no_table(path, said):
    text("not a table", "words.parquet")
    for folder in ("folder.csv", "folder.parquet"):
        Path(folder).mkdir()
    assert refused(path, "a").startswith(said)


def test_infinity_is_a_value_where_nothing_is_cut():
    assert values(table_problem(parquet({"a": [1.0, math.inf], "b": [1, 2]}), "a").x) == [1, math.inf]


def test_more_than_memory_holds(monkeypatch):
    monkeypatch.setattr("atoms.memory.os.sysconf", lambda name: 4)
    assert "and this machine has" in refused(text(HEAD + "1,2,3,1\n"), "a")
