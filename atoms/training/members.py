"""The dictionaries that train together in one pass over the rows: their settings and their parts."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist
from torch import nn

from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct
from atoms.sae import Activation, Control, Objective, Shard, ThresholdSAE
from atoms.sae.model import Encoder

SINGLE = "tsae"
"""Name of the member of a run that has only one."""


@dataclass
class MemberOverrides:
    """What one member does differently from the rest of the run; None keeps the run's own setting."""

    site: str | None = None
    """Site whose rows it learns."""
    expansion: float | None = None
    """Atoms per coordinate."""
    power: float | None = None
    """p, where on the metric path it lives."""
    error_power: float | None = None
    """r, the metric of its reconstruction error."""
    encoder: Encoder | None = None
    """Kind of encoder."""
    activation: Activation | None = None
    """What keeps codes sparse."""
    target_l0: float | None = None
    """Mean number of active atoms per row."""
    lr: float | None = None
    """Learning rate."""
    clip: float | None = None
    """Largest norm of its gradient."""
    seed: int | None = None
    """Seed of its initial directions."""


MOST_ATOMS = 2**31 - 1


@dataclass(frozen=True)
class MemberConfig:
    """Settings of one dictionary, complete; `TSAEModule` documents them."""

    site: str
    expansion: float
    power: float
    error_power: float
    encoder: Encoder
    target_l0: float
    lr: float | None
    clip: float
    seed: int
    activation: Activation = "threshold"

    def num_atoms(self, width: int) -> int:
        """Number of atoms A for rows of ``width``.

        Raises:
            AtomsError: If sparse codes, whose indices are int32, could not tell them apart.
        """
        atoms = max(1, math.floor(self.expansion * width))
        if atoms > MOST_ATOMS:
            raise AtomsError(
                f"model.expansion is {self.expansion}, which makes {atoms:.3g} atoms of rows of width {width}: lower "
                f"it, {MOST_ATOMS:,} atoms are the most"
            )
        return atoms

    def sae(self, geometry: AtomicInnerProduct, shard: Shard | None = None) -> ThresholdSAE:
        """The untrained dictionary of these settings.

        Args:
            geometry: The atomic inner product of its site.
            shard: Which of its atoms this process holds; all if None.
        """
        return ThresholdSAE(
            geometry.width,
            self.num_atoms(geometry.width),
            geometry=geometry,
            power=self.power,
            encoder=self.encoder,
            activation=self.activation,
            k=max(1, round(self.target_l0)) if self.activation == "topk" else None,
            seed=self.seed,
            shard=shard,
        )


class Member(nn.Module):
    """One dictionary in training: the SAE, and what steers it without gradients.

    Args:
        config: Its settings.
        geometry: The atomic inner product of its site.
        rows: Rows that training will see in all; the schedules are shares of it.
        shard: Which of its atoms this process holds; all if None.
        group: All processes of the training; None where there is only one.
    """

    def __init__(
        self,
        config: MemberConfig,
        geometry: AtomicInnerProduct,
        rows: int,
        shard: Shard | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        atoms = config.num_atoms(geometry.width)
        if config.target_l0 >= atoms:
            raise AtomsError(
                f"model.target_l0 is {config.target_l0:g}, but there are only {atoms} atoms: lower it, or raise "
                "model.expansion"
            )
        self.config = config
        self.sae = config.sae(geometry, shard)
        objective = Objective(target_l0=config.target_l0, error_power=config.error_power)
        self.control = Control(self.sae, objective, rows=rows, group=group)


def member_configs(
    base: Mapping[str, Any], overrides: Mapping[str, MemberOverrides | dict[str, Any]] | None, sites: list[str]
) -> dict[str, MemberConfig]:
    """Settings of every member, by name.

    Args:
        base: The run's own settings; ``site`` may be None where the store holds only one.
        overrides: By member, what differs from ``base`` (plain values where they come from a checkpoint); None for a
            single member.
        sites: Sites the store holds.

    Raises:
        AtomsError: For a name that MLflow or PyTorch cannot hold, or a site the store does not have.
    """
    configs = {}
    for name, changes in (overrides or {SINGLE: MemberOverrides()}).items():
        if not name.replace("_", "").replace("-", "").isalnum():
            raise AtomsError(f"model.members has {name!r}: name a member with letters, digits, '-' and '_' only")
        own = changes if isinstance(changes, dict) else asdict(changes)
        merged = {**base, **{key: value for key, value in own.items() if value is not None}}
        if merged["site"] is None:
            if len(sites) > 1:
                raise AtomsError(
                    f"model.site is not set and the store holds {len(sites)}: name one of {', '.join(sites)}"
                )
            merged["site"] = sites[0]
        if merged["site"] not in sites:
            raise AtomsError(f"model.site is {merged['site']!r}, which the store does not hold: use {', '.join(sites)}")
        configs[name] = MemberConfig(**merged)
    return configs
