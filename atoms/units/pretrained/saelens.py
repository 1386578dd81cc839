"""Directories of SAELens, of any version: `cfg.json` and `sae_weights.safetensors`.

The directory of a finished SAE, and those of checkpoints amid training, where BatchTopK keeps its running threshold,
JumpReLU before 6.48 the logarithm of its thresholds, and rescaling or whitening is not folded in yet.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atoms.errors import AtomsError, printable
from atoms.units.pretrained.encoder import Activation, Encoder, RowNorm
from atoms.units.pretrained.files import number_of_active, positive, read_json, read_safetensors, take
from atoms.units.pretrained.places import site_of
from atoms.units.pretrained.weights import PretrainedSAE

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"

_ACTIVATIONS: dict[str, Activation] = {
    "standard": "relu",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "topk": "topk",
    "abstopk": "abstopk",
    # trained with a threshold over the batch and used with the one they have learnt (arXiv 2412.06410)
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
}
# places that hold sums of what a model writes to its residual stream
_WRITTEN = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
_ROW_NORMS: dict[str, RowNorm] = {"layer_norm": "layer", "constant_norm_rescale": "length"}


def read(folder: Path) -> PretrainedSAE:
    """Read one.

    Raises:
        AtomsError: If it is damaged, or of a kind that is no dictionary for one site.
    """
    cfg = read_json(folder / CFG)
    said = {**_object(folder, cfg, "metadata"), **cfg}
    architecture, settings = _architecture(folder, cfg)
    activation = _ACTIVATIONS[architecture]
    path = folder / WEIGHTS
    tensors = read_safetensors(path)
    scale = _finetuning_scale(path, tensors, cfg)

    shapes = {"W_enc": "HA", "W_dec": "AH", "b_dec": "H"}
    shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag") if activation == "gated" else ("b_enc",), "A")
    if activation == "jumprelu":
        batch = architecture.endswith("batchtopk")
        shapes |= {"topk_threshold": ""} if batch else {_threshold_name(tensors): "A"}
    sizes = {"H": cfg.get("d_in"), "A": cfg.get("d_sae")}
    w = take(path, tensors, shapes, sizes=sizes, infinite=("threshold",))

    w_enc, b_dec = w["W_enc"].T.contiguous(), w["b_dec"]
    atoms = len(w_enc)
    encoder = Encoder(
        w_enc=w_enc,
        b_enc=w["b_gate" if activation == "gated" else "b_enc"],
        shift=b_dec if cfg.get("apply_b_dec_to_input", True) else torch.zeros_like(b_dec),
        activation=activation,
        k=number_of_active(folder / CFG, settings, "k", atoms) if activation in ("topk", "abstopk") else None,
        threshold=_threshold(w, atoms) if activation == "jumprelu" else None,
        # the magnitudes are exp(r_mag) · (x @ W_enc) + b_mag, and pre has b_gate in it
        gain=w["r_mag"].exp() if activation == "gated" else None,
        offset=w["b_mag"] - w["r_mag"].exp() * w["b_gate"] if activation == "gated" else None,
    )
    hook = said.get("hook_name", said.get("hook_point"))
    hook = hook if isinstance(hook, str) else None
    one_head = said.get("hook_head_index", said.get("hook_point_head_index")) is not None
    sae = PretrainedSAE(
        encoder, w["W_dec"] if scale is None else w["W_dec"] * scale[:, None], b_dec, hook,
        None if one_head or said.get("reshape_activations") == "hook_z" else site_of(hook),
    )  # fmt: skip
    if cfg.get("rescale_acts_by_decoder_norm", False):
        sae = sae.with_unit_decoder()
    sae = _on_rows_as_they_are(folder, sae, cfg)
    writes = hook is not None and hook.endswith(_WRITTEN)
    if writes and _object(folder, said, "model_from_pretrained_kwargs").get("center_writing_weights"):
        sae = sae.of_centred_rows(folder)
    return sae


def _object(folder: Path, cfg: dict[str, Any], name: str) -> dict[str, Any]:
    value = cfg.get(name) or {}
    if not isinstance(value, dict):
        raise AtomsError(f"{folder / CFG}: {name} is {printable(repr(value))}, not an object; download it again")
    return value


def _architecture(folder: Path, cfg: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The architecture, and where its k stands; before version 6 TopK was an activation function of `standard`."""
    architecture = str(cfg.get("architecture", "standard"))
    function = cfg.get("activation_fn", cfg.get("activation_fn_str", "relu"))
    settings = cfg
    if architecture == "standard" and function == "topk":
        architecture, settings = "topk", _object(folder, cfg, "activation_fn_kwargs")
    elif function not in ("relu", "topk", None):
        architecture = f"{architecture} with {function}"
    if architecture not in _ACTIVATIONS:
        raise AtomsError(
            f"{folder / CFG}: architecture {printable(str(architecture))} is not read; those that are: "
            f"{', '.join(_ACTIVATIONS)} (a transcoder rebuilds another place than it reads, a temporal SAE needs the "
            "rows before)"
        )
    return architecture, settings


