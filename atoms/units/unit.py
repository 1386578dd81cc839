"""What every candidate must offer to be judged: directions, and a sparse code for each row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from atoms.activations.site_rows import SiteRows
from atoms.errors import AtomsError
from atoms.sae import SparseCodes


class Unit(ABC):
    """A candidate: A directions in activation space, and codes with ``x ≈ codes @ atoms + centre``.

    A unit may have to learn something first: `fit` sees training rows alone, and a unit whose `atoms` depend on data
    sets them there. `encode` must be a function of the rows given to it, row by row.

    Attributes:
        name: What tables call it.
        site: The site whose rows it rebuilds; None until `fit` for a unit that takes whatever site it is shown.
        atoms: (A, H) in activation units, of any length; atoms of zero norm are allowed and count as dead. Float32, or
            float64 where single precision would spoil what the unit is there to show.
        centre: (H,) float32, what codes of zero decode to.
        target_l0: Number of atoms per row it aims at, if it aims at one.
        source: Where it comes from, for the certificate: names of files, digests.
        initialised_from_data: Whether its atoms are, or began as, rows of the training split. Two such units agree
            before either has learnt anything.
    """

    name: str
    site: str | None = None
    atoms: Tensor
    centre: Tensor
    target_l0: float | None = None
    source: Mapping[str, str] = MappingProxyType({})
    initialised_from_data: bool = False

    @property
    def reads(self) -> str | None:
        """The site whose rows it encodes; its own but for units that rebuild one site from another."""
        return self.site

    @property
    def encoder_weights(self) -> Tensor | None:
        """What a row of the site it reads is multiplied by to find coefficients, (A, H); None without such a matrix.

        It is a row of zeros for an atom whose coefficient is found otherwise.
        """
        return None

    def fit(self, rows: SiteRows) -> None:
        """Learn from training rows what there is to learn; here, hold what was learnt before to their site.

        A unit that learns sets its tensors, then calls this.

        Args:
            rows: The training split, at the site to explain.

        Raises:
            AtomsError: If the site has another width than the unit, or the unit is of another site.
        """
        if self.site is None:
            self.site = rows.site
        if self.site != rows.site:
            raise AtomsError(f"unit {self.name} is of site {self.site}, not of {rows.site}: judge it on its own site")
        if self.atoms.shape[1] != rows.width:
            raise AtomsError(
                f"unit {self.name} has width {self.atoms.shape[1]}, but {rows.site} has {rows.width}: give the store "
                "of the model it was made for"
            )

    @abstractmethod
    def encode(self, rows: Tensor) -> SparseCodes:
        """Codes of rows of the site it reads.

        Args:
            rows: (B, H) float32, on the unit's device.

        Returns:
            B rows over A atoms. Entries that are zero are left out; indices ascend within a row.
        """

    def decode(self, codes: SparseCodes) -> Tensor:
        """Activations (B, H) float32 of codes."""
        values = codes.values.to(self.atoms.dtype)
        total = F.embedding_bag(
            codes.indices.long(),
            self.atoms,
            codes.offsets,
            mode="sum",
            per_sample_weights=values,
            include_last_offset=True,
        )
        return total.float() + self.centre

    def to(self, device: torch.device) -> Unit:
        """Move to a device, in place, all tensors held."""
        for key, value in vars(self).items():
            if isinstance(value, (Tensor, torch.nn.Module)):
                setattr(self, key, value.to(device))
        return self
