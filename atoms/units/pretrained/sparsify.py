"""Directories of EleutherAI's sparsify: `<run>/<hookpoint>/cfg.json` and `sae.safetensors`."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from atoms.errors import AtomsError, printable
from atoms.units.pretrained.encoder import Activation, Encoder
from atoms.units.pretrained.files import number_of_active, positive, read_json, read_safetensors, take
from atoms.units.pretrained.places import site_of
from atoms.units.pretrained.weights import PretrainedSAE

CFG, WEIGHTS = "cfg.json", "sae.safetensors"


def read(folder: Path) -> PretrainedSAE:
    """Read one.

    Raises:
        AtomsError: If it is damaged, or has a skip connection.
    """
    cfg = read_json(folder / CFG)
    path = folder / WEIGHTS
    tensors = read_safetensors(path)
    if cfg.get("skip_connection") or "W_skip" in tensors:
        raise AtomsError(
            f"{path}: has a skip connection (W_skip), whose part of the output is no combination of atoms; give an SAE "
            "without one"
        )
    activation = cfg.get("activation", "topk")
    if activation not in ("topk", "groupmax") or (activation == "groupmax" and cfg.get("signed")):
        raise AtomsError(
            f"{folder / CFG}: activation {printable(repr(activation))} is not read; those that are: topk and groupmax"
        )
    width = int(positive(folder / CFG, cfg, "d_in", whole=True))
    atoms = cfg.get("num_latents") or int(width * positive(folder / CFG, cfg, "expansion_factor"))
    shapes = {"encoder.weight": "AH", "encoder.bias": "A", "W_dec": "AH", "b_dec": "H"}
    w = take(path, tensors, shapes, sizes={"A": atoms, "H": width})
    k = number_of_active(folder / CFG, cfg, "k", len(w["W_dec"]))
    if activation == "groupmax" and len(w["W_dec"]) % k:
        raise AtomsError(
            f"{folder / CFG}: {len(w['W_dec'])} atoms cannot be dealt to {k} equal groups; download it again"
        )
    kind: Activation = "groupmax" if activation == "groupmax" else "abstopk" if cfg.get("signed") else "topk"
    transcodes = bool(cfg.get("transcode"))
    place = folder.parent.name if re.fullmatch(r"seed\d+", folder.name) else folder.name
    site = site_of(place)
    return PretrainedSAE(
        encoder=Encoder(
            w_enc=w["encoder.weight"],
            b_enc=w["encoder.bias"],
            shift=torch.zeros_like(w["b_dec"]) if transcodes else w["b_dec"],
            activation=kind,
            k=k,
        ),
        w_dec=w["W_dec"],
        b_dec=w["b_dec"],
        trained_on=f"{place} from its input" if transcodes else place,
        site=site,
        # the module's own input: only a place that is named by its path has one
        reads=f"{place}:input" if transcodes and site else None,
    )
