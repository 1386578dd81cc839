"""Files of dictionary_learning: `trainer_<i>/ae.pt` or `checkpoints/ae_<step>.pt`, with `config.json` beside or above.

Inside lies a state dict without the name of its class, which `config.json` has. Where a run died, `ae.pt` is what it
would have resumed from: the state dict under `ae`, with biases not yet rescaled to the activations as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atoms.errors import AtomsError, printable
from atoms.units.pretrained.encoder import Activation, Encoder
from atoms.units.pretrained.files import number_of_active, positive, read_json, read_torch, take
from atoms.units.pretrained.weights import PretrainedSAE

WEIGHTS, CONFIG = "ae.pt", "config.json"

_LINEAR = {"encoder.weight": "AH", "decoder.weight": "HA"}
_MATRICES = {"W_enc": "HA", "W_dec": "AH"}
_BIASES: dict[str, dict[str, str]] = {
    "AutoEncoder": {"encoder.bias": "A", "bias": "H"},
    "AutoEncoderNew": {"encoder.bias": "A", "decoder.bias": "H"},
    "GatedAutoEncoder": {"gate_bias": "A", "mag_bias": "A", "r_mag": "A", "decoder_bias": "H"},
    "AutoEncoderTopK": {"encoder.bias": "A", "b_dec": "H"},
    "BatchTopKSAE": {"encoder.bias": "A", "b_dec": "H", "threshold": ""},
    "MatryoshkaBatchTopKSAE": {"b_enc": "A", "b_dec": "H", "threshold": ""},
    "JumpReluAutoEncoder": {"b_enc": "A", "b_dec": "H", "threshold": "A"},
}
_ACTIVATIONS: dict[str, Activation] = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "GatedAutoEncoder": "gated",
    "AutoEncoderTopK": "topk",
    # used with the threshold that training has learnt, not with a top-k over whatever batch there is
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
    "JumpReluAutoEncoder": "jumprelu",
}
_IN_MATRICES = ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder")
_NO_SHIFT = (
    "AutoEncoderNew",
    "JumpReluAutoEncoder",
)  # whose encoder sees the row without the decoder's bias taken away
_NOT_A_BIAS = ("r_mag",)  # what rescaling the activations leaves alone
_SUBMODULE = re.compile(r"(resid_pre|resid_post|attn_out|mlp_out)_layer_(\d+)")


def read(path: Path) -> PretrainedSAE:
    """Read one.

    Args:
        path: The file, or the directory that holds `ae.pt`.

    Raises:
        AtomsError: If it is damaged, a pickle of more than tensors, of a class unknown, or never got its threshold.
    """
    path = path / WEIGHTS if path.is_dir() else path
    trainer, buffer = _config(path)
    tensors = _state(path)
    kind = str(trainer.get("dict_class") or _guess(path, tensors))
    if kind not in _BIASES:
        raise AtomsError(
            f"{path}: dict_class {printable(repr(kind))} is not read; those that are: {', '.join(_BIASES)}"
        )
    if buffer.get("io") == "in_and_out":
        raise AtomsError(
            f"{path}: was trained as a transcoder (io: in_and_out), which is not read; give an autoencoder"
        )
    shapes = (_MATRICES if kind in _IN_MATRICES else _LINEAR) | _BIASES[kind]
    sizes = {"H": trainer.get("activation_dim"), "A": trainer.get("dict_size")}
    infinite = ("threshold",) if kind == "JumpReluAutoEncoder" else ()
    w = take(path, tensors, shapes, sizes=sizes, known=("k", "threshold", "group_sizes"), infinite=infinite)
    w_enc = w["W_enc"].T.contiguous() if "W_enc" in w else w["encoder.weight"]
    w_dec = w["W_dec"] if "W_dec" in w else w["decoder.weight"].T.contiguous()
    b_dec = next(w[name] for name, shape in _BIASES[kind].items() if shape == "H")
    activation = _ACTIVATIONS[kind]
    gated = activation == "gated"
    submodule = trainer.get("submodule_name")
    named = _SUBMODULE.fullmatch(submodule) if isinstance(submodule, str) and buffer.get("io") != "in" else None
    return PretrainedSAE(
        encoder=Encoder(
            w_enc=w_enc,
            b_enc=next(w[name] for name in ("encoder.bias", "gate_bias", "b_enc") if name in w),
            shift=torch.zeros_like(b_dec) if kind in _NO_SHIFT else b_dec,
            activation=activation,
            k=_k(path, tensors, trainer, len(w_enc)) if activation == "topk" else None,
            threshold=_threshold(path, w["threshold"], len(w_enc)) if activation == "jumprelu" else None,
            gain=w["r_mag"].exp() if gated else None,
            offset=w["mag_bias"] - w["r_mag"].exp() * w["gate_bias"] if gated else None,
        ),
        w_dec=w_dec,
        b_dec=b_dec,
        trained_on=str(submodule) if submodule else f"layer {trainer['layer']}" if "layer" in trainer else None,
        site=f"{named[1]}.{named[2]}" if named else None,
    )


def _config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `config.json` says of the trainer and of the activations; nothing if there is none."""
    for folder in (path.parent, path.parent.parent):
        if (folder / CONFIG).is_file():
            config = read_json(folder / CONFIG)
            trainer, buffer = config.get("trainer"), config.get("buffer") or {}
            if isinstance(trainer, dict) and isinstance(buffer, dict):
                return trainer, buffer
    return {}, {}


