"""``atoms sites``: the places of a model that can be harvested, and how wide they are."""

import re

from transformers import PreTrainedModel

from atoms.activations.language_model import meta_model
from atoms.activations.model_source import ModelSpec, find_config
from atoms.activations.site_reader import module_widths, site_widths
from atoms.activations.sites import KINDS, model_blocks, resolve_site
from atoms.commands.parser import AtomsArgumentParser, quiet, readable
from atoms.errors import AtomsError

Row = tuple[str, ...]


def run(words: list[str]) -> None:
    """Run ``sites``.

    Args:
        words: The command's arguments.
    """
    parser = AtomsArgumentParser(
        prog="atoms sites", description="List the places of a model that can be harvested. No weights are loaded."
    )
    parser.add_argument("--model", type=str, required=True, help="Hub id, local folder, or package:NAME/FOLDER.")
    parser.add_argument("--revision", type=str | None, default=None, help="Branch, tag or commit of a hub repository.")
    parser.add_argument(
        "--modules", action="store_true", help="List every module too that takes or gives one vector per token."
    )
    with readable():
        settings = parser.parse_args(words)
    quiet()
    sites(settings.model, settings.revision, settings.modules)


def sites(name: str, revision: str | None = None, modules: bool = False) -> None:
    """Print a model's named sites, and its modules if they are asked for.

    Args:
        name: Hub id, local folder, or ``package:NAME/FOLDER``.
        revision: Branch, tag or commit of a hub repository.
        modules: List modules too.

    Raises:
        AtomsError: If there is no such model, or its modules cannot be listed.
    """
    try:
        model = meta_model(find_config(ModelSpec(name, revision)))
    except AtomsError as error:
        raise AtomsError(str(error).replace("data.harvest.model.name", "model")) from error
    blocks_path, blocks = model_blocks(model)
    ends = module_widths(model) if modules else {}
    listed: list[Row] = [(path, str(width.input or "-"), str(width.output or "-")) for path, width in ends.items()]
    rows, reasons = _named_sites(model, len(blocks))
    print(f"{name} is a {type(model).__name__} with {f'{len(blocks)} blocks' if blocks else 'no list of blocks'}\n")
    if rows:
        _print(("site", "is", "width"), _by_block(rows, blocks_path, at=1))
    for reason in reasons:
        print(f"note  {reason}")
    if modules:
        print("\nmodules that take or give one vector per token; PATH is a module's output, PATH:input its input\n")
        _print(("PATH", "input", "output"), _by_block(listed, blocks_path, at=0))
    else:
        print("\nAny other place: PATH of a module for its output, PATH:input for its input; --modules lists them")


def _named_sites(model: PreTrainedModel, blocks: int) -> tuple[list[Row], list[str]]:
    """Kind, place and width of the named sites of a model; and for each kind that it has not everywhere, why not."""
    rows: list[Row] = []
    reasons: dict[str, str] = {}
    for kind in KINDS:
        places = {}
        for depth in range(blocks):
            try:
                places[f"{kind}.{depth}"] = resolve_site(model, f"{kind}.{depth}").place
            except AtomsError as error:
                reasons.setdefault(kind, str(error))
        try:
            widths = site_widths(model, places) if places else {}
        except AtomsError as error:
            reasons[kind] = str(error)
        else:
            rows += [(f"{kind}.N", place, str(widths[name])) for name, place in places.items()]
    return rows, [reason.removeprefix("data.harvest.sites: ") for reason in reasons.values()]


def _by_block(rows: list[Row], blocks_path: str, at: int) -> list[Row]:
    """Rows that differ in nothing but the block as one, with the blocks behind.

    Args:
        rows: Cells.
        blocks_path: Path of the list of blocks.
        at: Which cell holds the module's path.
    """
    within = re.compile(rf"{re.escape(blocks_path)}\.(\d+)\b")
    merged: dict[Row, list[int]] = {}
    for row in rows:
        cells = list(row)
        block = within.match(cells[at]) if blocks_path else None
        if block:
            cells[at] = f"{blocks_path}.N{cells[at][block.end() :]}"
        merged.setdefault(tuple(cells), []).extend([int(block[1])] if block else [])
    return [(*cells, _ranges(depths)) for cells, depths in merged.items()]


def _ranges(depths: list[int]) -> str:
    """Ascending numbers as ranges: ``0-3, 5``."""
    starts = [depth for depth in depths if depth - 1 not in depths]
    stops = [depth for depth in depths if depth + 1 not in depths]
    return ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in zip(starts, stops, strict=True))


def _print(head: Row, rows: list[Row]) -> None:
    """Aligned columns; the last says which blocks N are meant."""
    table = [(*head, "N"), *rows]
    sizes = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (c.rjust(s) if c == "-" or c.isdigit() else c.ljust(s) for c, s in zip(row, sizes, strict=True))
        print("  ".join(cells).rstrip())
