"""What leaves training: an SAE on disk without Lightning or pickle, and the same function as plain weights."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor

from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct
from atoms.sae.activation import activate
from atoms.sae.model import ThresholdSAE

FORMAT_VERSION = 2
"""What is written; version 1 is read as well, which knew of no activation but ``threshold``."""
WEIGHTS, DESCRIPTION = "tsae.safetensors", "tsae.json"
_GEOMETRY, _OWN_DIGEST = "geometry.", "sha256"


@dataclass(frozen=True)
class FoldedSAE:
    """An SAE as plain weights on activations; nothing of the geometry is left to apply.

    It computes what the SAE it came from does, up to float32 rounding relative to ``‖x‖ ‖w‖``; supports agree wherever
    a pre-activation is further than that from its threshold. Codes are the same numbers.

    Attributes:
        w_enc: (A, H) float32.
        b_enc: (A,) float32.
        threshold: (A,) float32.
        w_dec: The atoms, (A, H) float32, in activation units.
        b_dec: (H,) float32.
        k: Most atoms of a row, or None.
    """

    w_enc: Tensor
    b_enc: Tensor
    threshold: Tensor
    w_dec: Tensor
    b_dec: Tensor
    k: int | None = None

    @classmethod
    @torch.no_grad()
    def from_sae(cls, sae: ThresholdSAE) -> FoldedSAE:
        """Fold mean, metric and scale into the weights, in float64."""
        sae.require_whole()
        to_z, from_z = sae.maps()
        mean = sae.geometry.mean.to(to_z.device)
        w_enc = sae.encoder_rows().double() @ to_z
        b_enc = sae.bias.double() - w_enc @ mean
        w_dec = sae.decoder.double() @ from_z
        b_dec = sae.origin.double() @ from_z + mean
        threshold = sae.threshold.float().clone()
        return cls(w_enc.float(), b_enc.float(), threshold, w_dec.float(), b_dec.float(), sae.k)

    def encode(self, x: Tensor) -> Tensor:
        """Codes (B, A) of activations (B, H)."""
        return activate(x @ self.w_enc.T + self.b_enc, self.threshold, self.k)

    def decode(self, codes: Tensor) -> Tensor:
        """Activations (B, H) of codes (B, A)."""
        return codes @ self.w_dec + self.b_dec


def save(sae: ThresholdSAE, directory: str | Path, metadata: dict[str, Any] | None = None) -> None:
    """Write `tsae.safetensors` and `tsae.json`; the description, written last, names the weights by their digest.

    Args:
        sae: The SAE.
        directory: Where to; made if missing. An artefact already there is replaced.
        metadata: Anything JSON can hold that says where the SAE comes from.

    Raises:
        AtomsError: If the disk is full or the directory cannot be written.
    """
    sae.require_whole()
    directory = Path(directory)
    tensors = {name: value.detach().cpu().contiguous() for name, value in sae.named_parameters()}
    tensors |= {_GEOMETRY + name: value.contiguous() for name, value in sae.geometry.state().items()}
    weights = safetensors.torch.save(tensors)
    description = {
        "format_version": FORMAT_VERSION,
        "width": sae.width,
        "atoms": sae.num_atoms,
        "power": sae.power,
        "encoder": sae.encoder,
        "activation": sae.activation,
        "k": sae.k,
        "geometry": sae.geometry.digest,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "metadata": metadata or {},
    }
    description[_OWN_DIGEST] = _digest(description)
    text = json.dumps(description, indent=2, sort_keys=True) + "\n"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _replace(directory / WEIGHTS, weights)
        _replace(directory / DESCRIPTION, text.encode())
    except OSError as error:
        raise AtomsError(
            f"{directory}: cannot be written ({error.strerror}): free some space, or save it elsewhere"
        ) from error


def load(directory: str | Path) -> ThresholdSAE:
    """Read what `save` wrote, bit for bit, onto the CPU.

    Raises:
        AtomsError: If the directory holds no artefact, one of another format, or one that is damaged.
    """
    directory = Path(directory)
    description = read_description(directory)
    try:
        weights = (directory / WEIGHTS).read_bytes()
    except OSError:
        raise AtomsError(f"{directory} has no readable {WEIGHTS}: save the SAE again") from None
    if hashlib.sha256(weights).hexdigest() != description["weights_sha256"]:
        raise AtomsError(f"{directory / WEIGHTS} is not the file {DESCRIPTION} describes: save the SAE again")
    tensors = safetensors.torch.load(weights)
    geometry = {name.removeprefix(_GEOMETRY): tensors.pop(name) for name in list(tensors) if name.startswith(_GEOMETRY)}
    sae = ThresholdSAE(
        description["width"],
        description["atoms"],
        geometry=AtomicInnerProduct.from_state(geometry),
        power=description["power"],
        encoder=description["encoder"],
        activation=description.get("activation", "threshold"),
        k=description.get("k"),
    )
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(tensors[name])
    return sae


def read_description(directory: str | Path) -> dict[str, Any]:
    """Read an artefact's `tsae.json`: widths, power, encoder, activation, digests and `metadata`.

    Raises:
        AtomsError: If it is missing, not JSON, of another format version, or not as it was written.
    """
    path = Path(directory) / DESCRIPTION
    try:
        description = json.loads(path.read_text())
        version = description["format_version"]
    except OSError:
        raise AtomsError(
            f"{directory} holds no saved SAE ({DESCRIPTION} is missing): give a directory of one"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise AtomsError(f"{path} does not describe a saved SAE: save the SAE again") from None
    if version not in (1, FORMAT_VERSION):
        raise AtomsError(f"{path} has format_version {version}, this atoms reads 1 and {FORMAT_VERSION}: update it")
    if description.pop(_OWN_DIGEST, None) != _digest(description):
        raise AtomsError(f"{path} is not as it was written (its sha256 differs): save the SAE again")
    return cast("dict[str, Any]", description)


def _digest(description: dict[str, Any]) -> str:
    """Hex sha256 of a description, however it is laid out."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Put content in place of a file so that a crash leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
