"""What the commands' parsers share: errors of one line, and quiet libraries."""

import ast
import difflib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from atoms.commands.imports import limit_imports, refusal
from atoms.commands.yaml_text import guard
from atoms.errors import AtomsError

_REFUSED = re.compile(r"Importing '([\w.]+)' is not allowed")
_UNKNOWN = re.compile(
    r"does not accept option '([\w.]+)'|Option '([\w.]+)' is not accepted|unrecognized arguments: (.+)"
)
_KEY = re.compile(r'Parser key "([\w.]+)":\s*')
_ALTERNATIVES = re.compile(r"Errors:(.*)Given value type:.*?Given value: (.*)", re.DOTALL)
_ABSENT = object()
LONGEST = 600  # what a message may quote of a file
_NULL = "<class 'NoneType'>"


class AtomsArgumentParser(LightningArgumentParser):
    """A parser whose errors are one line, with the nearest known setting; settings are written out in full."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        limit_imports()  # here, so that no settings are ever read without them
        guard()
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **named: Any) -> Any:  # type: ignore[override]
        """Parse; a nested setting arrives here as one word, its value as Python would print it."""
        if args is not None and len(args) == 1:
            args = [_as_yaml(args[0])]
        return super().parse_args(args, *rest, **named)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing the usage; parsers of nested settings do so too, and are quoted by the outer one.

        Raises:
            AtomsError: Always.
        """
        text = str(message)
        if refused := _REFUSED.search(text):
            raise AtomsError(refusal(refused[1])) from ex
        found = _UNKNOWN.search(text)
        raise AtomsError(self._unknown(next(filter(None, found.groups()))) if found else one_line(text)) from ex

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


@contextmanager
def readable() -> Iterator[None]:
    """Say in one line what kept settings from being read at all; what a setting's value lacks, parsers say.

    Raises:
        AtomsError: In place of what files and Python's limits raise.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise AtomsError(f"config: not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except RecursionError as error:
        raise AtomsError("config: too deep, or it refers to itself: write it out flat") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError) as error:
        if (own := _own(error)) is not None:
            raise own from None
        raise AtomsError(f"the settings cannot be read ({one_line(str(error)) or type(error).__name__})") from error


def _own(error: BaseException) -> AtomsError | None:
    """What we said of settings ourselves, where jsonargparse raises something else because of it."""
    cause = error.__cause__
    while cause is not None and not isinstance(cause, AtomsError):
        cause = cause.__cause__
    return cause


def require_settings(config: Any, made: dict[str, Any]) -> None:
    """Refuse what jsonargparse lets through: null for a setting that has no null, and no settings where they belong.

    Args:
        config: Settings of a command.
        made: What is built from each group of settings.

    Raises:
        AtomsError: With the first such setting.
    """
    for group, built in made.items():
        _require(group, config.get(group), built)


def _require(name: str, value: Any, built: Any) -> None:
    if not isinstance(value, Namespace):
        raise AtomsError(f"{name} is {value!r}: give settings by their names")
    for key, hint in get_type_hints(built if is_dataclass(built) else built.__init__).items():
        inner, kinds = value.get(key, _ABSENT), get_args(hint) or (hint,)
        if inner is None and key != "return" and not {NoneType, None, Any} & set(kinds):
            raise AtomsError(f"{name}.{key} is null: give a value, or leave it out")
        for kind in kinds:
            if is_dataclass(kind) and isinstance(inner, Namespace) and "class_path" not in inner:
                _require(f"{name}.{key}", inner, kind)


def _as_yaml(word: str) -> str:
    """``--limit=None`` as ``--limit=null``: jsonargparse reads a nested value as YAML and hands it on by ``str``."""
    name, _, text = word.partition("=")
    if text != "None" and not text.startswith(("[", "{")):
        return word
    try:
        return f"{name}={json.dumps(ast.literal_eval(text), ensure_ascii=False)}"
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return word


def one_line(text: str) -> str:
    """What jsonargparse says of a value, without the types it tried in vain and the repetition of the whole value."""
    key = _KEY.match(text)
    said = text[key.end() :] if key else text
    union = _ALTERNATIVES.search(said)
    if union:
        reasons = re.findall(r"^    - (.*:\n {6,}.*|.*)", union[1], re.MULTILINE)  # after a colon it goes on
        said = " or ".join(dict.fromkeys(reason for reason in reasons if _NULL not in reason))
        if said.startswith("Expected") and ". Got value: " not in said:
            said += f". Got value: {union[2]}"
    said = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", said)
    said = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", said)
    said = re.sub(r"Expected an? (.*?)\. Got value: ", r"expected \1, got ", said).replace(" or Expected a ", " or ")
    line = " ".join(f"{f'{key[1]}: ' if key else ''}{said}".split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


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
