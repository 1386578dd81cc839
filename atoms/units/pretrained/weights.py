"""A trained sparse autoencoder as plain weights, and what leaves its function as it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from atoms.errors import AtomsError
from atoms.units.pretrained.encoder import Encoder, RowNorm


@dataclass(frozen=True, eq=False)
class PretrainedSAE:
    """What a reader makes of a file: an encoder, a decoder, and the place it was trained for.

    ``x̂ = codes @ w_dec + b_dec``, where the encoder normalises rows: of the normalised row.

    Attributes:
        encoder: From rows to codes.
        w_dec: (A, H) float32, of any length.
        b_dec: (H,) float32.
        trained_on: What the files call the place, for messages; None if they do not say.
        site: The same as this project writes it; None if that cannot be told.
        reads: The site whose rows it encodes, if another than the one it rebuilds.
    """

    encoder: Encoder
    w_dec: Tensor
    b_dec: Tensor
    trained_on: str | None = None
    site: str | None = None
    reads: str | None = None

    def on_rows_times(self, factor: float) -> PretrainedSAE:
        """The SAE that does to x what this one does to ``factor · x``; codes are the same numbers."""
        encoder = replace(self.encoder, w_enc=self.encoder.w_enc * factor, shift=self.encoder.shift / factor)
        return replace(self, encoder=encoder, w_dec=self.w_dec / factor, b_dec=self.b_dec / factor)

    def on_rows_mapped(self, mean: Tensor, matrix: Tensor, inverse: Tensor) -> PretrainedSAE:
        """The SAE that does to x what this one does to ``z = (x - mean) @ matrix``; codes are the same numbers.

        Args:
            mean: (H,).
            matrix: (H, H).
            inverse: (H, H), from z back to x.
        """
        mean, matrix, inverse = mean.double(), matrix.double(), inverse.double()
        encoder = replace(
            self.encoder,
            w_enc=(self.encoder.w_enc.double() @ matrix.T).float(),
            shift=(self.encoder.shift.double() @ inverse + mean).float(),
        )
        w_dec, b_dec = self.w_dec.double() @ inverse, self.b_dec.double() @ inverse + mean
        return replace(self, encoder=encoder, w_dec=w_dec.float(), b_dec=b_dec.float())

    def with_unit_decoder(self) -> PretrainedSAE:
        """Decoder rows at unit length, their length moved to the pre-activations; thresholds and k now act on those.

        For SAEs that weigh a pre-activation by the length of its decoder row before they decide what fires.
        """
        length = self.w_dec.norm(dim=1)
        encoder = replace(self.encoder, w_enc=self.encoder.w_enc * length[:, None], b_enc=self.encoder.b_enc * length)
        # a row of zeros stays one, and its pre-activation is zero
        return replace(self, encoder=encoder, w_dec=self.w_dec / length.clamp_min(1e-30)[:, None])

    def of_centred_rows(self, path: Path) -> PretrainedSAE:
        """The SAE of a model whose writing weights were centred, for rows of the model as it was published.

        TransformerLens may take from every weight that writes to the residual stream its mean over the H coordinates. A
        layer norm does not notice, but rows are then centred, and the SAE has seen no others.

        Args:
            path: Its files, for the message.

        Raises:
            AtomsError: If the SAE brings rows to one length besides.
        """
        if self.encoder.row_norm == "length":
            raise AtomsError(f"{path}: rows that are centred and brought to one length are not read; give another SAE")
        norm: RowNorm = "layer" if self.encoder.row_norm == "layer" else "mean"
        return replace(self, encoder=replace(self.encoder, row_norm=norm))
