"""``atoms information``: whether components determine what they are components of, and what atoms tell of rows."""

import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from atoms.activations.location import locate
from atoms.activations.store import ActivationStore
from atoms.checks.certificate import Certificate
from atoms.checks.information.check import Information
from atoms.checks.registry import CHECKS
from atoms.commands.findings import folder_name, log, png, write
from atoms.commands.parser import AtomsArgumentParser, is_first_rank, quiet, readable
from atoms.commands.validate import add_arguments, judge, question_of
from atoms.errors import AtomsError
from atoms.information.estimation import FewSamplesWarning
from atoms.information.figures import draw
from atoms.information.reconstruction import Problem, Reconstruction, perfect_reconstruction
from atoms.information.record import numbers, screen, to_json
from atoms.information.tables import table_problem
from atoms.information.variable import SampleSpace
from atoms.processes import leave_at_exit

FILE = "information.json"
_UNIT = "a unit (--ckpt_path, --unit, --units)"
_LABELS = ("--table", "--data.store")
_BELONG: dict[str, tuple[Any, tuple[str, ...]]] = {
    "target": (None, _LABELS),
    "components": (None, _LABELS),
    "counts": (None, ("--table",)),
    "probabilities": (None, ("--table",)),
    "bins": (None, ("--table",)),
    "split": ("train", ("--data.store",)),
    "resamples": (200, ("--problem", *_LABELS)),
    "seed": (0, ("--problem", *_LABELS)),
    "seeds": ([], ()),
    "noise": (False, ()),
    "checks.skip": ([], ()),
}
"""What settings are if nothing is said, and where they say something."""
_TOLD = {
    "_bits": "there are",
    "_told": "codes",
    "_told_random": "random",
    "_told_rows": "training rows",
    "_told_whole": "all of the row",
    "_told_5": "five atoms",
    "_told_5_coordinates": "five coordinates",
}
"""What is printed of a label, and its heads."""
_COLUMNS = {"token": "token_id", "position": "position", "document": "doc_id"}


def run(words: list[str]) -> None:
    """Run ``information``.

    Args:
        words: The command's arguments.

    Raises:
        AtomsError: If there is no question, or more than one.
    """
    parser = AtomsArgumentParser(
        prog="atoms information",
        description="Whether components determine what they are components of (a problem, a table, the labels of a "
        "store), or what the atoms of a unit tell of rows and labels.",
    )
    add_arguments(parser, output="information")
    parser.add_argument(
        "--problem",
        type=Problem | None,
        default=None,
        help="A function that makes one, by class_path.",
    )
    parser.add_argument("--table", type=str | None, default=None, help="A .csv, .tsv or .parquet file with a header.")
    parser.add_argument(
        "--target",
        type=str | None,
        default=None,
        help="What is to be rebuilt: a column of the table, or token, position, document or group of --data.store.",
    )
    parser.add_argument(
        "--components", type=list[str] | None, default=None, help="What it is rebuilt from; all else if left out."
    )
    parser.add_argument("--counts", type=str | None, default=None, help="Column: how often a row was drawn.")
    parser.add_argument(
        "--probabilities", type=str | None, default=None, help="Column: how probable a row of the table is."
    )
    parser.add_argument(
        "--bins", type=int | None, default=None, help="Parts that columns of numbers that are not whole are cut into."
    )
    parser.add_argument("--split", type=str, default="train", help="Split of the store whose labels are looked at.")
    parser.add_argument(
        "--resamples", type=int, default=200, help="Of the bootstrap behind intervals, where rows are samples; 0: none."
    )
    parser.add_argument("--seed", type=int, default=0, help="Of the bootstrap.")
    with readable():
        settings = parser.parse_args(words)
        built = parser.instantiate_classes(settings)
    quiet()
    if _mode(built) == _UNIT:
        _of_units(built)
    else:
        solve(_problem(built), built)


def _mode(built: Any) -> str:
    """What is asked: one thing, with no setting that belongs to another.

    Raises:
        AtomsError: Otherwise.
    """
    units = any((built.ckpt_path, built.unit, built.units))
    asked = {
        "--problem": built.problem is not None,
        "--table": built.table is not None,
        _UNIT: units,
        "--data.store": built.data.store is not None and not units,
    }
    modes = [mode for mode, given in asked.items() if given]
    if not modes:
        raise AtomsError(
            "nothing to look at: name a table with --table, a store with --data.store, a unit with --ckpt_path or "
            "--unit, or a problem with --problem"
        )
    if len(modes) > 1:
        raise AtomsError(f"{' and '.join(modes)} are set: ask one thing at a time")
    for name, (usual, where) in _BELONG.items():
        value: Any = built
        for part in name.split("."):
            value = getattr(value, part)
        if value != usual and modes[0] not in where:
            said = f"it belongs to {' and '.join(where)}" if where else "this command has no use for it"
            raise AtomsError(f"{name} is {value} beside {modes[0]}: {said}, leave it out")
    if built.resamples < 0:
        raise AtomsError(f"resamples is {built.resamples}: give 0 or more")
    return modes[0]


