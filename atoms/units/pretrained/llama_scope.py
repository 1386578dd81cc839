"""Files of Llama Scope (arXiv 2410.20526), as Language-Model-SAEs of OpenMOSS wrote them.

`<name>/hyperparams.json` with `checkpoints/final.safetensors`, or `config.json` with `sae_weights.safetensors` and a
threshold learnt per atom (the R1-distill release). They were trained on rows of mean length √H: with s_in = √H / (mean
length of rows) for what is read and s_out for what is rebuilt,

    pre = s_in · x @ encᵀ + b_enc,   x̂ = (f @ dec + b_dec) / s_out,   f = pre where pre · ‖dec‖ exceeds the threshold

(without ‖dec‖ where `sparsity_include_decoder_norm` is false). The one threshold of `hyperparams.json` was found after
all this was folded into weights that read and rebuild the rows as they are, so it is in their unit: times s_out in the
formula above (s_in without ‖dec‖). Thresholds that were learnt are in the unit of training.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atoms.errors import AtomsError, printable
from atoms.units.pretrained.encoder import Activation, Encoder
from atoms.units.pretrained.files import number_of_active, positive, read_json, read_safetensors, take
from atoms.units.pretrained.places import site_of
from atoms.units.pretrained.weights import PretrainedSAE

HYPERPARAMS, FINAL = "hyperparams.json", Path("checkpoints/final.safetensors")
CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"

_NORM = "dataset_average_activation_norm"
_LEARNT = "log_jumprelu_threshold"
_NOT_READ = ("use_glu_encoder", "apply_decoder_bias_to_pre_encoder")


def read(folder: Path) -> PretrainedSAE:
    """Read one.

    Raises:
        AtomsError: If it is damaged, a transcoder, or normalises rows by what is not in the files.
    """
    old = (folder / HYPERPARAMS).exists()
    settings_path, path = (folder / HYPERPARAMS, folder / FINAL) if old else (folder / CONFIG, folder / WEIGHTS)
    cfg = read_json(settings_path)
    tensors = read_safetensors(path)
    hook = cfg.get("hook_point_in")
    to = cfg.get("hook_point_out", hook)
    if to != hook:
        raise AtomsError(
            f"{settings_path}: is a transcoder (from {printable(str(hook))} to {printable(str(to))}), which is not "
            "read; give an SAE"
        )
    for name in _NOT_READ:
        if cfg.get(name):
            raise AtomsError(f"{settings_path}: {name} is {cfg[name]!r}, which no published SAE has and is not read")
    norms = {name: tensors.pop(name) for name in list(tensors) if name.startswith(f"{_NORM}.")}
    s_in, s_out = _factors(settings_path, cfg, norms, str(hook))

    width = int(positive(settings_path, cfg, "d_model", whole=True))
    atoms = cfg.get("d_sae") or int(width * positive(settings_path, cfg, "expansion_factor"))
    shapes = {"encoder.weight": "AH", "encoder.bias": "A", "decoder.weight": "HA"}
    shapes |= {"decoder.bias": "H"} if cfg.get("use_decoder_bias", True) else {}
    shapes |= {_LEARNT: "A"} if _LEARNT in tensors else {}
    w = take(path, tensors, shapes, sizes={"A": atoms, "H": width}, infinite=(_LEARNT,))
    w_dec = w["decoder.weight"].T.contiguous()
    b_dec = w.get("decoder.bias", w_dec.new_zeros(width))
    weighed = cfg.get("sparsity_include_decoder_norm", True)
    unit = s_out if weighed else s_in
    activation, k, threshold = _activation(settings_path, cfg, w.get(_LEARNT), len(w_dec), unit)
    sae = PretrainedSAE(
        encoder=Encoder(
            w_enc=w["encoder.weight"] * s_in,
            b_enc=w["encoder.bias"],
            shift=torch.zeros_like(b_dec),
            activation=activation,
            k=k,
        ),
        w_dec=w_dec,
        b_dec=b_dec / s_out,
        trained_on=str(hook) if hook else None,
        site=site_of(hook if isinstance(hook, str) else None),
    )
    if weighed:
        sae = sae.with_unit_decoder()
    # from the unit of training to that of the rows: codes, and the thresholds they are held to
    encoder = replace(
        sae.encoder,
        w_enc=sae.encoder.w_enc / s_out,
        b_enc=sae.encoder.b_enc / s_out,
        threshold=None if threshold is None else threshold / s_out,
    )
    return replace(sae, encoder=encoder)


def _factors(path: Path, cfg: dict[str, Any], norms: dict[str, Tensor], hook: str) -> tuple[float, float]:
    """s_in and s_out; mean lengths stand among the settings, by direction or by place, or among the tensors."""
    how = cfg.get("norm_activation", "dataset-wise")
    if how == "inference":
        return 1.0, 1.0
    if how != "dataset-wise":
        raise AtomsError(
            f"{path}: norm_activation {printable(repr(how))} gives every row a factor of its own, which no atoms can "
            "make good; give an SAE of norm_activation dataset-wise"
        )
    found: dict[str, Any] = {
        name.removeprefix(f"{_NORM}."): value.item() for name, value in norms.items() if value.numel() == 1
    }
    found |= cfg[_NORM] if isinstance(cfg.get(_NORM), dict) else {}
    root = math.sqrt(positive(path, cfg, "d_model"))
    names = [next((name for name in (way, hook) if name in found), None) for way in ("in", "out")]
    if None in names:
        raise AtomsError(
            f"{path}: norm_activation is dataset-wise, but {_NORM} of {printable(hook)} is not there; write it there: "
            '{"in": …, "out": …}, the mean length of the rows it was trained on'
        )
    s_in, s_out = (root / positive(path, {f"{_NORM}.{name}": found[str(name)]}, f"{_NORM}.{name}") for name in names)
    return s_in, s_out


def _activation(
    path: Path, cfg: dict[str, Any], learnt: Tensor | None, atoms: int, unit: float
) -> tuple[Activation, int | None, Tensor | None]:
    """What fires, with thresholds in the unit of training; `unit` is what brings the one threshold there."""
    act = str(cfg.get("act_fn", "relu")).lower()
    one = cfg.get("jump_relu_threshold") or 0
    if act == "jumprelu" and learnt is not None:
        return "jumprelu", None, learnt.exp()
    # a TopK SAE is used as JumpReLU once it has been given a threshold
    if act == "jumprelu" or (act == "topk" and one):
        return "jumprelu", None, torch.full((atoms,), positive(path, cfg, "jump_relu_threshold") * unit)
    if act == "topk":
        return "topk", number_of_active(path, cfg, "top_k", atoms), None
    if act == "relu":
        return "relu", None, None
    raise AtomsError(f"{path}: act_fn {printable(repr(act))} is not read; those that are: relu, jumprelu and topk")
