"""The recipes that are compared: what is trained, and by what order it was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from atoms.conditioning.selection import Budget, Candidate, Order, Selection, admits, select
from atoms.errors import AtomsError
from atoms.tuning.adapters import adaptable, adapted, matched_rank, require_peft, trainable


@dataclass(frozen=True)
class Arm:
    """One recipe.

    Attributes:
        name: How it is called.
        method: Whether all parameters, chosen tensors or adapters are trained.
        order: By what tensors are chosen; None for all of them.
    """

    name: str
    method: Literal["full", "tensors", "adapters"]
    order: Order | None = None


ARMS = {
    arm.name: arm
    for arm in (
        Arm("full", "full"),
        Arm("lora", "adapters"),
        Arm("kappa", "tensors", "kappa"),
        Arm("reversed", "tensors", "reversed"),
        Arm("random", "tensors", "random"),
        Arm("relative", "tensors", "relative"),
        Arm("kappa_lora", "adapters", "kappa"),
        Arm("reversed_lora", "adapters", "reversed"),
        Arm("random_lora", "adapters", "random"),
        Arm("relative_lora", "adapters", "relative"),
    )
}
"""All recipes, by name."""


@dataclass(frozen=True)
class Share:
    """How much every arm but ``full`` trains."""

    parameters: int | None = None
    """Parameters to train."""
    fraction: float | None = None
    """The same as a share of all candidates' parameters, whatever ``include`` and ``exclude`` leave open."""
    include: tuple[str, ...] = ()
    """Patterns of tensors' names, one of which must fit; for all arms but ``full``."""
    exclude: tuple[str, ...] = ()
    """Patterns of tensors' names, none of which may fit."""
    embeddings: bool = False
    """Whether embeddings and output embedding may be chosen; adapters are put on none."""
    adapted: float = 0.2
    """Share of the tensors that get an adapter where an arm chooses which; PEFT's ``top_p``."""

    def __post_init__(self) -> None:
        """Refuse what says nothing."""
        if (self.parameters is None) == (self.fraction is None):
            raise AtomsError("budget: give one of budget.parameters and budget.fraction")
        if self.parameters is not None and self.parameters < 1:
            raise AtomsError(f"budget.parameters is {self.parameters}: give at least 1")
        for name in ("fraction", "adapted"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise AtomsError(f"budget.{name} is {value}: give a number above 0 and at most 1")

    def of(self, candidates: Sequence[Candidate]) -> int:
        """Parameters to train of a model.

        Args:
            candidates: Its tensors.

        Raises:
            AtomsError: If the share comes to none.
        """
        if self.parameters is not None:
            return self.parameters
        open_to = [each for each in candidates if each.kind not in ("embedding", "unembedding") or self.embeddings]
        there = sum(each.parameters for each in open_to)
        if (wanted := int((self.fraction or 0) * there)) < 1:
            raise AtomsError(f"budget.fraction is {self.fraction}, less than one of {there:,} parameters: raise it")
        return wanted

    def choose(self, candidates: Sequence[Candidate], budget: Budget, order: Order, seed: int) -> Selection:
        """Choose tensors among those it leaves open.

        Args:
            candidates: All tensors.
            budget: How much.
            order: By what.
            seed: Of a random order.

        Raises:
            AtomsError: If nothing can be chosen.
        """
        try:
            return select(candidates, budget, order, seed, self.include, self.exclude, self.embeddings)
        except AtomsError as error:
            raise AtomsError(f"budget: {error}") from error


@dataclass(frozen=True)
class Plan:
    """What an arm does to a model.

    Attributes:
        arm: The arm.
        selection: Tensors it chose; None where it takes all.
        adapters: Tensors that get one.
        rank: Of its adapters; None where it has none.
        trained: Parameters it trains.
    """

    arm: Arm
    selection: Selection | None
    adapters: Sequence[str]
    rank: int | None
    trained: int

    def apply(self, model: nn.Module) -> nn.Module:
        """Prepare a model: adapters are put on and the rest frozen. Chosen tensors are left to `KappaTune`.

        Args:
            model: The model, changed in place.
        """
        if self.rank is None:
            return model
        return adapted(model, self.adapters, self.rank)


def plan(arm: Arm, model: nn.Module, candidates: Sequence[Candidate], share: Share, seed: int) -> Plan:
    """Work out what an arm trains.

    Args:
        arm: The arm.
        model: The model; it is not changed.
        candidates: Its tensors, surveyed.
        share: How much to train.
        seed: Of a random order.

    Raises:
        AtomsError: If nothing can be chosen or adapters cannot be matched.
    """
    wanted = share.of(candidates)
    if arm.method != "adapters":
        _require_trainable(arm, model)
    if arm.method == "full":
        return Plan(arm, None, (), None, trainable(model))
    if arm.method == "tensors":
        assert arm.order is not None
        chosen = share.choose(candidates, Budget(parameters=wanted), arm.order, seed)
        return Plan(arm, chosen, (), None, chosen.parameters)
    require_peft()
    selection, names = None, [name for name in adaptable(model) if admits(name, share.include, share.exclude)]
    if not names:
        raise AtomsError(
            f"budget: include={list(share.include)} and exclude={list(share.exclude)} leave no linear map or expert, "
            f"and nothing else can get an adapter: change them, or leave {arm.name} out of arms"
        )
    if arm.order is not None:
        open_to = [each for each in candidates if each.name in set(names)]
        selection = share.choose(open_to, Budget(fraction=share.adapted), arm.order, seed)
        names = selection.names
    rank, trained = matched_rank(model, names, wanted)
    return Plan(arm, selection, names, rank, trained)


def _require_trainable(arm: Arm, model: nn.Module) -> None:
    packed = next((name for name, each in model.named_parameters() if not each.is_floating_point()), None)
    if packed is not None:
        raise AtomsError(
            f"arms names {arm.name}, which trains weights themselves, and {packed} is quantised: name arms with "
            "adapters, or the checkpoint that was quantised"
        )
