"""Sparse autoencoders that others trained, as units to be judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from atoms.errors import AtomsError, printable
from atoms.sae import SparseCodes
from atoms.units.pretrained.formats import Format, read
from atoms.units.pretrained.hub import PREFIX, fetch
from atoms.units.unit import Unit


class PretrainedUnits(Unit):
    """A published sparse autoencoder: its decoder rows as atoms, its own activation function for the codes.

    Weights are what the files hold, with whatever scaling their library applies around them folded in, so that codes
    and reconstruction are those of the published model on rows as the language model has them. Decoder rows keep the
    length they have.

    Where a row is normalised by its own mean or length first (`layer_norm`, `constant_norm_rescale`, centred weights),
    codes are in the unit of the row, and what the model adds back to its output is one or two atoms more at the end:
    the direction of ones with the row's mean, and the decoder's bias with the row's scale. They count as atoms, for the
    model cannot rebuild a row without these numbers.

    Args:
        path: A directory of one SAE, a file in it, or ``hf:org/repo[@revision]/path/inside``.
        site: The site it was trained for, where the files do not say it or a store has it under another name.
        format: The library that wrote it, if that cannot be told by looking.
        reads: The site whose rows it encodes, if another than `site` (a transcoder); told by the files otherwise.
        centred: Whether it was trained on a model whose writing weights were centred (TransformerLens does so unless
            told not to), and so on rows without their mean over the hidden dimension. Read from SAELens's settings
            where they say it; those of GPT-2's first SAEs (`gpt2-small-res-jb`) do not.

    Attributes:
        trained_on: What the files call the place; None if they do not say.

    Raises:
        AtomsError: If there is no SAE, it is damaged or refused, or its site cannot be told.
    """

    def __init__(
        self,
        path: str,
        site: str | None = None,
        format: Format | None = None,
        reads: str | None = None,
        centred: bool = False,
    ) -> None:
        remote = path.startswith(PREFIX)
        place = fetch(path) if remote else Path(path).expanduser()
        sae = read(place, format)
        if centred:
            sae = sae.of_centred_rows(place)
        self.trained_on = sae.trained_on
        self.site = site or sae.site
        self._reads = reads or sae.reads
        if self.site is None:
            says = f"its files say {printable(sae.trained_on)}" if sae.trained_on else "its files do not say"
            raise AtomsError(
                f"path={path}: cannot tell which site it was trained for ({says}); give `site`, the name it has in the "
                "store: resid_post.5, mlp_out.5 or a module's path"
            )
        self.name = path.removeprefix(PREFIX) if remote else "/".join(place.absolute().parts[-2:])
        extra = []
        norm, bias = sae.encoder.row_norm, bool(sae.b_dec.any())
        self.encoder, self.centre = sae.encoder, sae.b_dec
        if norm in ("mean", "layer"):
            extra.append(torch.ones_like(sae.b_dec))
        if norm in ("length", "layer"):
            self.centre = torch.zeros_like(sae.b_dec)
            self.encoder = replace(sae.encoder, bias_atom=bias)
            extra += [sae.b_dec] if bias else []
        self.atoms = torch.cat([sae.w_dec, torch.stack(extra)]) if extra else sae.w_dec
        self.target_l0 = None if sae.encoder.k is None else float(sae.encoder.k + len(extra))

    @property
    def reads(self) -> str | None:
        """The site whose rows it encodes."""
        return self._reads or self.site

    @property
    def encoder_weights(self) -> Tensor:
        """What rows are multiplied by, (A, H) float32, the atoms that stand for a row's mean and scale among them."""
        return self.encoder.weights

    def encode(self, rows: Tensor) -> SparseCodes:
        """Codes as the published model has them, in the unit of the rows."""
        return self.encoder.encode(rows)

    def to(self, device: torch.device) -> Unit:
        """Move to a device, in place."""
        super().to(device)
        self.encoder = self.encoder.to(device)
        return self
