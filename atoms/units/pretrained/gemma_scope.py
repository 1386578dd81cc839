"""Files of Gemma Scope (arXiv 2408.05147): `layer_<n>/width_<w>/average_l0_<k>/params.npz`.

The arrays have no settings beside them: layer and width are in the path, the kind of place in the repository's name.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from atoms.errors import AtomsError
from atoms.units.pretrained.encoder import Encoder
from atoms.units.pretrained.files import read_npz, take
from atoms.units.pretrained.weights import PretrainedSAE

WEIGHTS = "params.npz"

_KIND = re.compile(r"gemma-scope-(?!2-)[\w.]+(?:-pt|-it)?-(res|mlp|att)(?:-|$)")
# attention: the heads' outputs side by side, before the output projection
_SITES = {"res": "resid_post.{}", "mlp": "mlp_out.{}", "att": "layers.{}.self_attn.o_proj:input"}


def read(folder: Path) -> PretrainedSAE:
    """Read one; its place is told by its path, as far as that is there.

    Raises:
        AtomsError: If it is damaged, rescales its codes, or is a transcoder or of the embeddings.
    """
    path = folder / WEIGHTS
    parts = folder.absolute().parts
    if any(re.search(r"gemma-scope-.*transcoder", part) for part in parts):
        raise AtomsError(f"{path}: is a transcoder, which rebuilds another place than it reads; give an SAE")
    if "embedding" in parts[-3:]:
        raise AtomsError(f"{path}: is of the embeddings before the model scales them, which is no site; give a layer's")
    tensors = {f"W_{name[2:]}" if name.startswith("w_") else name: value for name, value in read_npz(path).items()}
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and not bool((factor == 1).all()):
        raise AtomsError(
            f"{path}: scaling_factor is not all ones, and nothing says where it applies; fold it into the weights and "
            "save it without"
        )
    shapes = {"W_enc": "HA", "W_dec": "AH", "b_enc": "A", "b_dec": "H", "threshold": "A"}
    w = take(path, tensors, shapes, infinite=("threshold",))
    layers = [found[1] for part in parts if (found := re.fullmatch(r"layer_(\d+)", part))]
    kinds = [found[1] for part in parts if (found := _KIND.search(part))]
    site = _SITES[kinds[-1]].format(layers[-1]) if layers and kinds else None
    return PretrainedSAE(
        encoder=Encoder(
            w_enc=w["W_enc"].T.contiguous(),
            b_enc=w["b_enc"],
            shift=torch.zeros_like(w["b_dec"]),
            activation="jumprelu",
            threshold=w["threshold"],
        ),
        w_dec=w["W_dec"],
        b_dec=w["b_dec"],
        trained_on=f"layer {layers[-1]}" if layers else None,
        site=site,
    )
