"""``--import``: activations of one's own on the command line, as the settings of ``data.matrix`` it stands for."""

import json
from collections.abc import Sequence
from pathlib import Path

from atoms.errors import AtomsError

SITE = "activations"
"""Name of the site where none is given."""
_BESIDE = ("doc_ids", "token_ids", "positions")


def expand_import(words: Sequence[str]) -> list[str]:
    """Write out ``--import FILE ... [--doc_ids FILE] [--token_ids FILE] [--positions FILE]``.

    A file may be a glob pattern, and ``SITE=FILE`` says which site it is of.

    Args:
        words: The words of a command.

    Returns:
        The same words, with ``--data.matrix.…`` in place of these.

    Raises:
        AtomsError: If a flag has no value, or stands without ``--import``.
    """
    rest: list[str] = []
    files: dict[str, list[str]] = {}
    beside: list[str] = []
    at = 0
    while at < len(words):
        name, given, value = words[at].partition("=")
        at += 1
        if name != "--import" and name not in (f"--{column}" for column in _BESIDE):
            rest.append(words[at - 1])
            continue
        values = [value] if given else []
        while not given and at < len(words) and not words[at].startswith("--") and (name == "--import" or not values):
            values.append(words[at])
            at += 1
        if not all(values) or not values:
            raise AtomsError(f"{name} names no file: give one, for example {name} {_example(name)}")
        if name == "--import":
            for word in values:
                site, path = _site(word)
                files.setdefault(site, []).append(path)
        else:
            beside.append(f"--data.matrix.{name[2:]}={values[0]}")
    if beside and not files:
        raise AtomsError(f"{beside[0].replace('data.matrix.', '')} stands without --import: name the activations too")
    return [*rest, f"--data.matrix.files={json.dumps(files)}", *beside] if files else rest


def _example(name: str) -> str:
    return "acts.npy" if name == "--import" else f"{name[2:]}.npy"


def _site(word: str) -> tuple[str, str]:
    site, given, path = word.partition("=")
    named = given and path and "/" not in site and not Path(word).exists()
    return (site, path) if named else (SITE, word)
