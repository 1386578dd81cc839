"""The model's own neurons, the oldest candidates."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from atoms.activations.down_projection import read_down_projection
from atoms.activations.model_source import ModelSpec, resolve
from atoms.activations.site_rows import SiteRows
from atoms.errors import AtomsError
from atoms.sae import SparseCodes
from atoms.units.unit import Unit

_MLP = re.compile(r"mlp_out\.(\d+)")
_PROBED = 256  # rows on which neurons must rebuild what the store holds


class Neurons(Unit):
    """The neurons of a site.

    At ``mlp_out.N`` they are the neurons of block N's MLP: atoms are the columns of its down-projection, codes the
    rows of ``mlp_in.N``, which the store must hold beside it, and the centre is its bias. The sum is exact. Anywhere
    else they are the coordinates themselves: atoms are the identity, codes the row. Either way codes are dense but for
    neurons that are exactly 0.

    Args:
        model: The model whose down-projection to read; what the store was harvested from if left out.
    """

    def __init__(self, model: ModelSpec | None = None) -> None:
        self.name, self.model = "neurons", model
        self._reads: str | None = None

    @property
    def reads(self) -> str | None:
        """``mlp_in.N`` at ``mlp_out.N``, else the site itself."""
        return self._reads or self.site

    def fit(self, rows: SiteRows) -> None:
        """Find the neurons of this site.

        Raises:
            AtomsError: If the store lacks ``mlp_in.N``, the model cannot be found, no neuron writes a fixed direction
                there, or what the neurons write is not what the store holds; or as `Unit.fit`.
        """
        if mlp := _MLP.fullmatch(rows.site):
            self._fit_mlp(rows, int(mlp[1]))
        else:
            self.atoms, self.centre = torch.eye(rows.width), torch.zeros(rows.width)
        super().fit(rows)

    def _fit_mlp(self, rows: SiteRows, depth: int) -> None:
        reads = f"mlp_in.{depth}"
        store = rows.data.store
        if reads not in store.sites:
            raise AtomsError(
                f"unit neurons: the codes of {rows.site} are the rows of {reads}, which data.store={store.path} does "
                f"not hold (only {', '.join(store.sites)}): harvest both, for example data.harvest.sites="
                f"[{reads}, {rows.site}]"
            )
        try:
            weight, bias = read_down_projection(resolve(self._model_of(rows)), depth)
        except AtomsError as error:
            raise AtomsError(f"unit neurons: {error}") from error
        if weight.shape != (store.width(reads), rows.width):
            raise AtomsError(
                f"unit neurons: the model's down-projection is {tuple(weight.shape)}, but {reads} and {rows.site} have "
                f"widths {store.width(reads)} and {rows.width}: give the model the store was made with as unit.model"
            )
        self.atoms, self.centre, self._reads = weight, bias, reads
        sample = rows.sample(_PROBED, [reads])
        found = self.decode(self.encode(sample[reads]))
        gap = ((found - sample[rows.site]).double().square().sum() / sample[rows.site].double().square().sum()).sqrt()
        # Stored and computed in half precision at worst: sums of thousands of products of 8 bits each.
        if not gap < 0.03:
            raise AtomsError(
                f"unit neurons: what they write differs from {rows.site} in the store by {gap:.0%} of its norm: give "
                "the model (and revision) the store was made with as unit.model; where that is the one, something "
                "stands between its down-projection and the residual stream, and neurons are to be judged at "
                f"{reads} instead"
            )

    def _model_of(self, rows: SiteRows) -> ModelSpec:
        if self.model is not None:
            return self.model
        name = rows.data.store.provenance.get("model_name")
        if not isinstance(name, str):
            raise AtomsError(
                f"data.store={rows.data.store.path} does not say which model its rows come from: name it as "
                "unit.model.name"
            )
        return ModelSpec(name)

    def encode(self, rows: Tensor) -> SparseCodes:
        """Take rows (B, ·) of the site it reads as they are."""
        return SparseCodes.from_dense(rows)
