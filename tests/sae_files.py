"""SAE files as other libraries write them, with random weights, and what their published forward passes do.

Nothing here knows the readers. A reference is dense, in float64, and written from the papers and the libraries'
definitions in the orientation and the names of each file.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

WIDTH, ATOMS, K = 12, 40, 5


@dataclass
class Written:
    """A written SAE: where, and rows -> (codes, reconstruction), float64."""

    path: Path
    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    tensors: dict[str, Tensor]
    weights: Path
    settings: Path | None = None

    def spoil(self, **changes: object) -> None:
        """Write the settings again with changes; None takes one away."""
        assert self.settings is not None
        found = json.loads(self.settings.read_text()) | changes
        self.settings.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))

    def rewrite(self, **changes: Tensor | None) -> None:
        """Write the safetensors again with changes; None takes one away."""
        found = {**self.tensors, **{name.replace("__", "."): value for name, value in changes.items()}}
        safetensors.torch.save_file({k: v for k, v in found.items() if v is not None}, self.weights)


def rows(count: int = 64, seed: int = 5, scale: float = 1.0) -> Tensor:
    """Rows with a mean that is not zero, float32."""
    generator = torch.Generator().manual_seed(seed)
    return scale * (torch.randn(count, WIDTH, generator=generator) + torch.linspace(-1, 2, WIDTH))


class Random:
    """Random tensors of one seed; decoder rows are of any length."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * scale

    def positive(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator) + 0.2


def top(pre: Tensor, k: int, by: Tensor | None = None) -> Tensor:
    """Keep the k entries of a row that are largest by a score."""
    score = pre if by is None else by
    floor = score.sort(dim=1, descending=True).values[:, k - 1 : k]
    return pre * (score >= floor)


def saelens(folder: Path, architecture: str = "standard", seed: int = 0, **cfg: object) -> Written:
    """A directory of SAELens 6; `cfg` overrides, keys of the metadata by the name `metadata`."""
    folder.mkdir(parents=True, exist_ok=True)
    make = Random(seed)
    w_enc, w_dec, b_dec = make(WIDTH, ATOMS, scale=0.5), make(ATOMS, WIDTH), make(WIDTH)
    tensors = {"W_enc": w_enc, "W_dec": w_dec, "b_dec": b_dec}
    if architecture == "gated":
        tensors |= {"b_gate": make(ATOMS), "b_mag": make(ATOMS), "r_mag": make(ATOMS, scale=0.3)}
    else:
        tensors["b_enc"] = make(ATOMS)
    if architecture == "jumprelu":
        tensors["threshold"] = make.positive(ATOMS)
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        tensors["topk_threshold"] = torch.tensor(0.7, dtype=torch.float64)
    settings = {
        "architecture": architecture, "d_in": WIDTH, "d_sae": ATOMS, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.49.2", "model_name": "gpt2", "hook_name": "blocks.5.hook_resid_post"},
    }  # fmt: skip
    settings |= {"k": K} if "topk" in architecture else {}
    settings |= cfg
    weights = folder / "sae_weights.safetensors"
    safetensors.torch.save_file(tensors, weights)
    (folder / "cfg.json").write_text(json.dumps(settings))

    def inner(x: Tensor) -> tuple[Tensor, Tensor]:
        t = {name: value.double() for name, value in tensors.items()}
        seen = x - t["b_dec"] if settings["apply_b_dec_to_input"] else x
        if architecture == "gated":
            gate = seen @ t["W_enc"] + t["b_gate"] > 0
            codes = gate * (seen @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]).relu()
            return codes, codes @ t["W_dec"] + t["b_dec"]
        pre = seen @ t["W_enc"] + t["b_enc"]
        length = t["W_dec"].norm(dim=1) if settings.get("rescale_acts_by_decoder_norm") else torch.ones(ATOMS).double()
        pre = pre * length
        if architecture == "topk":
            codes = top(pre, K).relu()
        elif architecture == "abstopk":
            codes = top(pre, K, pre.abs())
        elif "topk_threshold" in t:
            codes = pre.relu() * (pre > t["topk_threshold"])
        elif "log_threshold" in t:
            codes = pre.relu() * (pre > t["log_threshold"].exp())
        elif "threshold" in t:
            codes = pre.relu() * (pre > t["threshold"])
        else:
            codes = pre.relu()
        return codes, codes / length @ t["W_dec"] + t["b_dec"]

    return Written(folder, inner, tensors, weights, folder / "cfg.json")


