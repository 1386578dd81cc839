"""Damage to one file among many, drawn at random and undone afterwards."""

import contextlib
import io
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import Case
from forks import files

from atoms.cli import main
from atoms.errors import AtomsError

KINDS = ("flip", "truncate", "delete", "empty")
WEIGHTS = (0.6, 0.2, 0.1, 0.1)


@dataclass
class Damage:
    """One damage.

    Args:
        root: The folder.
        name: The file in it.
        kind: Change one byte, cut the end off, delete, or leave nothing.
        place: The byte to change, or the length to cut to.
        byte: What to change it by.
    """

    root: Path
    name: str
    kind: str
    place: int = 0
    byte: int = 0

    @classmethod
    def draw(cls, random: random.Random, root: Path) -> "Damage":
        """Half the time every file is as likely as another, half the time every byte."""
        names = [name for name in files(root) if (root / name).stat().st_size]
        sizes = [(root / name).stat().st_size for name in names]
        name = random.choice(names) if random.random() < 0.5 else random.choices(names, sizes)[0]
        size = (root / name).stat().st_size
        kind = random.choices(KINDS, WEIGHTS)[0]
        return cls(root, name, kind, random.randrange(size), random.randrange(1, 256))

    @contextlib.contextmanager
    def done(self) -> Iterator[None]:
        """The folder with the damage, then as it was."""
        path = self.root / self.name
        before, times = path.read_bytes(), path.stat()
        damaged = bytearray(before)
        if self.kind == "flip":
            damaged[self.place] ^= self.byte
        elif self.kind == "truncate":
            del damaged[self.place :]
        path.write_bytes(b"" if self.kind == "empty" else damaged)
        if self.kind == "delete":
            path.unlink()
        try:
            yield
        finally:
            path.write_bytes(before)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def judge(read: Callable[[], Any], truth: Any, verify: list[str] | None = None) -> Case:
    """Read what was damaged.

    Args:
        read: Reads all that there is, as the commands do.
        truth: What it gives where nothing is damaged.
        verify: A command line that looks for damage, to be asked where reading finds none.

    Returns:
        The outcome: ``refused`` in one line, ``reported`` by the command, ``harmless`` (what is read is the truth),
        or one of the two that must not be: ``WRONG DATA`` and ``TRACEBACK``.
    """
    try:
        found = read()
    except AtomsError as error:
        line = str(error)
        return {"outcome": "refused" if "\n" not in line else "TRACEBACK", "said": line}
    except Exception as error:
        return {"outcome": "TRACEBACK", "said": f"{type(error).__name__}: {error}"[:500]}
    if found != truth:
        return {"outcome": "WRONG DATA", "said": ", ".join(key for key in truth if found.get(key) != truth[key])}
    if verify and (said := _complaint(verify)):
        return {"outcome": "reported", "said": said}
    return {"outcome": "harmless", "said": ""}


def _complaint(words: list[str]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(words)
        except SystemExit as stop:
            if stop.code == 2:
                raise RuntimeError(out.getvalue()) from stop
            return out.getvalue()[-500:] if stop.code else ""
    return ""
