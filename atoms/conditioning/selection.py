"""Which tensors to train: those of lowest condition number (KappaTune), and the orders it has to beat."""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch import nn

from atoms.conditioning.survey import Condition
from atoms.conditioning.weights import Kind, digest, weights_of
from atoms.errors import AtomsError

Order = Literal["kappa", "reversed", "random", "relative"]
_VERSION = 1


@dataclass(frozen=True)
class Budget:
    """How much may be trained: exactly one of three.

    Attributes:
        count: Tensors.
        fraction: Share of the candidates, at least one of them.
        parameters: Values; tensors that do not fit into what is left are passed over.
    """

    count: int | None = None
    fraction: float | None = None
    parameters: int | None = None

    def __post_init__(self) -> None:
        """Refuse what says nothing."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if len(given) != 1:
            raise AtomsError(
                f"the budget sets {' and '.join(given) or 'nothing'}: give one of count, fraction and parameters"
            )
        ((name, value),) = given.items()
        if name == "fraction" and not 0 < value <= 1:  # NaN neither
            raise AtomsError(f"fraction is {value}: give a number above 0 and at most 1")
        if name != "fraction" and (not isinstance(value, int) or value < 1):
            raise AtomsError(f"{name} is {value}: give a whole number of at least 1")


@dataclass(frozen=True)
class Candidate:
    """A tensor that may be trained.

    Attributes:
        name: Its name.
        kind: What it is.
        parameters: Values it holds.
        kappa: Condition number; the mean of its experts'.
        relative: Over the median of Gaussian matrices of its shape; the mean of its experts'.
        exact: Whether ``kappa`` is known; otherwise it is a lower bound.
        digest: sha256 of its values.
        zeros: Whether a matrix of it is one of zeros, of which nothing else is known.
    """

    name: str
    kind: Kind
    parameters: int
    kappa: float
    relative: float
    exact: bool
    digest: str
    zeros: bool = False


@dataclass(frozen=True)
class Selection:
    """A choice of tensors, with what it was made from.

    Attributes:
        order: By what they were chosen.
        budget: How much.
        seed: Of a random order.
        chosen: The tensors, in the order they were taken.
        candidates: How many there were.
        unknown: Tensors left out because only a bound of their condition number is known, or a matrix is one of zeros.
    """

    order: Order
    budget: Budget
    seed: int
    chosen: tuple[Candidate, ...]
    candidates: int
    unknown: tuple[str, ...] = field(default=())

    @property
    def names(self) -> list[str]:
        """Of the chosen tensors."""
        return [each.name for each in self.chosen]

    @property
    def parameters(self) -> int:
        """Values that are trained."""
        return sum(each.parameters for each in self.chosen)

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes it again."""
        chosen = [asdict(each) | {"kappa": _text(each.kappa), "relative": _text(each.relative)} for each in self.chosen]
        return {"version": _VERSION, **asdict(self), "chosen": chosen, "unknown": list(self.unknown)}

    @staticmethod
    def from_json(record: dict[str, Any], where: str = "selection") -> Selection:
        """What `to_json` wrote.

        Args:
            record: Its value.
            where: What to call it.

        Raises:
            AtomsError: If it is something else.
        """
        try:
            if record["version"] != _VERSION:
                raise AtomsError(f"{where} is of version {record['version']}: choose again, this is version {_VERSION}")
            chosen = [
                Candidate(**{**each, "kappa": float(each["kappa"]), "relative": float(each["relative"])})
                for each in record["chosen"]
            ]
            if record["order"] not in get_args(Order) or not chosen:
                raise ValueError(f"order {record['order']!r}, {len(chosen)} chosen")
            return Selection(
                record["order"],
                Budget(**record["budget"]),
                record["seed"],
                tuple(chosen),
                record["candidates"],
                tuple(record["unknown"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise AtomsError(f"{where} is no selection of tensors ({error!r}): choose again") from error

    @staticmethod
    def load(path: str | Path) -> Selection:
        """Read a file of `to_json`.

        Args:
            path: The file.

        Raises:
            AtomsError: If it cannot be read.
        """
        try:
            return Selection.from_json(json.loads(Path(path).read_text(encoding="utf-8")), str(path))
        except (OSError, ValueError) as error:
            raise AtomsError(f"{path} cannot be read ({error}): name a file of chosen tensors") from error

    def check(self, module: nn.Module) -> None:
        """Hold a module's weights to those the choice was made from.

        Args:
            module: The module, before it is trained.

        Raises:
            AtomsError: If a chosen tensor is missing or differs, with the first.
        """
        there = {weight.name: weight for weight in weights_of(module)}
        for each in self.chosen:
            if each.name not in there:
                raise AtomsError(f"{each.name} was chosen and is not in this model: choose again")
            if digest(there[each.name].read()) != each.digest:
                raise AtomsError(f"{each.name} was chosen by other weights than this model has: choose again")


def candidates_of(conditions: Sequence[Condition]) -> list[Candidate]:
    """A survey by tensors; the condition number of one that holds several matrices is their mean, as PEFT takes it.

    Args:
        conditions: What `survey` returned.
    """
    tensors: dict[str, list[Condition]] = {}
    for condition in conditions:
        tensors.setdefault(condition.tensor, []).append(condition)
    return [
        Candidate(
            name,
            parts[0].kind,
            sum(part.parameters for part in parts),
            sum(part.kappa for part in parts) / len(parts),
            sum(part.relative for part in parts) / len(parts),
            all(part.exact for part in parts),
            parts[0].digest,
            any(part.rank == 0 for part in parts),
        )
        for name, parts in tensors.items()
    ]


def select(
    candidates: Sequence[Candidate],
    budget: Budget,
    order: Order = "kappa",
    seed: int = 0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: bool = False,
) -> Selection:
    """Choose tensors within a budget.

    Source: theory.md C3, C6a; order and share as PEFT's ``find_kappa_target_modules``.

    Args:
        candidates: All that there are.
        budget: How much may be chosen.
        order: ``kappa``: lowest condition number first; ``reversed``: highest first; ``relative``: lowest first, each
            over what Gaussian matrices of its shape have; ``random``.
        seed: Of the random order.
        include: Patterns (``*.mlp.*``) of names, one of which must fit; all if there are none.
        exclude: Patterns of names, none of which may fit.
        embeddings: Whether embeddings and the output embedding may be chosen.

    Returns:
        The choice, not empty.

    Raises:
        AtomsError: If nothing can be chosen.
    """
    named = [
        each
        for each in candidates
        if (embeddings or each.kind not in ("embedding", "unembedding")) and admits(each.name, include, exclude)
    ]
    open_to = [each for each in named if each.exact]
    if not open_to:
        why = f"include={list(include)}, exclude={list(exclude)}, embeddings={embeddings}"
        zeros = sum(each.zeros for each in named)
        bound = f"; of {len(named) - zeros} only a bound is known: raise max_dim" if len(named) > zeros else ""
        none = f"; {zeros} hold a matrix of zeros, by which nothing is chosen: change the patterns" if zeros else ""
        raise AtomsError(f"no tensor of {len(candidates)} may be chosen ({why}){bound}{none}")
    chosen = _within(_ordered(open_to, order, seed), budget)
    if not chosen:
        least = min(each.parameters for each in open_to)
        raise AtomsError(f"parameters is {budget.parameters}, and the smallest tensor has {least}: give at least that")
    unknown = tuple(each.name for each in named if not each.exact)
    return Selection(order, budget, seed, tuple(chosen), len(open_to), unknown)


def _ordered(candidates: list[Candidate], order: Order, seed: int) -> list[Candidate]:
    if order == "random":
        return [candidates[place] for place in np.random.default_rng(seed).permutation(len(candidates))]
    # Either way, of equal ones the first comes first.
    by = (lambda each: each.relative) if order == "relative" else (lambda each: each.kappa)
    return sorted(candidates, key=by, reverse=order == "reversed")


def _within(ordered: list[Candidate], budget: Budget) -> list[Candidate]:
    if budget.count is not None:
        return ordered[: budget.count]
    if budget.fraction is not None:
        return ordered[: max(1, int(len(ordered) * budget.fraction))]
    left, chosen = budget.parameters or 0, []
    for each in ordered:
        if each.parameters <= left:
            chosen.append(each)
            left -= each.parameters
    return chosen


def admits(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether patterns leave a tensor open.

    Args:
        name: Its name.
        include: Patterns (``*.mlp.*``), one of which must fit; all do if there are none.
        exclude: Patterns, none of which may fit.
    """

    def fits(patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return (not include or fits(include)) and not fits(exclude)


def _text(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
