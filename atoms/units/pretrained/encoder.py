"""From rows to sparse codes, for every activation function that published sparse autoencoders use."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from atoms.sae import SparseCodes

Activation = Literal["relu", "jumprelu", "gated", "topk", "abstopk", "groupmax"]
RowNorm = Literal["none", "mean", "length", "layer"]

_BLOCK = 2**23  # pre-activations worked out at a time: 32 MiB, and a few times that for what is made of them
_LAYER_NORM_EPS = 1e-5  # what SAELens adds to the deviation


@dataclass(frozen=True, eq=False)
class Encoder:
    """Codes of rows: ``act((norm(x) - shift) @ w_enc.T + b_enc)``, back in the units of the rows.

    What a row is normalised by belongs to the row, so it cannot be folded into weights. It is kept in the code instead:
    coefficients are multiplied by the row's scale, and what the scale or the mean would have added to the
    reconstruction becomes the coefficient of one or two atoms more, counted like all others (`num_row_atoms`).

    Attributes:
        w_enc: (A, H) float32.
        b_enc: (A,) float32.
        shift: (H,) float32, taken from the (normalised) row first.
        activation: With pre the pre-activations: ``relu`` max(pre, 0); ``jumprelu`` max(pre, 0) where pre > threshold;
            ``gated`` max(gain · pre + offset, 0) where pre > 0 (arXiv 2404.16014); ``topk`` the k largest of a row that
            are positive; ``abstopk`` the k largest by magnitude with their sign; ``groupmax`` the largest of each of k
            groups of A / k neighbours that is positive.
        k: For the last three.
        threshold: (A,) float32 for ``jumprelu``; infinite for an atom that never fires.
        gain: (A,) float32 for ``gated``.
        offset: (A,) float32 for ``gated``.
        row_norm: ``none``; ``mean`` takes the mean over the H coordinates away; ``length`` gives the row the length √H;
            ``layer`` takes the mean away and divides by the standard deviation (of H - 1 degrees of freedom).
        bias_atom: Whether an atom after those of the mean stands for the decoder's bias times the row's scale.
    """

    w_enc: Tensor
    b_enc: Tensor
    shift: Tensor
    activation: Activation
    k: int | None = None
    threshold: Tensor | None = None
    gain: Tensor | None = None
    offset: Tensor | None = None
    row_norm: RowNorm = "none"
    bias_atom: bool = False

    @property
    def num_row_atoms(self) -> int:
        """Atoms after the first A whose coefficients come from the row's own mean and scale."""
        return (self.row_norm in ("mean", "layer")) + self.bias_atom

    @property
    def weights(self) -> Tensor:
        """What rows as they are are multiplied by, (A + `num_row_atoms`, H) float32, up to the row's scale.

        Rows without their mean are read by weights without theirs, and the mean by an atom of its own. The atom of the
        decoder's bias has the row's scale for a coefficient, which is no product: it is a row of zeros.
        """
        found = [self.w_enc if self.gain is None else self.gain.unsqueeze(1) * self.w_enc]
        if self.row_norm in ("mean", "layer"):
            found = [found[0] - found[0].mean(1, keepdim=True), torch.full_like(self.shift, 1 / len(self.shift))[None]]
        if self.bias_atom:
            found.append(torch.zeros_like(self.shift)[None])
        return torch.cat(found)

    def to(self, device: torch.device) -> Encoder:
        """The same on another device."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in held.items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    @torch.no_grad()
    def encode(self, rows: Tensor) -> SparseCodes:
        """Codes of rows (B, H) over A + `num_row_atoms` atoms; never more than a block of pre-activations at a time."""
        block = max(1, _BLOCK // len(self.w_enc))
        return SparseCodes.concatenate([self._encode_block(part) for part in torch.split(rows, block)])

    def _encode_block(self, rows: Tensor) -> SparseCodes:
        mean = scale = None
        if self.row_norm in ("mean", "layer"):
            mean = rows.mean(1, keepdim=True)
            rows = rows - mean
        if self.row_norm == "length":
            scale = rows.norm(dim=1, keepdim=True) / rows.shape[1] ** 0.5
            rows = rows / scale.clamp_min(torch.finfo(rows.dtype).tiny)
        if self.row_norm == "layer":
            scale = (rows.square().sum(1, keepdim=True) / max(rows.shape[1] - 1, 1)).sqrt()
            rows = rows / (scale + _LAYER_NORM_EPS)
        found, indices, values = self._activate(torch.addmm(self.b_enc, rows - self.shift, self.w_enc.T))
        added = [] if mean is None else [mean]
        if scale is not None:
            values = values * scale[found, 0]
            added += [scale] if self.bias_atom else []
        if added:
            every = torch.arange(len(rows), device=rows.device)
            for place, coefficient in enumerate(added, len(self.w_enc)):
                found = torch.cat([found, every])
                indices = torch.cat([indices, torch.full_like(every, place)])
                values = torch.cat([values, coefficient[:, 0]])
            order = found.argsort(stable=True)
            found, indices, values = found[order], indices[order], values[order]
        kept = values != 0
        offsets = torch.zeros(len(rows) + 1, dtype=torch.int64, device=rows.device)
        torch.cumsum(torch.bincount(found[kept], minlength=len(rows)), 0, out=offsets[1:])
        return SparseCodes(offsets, indices[kept].to(torch.int32), values[kept], len(self.w_enc) + self.num_row_atoms)

    def _activate(self, pre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, atoms and coefficients of the entries that may be non-zero, in the order of rows, then of atoms."""
        if self.activation in ("topk", "abstopk", "groupmax"):
            values, indices = self._select(pre)
            rows = torch.arange(len(pre), device=pre.device).repeat_interleave(indices.shape[1])
            return rows, indices.flatten(), values.flatten()
        if self.activation == "gated":
            assert self.gain is not None
            assert self.offset is not None
            dense = (self.gain * pre + self.offset).relu_() * (pre > 0)
        elif self.activation == "jumprelu":
            assert self.threshold is not None
            # the mask is of the pre-activation, but a coefficient is never negative: so it is in every library
            dense = pre.relu() * (pre > self.threshold)
        else:
            dense = pre.relu_()
        rows, indices = dense.nonzero(as_tuple=True)
        return rows, indices, dense[rows, indices]

    def _select(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients and atoms (B, k) of the activations that choose k per row; atoms ascend."""
        assert self.k is not None
        if self.activation == "groupmax":
            values, places = torch.unflatten(pre.relu_(), 1, (self.k, -1)).max(2)
            return values, places + torch.arange(0, pre.shape[1], pre.shape[1] // self.k, device=pre.device)
        score = pre.abs() if self.activation == "abstopk" else pre
        indices = score.topk(self.k, sorted=False).indices.sort(1).values
        values = pre.gather(1, indices)
        return values if self.activation == "abstopk" else values.relu_(), indices
