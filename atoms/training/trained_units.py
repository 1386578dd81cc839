"""The dictionaries of a checkpoint as units, to be judged like any other candidate."""

from pathlib import Path
from typing import Any

import torch

from atoms.activations.datamodule import ActivationDataModule
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct
from atoms.sae import ThresholdSAE
from atoms.training import checkpoint
from atoms.training.members import SINGLE, MemberConfig, member_configs
from atoms.training.noise_control import train_on_noise
from atoms.units import TrainedUnit


def units_of(path: str | Path) -> tuple[dict[str, TrainedUnit], checkpoint.Record]:
    """Rebuild every member of a checkpoint.

    Args:
        path: The checkpoint that `atoms fit` named.

    Returns:
        Units by member, on the CPU, and the checkpoint's record.

    Raises:
        AtomsError: If it is no checkpoint of atoms, or damaged.
    """
    content, record = checkpoint.read(path)
    digest = checkpoint.digest(path)
    units = {}
    for name, config in _configs(content["hyper_parameters"]).items():
        prefix = f"members.{name}.sae."
        state = {
            key.removeprefix(prefix): value for key, value in content["state_dict"].items() if key.startswith(prefix)
        }
        try:
            sae = _rebuild(config, state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise AtomsError(
                f"ckpt_path is {path}, whose member {name} is not whole ({type(error).__name__}): fit it again"
            ) from error
        shown = config.site if name == SINGLE else name
        units[name] = TrainedUnit(sae, name=shown, site=config.site, target_l0=config.target_l0, seed=config.seed)
        units[name].source = {
            "checkpoint": str(path),
            "sha256": digest,
            "member": name,
            "store": record.identity,
        }
    return units, record


def noise_twins(
    path: str | Path, data: ActivationDataModule, folder: Path, place: dict[str, Any]
) -> tuple[dict[str, TrainedUnit], ActivationDataModule]:
    """Train every member of a checkpoint again on Gaussian rows of the same mean and covariance.

    Args:
        path: The checkpoint.
        data: The rows it learnt from.
        folder: Where the store of noise goes, or lies.
        place: Where to train, as Lightning's Trainer takes it.

    Returns:
        The twins by member, and the noise.

    Raises:
        AtomsError: As `atoms.training.noise_control.train_on_noise`.
    """
    content, _ = checkpoint.read(path)
    settings = content["hyper_parameters"]
    length = {"max_steps": int(content["global_step"])}
    saes, noise = train_on_noise(settings, data, folder, {**place, **length})
    units = {}
    for name, config in _configs(settings).items():
        units[name] = TrainedUnit(saes[name], name=name, site=config.site, target_l0=config.target_l0, seed=config.seed)
        units[name].source = {"noise twin of": str(path), "member": name}
    return units, noise


def _configs(settings: dict[str, Any]) -> dict[str, MemberConfig]:
    base = {
        key: value for key, value in settings.items() if not key.startswith("_") and key not in ("width", "members")
    }
    return member_configs(base, settings["members"], list(settings["width"]))


def _rebuild(config: MemberConfig, state: dict[str, Any]) -> ThresholdSAE:
    geometry = AtomicInnerProduct.from_state(state["_extra_state"])
    sae = config.sae(geometry)
    sae.load_state_dict(state)
    sae.requires_grad_(False)
    return torch.nn.Module.eval(sae)
