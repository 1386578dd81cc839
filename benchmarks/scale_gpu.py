"""What only several GPUs can show: the same fit on one, sharing rows (DDP), sharing atoms, and both, beside each other.

Every layout trains on the same rows from the same seed, so its loss curve must be that of one device; time, memory and
the largest difference are written to a JSON file. Layouts that need more devices than there are, are left out by name.

    python benchmarks/scale_gpu.py                      # every layout up to the GPUs of this node, H = 3584
    python benchmarks/scale_gpu.py --expansion 16 32    # other widths of the dictionary
    python benchmarks/scale_gpu.py --smoke              # two CPU processes, seconds: does the script still run?
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

HERE = Path(__file__).resolve()
OUTPUT = "ATOMS_MEASURE"
"""Environment variable: where `Measure` writes, the rank left to be filled in."""
WARM_UP = 5  # steps that are not timed: the first allocate, and compile kernels


class Measure(L.Callback):
    """Notes the loss of every step, the time of a step and the memory of every rank."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin."""
        self.losses: list[torch.Tensor] = []
        self.began = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss without waiting for the device; begin to time after the warm-up."""
        self.losses.append(trainer.callback_metrics["train/loss"].detach().clone())
        if len(self.losses) == WARM_UP:
            self.began = self._now(pl_module.device)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what was seen."""
        ended, device = self._now(pl_module.device), pl_module.device
        found = {
            "step_ms": 1e3 * (ended - self.began) / (len(self.losses) - WARM_UP),
            "losses": torch.stack(self.losses).tolist(),
            "gpu_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        }
        Path(os.environ[OUTPUT].format(rank=trainer.global_rank)).write_text(json.dumps(found))

    @staticmethod
    def _now(device: torch.device) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()


def layouts(most: int) -> dict[str, tuple[int, list[str]]]:
    """By name: number of devices, and the settings that lay them out."""
    found: dict[str, tuple[int, list[str]]] = {"one": (1, [])}
    for count in (2, 4, 8):
        found[f"ddp {count}"] = (count, ["--trainer.strategy=ddp"])
        found[f"tensor parallel {count}"] = (count, ["--trainer.strategy=tensor_parallel"])
    for data, tensor in ((2, 2), (2, 4)):
        sizes = [f"--trainer.strategy.data_parallel_size={data}", f"--trainer.strategy.tensor_parallel_size={tensor}"]
        found[f"{data} x {tensor}"] = (data * tensor, ["--trainer.strategy=ModelParallelStrategy", *sizes])
    left_out = [name for name, (count, _) in found.items() if count > most]
    if left_out:
        print(f"left out for want of devices ({most}): {', '.join(left_out)}", file=sys.stderr)
    return {name: layout for name, layout in found.items() if layout[0] <= most}


def run(folder: Path, count: int, words: list[str]) -> dict[str, Any]:
    """Fit once under torchrun and return what the ranks measured, or the last line of what went wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        OUTPUT: str(folder / "rank-{rank}.json"),
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", "-m", "atoms"]
    done = subprocess.run(
        [*launch, "fit", *words, "--trainer.callbacks+=scale_gpu.Measure"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["no word"]
        return {"failed": said[0][-300:]}
    ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(count)]
    return {
        "step_ms": max(rank["step_ms"] for rank in ranks),
        "gpu_bytes": [rank["gpu_bytes"] for rank in ranks],
        "losses": ranks[0]["losses"],
    }


def main() -> None:
    """Run every layout and write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=3584, help="H; Gemma-2-9B's by default")
    parser.add_argument("--rows", type=int, default=262_144, help="rows of the planted store")
    parser.add_argument("--expansion", type=float, nargs="+", default=[4, 16], help="A / H, one or several")
    parser.add_argument("--precision", nargs="+", default=["32-true", "bf16-mixed"])
    parser.add_argument("--batch_size", type=int, default=4096, help="rows of a step, all devices together")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path("scale-runs"), help="store and logs of the runs")
    parser.add_argument("--output", type=Path, default=HERE.parent / "results" / "scale.json")
    parser.add_argument("--smoke", action="store_true", help="small, on the CPU, at most two processes")
    asked = parser.parse_args()
    accelerator, most = "cuda", torch.cuda.device_count()
    if asked.smoke:
        asked.width, asked.rows, asked.batch_size, asked.steps, accelerator, most = 16, 2000, 64, 20, "cpu", 2
        asked.expansion, asked.precision = [4.0], ["32-true"]
    if not most:
        parser.error("no GPU here; --smoke runs on the CPU")

    store = (asked.folder / "store").resolve()
    planted = json.dumps({"width": asked.width, "atoms": 2 * asked.width, "active": 8.0, "rows": asked.rows})
    common = [
        f"--data.planted={planted}", f"--data.store={store}", f"--data.batch_size={asked.batch_size}",
        "--model.target_l0=8", f"--trainer.accelerator={accelerator}", f"--trainer.max_steps={asked.steps}",
        "--trainer.max_epochs=-1", "--trainer.logger=false", "--trainer.limit_val_batches=1",
        "--trainer.enable_checkpointing=false", "--trainer.log_every_n_steps=1",
    ]  # fmt: skip
    results, alone = [], {}
    for expansion in asked.expansion:
        for precision in asked.precision:
            for name, (count, layout) in layouts(most).items():
                words = [*common, f"--model.expansion={expansion}", f"--trainer.precision={precision}"]
                words += [f"--trainer.devices={count}", *layout]
                place = f"{expansion:g}-{precision}-{name.replace(' ', '-')}"
                found = run(asked.folder.resolve() / place, count, words)
                losses = torch.tensor(found.pop("losses", []), dtype=torch.float64)
                if name == "one":
                    alone[expansion, precision] = losses
                base = alone[expansion, precision]
                if len(losses) and len(losses) == len(base):
                    found["loss_difference"] = float(((losses - base) / base).abs().max())
                    found["rows_per_second"] = 1e3 * asked.batch_size / found["step_ms"]
                results.append({"layout": name, "expansion": expansion, "precision": precision, **found})
                print(json.dumps(results[-1]))
    machine = torch.cuda.get_device_name() if accelerator == "cuda" else platform.processor() or platform.machine()
    settings = {key: value for key, value in vars(asked).items() if not isinstance(value, Path)}
    about = {"machine": machine, "torch": torch.__version__, "settings": settings, "results": results}
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(about, indent=2) + "\n")
    print(f"written to {asked.output}")
    if any("failed" in result for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
