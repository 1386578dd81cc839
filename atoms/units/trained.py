"""Dictionaries this package trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from atoms.sae import SparseCodes, ThresholdSAE
from atoms.sae.artefact import read_description
from atoms.units.unit import Unit


class TrainedUnit(Unit):
    """A trained SAE.

    Args:
        sae: The SAE, all atoms of it.
        name: What tables call it.
        site: The site it learnt.
        target_l0: Mean number of atoms per row it was steered to.
        seed: Seed of its initial directions, where known.

    Attributes:
        sae: The SAE.
        power: p, its place on the metric path.
        threshold: What a pre-activation must reach, (A,) float32, in units of the raw coefficients.
    """

    def __init__(
        self,
        sae: ThresholdSAE,
        *,
        name: str,
        site: str | None,
        target_l0: float | None = None,
        seed: int | None = None,
    ) -> None:
        self.sae, self.name, self.site, self.target_l0, self.seed = sae, name, site, target_l0, seed
        self.atoms, self.centre = sae.atoms, sae.centre
        self.power = sae.power
        self.threshold = sae.threshold.detach()

    @classmethod
    def load(cls, path: str | Path) -> TrainedUnit:
        """Read a saved dictionary, as ``atoms fit`` writes one for every member.

        Args:
            path: Its folder.

        Raises:
            AtomsError: If the folder holds none, or a damaged one.
        """
        description = read_description(path)
        about: dict[str, Any] = description["metadata"]
        unit = cls(
            ThresholdSAE.load(path),
            name=Path(path).name,
            site=about.get("site"),
            target_l0=about.get("target_l0"),
            seed=about.get("seed"),
        )
        unit.source = {"artefact": str(path), "sha256": description["weights_sha256"]}
        if "store" in about:
            unit.source["store"] = str(about["store"])
        return unit

    def same_but_for_seed(self, other: TrainedUnit) -> bool:
        """Whether another dictionary was asked to be the same, from another start."""

        def asked(unit: TrainedUnit) -> tuple[object, ...]:
            sae = unit.sae
            return unit.site, tuple(unit.atoms.shape), unit.power, sae.encoder, sae.activation, sae.k, unit.target_l0

        return asked(self) == asked(other) and self.seed != other.seed

    @property
    def encoder_weights(self) -> Tensor:
        """The encoder in activation space, (A, H) float32."""
        return self.sae.encoder_weights

    def encode(self, rows: Tensor) -> SparseCodes:
        """Code rows (B, H) by the SAE's own encoder."""
        return self.sae.encode_sparse(rows)
