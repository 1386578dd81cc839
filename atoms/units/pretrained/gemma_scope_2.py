"""Files of Gemma Scope 2: `<place>/layer_<n>_width_<w>_l0_<size>/params.safetensors`, mostly with a `config.json`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from atoms.errors import AtomsError, printable
from atoms.units.pretrained.encoder import Encoder
from atoms.units.pretrained.files import read_json, read_safetensors, take
from atoms.units.pretrained.weights import PretrainedSAE

WEIGHTS, CONFIG = "params.safetensors", "config.json"

_HOOKS = (
    (re.compile(r"(?:\w+\.)*layers\.(\d+)\.output"), "resid_post.{}"),
    (re.compile(r"(?:\w+\.)*layers\.(\d+)\.post_feedforward_layernorm\.output"), "mlp_out.{}"),
    (re.compile(r"(?:\w+\.)*layers\.(\d+)\.self_attn\.o_proj\.input"), "layers.{}.self_attn.o_proj:input"),
)
_PLACES = {"resid_post": _HOOKS[0][1], "mlp_out": _HOOKS[1][1], "attn_out": _HOOKS[2][1]}


def read(folder: Path) -> PretrainedSAE:
    """Read one; its place is told by `config.json`, or else by its path.

    Raises:
        AtomsError: If it is damaged, or a transcoder or crosscoder.
    """
    path = folder / WEIGHTS
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    architecture = config.get("architecture", "jump_relu")
    if architecture != "jump_relu":
        raise AtomsError(f"{folder / CONFIG}: architecture {printable(repr(architecture))} is not read, only jump_relu")
    tensors = read_safetensors(path)
    hook, to = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    parts = folder.absolute().parts
    other = any(re.match(r"transcoder|clt|crosscoder", part) for part in parts[-3:])
    if other or "affine_skip_connection" in tensors or (to is not None and to != hook):
        raise AtomsError(
            f"{path}: is a transcoder or crosscoder, which rebuilds other places than it reads; give an SAE "
            "(resid_post, attn_out or mlp_out)"
        )
    shapes = {"w_enc": "HA", "w_dec": "AH", "b_enc": "A", "b_dec": "H", "threshold": "A"}
    w = take(path, tensors, shapes, sizes={"A": config.get("width")}, infinite=("threshold",))
    return PretrainedSAE(
        encoder=Encoder(
            w_enc=w["w_enc"].T.contiguous(),
            b_enc=w["b_enc"],
            shift=torch.zeros_like(w["b_dec"]),
            activation="jumprelu",
            threshold=w["threshold"],
        ),
        w_dec=w["w_dec"],
        b_dec=w["b_dec"],
        trained_on=str(hook) if hook else None,
        site=_site(parts, hook),
    )


def _site(parts: tuple[str, ...], hook: Any) -> str | None:
    if isinstance(hook, str):
        return next((site.format(found[1]) for sign, site in _HOOKS if (found := sign.fullmatch(hook))), None)
    layers = [found[1] for part in parts if (found := re.match(r"layer_(\d+)(?:_|$)", part))]
    kinds = [kind for part in parts for kind in _PLACES if part.startswith(kind)]
    return _PLACES[kinds[-1]].format(layers[-1]) if layers and kinds else None
