"""What the commands' parsers share: errors of one line, and quiet libraries."""

import difflib
import logging
import re
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from atoms.errors import AtomsError

_UNKNOWN = re.compile(
    r"does not accept option '([\w.]+)'|Option '([\w.]+)' is not accepted|unrecognized arguments: (.+)"
)
_KEY = re.compile(r'Parser key "([\w.]+)":\s*')
_ALTERNATIVES = re.compile(r"Errors:(.*)Given value type:.*?Given value: (.*)", re.DOTALL)
_NULL = "<class 'NoneType'>"


class AtomsArgumentParser(LightningArgumentParser):
    """A parser whose errors are one line, with the nearest known setting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing the usage; parsers of nested settings do so too, and are quoted by the outer one.

        Raises:
            AtomsError: Always.
        """
        text = str(message)
        found = _UNKNOWN.search(text)
        raise AtomsError(self._unknown(next(filter(None, found.groups()))) if found else _one_line(text)) from ex

    def _unknown(self, words: str) -> str:
        named = [word.lstrip("-").partition("=")[0] for word in words.split() if word.startswith("-")] or words.split()
        settings = self._settings()
        # A group of settings complains of the last part of a name alone.
        known = settings | {name.rpartition(".")[2] for name in settings}
        near = [match for name in named for match in difflib.get_close_matches(name, known, 1)]
        advice = f"did you mean {' and '.join(near)}?" if near else "--help lists the settings"
        return f"{', '.join(named)} is no setting: {advice}"

    def _settings(self) -> set[str]:
        """Names of all settings, those of subcommands included."""
        names = {action.dest for action in self._actions}
        for action in self._actions:
            for parser in (getattr(action, "_name_parser_map", None) or {}).values():
                names |= {inner.dest for inner in parser._actions}
        return {name for name in names if not name.endswith(".help")}


def _one_line(text: str) -> str:
    """What jsonargparse says of a value, without the types it tried in vain and the repetition of the whole value."""
    key = _KEY.match(text)
    said = text[key.end() :] if key else text
    union = _ALTERNATIVES.search(said)
    if union:
        reasons = re.findall(r"^    - (.*)", union[1], re.MULTILINE)
        said = " or ".join(dict.fromkeys(reason for reason in reasons if _NULL not in reason))
        if said.startswith("Expected") and ". Got value: " not in said:
            said += f". Got value: {union[2]}"
    said = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", said)
    said = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", said)
    said = re.sub(r"Expected an? (.*?)\. Got value: ", r"expected \1, got ", said).replace(" or Expected a ", " or ")
    return " ".join(f"{f'{key[1]}: ' if key else ''}{said}".split())


def is_first_rank() -> bool:
    """Whether this process is the one that speaks and writes."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def quiet() -> None:
    """Silence Lightning's hints on hardware and its own services; what concerns the user is printed by us."""
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
        "lightning.fabric.utilities.distributed",
        "lightning.pytorch.trainer.connectors.signal_connector",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