def _of_units(built: Any) -> None:
    """Judge units by the one check."""
    question = question_of(built)
    question.command = "information"
    question.checks = replace(question.checks, skip=[check.name for check in CHECKS if check is not Information])
    leave_at_exit()
    certificates = judge(question)
    for certificate in certificates if is_first_rank() else ():
        _show(certificate)
    for certificate in certificates:
        if (reason := certificate.failed.get(Information.name)) is not None:
            raise AtomsError(f"{certificate.unit.name}: {reason}")


def _show(certificate: Certificate) -> None:
    """Print what is told of each label, by the unit and its controls."""
    numbers = certificate.numbers()
    labels = [key.removesuffix("_told") for key in numbers if key.endswith("_told")]
    if not labels:
        return
    table = Table(f"bits told by {certificate.unit.name}", box=None, pad_edge=False)
    for head in _TOLD.values():
        table.add_column(head, justify="right", no_wrap=True)
    for label in labels:
        cells = (numbers.get(f"{label}{suffix}", math.nan) for suffix in _TOLD)
        table.add_row(label.rpartition("/")[2], *(f"{value:.2f}" for value in cells))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(table)


def _problem(built: Any) -> Problem:
    if built.problem is not None:
        return built.problem  # type: ignore[no-any-return]
    if built.target is None:
        raise AtomsError("target is not set: name what is to be rebuilt with --target")
    if built.table is not None:
        return table_problem(built.table, built.target, built.components, built.counts, built.probabilities, built.bins)
    return store_problem(built.data.store, built.split, built.target, built.components)


def store_problem(path: str, split: str, target: str, components: list[str] | None) -> Problem:
    """A label of the rows of a store from others.

    Args:
        path: Path or URL of the store.
        split: The split.
        target: ``token``, ``position``, ``document`` or ``group``.
        components: Others of them; all that the store knows if left out.

    Raises:
        AtomsError: If there is no such store, split or label.
    """
    store = ActivationStore.open(locate(path))
    if split not in store.splits:
        raise AtomsError(f"split is {split}: {path} has {', '.join(store.splits)}")
    if not store.n_rows(split):
        there = ", ".join(name for name in store.splits if store.n_rows(name))
        raise AtomsError(f"split is {split}, of which {path} has no rows: name one of {there}")
    about = store.tokens(split)
    known: dict[str, Any] = {name: about[column] for name, column in _COLUMNS.items() if (about[column] >= 0).all()}
    groups = store.groups(split)
    if groups is not None and "document" in known:
        known["group"] = groups
    for name in [target, *(components or [])]:
        if name not in known:
            said = ", ".join(known) or "no label of every row"
            raise AtomsError(f"{'target' if name == target else 'components'} is {name}: {path} knows {said}")
    names = components or [name for name in known if name != target]
    space = SampleSpace.of_samples(len(about["position"]))
    x, *parts = (space.variable(np.asarray(known[name]), name) for name in (target, *names))
    apart = known.get("group", known.get("document"))
    if apart is not None and (apart == apart[0]).all():
        apart = None  # of one document rows are all there is to resample
    return Problem(x, parts, f"{target} of {split} rows of {Path(path).name}", path, apart)


def solve(problem: Problem, built: Any) -> Reconstruction:
    """Solve a problem, print what follows, and leave files and a run.

    Args:
        problem: The problem.
        built: The command's settings.

    Raises:
        AtomsError: If files cannot be written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)  # said in a note
        found = perfect_reconstruction(
            problem.x,
            problem.components,
            title=problem.title,
            resamples=built.resamples,
            seed=built.seed,
            groups=problem.groups,
        )
    console = Console(highlight=False, color_system=None if built.plain else "auto")
    if not sys.stdout.isatty():
        console.width = 110
    console.print(screen(found, plain=built.plain))
    folder = Path(built.output) / folder_name(problem.title, "problem")
    content = png({"plane": draw(found)}) | {FILE: to_json(found).encode()}
    write(folder, content, built.output)
    print(f"found       {folder}/")
    log(
        built,
        problem.title,
        {"command": "information", "verdict": str(found.verdict), "source": problem.source},
        {"problem": problem.title, "components": len(found.components), "values": found.size},
        numbers(found),
        content,
    )
    return found
