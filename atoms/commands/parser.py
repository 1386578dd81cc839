"""What the commands' parsers share: errors of one line, and quiet libraries."""

import difflib
import logging
import re
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from atoms.errors import AtomsError

_UNKNOWN = re.compile(r"(?:does not accept option|is not accepted|not expected|nrecognized arguments?:?).*")


class AtomsArgumentParser(LightningArgumentParser):
    """A parser whose errors are one line, with the nearest known settings."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing the usage.

        Raises:
            AtomsError: Always.
        """
        line = " ".join(str(message).split())
        if _UNKNOWN.search(line):
            key = re.findall(r"['\"]?(?:--)?([A-Za-z_][\w.]*)['\"]?", line.replace("'", " ' "))
            near = self._nearest([word for word in key if "." in word] or key[-1:])
            line += f": did you mean {' or '.join(near)}?" if near else ": --help lists the settings"
        raise AtomsError(line) from ex

    def _nearest(self, words: list[str]) -> list[str]:
        known = {action.dest for action in self._actions}
        for action in self._actions:
            for parser in (getattr(action, "_name_parser_map", None) or {}).values():
                known |= {inner.dest for inner in parser._actions}
        return [near for word in words for near in difflib.get_close_matches(word, known, 2, 0.6)][:2]


def quiet() -> None:
    """Silence Lightning's hints on hardware and its own services; what concerns the user is printed by us."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
