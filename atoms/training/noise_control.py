"""The same dictionaries, trained on noise: what a training finds where there is nothing but mean and covariance."""

import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.gaussian import GaussianRows
from atoms.activations.location import locate
from atoms.activations.manifest import is_complete
from atoms.activations.spec import stored_spec
from atoms.activations.synthetic import store_spec, write_rows
from atoms.errors import AtomsError
from atoms.progress import size
from atoms.sae import ThresholdSAE
from atoms.silent_trainer import silent_trainer
from atoms.training.module import TSAEModule
from atoms.training.progress_bar import FitProgress

_LENGTHS = ("max_steps", "max_epochs")


def train_on_noise(
    settings: dict[str, Any], data: ActivationDataModule, folder: Path, trainer_settings: dict[str, Any], seed: int = 0
) -> tuple[dict[str, ThresholdSAE], ActivationDataModule]:
    """Train dictionaries again as they were trained, on Gaussian rows in the place of the real ones.

    The rows have the mean and the covariance of the training rows that are used, and there are as many of them in
    ``train`` and in ``val``, so that batches, steps and schedules are the same. What the dictionaries then rebuild of
    held-out noise, and of held-out real rows, they owe to nothing but second moments and numbers.

    Every process of the training calls it. A store of noise that is already in ``folder`` is taken, or completed.

    Args:
        settings: Hyper-parameters of the module, as its checkpoint holds them.
        data: The rows it learnt from, with the order settings it had.
        folder: Where the store of noise goes.
        trainer_settings: Where and how long to train, arguments of Lightning's Trainer: accelerator, devices, strategy,
            num_nodes, precision, accumulate_grad_batches; ``max_steps`` or ``max_epochs`` as of the training that is
            repeated (a checkpoint's ``global_step``, if it is its last).
        seed: Seed of the noise.

    Returns:
        The dictionaries by member, on the CPU, where the first process gets them all and others of a sharded training
        none; and the noise, whose ``val`` rows none of them has seen.

    Raises:
        AtomsError: If the settings name a site the store does not hold, or none of the training's length, or the disk
            refuses.
    """
    lengths = {name: trainer_settings.get(name) for name in _LENGTHS}
    given = [f"{number:,} {name[4:]}" for name, number in lengths.items() if number is not None and number >= 0]
    if not given:
        raise AtomsError(
            "the noise control repeats a training and was not told its length: set max_steps or max_epochs"
        )
    kept = {key: value for key, value in settings.items() if not key.startswith("_")}
    module = TSAEModule(**{**kept, "width": data.width})
    sites = sorted({config.site for config in module.configs.values()})
    noise = GaussianRows(
        {site: data.moments(site) for site in sites},
        {split: data.num_rows(split) for split in ("train", "val")},
        seed,
    )
    spec = store_spec(noise, data.store.spec.dtype)
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        rows, needed = sum(spec.splits.values()), size(spec.disk_bytes)
        again = f"{' or '.join(given)} of {data.batch_size:,} rows"
        print(f"noise    {rows:,} rows, {needed} in {folder}; training {again}", file=sys.stderr, flush=True)
        write_rows(noise, folder, "draw", dtype=spec.dtype)
    while (found := stored_spec(folder)) is None or not is_complete(locate(folder), found):
        time.sleep(0.2)
    found.require_equal(spec, folder)
    # No row of the noise may be left out: the number of steps follows from the number of rows.
    noise_data = ActivationDataModule(store=str(folder), **{**data.order_settings(), "max_norm": None})
    place = {key: value for key, value in trainer_settings.items() if value is not None and key not in _LENGTHS}
    length = {"max_steps": -1, **{key: value for key, value in lengths.items() if value is not None}}
    trainer = silent_trainer(place, [FitProgress("noise")], **length, num_sanity_val_steps=0, limit_val_batches=0)
    trainer.fit(module, datamodule=noise_data)
    whole = {name: module.member(name).sae.whole() for name in module.configs}
    return {name: sae.cpu().requires_grad_(False) for name, sae in whole.items() if sae is not None}, noise_data
