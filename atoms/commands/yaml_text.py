"""YAML that is looked at before it is built: no bombs, no depths, no setting twice."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

DEPTH = 40
"""Most brackets inside one another; libyaml overflows the stack at some ten thousand."""
NODES = 100_000
"""Most values of a config, what is repeated by aliases counted every time."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class _Open:
    """A list or mapping that has begun."""

    anchor: str | None
    mapping: bool
    nodes: int = 1
    at_key: bool = True
    keys: set[str] = field(default_factory=set)


def check(text: str) -> None:
    """Refuse what would take a machine apart, or say two things at once. Only events are read; nothing is built.

    Raises:
        YAMLError: If the text is no YAML, too deep, too large once aliases are written out, refers to itself, or has
            the same key twice in a mapping.
    """
    stack = [_Open(None, mapping=False)]
    anchors: dict[str, int | None] = {}
    for event in yaml.parse(text, Loader=_LOADER):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            if len(stack) > DEPTH:
                raise yaml.YAMLError(f"nested more than {DEPTH} deep")
            _note_key(stack[-1], None)
            if anchor is not None:
                anchors[anchor] = None  # until it is closed
            stack.append(_Open(anchor, isinstance(event, yaml.MappingStartEvent)))
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            closed = stack.pop()
            nodes, anchor = closed.nodes, closed.anchor
        elif isinstance(event, yaml.AliasEvent):
            _note_key(stack[-1], None)
            known = anchors.get(anchor, 0) if anchor is not None else 0
            if known is None:
                raise yaml.YAMLError(f"*{anchor} refers to itself")
            nodes, anchor = known, None
        elif isinstance(event, yaml.ScalarEvent):
            _note_key(stack[-1], event.value)
            nodes = 1
        else:
            continue
        stack[-1].nodes += nodes
        if stack[-1].nodes > NODES:
            raise yaml.YAMLError(f"more than {NODES:,} values once its aliases are written out")
        if anchor is not None:
            anchors[anchor] = nodes


def _note_key(inside: _Open, value: str | None) -> None:
    """Keys and values of a mapping take turns."""
    if not inside.mapping:
        return
    if inside.at_key and value is not None and value != "<<":
        if value in inside.keys:
            raise yaml.YAMLError(f"{value} is set twice")
        inside.keys.add(value)
    inside.at_key = not inside.at_key


def guard(mode: str = "yaml") -> None:
    """Have every YAML text of the commands checked before jsonargparse loads it."""
    load: Callable[[str], Any] = get_loader(mode)
    if getattr(load, "guarded", False):
        return

    def checked(text: str) -> Any:
        check(text)
        return load(text)

    checked.guarded = True  # type: ignore[attr-defined]
    set_loader(mode, checked, (yaml.YAMLError,))
