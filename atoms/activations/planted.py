"""Activations whose atoms are known: sparse positive combinations of planted unit directions."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from atoms.activations.grid import Span
from atoms.activations.identity import digest_of
from atoms.activations.location import Location, Where, locate
from atoms.activations.store import ActivationStore
from atoms.activations.synthetic import write_rows
from atoms.errors import AtomsError

SITE = "planted"
CODES_AT_ONCE = 2**22  # dense codes drawn at a time: a block of a large dictionary's would fill the memory
PLANTED_FILE = "planted.safetensors"


@dataclass
class PlantedSpec:
    """A synthetic store with a ground truth, to see whether training finds what is there.

    Rows are ``offset + codes @ atoms + noise``: unit atoms drawn isotropically, each of them in a row with the same
    chance and independently of the others, coefficients uniform in [low, high].
    """

    root: str = "activations"
    """Directory, or URL of a prefix, under which the store is kept."""
    width: int = 64
    """Width H of a row."""
    atoms: int = 128
    """Number of planted atoms."""
    active: float = 4.0
    """Mean number of atoms in a row."""
    low: float = 0.5
    """Smallest coefficient."""
    high: float = 1.5
    """Largest coefficient."""
    noise: float = 0.01
    """Standard deviation of the Gaussian noise added to every coordinate."""
    offset: float = 1.0
    """Norm of the constant direction added to every row, as real residual streams have one."""
    rows: int = 100_000
    """Rows over all splits; a tenth each is kept for validation and test."""
    seed: int = 0
    """Seed of atoms and rows."""

    def __post_init__(self) -> None:
        """Check what cannot work."""
        for name, least in (("width", 1), ("atoms", 1), ("rows", 10), ("noise", 0), ("seed", 0)):
            if not getattr(self, name) >= least:
                raise AtomsError(f"data.planted.{name} is {getattr(self, name)}: give a number of at least {least}")
        for name in ("high", "noise", "offset"):
            if not math.isfinite(getattr(self, name)):
                raise AtomsError(f"data.planted.{name} is {getattr(self, name)}: give a finite number")
        if not 0 < self.active <= self.atoms:
            raise AtomsError(f"data.planted.active is {self.active}: give a number above 0 and at most {self.atoms}")
        if not 0 < self.low <= self.high:
            raise AtomsError(f"data.planted.low is {self.low} and high {self.high}: give 0 < low <= high")

    @property
    def identity(self) -> dict[str, Any]:
        """What the rows depend on."""
        return {"kind": "planted", **{key: value for key, value in asdict(self).items() if key != "root"}}

    def directory(self) -> Location:
        """Where the store is kept: a name that carries the settings' digest."""
        return locate(self.root) / f"planted-{self.width}-{self.atoms}-{digest_of(self.identity)[:12]}"

    def widths(self) -> dict[str, int]:
        """Width of the one site."""
        return {SITE: self.width}

    def split_rows(self) -> dict[str, int]:
        """Rows of every split."""
        held_out = self.rows // 10
        return {"train": self.rows - 2 * held_out, "val": held_out, "test": held_out}

    def truth(self) -> tuple[Tensor, Tensor]:
        """Planted atoms (T, H), unit rows, and the constant offset (H,), float64."""
        generator = np.random.default_rng([self.seed, 0])
        directions = generator.standard_normal((self.atoms + 1, self.width))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return torch.from_numpy(directions[:-1]), torch.from_numpy(self.offset * directions[-1])

    def blocks(self, span: Span) -> dict[str, Tensor]:
        """Rows of one block of a store."""
        return {SITE: self.draw(span.split, span.index, span.rows)}

    def draw(self, split: str, block: int, n_rows: int) -> Tensor:
        """Rows of one block, float32 ``(n_rows, H)``; a pure function of its arguments and the seed."""
        generator = np.random.default_rng([self.seed, 1, ("train", "val", "test").index(split), block])
        atoms, offset = (part.numpy() for part in self.truth())
        rows = np.empty((n_rows, self.width), np.float32)
        step = max(1, CODES_AT_ONCE // self.atoms)
        for part in (rows[start : start + step] for start in range(0, n_rows, step)):
            active = generator.random((len(part), self.atoms)) < self.active / self.atoms
            codes = np.where(active, generator.uniform(self.low, self.high, active.shape), 0.0)
            part[:] = codes @ atoms + offset + self.noise * generator.standard_normal(part.shape)
        return torch.from_numpy(rows)


def plant(spec: PlantedSpec, path: Where) -> None:
    """Write the store of ``spec`` to ``path``, going on where an earlier try ended. One process does it alone.

    Raises:
        AtomsError: If another process is writing it, or the disk refuses.
    """
    write_rows(spec, path, "plant", {PLANTED_FILE: save({"atoms": spec.truth()[0].contiguous()})})


def load_truth(store: ActivationStore) -> Tensor | None:
    """Planted atoms (T, H) of a store, or None where nothing was planted."""
    data = store.read_file(PLANTED_FILE)
    return None if data is None else load(data)["atoms"]