def _state(path: Path) -> dict[str, Any]:
    """The state dict, be it the file or what a run that died left in its place."""
    found = read_torch(path)
    if not isinstance(found.get("ae"), Mapping):
        return found
    state = dict(found["ae"])
    if found.get("norm_factor") is None:
        return state
    factor = positive(path, found, "norm_factor")
    for name, value in state.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim < 2 and name not in _NOT_A_BIAS:
            # -1 stands for a threshold that there is not yet
            state[name] = torch.where(value < 0, value, value * factor) if name == "threshold" else value * factor
    return state


def _guess(path: Path, tensors: Mapping[str, Any]) -> str:
    """The class whose tensors these are, where `config.json` is missing."""
    if "encoder.weight" in tensors and "b_dec" in tensors:
        raise AtomsError(
            f"{path}: may be AutoEncoderTopK or BatchTopKSAE, whose tensors have the same names; put its {CONFIG} "
            'beside it, or one that says {"trainer": {"dict_class": …}}'
        )
    for kind, sign in (
        ("GatedAutoEncoder", "r_mag"), ("MatryoshkaBatchTopKSAE", "group_sizes"), ("AutoEncoder", "bias"),
        ("AutoEncoderNew", "decoder.bias"), ("JumpReluAutoEncoder", "W_enc"),
    ):  # fmt: skip
        if sign in tensors:
            return kind
    raise AtomsError(
        f"{path}: holds {printable(', '.join(map(str, tensors)))}, which is no class of dictionary_learning; give "
        f"another file, or put its {CONFIG} beside it"
    )


def _k(path: Path, tensors: Mapping[str, Any], trainer: dict[str, Any], atoms: int) -> int:
    stored = tensors.get("k")
    found = {"k": stored.item()} if isinstance(stored, Tensor) and stored.numel() == 1 else trainer
    k = number_of_active(path, found, "k", atoms)
    if trainer.get("k", k) != k:
        raise AtomsError(f"{path}: k is {k}, but {CONFIG} says {printable(repr(trainer['k']))}; correct the wrong one")
    return k


def _threshold(path: Path, threshold: Tensor, atoms: int) -> Tensor:
    if threshold.ndim == 0 and threshold < 0:
        raise AtomsError(
            f"{path}: threshold is {threshold.item():g}, so training stopped before one was learnt, and every positive "
            "pre-activation would fire; give a later checkpoint"
        )
    return threshold.expand(atoms).contiguous()