def _threshold_name(tensors: dict[str, Tensor]) -> str:
    return "log_threshold" if "log_threshold" in tensors else "threshold"


def _threshold(w: dict[str, Tensor], atoms: int) -> Tensor:
    if "topk_threshold" in w:
        return w["topk_threshold"].expand(atoms).contiguous()
    return w["log_threshold"].exp() if "log_threshold" in w else w["threshold"]


def _finetuning_scale(path: Path, tensors: dict[str, Tensor], cfg: dict[str, Any]) -> Tensor | None:
    """Take the scale of codes off that versions before 6 wrote, nearly always as ones; None if it does nothing."""
    found = [tensors.pop(name) for name in ("scaling_factor", "finetuning_scaling_factor") if name in tensors]
    if not found or bool((found[0] == 1).all()):
        return None
    if not cfg.get("finetuning_scaling_factor"):
        raise AtomsError(
            f"{path}: scaling_factor is not all ones, but {CFG} does not say finetuning_scaling_factor: true; correct "
            "the one that is wrong, or save the SAE again"
        )
    sizes = {"A": cfg.get("d_sae")}
    return take(path, {"scaling_factor": found[0]}, {"scaling_factor": "A"}, sizes=sizes)["scaling_factor"]


def _on_rows_as_they_are(folder: Path, sae: PretrainedSAE, cfg: dict[str, Any]) -> PretrainedSAE:
    """Fold in what rows went through before the SAE saw them, or have the encoder do it row by row."""
    how = cfg.get("normalize_activations")
    if how is None or isinstance(how, bool):
        how = "expected_average_only_in" if how else "none"  # so versions before 6 wrote it
    how = str(how)
    if how == "none":
        return sae
    if how in _ROW_NORMS:
        return replace(sae, encoder=replace(sae.encoder, row_norm=_ROW_NORMS[how]))
    if how == "expected_average_only_in" and (folder / SCALER).exists():
        return sae.on_rows_times(positive(folder / SCALER, read_json(folder / SCALER), "scaling_factor"))
    if how == "expected_average_only_in":
        raise AtomsError(
            f"{folder / CFG}: normalize_activations is {how}, but the factor is not there; write it to {SCALER} beside "
            'it, {"scaling_factor": …} (SAELens lists published ones as norm_scaling_factor), or fold it in with '
            "SAELens: sae.fold_activation_norm_scaling_factor(…), sae.save_model(…)"
        )
    if how == "covariance_whitening" and (folder / WHITENING).exists():
        path = folder / WHITENING
        shapes = {"mean": "H", "matrix": "HH", "inverse_matrix": "HH"}
        w = take(path, read_safetensors(path), shapes, sizes={"H": len(sae.b_dec)})
        return sae.on_rows_mapped(w["mean"], w["matrix"], w["inverse_matrix"])
    raise AtomsError(
        f"{folder / CFG}: normalize_activations {printable(repr(how))} cannot be undone with what lies there; save the "
        "SAE after training, when SAELens folds it in"
    )
