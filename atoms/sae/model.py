"""The sparse autoencoder: one dictionary of atoms in the coordinates its geometry gives it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct
from atoms.sae.activation import Activation, activate
from atoms.sae.shard import Shard
from atoms.sae.sparse_codes import SparseCodes

if TYPE_CHECKING:
    from atoms.sae.artefact import FoldedSAE

Encoder = Literal["tied", "aligned", "free"]
_CHUNK = 4096  # rows whose dense pre-activations are held at once, and atoms drawn at once
PER_ATOM = ("decoder", "directions", "bias", "threshold")
"""Parameters with one row per atom; a shard holds its own rows of them, and all of the rest."""


class ThresholdSAE(nn.Module):
    """A threshold sparse autoencoder (TSAE) on the metric path of an atomic inner product ``S``.

    Activations ``x`` become ``z = (x - μ) S^(p/2) / scale`` with a mean square of one per coordinate, so nothing here
    depends on their unit. There,

        pre = z encᵀ + bias,   code = pre · 1[pre ≥ θ],   ẑ = code dec + origin,

    with unit decoder rows, one threshold θ ≥ 0 per atom in float32, and an encoder that is

    - ``tied``: ``enc = dec``, which in activation space is ``S^p d``, the encoder of the paper's identifiability
      theorem at p = 1;
    - ``aligned``: ``enc_i = u_i + (1 - ⟨u_i, dec_i⟩) dec_i``, free except that ``⟨enc_i, dec_i⟩ = 1`` always (aligned
      training, arXiv 2605.18629);
    - ``free``.

    Other activations are there as controls (`atoms.sae.activation`); only ``threshold`` learns ``θ``, for the others it
    is no parameter of the optimizer's.

    The geometry travels in the state dict as float64 extra state: casting the module does not touch it.

    Source: Towards Atoms (arXiv 2509.20784), threshold SAE; JumpReLU (arXiv 2407.14435), activation.

    Args:
        width: H, the width of the activations.
        atoms: A, the number of atoms.
        geometry: The inner product of the site the activations come from.
        power: p, the place on the metric path: 0 is Euclidean, 1 fully whitened.
        encoder: ``"tied"``, ``"aligned"`` or ``"free"``.
        activation: ``"threshold"``, ``"relu"``, ``"topk"`` or ``"batch_topk"``.
        k: Most atoms of a row; for ``topk`` alone.
        seed: Seed of the initial directions; it leaves the global generator alone.
        shard: Which of the atoms this process holds. Codes then have a column for each atom held, reconstructions are
            those of all atoms, and every process of the shard's group must take part in them.

    Raises:
        AtomsError: If the geometry has another width, or one of the settings is out of range.
    """

    mean: Tensor
    whitener: Tensor
    unwhitener: Tensor

    def __init__(
        self,
        width: int,
        atoms: int,
        *,
        geometry: AtomicInnerProduct,
        power: float = 0.5,
        encoder: Encoder = "free",
        activation: Activation = "threshold",
        k: int | None = None,
        seed: int = 0,
        shard: Shard | None = None,
    ) -> None:
        super().__init__()
        if geometry.width != width:
            raise AtomsError(
                f"width is {width} but the geometry has width {geometry.width}: use the same site for both"
            )
        if atoms < 1:
            raise AtomsError(f"atoms is {atoms}: give at least 1, usually 4 times the width")
        if not 0 <= power <= 1:
            raise AtomsError(f"power is {power}: give a number from 0 (Euclidean) to 1 (whitened)")
        if encoder not in get_args(Encoder):
            raise AtomsError(f"encoder is {encoder!r}: use 'tied', 'aligned' or 'free'")
        if activation not in get_args(Activation):
            raise AtomsError(f"activation is {activation!r}: use one of {', '.join(get_args(Activation))}")
        if (k is not None) != (activation == "topk") or (k is not None and not 1 <= k <= atoms):
            raise AtomsError(f"k is {k} and activation {activation!r}: topk wants k from 1 to {atoms}, the others none")
        self.width, self.num_atoms, self.power, self.encoder = width, atoms, float(power), encoder
        self.activation, self.k = activation, k

        self.shard = shard or Shard()
        if atoms < self.shard.size:
            raise AtomsError(f"atoms is {atoms}, fewer than the {self.shard.size} processes that share them: give more")
        decoder = _random_directions(atoms, width, seed, self.held)
        self.decoder = nn.Parameter(decoder)
        self.directions = None if encoder == "tied" else nn.Parameter(decoder.clone())
        # A random direction reaches 2 on 1 row in 44; without a threshold the bias holds it down.
        learnt = activation == "threshold"
        self.bias = nn.Parameter(torch.full((len(decoder),), -2.0 if activation == "relu" else 0.0))
        self.origin = nn.Parameter(torch.zeros(width))
        self.threshold = nn.Parameter(torch.full((len(decoder),), 2.0 if learnt else 0.0), requires_grad=learnt)
        for name in ("mean", "whitener", "unwhitener"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self._set_geometry(geometry)

    def _set_geometry(self, geometry: AtomicInnerProduct) -> None:
        self.geometry = geometry
        self._scale = math.sqrt(_variance(geometry, self.power) / geometry.width)
        self.mean = geometry.mean.to(self.decoder.device, torch.float32)
        self.whitener, self.unwhitener = (matrix.float() for matrix in self.maps())

    # ------------------------------------------------------------------------------------------ coordinates

    def standardise(self, x: Tensor) -> Tensor:
        """Take activations (B, H) into the SAE's coordinates z, float32 even under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            return (x.to(self.mean.dtype) - self.mean) @ self.whitener

    def restore(self, z: Tensor) -> Tensor:
        """Take z (B, H) back to activations; the inverse of `standardise` up to rounding."""
        with torch.autocast(z.device.type, enabled=False):
            return z.to(self.mean.dtype) @ self.unwhitener + self.mean

    def error_map(self, power: float) -> Tensor:
        """Return the matrix that turns an error in z into one whose squared norm is a share of the data's variance.

        For ``e`` an error in z, ``‖e @ error_map(r)‖²`` is its squared length in ``S^r`` divided by the mean squared
        length of the centred data in ``S^r``. Predicting the mean therefore costs one, in any metric and any unit.

        Args:
            power: r, the metric in which errors are measured: 0 is Euclidean, 1 the atomic inner product.

        Returns:
            (H, H) float64 on the CPU.
        """
        relative = self.geometry.map(power - self.power, unitless=True)
        return relative * (self._scale / math.sqrt(_variance(self.geometry, power)))

    # ------------------------------------------------------------------------------------------ the autoencoder

    def encoder_rows(self) -> Tensor:
        """The encoder in z, one row per atom, (A, H)."""
        if self.directions is None:
            return self.decoder
        if self.encoder == "free":
            return self.directions
        along = (self.directions * self.decoder).sum(1, keepdim=True)
        return self.directions + (1 - along) * self.decoder

    def pre_activations(self, z: Tensor) -> Tensor:
        """What is held against the thresholds, (B, A); float32 even where autocast lowers the product."""
        return F.linear(z, self.encoder_rows()).to(self.bias.dtype) + self.bias

    def activate(self, pre: Tensor) -> Tensor:
        """Codes (B, A) of pre-activations (B, A)."""
        return activate(pre, self.threshold, self.k, self.shard)

    def encode(self, x: Tensor) -> Tensor:
        """Codes of activations (B, H), dense (B, A), not negative."""
        return self.activate(self.pre_activations(self.standardise(x)))

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """Codes of activations (N, H) by row, holding only a few thousand dense rows at a time."""
        with torch.no_grad():
            return SparseCodes.concatenate(
                [SparseCodes.from_dense(self.encode(chunk)) for chunk in torch.split(x, _CHUNK)]
            )

    def reconstruct(self, codes: Tensor) -> Tensor:
        """ẑ of codes (B, A), in z, (B, H)."""
        return self.shard.add((codes @ self.decoder).to(self.origin.dtype)) + self.origin

    def decode(self, codes: Tensor) -> Tensor:
        """Activations (B, H) of codes (B, A)."""
        return self.restore(self.reconstruct(codes))

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct activations (B, H)."""
        return self.decode(self.encode(x))

    # ------------------------------------------------------------------------------------------ the dictionary

    @property
    def held(self) -> slice:
        """The atoms this process holds, among all."""
        return self.shard.atoms(self.num_atoms)

    @torch.no_grad()
    def whole(self) -> ThresholdSAE | None:
        """All atoms in one, on the CPU; this SAE itself where it holds them all.

        Every process of the shard's group must call it; the first gets the answer, the others None.
        """
        if self.shard.size == 1:
            return self
        tensors = {
            name: self.shard.gather(value, self.num_atoms) if name in PER_ATOM else value.cpu()
            for name, value in self.named_parameters()
        }
        if self.shard.rank:
            return None
        whole = ThresholdSAE(
            self.width,
            self.num_atoms,
            geometry=self.geometry,
            power=self.power,
            encoder=self.encoder,
            activation=self.activation,
            k=self.k,
        )
        for name, parameter in whole.named_parameters():
            found = tensors[name]
            assert found is not None
            parameter.copy_(found)
        return whole

    def require_whole(self) -> None:
        """Refuse to take some of the atoms for all of them.

        Raises:
            ValueError: If other processes hold atoms too.
        """
        if self.shard.size > 1:
            raise ValueError(f"this is shard {self.shard.rank} of {self.shard.size}: call whole() on every process")

    @property
    @torch.no_grad()
    def atoms(self) -> Tensor:
        """The atoms in activation space and units, (A, H) float32; ``x ≈ codes @ atoms + centre``."""
        self.require_whole()
        return (self.decoder.double() @ self.maps()[1]).float()

    @property
    @torch.no_grad()
    def centre(self) -> Tensor:
        """What codes of zero decode to, (H,) float32: μ and the origin in activation units."""
        return (self.origin.double() @ self.maps()[1] + self.geometry.mean.to(self.origin.device)).float()

    @property
    @torch.no_grad()
    def encoder_weights(self) -> Tensor:
        """What activations are multiplied by, (A, H) float32; pre-activations are that and a constant for each atom."""
        self.require_whole()
        return (self.encoder_rows().double() @ self.maps()[0]).float()

    def maps(self) -> tuple[Tensor, Tensor]:
        """The matrices from centred activations to z and back, (H, H) float64 each."""
        unit, device = self.geometry.unit, self.decoder.device
        # The unit is a power of two, so dividing by it rounds nothing: other units give bit-identical z.
        forward = self.geometry.map(self.power, unitless=True) / self._scale / unit
        backward = self.geometry.unmap(self.power, unitless=True) * self._scale * unit
        return forward.to(device), backward.to(device)

    @torch.no_grad()
    def refit(self, x: Tensor, codes: Tensor) -> Tensor:
        """Solve every row's coefficients again by least squares in ``S`` on the support it has.

        Thresholded pre-activations find supports; their amplitudes carry the coherence of the atoms on the support.
        Where a sub-Gram is singular the solution of least norm is taken. Coefficients may come out negative.

        Args:
            x: Activations (B, H).
            codes: Codes (B, A); only which entries are non-zero matters.

        Returns:
            Codes (B, A) of the same type.
        """
        metric = self.geometry.map(1.0, unitless=True).to(x.device) / self.geometry.unit
        rows = (x.double() - self.centre.double()) @ metric
        dictionary = self.atoms.double() @ metric
        result = torch.zeros_like(codes)
        for start in range(0, len(x), 256):  # gathers 256 sub-dictionaries at a time
            block = slice(start, start + 256)
            active = codes[block] != 0
            size = max(1, int(active.sum(1).max()))
            present, support = active.to(torch.uint8).topk(size, dim=1)
            chosen = dictionary[support] * present.double().unsqueeze(2)
            lengths = chosen.norm(dim=2).clamp_min(torch.finfo(torch.float64).tiny)
            chosen = chosen / lengths.unsqueeze(2)
            values, vectors = torch.linalg.eigh(chosen @ chosen.mT)
            floor = values[:, -1:] * size * torch.finfo(torch.float64).eps
            inverse = torch.where(values > floor, values, torch.inf).reciprocal()
            projections = vectors.mT @ (chosen @ rows[block].unsqueeze(2))
            solution = (vectors @ (inverse.unsqueeze(2) * projections)).squeeze(2) / lengths * present
            result[block] = torch.zeros_like(result[block]).scatter(1, support, solution.to(codes.dtype))
        return result

    # ------------------------------------------------------------------------------------------ training

    @torch.no_grad()
    def project_gradients_(self) -> None:
        """Remove from the decoder's gradient what would only change the length of its rows."""
        if self.decoder.grad is not None:
            along = (self.decoder.grad * self.decoder).sum(1, keepdim=True)
            self.decoder.grad.sub_(along * self.decoder)

    @torch.no_grad()
    def clip_gradients_(self, max_norm: float) -> None:
        """Scale all gradients alike so that their norm, over all atoms wherever they are held, is at most this."""
        grads = {name: value.grad for name, value in self.named_parameters() if value.grad is not None}
        if not grads:
            return
        norm = nn.utils.get_total_norm(list(grads.values()))
        if self.shard.size > 1:
            per_atom = nn.utils.get_total_norm([grad for name, grad in grads.items() if name in PER_ATOM])
            rest = nn.utils.get_total_norm([grad for name, grad in grads.items() if name not in PER_ATOM])
            norm = (self.shard.add(per_atom.square()) + rest.square()).sqrt()
        nn.utils.clip_grads_with_norm_(self.parameters(), max_norm, norm)

    @torch.no_grad()
    def normalise_(self) -> None:
        """Bring decoder rows back to unit length and thresholds back to zero or above, after an optimizer step."""
        self.decoder.copy_(F.normalize(self.decoder, dim=1))
        self.threshold.clamp_(min=0)

    # ------------------------------------------------------------------------------------------ persistence

    def get_extra_state(self) -> dict[str, Tensor]:
        """The geometry as plain float64 tensors."""
        return self.geometry.state()

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take the geometry from a state dict and derive the maps from it again."""
        self._set_geometry(AtomicInnerProduct.from_state(state))

    def fold(self) -> FoldedSAE:
        """The same function as plain weights on activations, folded in float64."""
        from atoms.sae.artefact import FoldedSAE

        return FoldedSAE.from_sae(self)

    def save(self, directory: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Write a portable artefact, see `atoms.sae.artefact.save`."""
        from atoms.sae import artefact

        artefact.save(self, directory, metadata)

    @classmethod
    def load(cls, directory: str | Path) -> ThresholdSAE:
        """Read a portable artefact, see `atoms.sae.artefact.load`."""
        from atoms.sae import artefact

        return artefact.load(directory)


def _random_directions(atoms: int, width: int, seed: int, held: slice) -> Tensor:
    """Rows ``held`` of random unit vectors (atoms, width), float32: drawn in float64, a few thousand at a time."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty(held.stop - held.start, width)
    for start in range(0, held.stop, _CHUNK):
        drawn = torch.randn(min(_CHUNK, atoms - start), width, generator=generator, dtype=torch.float64)
        first, stop = max(start, held.start), min(start + len(drawn), held.stop)
        if first < stop:
            own = F.normalize(drawn[first - start : stop - start], dim=1)
            rows[first - held.start : stop - held.start] = own.float()
    return rows


def _variance(geometry: AtomicInnerProduct, power: float) -> float:
    """Mean squared length of the centred data in ``S^power``, with activations divided by the geometry's unit."""
    spectrum = geometry.eigenvalues / geometry.unit**2
    weights = ((geometry.eigenvalues + geometry.ridge_value) / geometry.unit**2) ** -power
    total = (spectrum * weights).sum()
    if geometry.kind == "second_moment":  # its eigenvalues also hold the mean, which z does not
        mean = (geometry.mean / geometry.unit) @ geometry.eigenvectors
        total = total - (mean.square() * weights).sum()
    return float(total)
