"""Does the jump of R² with dictionary size survive holding out? A grid of training rows against atoms.

Every number of training rows is one `atoms fit` of all sizes in one pass, for as many optimizer steps as any other;
R² stands on the training rows and, side by side, on held-out documents.

    python benchmarks/scale_grid.py --store STORE --site resid_post.3 --out grid.json
"""

import argparse
import json
import tempfile
from pathlib import Path

from mlflow.tracking import MlflowClient

from atoms.activations.datamodule import ActivationDataModule
from atoms.cli import main as atoms

SCORES = ("r2", "memorisation_gap", "q_star_pairs", "q_star_pairs_null", "l0", "dead", "singleton")


def fit(given: argparse.Namespace, rows: int, seed: int) -> dict[str, dict[str, float]]:
    """Fit all sizes on so many rows; final scores by size."""
    batch = min(1024, rows // 8 * 8)
    epochs = -(-given.steps // (rows // batch))
    members = {f"a{size}": {"expansion": size / given.width} for size in given.atoms}
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        atoms([
            "fit", f"--seed_everything={seed}", f"--data.store={given.store}", f"--data.train_rows={rows}",
            f"--data.batch_size={batch}", f"--data.seed={seed}", f"--model.seed={seed}", f"--model.site={given.site}",
            f"--model.target_l0={given.target_l0}", f"--model.members={json.dumps(members)}",
            f"--trainer.max_epochs={epochs}", f"--trainer.max_steps={given.steps}",
            "--trainer.check_val_every_n_epoch=100000", f"--trainer.default_root_dir={folder}",
            "--trainer.logger.class_path=atoms.training.mlflow_logger.AtomsMLFlowLogger",
            f"--trainer.logger.init_args.tracking_uri={uri}",
        ])  # fmt: skip
        client = MlflowClient(uri)
        (run,) = client.search_runs([client.get_experiment_by_name("atoms").experiment_id])
        return {str(size): {name: run.data.metrics[f"final/a{size}/{name}"] for name in SCORES} for size in given.atoms}


def main() -> None:
    """Run the grid and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--site", required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096, 16384, 65536, 10**9])
    parser.add_argument("--atoms", type=int, nargs="+", default=[192, 384, 768, 1536, 3072])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--target_l0", type=float, default=31.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    data = ActivationDataModule(store=given.store)
    given.width = data.width[given.site]
    most = data.num_rows("train")
    grid = {}
    for rows in given.rows:
        grid[str(min(rows, most))] = fit(given, min(rows, most), given.seed)
        content = {"site": given.site, "steps": given.steps, "target_l0": given.target_l0, "seed": given.seed}
        given.out.write_text(json.dumps({**content, "grid": grid}, indent=1) + "\n")
    print(f"{'rows':>8} " + " ".join(f"{size:>15}" for size in given.atoms))
    for rows, sizes in grid.items():
        cells = [f"{s['r2'] + s['memorisation_gap']:.3f} -> {s['r2']:.3f}" for s in sizes.values()]
        print(f"{rows:>8} " + " ".join(f"{cell:>15}" for cell in cells))


if __name__ == "__main__":
    main()