def sparsify(folder: Path, activation: str = "topk", seed: int = 1, k: int = K, **cfg: object) -> Written:
    """A hookpoint's directory of a sparsify run."""
    folder.mkdir(parents=True, exist_ok=True)
    make = Random(seed)
    tensors = {
        "encoder.weight": make(ATOMS, WIDTH, scale=0.5), "encoder.bias": make(ATOMS),
        "W_dec": make(ATOMS, WIDTH), "b_dec": make(WIDTH),
    }  # fmt: skip
    settings = {
        "activation": activation, "expansion_factor": 32, "normalize_decoder": True, "num_latents": ATOMS, "k": k,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": WIDTH,
    } | cfg  # fmt: skip
    weights = folder / "sae.safetensors"
    safetensors.torch.save_file(tensors, weights)
    (folder / "cfg.json").write_text(json.dumps(settings))

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        t = {name: value.double() for name, value in tensors.items()}
        seen = x if settings["transcode"] else x - t["b_dec"]
        pre = seen @ t["encoder.weight"].T + t["encoder.bias"]
        if settings.get("signed"):
            codes = top(pre, k, pre.abs())
        elif activation == "topk":
            codes = top(pre.relu(), k)
        else:
            codes = torch.zeros_like(pre)
            for start in range(0, ATOMS, ATOMS // k):
                group = pre[:, start : start + ATOMS // k].relu()
                best = group.argmax(1)
                codes[torch.arange(len(x)), start + best] = group[torch.arange(len(x)), best]
        return codes, codes @ t["W_dec"] + t["b_dec"]

    return Written(folder, forward, tensors, weights, folder / "cfg.json")


def dictionary_learning(folder: Path, kind: str, seed: int = 2) -> Written:
    """A trainer's directory of dictionary_learning."""
    folder.mkdir(parents=True, exist_ok=True)
    make = Random(seed)
    linear = {"encoder.weight": make(ATOMS, WIDTH, scale=0.5), "decoder.weight": make(WIDTH, ATOMS)}
    matrices = {"W_enc": make(WIDTH, ATOMS, scale=0.5), "W_dec": make(ATOMS, WIDTH)}
    k, scalar = torch.tensor(K, dtype=torch.int), torch.tensor(0.8)
    tensors = {
        "AutoEncoder": {"bias": make(WIDTH), **linear, "encoder.bias": make(ATOMS)},
        "AutoEncoderNew": {**linear, "encoder.bias": make(ATOMS), "decoder.bias": make(WIDTH)},
        "GatedAutoEncoder": {
            **linear, "decoder_bias": make(WIDTH), "r_mag": make(ATOMS, scale=0.3),
            "gate_bias": make(ATOMS), "mag_bias": make(ATOMS),
        },
        "AutoEncoderTopK": {**linear, "encoder.bias": make(ATOMS), "b_dec": make(WIDTH), "k": k, "threshold": scalar},
        "BatchTopKSAE": {**linear, "encoder.bias": make(ATOMS), "b_dec": make(WIDTH), "k": k, "threshold": scalar},
        "MatryoshkaBatchTopKSAE": {
            **matrices, "b_enc": make(ATOMS), "b_dec": make(WIDTH), "k": k, "threshold": scalar,
            "group_sizes": torch.tensor([10, 30]),
        },
        "JumpReluAutoEncoder": {
            **matrices, "b_enc": make(ATOMS), "b_dec": make(WIDTH), "threshold": make.positive(ATOMS),
        },
    }[kind]  # fmt: skip
    trainer = {
        "dict_class": kind, "activation_dim": WIDTH, "dict_size": ATOMS, "layer": 8, "lm_name": "EleutherAI/pythia-70m",
        "submodule_name": "resid_post_layer_8",
    }  # fmt: skip
    trainer |= {"k": K} if "TopK" in kind else {}
    buffer = {"d_submodule": WIDTH, "io": "out", "ctx_len": 128}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}))
    torch.save(tensors, folder / "ae.pt")

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        t = {name: value.double() for name, value in tensors.items()}
        if "W_enc" in t:
            seen = x if kind == "JumpReluAutoEncoder" else x - t["b_dec"]
            pre, dec, bias = seen @ t["W_enc"] + t["b_enc"], t["W_dec"], t["b_dec"]
        else:
            name = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
            bias, dec = t[name.get(kind, "b_dec")], t["decoder.weight"].T
            pre = (x if kind == "AutoEncoderNew" else x - bias) @ t["encoder.weight"].T
            pre = pre + t.get("encoder.bias", 0)
        if kind == "GatedAutoEncoder":
            codes = (pre + t["gate_bias"] > 0) * (t["r_mag"].exp() * pre + t["mag_bias"]).relu()
        elif kind == "AutoEncoderTopK":
            codes = top(pre.relu(), K)
        elif "threshold" in t:
            codes = pre.relu() * (pre.relu() > t["threshold"])
        else:
            codes = pre.relu()
        return codes, codes @ dec + bias

    return Written(folder, forward, tensors, folder / "ae.pt", folder / "config.json")


