"""The atomic inner product: the metric in which atoms are judged nearly orthogonal."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from atoms.errors import AtomsError
from atoms.geometry.moments import Moments

Kind = Literal["second_moment", "covariance", "atoms"]
_KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, eq=False, repr=False)
class AtomicInnerProduct:
    """The inner product ``⟨u, v⟩_S = u S vᵀ`` with ``S = (M + rho I)^-1``.

    ``M`` is the second moment of activations (:meth:`from_moments`, an estimate from data), their covariance, or
    ``Σ dᵀd`` over the atoms of a dictionary (:meth:`from_atoms`, the definition). The two agree when the coefficients
    of the atoms are isotropic, which trained codes are not: say which one a number was measured in.

    Rows are vectors, ``H`` is their width, and everything is kept in float64 on the CPU. Objects are immutable,
    equal when their content is equal, and hashable.

    Dimensionless results (cosines, :attr:`ridge_share`, :attr:`condition`, :attr:`rank`) do not change by a single bit
    when the activations are multiplied by a power of two: all algebra runs in multiples of :attr:`unit`.

    Source: Towards Atoms (arXiv 2509.20784), atomic inner product.

    Args:
        mean: Mean activation, (H,); zero when built from atoms.
        eigenvalues: Eigenvalues of ``M``, ascending and not negative, (H,), in squared activation units.
        eigenvectors: Orthonormal eigenvectors of ``M`` as columns, (H, H).
        ridge_value: ``rho``, in squared activation units.
        kind: What ``M`` was made from.

    Raises:
        ValueError: If shapes or types disagree, or ``S`` would not be finite.
    """

    mean: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor
    ridge_value: float
    kind: Kind
    _maps: dict[tuple[float, torch.device], Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        width = len(self.eigenvalues)
        shapes = tuple(self.mean.shape), tuple(self.eigenvalues.shape), tuple(self.eigenvectors.shape)
        if shapes != ((width,), (width,), (width, width)):
            raise ValueError(f"mean, eigenvalues and eigenvectors are {shapes}, not (H,), (H,) and (H, H)")
        if any(t.dtype != torch.float64 or t.device.type != "cpu" for t in self._tensors()):
            raise ValueError("mean, eigenvalues and eigenvectors must be float64 on the CPU")
        if self.kind not in _KINDS:
            raise ValueError(f"kind is {self.kind!r}, not one of {_KINDS}")
        if not math.isfinite(self.ridge_value) or self.ridge_value < 0 or self.eigenvalues[0] + self.ridge_value <= 0:
            raise ValueError(f"ridge_value {self.ridge_value} leaves the inner product undefined")

    @classmethod
    def from_moments(
        cls, moments: Moments, *, ridge: float = 1e-3, kind: Literal["second_moment", "covariance"] = "second_moment"
    ) -> AtomicInnerProduct:
        """Estimate the inner product from activations.

        A singular ``M`` (fewer rows than dimensions, a direction removed by a LayerNorm) is made invertible by the
        ridge. The ridge is relative to the *median* non-zero eigenvalue, because one relative to the trace lets a
        single massive coordinate turn the metric back into Euclid's.

        Args:
            moments: Moments of the activations, at least two rows.
            ridge: ``rho`` as a multiple of the median non-zero eigenvalue of ``M``, ≥ 0.
            kind: ``"second_moment"`` (about zero, the paper's) or ``"covariance"`` (about the mean).

        Raises:
            AtomsError: If there are fewer than two rows, a moment is not finite, the activations do not vary at all,
                or ``ridge`` is negative or zero where ``M`` is singular.
            ValueError: If ``kind`` is neither of the two.
        """
        if kind not in ("second_moment", "covariance"):
            raise ValueError(f"kind is {kind!r}, not 'second_moment' or 'covariance'")
        if moments.count < 2:
            raise AtomsError(f"the inner product needs at least 2 activation rows, not {moments.count}: harvest more")
        matrix = moments.second_moment if kind == "second_moment" else moments.covariance
        # what is left of constant rows after subtracting the mean is rounding, not data
        if matrix.trace() <= moments.second_moment.trace() * moments.width * torch.finfo(torch.float64).eps:
            raise AtomsError(
                f"kind is {kind} but the {moments.count} rows are constant: there is nothing to measure with"
            )
        return cls._from_matrix(matrix.cpu(), moments.mean.cpu(), ridge, kind)

    @classmethod
    @torch.no_grad()
    def from_atoms(cls, atoms: Tensor, *, ridge: float = 0.0) -> AtomicInnerProduct:
        """Take the definition, ``S = (Σ dᵀd)^-1`` over the atoms ``d``.

        Leverages ``‖d‖²_S`` then sum to H. Coherence measured in a dictionary's own inner product says little on
        average (its root mean square is the Welch value for any dictionary): judge dictionaries by
        :meth:`from_moments`.

        Args:
            atoms: Dictionary (A, H), one atom per row.
            ridge: ``rho`` as a multiple of the median non-zero eigenvalue, ≥ 0.

        Raises:
            AtomsError: If the atoms are not finite, are all zero, or do not span the space while ``ridge`` is zero.
            ValueError: If ``atoms`` is not a matrix.
        """
        if atoms.ndim != 2:
            raise ValueError(f"atoms are {tuple(atoms.shape)}, not (A, H)")
        rows = atoms.to("cpu", torch.float64)
        gram = rows.T @ rows
        return cls._from_matrix((gram + gram.T) / 2, torch.zeros(atoms.shape[1], dtype=torch.float64), ridge, "atoms")

    @classmethod
    def _from_matrix(cls, matrix: Tensor, mean: Tensor, ridge: float, kind: Kind) -> AtomicInnerProduct:
        if not (math.isfinite(ridge) and ridge >= 0):
            raise AtomsError(f"ridge is {ridge}: give a number of at least 0, for example 1e-3")
        name = f"the {kind.replace('_', ' ')} matrix"
        if not (matrix.isfinite().all() and mean.isfinite().all()):
            raise AtomsError(f"{name} holds NaN or infinity: look for bad rows in the data")
        trace = matrix.trace().item()
        if trace <= 0:
            raise AtomsError(f"{name} is zero: give at least one vector that is not")
        # A power of two takes the unit out before the decomposition and puts it back without rounding.
        unit = 2.0 ** (math.frexp(trace)[1] - 1)
        eigenvalues, eigenvectors = torch.linalg.eigh(matrix / unit)
        eigenvalues = eigenvalues.clamp_min(0)
        present = eigenvalues[eigenvalues > _null(eigenvalues)]
        ridge_value = _ridge_value(eigenvalues, ridge)
        if ridge == 0 and len(present) < len(mean):
            raise AtomsError(f"ridge is 0 but {name} has rank {len(present)} of {len(mean)}: set ridge to 1e-3")
        return cls(mean, eigenvalues * unit, eigenvectors.contiguous(), ridge_value * unit, kind)

    def with_ridge(self, ridge: float) -> AtomicInnerProduct:
        """Return the inner product of the same ``M`` with another ridge.

        Args:
            ridge: ``rho`` as a multiple of the median non-zero eigenvalue of ``M``, > 0.
        """
        return AtomicInnerProduct(
            self.mean, self.eigenvalues, self.eigenvectors, _ridge_value(self.eigenvalues, ridge), self.kind
        )

    @property
    def width(self) -> int:
        """Width H of the vectors."""
        return len(self.eigenvalues)

    @cached_property
    def unit(self) -> float:
        """The power of two next to the root mean eigenvalue: the activations' natural unit of length."""
        return 2.0 ** ((math.frexp(self.eigenvalues.mean().item())[1] - 1) // 2)

    @cached_property
    def ridge_share(self) -> float:
        """Mean over directions of ``rho / (λ + rho)``: 0 where the data decide, 1 where the ridge does."""
        return (self.ridge_value / (self.eigenvalues + self.ridge_value)).mean().item()

    @property
    def condition(self) -> float:
        """Condition number of ``S``, ridge included."""
        return ((self.eigenvalues[-1] + self.ridge_value) / (self.eigenvalues[0] + self.ridge_value)).item()

    @cached_property
    def rank(self) -> int:
        """Numerical rank of ``M``: eigenvalues above ``λmax · H · eps``."""
        return int((self.eigenvalues > _null(self.eigenvalues)).sum())

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the content; equal inner products have equal digests."""
        content = hashlib.sha256(self.kind.encode())
        for tensor in (*self._tensors(), torch.tensor(self.ridge_value, dtype=torch.float64)):
            content.update(tensor.contiguous().numpy().astype("<f8", copy=False).tobytes())
        return content.hexdigest()

    def matrix(self, power: float = 1.0) -> Tensor:
        """Return ``S^power``, (H, H) float64.

        Args:
            power: Exponent; 1 gives the metric itself, -1 gives ``M + rho I``.
        """
        return self.map(2 * power)

    def map(self, power: float = 1.0, *, unitless: bool = False) -> Tensor:
        """Return the symmetric matrix ``S^(power/2)`` that takes a row into the coordinates of ``S^power``.

        Args:
            power: Place on the metric path: 0 is Euclidean space, 1 the whitened space.
            unitless: Give the matrix for rows already divided by :attr:`unit`, which does not change by a bit
                when the activations are multiplied by a power of two.

        Returns:
            (H, H) float64, in activation units to the ``-power`` unless ``unitless``.
        """
        matrix = self._unitless_map(power, torch.device("cpu"))
        return matrix.clone() if unitless else matrix * math.pow(self.unit, -power)

    def unmap(self, power: float = 1.0, *, unitless: bool = False) -> Tensor:
        """Return ``S^(-power/2)``, the inverse of :meth:`map`.

        Args:
            power: As in :meth:`map`.
            unitless: As in :meth:`map`.
        """
        return self.map(-power, unitless=unitless)

    @torch.no_grad()
    def whiten(self, x: Tensor, power: float = 1.0) -> Tensor:
        """Return ``x S^(power/2)``, computed in float64; nothing is centred.

        Args:
            x: Vectors (..., H), on any device.
            power: Place on the metric path: 0 changes nothing, 1 whitens.

        Returns:
            (..., H) on the device of ``x``; float64 where ``x`` is float64, else float32.

        Raises:
            ValueError: If the last dimension is not H.
        """
        return self._to_power(x, power).to(torch.float64 if x.dtype == torch.float64 else torch.float32)

    def unwhiten(self, x: Tensor, power: float = 1.0) -> Tensor:
        """Return ``x S^(-power/2)``, the inverse of :meth:`whiten`.

        Args:
            x: Vectors (..., H) in the coordinates of ``S^power``, on any device.
            power: As in :meth:`whiten`.
        """
        return self.whiten(x, -power)

    @torch.no_grad()
    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """Return ``⟨u, v⟩_S`` of vectors paired by broadcasting.

        Args:
            u: Vectors (..., H).
            v: Vectors (..., H), on the same device.

        Returns:
            (...) float64, without a unit.
        """
        return (self._to_power(u, 1.0) * self._to_power(v, 1.0)).sum(-1)

    @torch.no_grad()
    def norm(self, u: Tensor) -> Tensor:
        """Return ``‖u‖_S``.

        Args:
            u: Vectors (..., H).

        Returns:
            (...) float64, without a unit.
        """
        return self._to_power(u, 1.0).square().sum(-1).sqrt()

    @torch.no_grad()
    def cos(self, u: Tensor, v: Tensor) -> Tensor:
        """Return ``⟨u, v⟩_S / (‖u‖_S ‖v‖_S)`` of vectors paired by broadcasting; 0 where one of them is zero.

        Args:
            u: Vectors (..., H).
            v: Vectors (..., H), on the same device.

        Returns:
            (...) float64 in [-1, 1].
        """
        first, second = unit_rows(self._to_power(u, 1.0)), unit_rows(self._to_power(v, 1.0))
        return (first * second).sum(-1).clamp(-1, 1)

    def state(self) -> dict[str, Tensor]:
        """Return the content as plain tensors, fit for a checkpoint or a safetensors file."""
        return {
            "mean": self.mean,
            "eigenvalues": self.eigenvalues,
            "eigenvectors": self.eigenvectors,
            "ridge_value": torch.tensor(self.ridge_value, dtype=torch.float64),
            "kind": torch.tensor(_KINDS.index(self.kind)),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> AtomicInnerProduct:
        """Return the inner product whose :meth:`state` this is, bit for bit.

        Args:
            state: What :meth:`state` returned.

        Raises:
            KeyError: If an entry is missing.
            ValueError: If an entry has the wrong shape or type.
        """
        mean, eigenvalues, eigenvectors = (state[name].cpu() for name in ("mean", "eigenvalues", "eigenvectors"))
        kind = int(state["kind"])
        if not 0 <= kind < len(_KINDS):
            raise ValueError(f"kind is number {kind}, not one of the {len(_KINDS)} known")
        return cls(mean, eigenvalues, eigenvectors.contiguous(), state["ridge_value"].item(), _KINDS[kind])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AtomicInnerProduct) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return (
            f"AtomicInnerProduct(width={self.width}, kind={self.kind!r}, rank={self.rank}, "
            f"condition={self.condition:.3g}, ridge_share={self.ridge_share:.3g}, digest={self.digest[:12]!r})"
        )

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.mean, self.eigenvalues, self.eigenvectors

    def _to_power(self, x: Tensor, power: float) -> Tensor:
        if x.shape[-1:] != (self.width,):
            raise ValueError(f"vectors are {tuple(x.shape)}, not (..., {self.width})")
        return x.to(torch.float64) @ self._unitless_map(power, x.device) * math.pow(self.unit, -power)

    def _unitless_map(self, power: float, device: torch.device) -> Tensor:
        key = power, device
        if key not in self._maps:
            if device.type != "cpu":
                self._maps[key] = self._unitless_map(power, torch.device("cpu")).to(device)
            elif power == 0:  # exactly Euclid, without the rounding of E Eᵀ
                self._maps[key] = torch.eye(self.width, dtype=torch.float64)
            else:
                spectrum = (self.eigenvalues + self.ridge_value) / self.unit**2
                matrix = (self.eigenvectors * spectrum ** (-power / 2)) @ self.eigenvectors.T
                self._maps[key] = (matrix + matrix.T) / 2
        return self._maps[key]


def unit_rows(x: Tensor) -> Tensor:
    """Divide vectors (..., H) by their Euclidean norm; a zero vector stays zero."""
    norm = x.square().sum(-1, keepdim=True).sqrt()
    return x / norm.where(norm > 0, 1.0)


def _ridge_value(eigenvalues: Tensor, ridge: float) -> float:
    """The ridge in the unit of the eigenvalues (ascending)."""
    return ridge * eigenvalues[eigenvalues > _null(eigenvalues)].median().item()


def _null(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues (ascending) at or below this are numerically zero."""
    return eigenvalues[-1] * len(eigenvalues) * torch.finfo(torch.float64).eps
