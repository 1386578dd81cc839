"""Columns of CSV and Parquet files as variables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoms.errors import AtomsError, printable
from atoms.information.reconstruction import Problem
from atoms.information.variable import SampleSpace, Variable
from atoms.memory import require_memory

SUFFIXES = (".csv", ".tsv", ".parquet")
"""Kinds of tables that can be read, told by their name."""
_IN_MEMORY = 4  # times the size of the file


def table_problem(
    path: str,
    target: str,
    components: list[str] | None = None,
    counts: str | None = None,
    probabilities: str | None = None,
    bins: int | None = None,
) -> Problem:
    """A column of a table from others.

    Args:
        path: A ``.csv``, ``.tsv`` or ``.parquet`` file, with a header.
        target: Column that is to be rebuilt.
        components: Columns it is to be rebuilt from; all others if left out.
        counts: Column that says how often a row was drawn; once if left out.
        probabilities: Column that says how probable a row is, where that is known.
        bins: Cut columns of numbers that are not whole into so many bins of about as many rows each; as they are if
            left out.

    Raises:
        AtomsError: If the file cannot be read, lacks a column, or holds what is no value.
    """
    if counts is not None and probabilities is not None:
        raise AtomsError(f"counts is {counts} and probabilities is {probabilities}: give one of them")
    if bins is not None and bins < 2:
        raise AtomsError(f"bins is {bins}: give at least 2")
    weight = counts or probabilities
    table = _read(path, target, components, weight)
    names = [name for name in components or table.column_names if name not in (target, weight)]
    if not names:
        raise AtomsError(f"components is {components}, and {path} has no other column: name what {target} is known by")
    if not table.num_rows:
        raise AtomsError(f"table: {path} has no rows: give at least one")
    if weight is None:
        space = SampleSpace.of_samples(table.num_rows)
    else:
        weights = _numbers(table, weight, path)
        space = SampleSpace.of_samples(len(weights), weights) if counts else SampleSpace.of(weights)
    x, *parts = (_variable(space, table, name, bins).named(printable(name)) for name in [target, *names])
    return Problem(x, tuple(parts), printable(f"{target} of {Path(path).name}"), str(path))


def _read(path: str, target: str, components: Sequence[str] | None, weight: str | None) -> Any:
    """The columns asked for, or all."""
    import pyarrow as pa  # slow to import
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise AtomsError(f"table: {path} is of no kind that can be read: give {', '.join(SUFFIXES)}")
    asked = None if components is None else list(dict.fromkeys([target, *components, *([weight] if weight else [])]))
    try:
        require_memory(_IN_MEMORY * file.stat().st_size, f"the table {path}", "keep fewer rows or columns in it")
        if suffix == ".parquet":
            there = pq.read_schema(file).names
        else:
            delimiter = pc.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",")
            with pc.open_csv(file, parse_options=delimiter) as reader:
                there = reader.schema.names
        if len(set(there)) < len(there):
            raise AtomsError(f"table: {path} names a column twice in its header: rename one")
        for name in asked or [target, *([weight] if weight else [])]:
            if name not in there:
                raise AtomsError(f"table: {path} has no column {name!r} but {', '.join(there)}: name one of these")
        if suffix == ".parquet":
            return pq.read_table(file, columns=asked)
        options = pc.ConvertOptions(include_columns=asked, strings_can_be_null=True)
        return pc.read_csv(file, parse_options=delimiter, convert_options=options)
    except pa.ArrowException as error:
        raise AtomsError(f"table: {path} cannot be read ({printable(str(error))}): mend or rewrite it") from error
    except UnicodeDecodeError as error:
        raise AtomsError(f"table: the header of {path} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    except OSError as error:
        raise AtomsError(f"table: {path} cannot be read ({error.strerror or error}): mend the path") from error


def _numbers(table: Any, name: str, path: str) -> NDArray[Any]:
    import pyarrow as pa

    column = table.column(name)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)) or column.null_count:
        raise AtomsError(f"table: column {name} of {path} does not hold a number in every row: name one that does")
    return np.asarray(column.to_numpy())


def _variable(space: SampleSpace, table: Any, name: str, bins: int | None) -> Variable:
    import pyarrow as pa

    column = table.column(name)
    if column.null_count:
        raise AtomsError(
            f"table: column {name} has {column.null_count:,} missing values among {len(column):,}: fill them or leave "
            "these rows out"
        )
    kind = column.type
    if pa.types.is_floating(kind) and bins is not None:
        return _binned(space, column.to_numpy(), name, bins)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return space.variable(column.to_numpy(), name)
    try:
        coded = column.combine_chunks().dictionary_encode()
    except pa.ArrowNotImplementedError:  # lists and the like
        return space.variable([_fixed(value) for value in column.to_pylist()], name)
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.combine_chunks()
    numbered = space.variable(coded.indices.to_numpy(), name)
    words = coded.dictionary
    return replace(numbered, value_at=lambda outcome: words[int(numbered.value_at(outcome))].as_py())


def _fixed(value: Any) -> Any:
    """A value as one that can be looked up: lists and dictionaries as tuples."""
    if isinstance(value, dict):
        return tuple((key, _fixed(inner)) for key, inner in value.items())
    return tuple(map(_fixed, value)) if isinstance(value, list) else value


def _binned(space: SampleSpace, values: NDArray[Any], name: str, bins: int) -> Variable:
    if not np.isfinite(values).all():
        raise AtomsError(f"table: column {name} has values that are not finite: leave these rows out to cut it in bins")
    weights = np.zeros(len(values))
    weights[slice(None) if space.kept is None else space.kept] = space.weights
    edges = np.unique(np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf", weights=weights))
    place = np.searchsorted(edges, values)
    ends = [-np.inf, *edges.tolist(), np.inf]
    numbered = space.variable(place, name)

    def said(outcome: int) -> str:
        at = int(numbered.value_at(outcome))
        return f"({ends[at]:.4g}, {ends[at + 1]:.4g}]"

    return replace(numbered, value_at=said)
