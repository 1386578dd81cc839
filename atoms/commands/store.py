"""``atoms store info``, ``ls`` and ``verify``: what a store holds, where stores are, and whether one is whole."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from atoms.activations.document_groups import GROUPS_FILE
from atoms.activations.location import Location, locate
from atoms.activations.lock import holder
from atoms.activations.manifest import NonFinite, committed, read_blocks, read_seal
from atoms.activations.spec import StoreSpec, stored_spec
from atoms.activations.verify import Finding, Verification, describe_strays, find_stores
from atoms.activations.writer import moments_name
from atoms.commands.parser import AtomsArgumentParser, readable
from atoms.errors import AtomsError
from atoms.progress import Meter, size

USAGE = """\
usage: atoms store info PATH       what a store holds, and where it comes from
       atoms store ls [DIR]        the stores below a directory (activations if left out)
       atoms store verify PATH     read every byte and say what is wrong and how to mend it

PATH and DIR are directories or URLs: s3://, gs://, http(s):// (info and verify), file://
"""
MIB = 2**20
NO_GROUPS = "not recorded: documents stand in for groups; delete complete.json and run `atoms cache` to record them"


def run(words: list[str]) -> None:
    """Run ``store``.

    Args:
        words: The command's arguments.

    Raises:
        AtomsError: The action or the place is none.
        SystemExit: With status 1 if ``verify`` finds anything wrong.
    """
    actions = {"info": info, "ls": ls, "verify": verify}
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if words[0] not in actions:
        raise AtomsError(f"store {words[0]} is no action: say info, ls or verify")
    parser = AtomsArgumentParser(prog=f"atoms store {words[0]}", description=(actions[words[0]].__doc__ or "").strip())
    if words[0] == "ls":
        parser.add_argument("path", type=str, nargs="?", default="activations", help="A directory or URL.")
    else:
        parser.add_argument("path", type=str, help="The store: a directory or URL.")
    with readable():
        settings = parser.parse_args(words[1:])
    actions[words[0]](locate(settings.path))


def info(place: Location) -> None:
    """Print what a store holds, and where it comes from."""
    spec = stored_spec(place)
    if spec is None:
        raise AtomsError(f"data.store={place}: no store there; mend the path")
    sealed = read_seal(place)
    extra: dict[str, Any] = sealed.extra if sealed else {}
    print(f"store      {place}")
    print(f"state      {_state(place, spec)}")
    print(f"identity   {spec.identity_hash}")
    print(f"format     {spec.format_version}; {spec.dtype}; {size(spec.disk_bytes)} of rows, norms and tokens")
    grid = spec.grid
    print(
        f"cut        chunks of {grid.chunk_rows:,} rows, shards of {grid.shard_rows:,}, blocks of {grid.block_rows:,}"
    )
    if sealed:
        nonfinite = sealed.nonfinite
    else:
        nonfinite = {split: dict.fromkeys(spec.sites, NonFinite()) for split in spec.splits}
        for span, record in read_blocks(place, spec).items():
            for site, counts in record.nonfinite.items():
                nonfinite[span.split][site] += counts
    table = Table("split", box=None, pad_edge=False)
    for name in ("rows", "documents", "groups"):
        table.add_column(name, justify="right")
    counted = extra.get("splits", {})
    for split, rows in spec.splits.items():
        facts = counted.get(split, {})
        table.add_row(
            split, f"{rows:,}", *(f"{facts[name]:,}" if name in facts else "?" for name in ("documents", "groups"))
        )
    _show(table)
    if sealed:
        print(f"groups     {'recorded' if GROUPS_FILE in sealed.files else NO_GROUPS}")
    table = Table("site", box=None, pad_edge=False)
    for name in ("width", "moments", "infinite", "NaN", "rows left out"):
        table.add_column(name, justify="right")
    for site, width in spec.sites.items():
        counts = sum((sites[site] for sites in nonfinite.values()), NonFinite())
        moments = "?" if sealed is None else "yes" if moments_name(site) in sealed.files else "no"
        table.add_row(site, f"{width:,}", moments, f"{counts.infinite:,}", f"{counts.nan:,}", f"{counts.rows:,}")
    _show(table)
    if warning := sealed and sealed.warning(spec.dtype):
        print(f"note       {warning}")
    print("provenance")
    for line in json.dumps(spec.provenance, indent=2, ensure_ascii=False).splitlines()[1:-1]:
        print(f"  {line[2:]}")
    rest = {key: value for key, value in extra.items() if key != "splits"}
    if rest:
        print("noted      " + ", ".join(f"{key} {value}" for key, value in rest.items()))


def ls(place: Location) -> None:
    """List the stores at and below a directory or URL."""
    table = Table("store", "model", "sites", box=None, pad_edge=False)
    table.add_column("rows", justify="right")
    table.add_column("size", justify="right")
    table.add_column("state")
    found = 0
    for store in find_stores(place):
        found += 1
        try:
            spec = stored_spec(store)
        except AtomsError as error:
            reason = str(error).removeprefix(f"data.store={store}: ")
            if reason.startswith("not an activation store"):
                found -= 1  # some other zarr
                continue
            table.add_row(str(store), "?", "?", "?", "?", reason.partition(";")[0])
            continue
        assert spec is not None  # its zarr.json is there
        model = str(spec.provenance.get("model_name", spec.provenance.get("kind", "?")))
        rows = f"{sum(spec.splits.values()):,}"
        table.add_row(str(store), model, ", ".join(spec.sites), rows, size(spec.disk_bytes), _state(store, spec))
    if not found:
        print(f"no store at or below {place}", file=sys.stderr)
        return
    _show(table)


def verify(place: Location) -> None:
    """Read every byte of a store, and say what is wrong and how to mend it."""
    verification = Verification(place)
    spec = verification.spec
    print(f"verify     {len(verification.expected):,} files, {size(verification.total)}, of {place}", file=sys.stderr)
    if (writer := holder(place)) is not None:
        print(f"note       process {writer.pid} on {writer.host} is writing it now", file=sys.stderr)
    found: list[Finding] = []
    try:
        with Meter("verify", -(-verification.total // MIB), "MiB") as meter:
            read = 0

            def advance(n_bytes: int) -> None:
                nonlocal read
                read += n_bytes
                meter.advance(read // MIB - meter.done)

            found.extend(verification.findings(advance))
    finally:  # also when interrupted
        for finding in found:
            print(f"wrong      {finding.what}")
    for line in describe_strays(verification.strays):
        print(f"stray      {line}")
    if not found:
        rows = ", ".join(f"{split} {count:,}" for split, count in spec.splits.items())
        print(f"whole      every byte is as it was written: rows {rows}; sites {', '.join(spec.sites)}")
        return
    for cure in dict.fromkeys(finding.cure for finding in found):
        print(f"mend       {cure}")
    raise AtomsError(
        f"data.store={place}: {len(found)} {'thing is' if len(found) == 1 else 'things are'} wrong, see above"
    )


def _state(place: Location, spec: StoreSpec) -> str:
    blocks = len(spec.spans)
    try:
        sealed = read_seal(place)
    except AtomsError:
        return "complete.json is damaged"
    done = committed(place, spec) if sealed is None or place.writable else blocks
    state = "complete" if sealed is not None and done == blocks else f"{done} of {blocks} blocks"
    if (writer := holder(place)) is not None:
        state += f", process {writer.pid} on {writer.host} is writing it"
    return state


def _show(table: Table) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000  # a file or a pipe wants a line per row
    console.print(table)