def _gemma(x: Tensor, t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    t = {name.lower(): value.double() for name, value in t.items()}
    pre = x @ t["w_enc"] + t["b_enc"]
    codes = (pre > t["threshold"]) * pre.relu()
    return codes, codes @ t["w_dec"] + t["b_dec"]


def gemma_scope(folder: Path, seed: int = 3, names: str = "upper", **more: Tensor) -> Written:
    """A directory of Gemma Scope with its `params.npz`."""
    folder.mkdir(parents=True, exist_ok=True)
    make = Random(seed)
    tensors = {
        "W_enc": make(WIDTH, ATOMS, scale=0.5), "W_dec": make(ATOMS, WIDTH), "b_enc": make(ATOMS), "b_dec": make(WIDTH),
        "threshold": make.positive(ATOMS),
    } | more  # fmt: skip
    arrays = {(name.replace("W_", "w_") if names == "lower" else name): t.numpy() for name, t in tensors.items()}
    np.savez(folder / "params.npz", **arrays)
    return Written(folder, lambda x: _gemma(x, tensors), tensors, folder / "params.npz")


def gemma_scope_2(folder: Path, seed: int = 4, **config: object) -> Written:
    """A directory of Gemma Scope 2; without `config` none is written."""
    folder.mkdir(parents=True, exist_ok=True)
    make = Random(seed)
    tensors = {
        "w_enc": make(WIDTH, ATOMS, scale=0.5), "w_dec": make(ATOMS, WIDTH), "b_enc": make(ATOMS), "b_dec": make(WIDTH),
        "threshold": make.positive(ATOMS),
    }  # fmt: skip
    safetensors.torch.save_file(tensors, folder / "params.safetensors")
    if config:
        settings = {"architecture": "jump_relu", "width": ATOMS, "model_name": "google/gemma-3-1b-pt", "l0": 60}
        (folder / "config.json").write_text(json.dumps(settings | config))
    settings_path = folder / "config.json"
    return Written(folder, lambda x: _gemma(x, tensors), tensors, folder / "params.safetensors", settings_path)


def llama_scope(folder: Path, seed: int = 6, learnt: bool = False, **cfg: object) -> Written:
    """A directory of Llama Scope, of the first release or (`learnt`) of the one for the R1 distillation."""
    make = Random(seed)
    tensors = {
        "encoder.weight": make(ATOMS, WIDTH, scale=0.5), "encoder.bias": make(ATOMS),
        "decoder.weight": make(WIDTH, ATOMS), "decoder.bias": make(WIDTH),
    }  # fmt: skip
    norm = {"in": 2.5, "out": 2.5}
    settings: dict[str, object] = {
        "d_model": WIDTH, "act_fn": "jumprelu", "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False,
        "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True, "top_k": 50,
        "hook_point_in": "blocks.15.hook_resid_post", "hook_point_out": "blocks.15.hook_resid_post",
    }  # fmt: skip
    if learnt:
        tensors["log_jumprelu_threshold"] = make(ATOMS, scale=0.5)
        tensors |= {"dataset_average_activation_norm.blocks.15.hook_resid_post": torch.tensor(2.5)}
        settings["expansion_factor"] = ATOMS / WIDTH
    else:
        settings |= {"d_sae": ATOMS, "jump_relu_threshold": 0.3, "dataset_average_activation_norm": norm}
    settings |= cfg
    weights = folder / ("sae_weights.safetensors" if learnt else "checkpoints/final.safetensors")
    weights.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, weights)
    path = folder / ("config.json" if learnt else "hyperparams.json")
    path.write_text(json.dumps(settings))

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        # as it is trained: on rows of mean length sqrt(width), and the reconstruction brought back
        t = {name: value.double() for name, value in tensors.items()}
        factor = math.sqrt(WIDTH) / 2.5 if settings["norm_activation"] == "dataset-wise" else 1.0
        pre = (factor * x) @ t["encoder.weight"].T + t["encoder.bias"]
        length = t["decoder.weight"].norm(dim=0)
        score = pre * length if settings["sparsity_include_decoder_norm"] else pre
        if settings["act_fn"] == "topk" and not settings["jump_relu_threshold"]:
            codes = top(pre, int(settings["top_k"]), score).relu()  # type: ignore[call-overload]
        elif learnt:
            codes = pre * (score > t["log_jumprelu_threshold"].exp())
        else:
            codes = pre * (score > float(settings["jump_relu_threshold"]) * factor)  # type: ignore[arg-type]
        return codes, (codes @ t["decoder.weight"].T + t["decoder.bias"]) / factor

    return Written(folder, forward, tensors, weights, path)
