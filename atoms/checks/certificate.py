"""The certificate: everything that was found about one unit, as a file that others can read."""

from __future__ import annotations

import contextlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from atoms.checks.claim import Claim, Section, Verdict
from atoms.errors import AtomsError

SCHEMA, VERSION = "atoms-certificate", 1
FILE = "certificate.json"


@dataclass(frozen=True)
class UnitRecord:
    """Which unit.

    Attributes:
        name: What tables call it.
        kind: Its class.
        site: The site it explains.
        width: H.
        atoms: A.
        digest: Hex sha256 of atoms and centre.
        source: Where it comes from: a file, a digest; free form.
    """

    name: str
    kind: str
    site: str
    width: int
    atoms: int
    digest: str
    source: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RowsRecord:
    """Which rows.

    Attributes:
        store: Where they are.
        identity: Identity hash of the store.
        held_out: Held-out rows judged.
        train: Training rows judged beside.
        train_total: Training rows there are.
        geometry: Digest of the atomic inner product.
    """

    store: str
    identity: str
    held_out: int
    train: int
    train_total: int
    geometry: str


@dataclass(frozen=True)
class Certificate:
    """What may be claimed of one unit.

    Attributes:
        unit: The unit.
        rows: What it was judged on.
        sentence: What may be claimed, in words.
        sections: What every check found, in the order they are read.
        settings: How it was judged.
        failed: Checks that could not be done, and why.
        versions: Versions of what computed it.
        seconds: Time of every check; the only part that is not the same twice.
    """

    unit: UnitRecord
    rows: RowsRecord
    sentence: str
    sections: tuple[Section, ...]
    settings: dict[str, Any]
    failed: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def section(self, name: str) -> Section:
        """A section by name.

        Raises:
            KeyError: If there is none, because it was left out or failed.
        """
        for section in self.sections:
            if section.name == name:
                return section
        raise KeyError(name)

    def claims(self) -> dict[str, Claim]:
        """All claims, by ``section.claim``."""
        return {f"{section.name}.{claim.name}": claim for section in self.sections for claim in section.claims}

    def numbers(self) -> dict[str, float]:
        """All scalars that exist, by ``section/number``."""
        return {
            f"{section.name}/{key}": value
            for section in self.sections
            for key, value in section.numbers.items()
            if math.isfinite(value)
        }

    def to_json(self) -> str:
        """The certificate as JSON; what is not a finite number is null."""
        content = {"schema": SCHEMA, "version": VERSION, **asdict(self)}
        return json.dumps(_finite(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Write ``certificate.json``, whole or not at all.

        Raises:
            AtomsError: If the folder cannot be written.
        """
        path = Path(folder) / FILE
        partial = path.with_name(f".{FILE}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(self.to_json(), encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise AtomsError(
                f"output is {folder}, which cannot be written ({error.strerror}): name another folder"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        return path

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read a certificate.

        Args:
            path: The file, or the folder it lies in.

        Raises:
            AtomsError: If there is none, it is not JSON, of another schema or version, or not laid out as one.
        """
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise AtomsError(f"{file}: cannot be read ({error.strerror}): give a {FILE} or its folder") from None
        except ValueError as error:
            raise AtomsError(f"{file}: not JSON ({error}): judge the unit again") from None
        return cls.from_json(content, str(file))

    @classmethod
    def from_json(cls, content: Any, name: str) -> Certificate:
        """Take a certificate from parsed JSON.

        Args:
            content: What `to_json` gave, parsed.
            name: Where it comes from, for messages.

        Raises:
            AtomsError: As `load`.
        """
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise AtomsError(f"{name}: not a certificate of atoms (its schema is not {SCHEMA!r}): judge the unit again")
        if content.get("version") != VERSION:
            raise AtomsError(
                f"{name}: certificate of version {content.get('version')!r}, but this atoms reads {VERSION}: judge the "
                "unit again, or use the atoms that wrote it"
            )
        try:
            own = {key: value for key, value in content.items() if key not in ("schema", "version")}
            return typing.cast("Certificate", _build(cls, own, "certificate"))
        except (TypeError, ValueError) as error:
            raise AtomsError(f"{name}: not laid out as a certificate ({error}): judge the unit again") from None


def schema() -> dict[str, Any]:
    """The layout of `certificate.json` as a JSON Schema, for programs that are not this one."""
    own = _schema(Certificate)
    head = {"schema": {"const": SCHEMA}, "version": {"const": VERSION}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": SCHEMA,
        **own,
        "properties": {**head, **own["properties"]},
        "required": [*head, *own["required"]],
    }


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _build(kind: Any, value: Any, where: str) -> Any:
    """A value of a type from plain JSON, or `TypeError` that says where it does not fit."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in inner:
            return None
        for option in inner:
            try:
                return _build(option, value, where)
            except (TypeError, ValueError):
                continue
        raise TypeError(f"{where} is {str(value)[:40]!r}")
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        names = [item.name for item in fields(kind)]
        if not isinstance(value, dict) or sorted(value) != sorted(names):
            found = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise TypeError(f"{where} has {found}, not {sorted(names)}")
        return typing.cast("Any", kind)(**{key: _build(hints[key], value[key], f"{where}.{key}") for key in names})
    if origin is dict:
        if not isinstance(value, dict):
            raise TypeError(f"{where} is no mapping")
        return {key: _build(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise TypeError(f"{where} is no list")
        return origin(_build(inner[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    if kind is float:
        if value is None:
            return math.nan
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif kind is Verdict:
        return Verdict(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise TypeError(f"{where} is {str(value)[:40]!r}")


def _schema(kind: Any) -> dict[str, Any]:
    origin, inner = get_origin(kind), get_args(kind)
    plain: dict[Any, dict[str, Any]] = {
        str: {"type": "string"},
        int: {"type": "integer"},
        float: {"type": ["number", "null"]},
    }
    if kind in plain:
        return plain[kind]
    if kind is Verdict:
        return {"enum": [str(verdict) for verdict in Verdict]}
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        names = [item.name for item in fields(kind)]
        return {
            "type": "object",
            "properties": {name: _schema(hints[name]) for name in names},
            "required": names,
            "additionalProperties": False,
        }
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(inner[1])}
    if origin in (list, tuple):
        return {"type": "array", "items": _schema(inner[0])}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [{"type": "null"} if option is types.NoneType else _schema(option) for option in inner]}
    return {}
