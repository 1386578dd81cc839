"""``atoms validate``: judge a checkpoint on held-out documents."""

import sys
from typing import Any

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.location import locate
from atoms.activations.spec import stored_spec
from atoms.commands.parser import AtomsArgumentParser, is_first_rank, quiet, readable
from atoms.errors import AtomsError
from atoms.precision import use_fast_float32
from atoms.processes import leave_at_exit
from atoms.training import checkpoint
from atoms.training.evaluation import judge, log_child, show, silent_trainer
from atoms.training.module import TSAEModule
from atoms.training.parallel import supported


def run(words: list[str]) -> None:
    """Run ``validate``.

    Args:
        words: The command's arguments.
    """
    parser = AtomsArgumentParser(prog="atoms validate", description="Judge a checkpoint on held-out documents.")
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML file with the settings below.")
    parser.add_argument("--ckpt_path", type=str, required=True, help="The checkpoint that `atoms fit` named.")
    parser.add_argument(
        "--data.store",
        type=str | None,
        default=None,
        help="Another store to judge on; the checkpoint's own if left out.",
    )
    parser.add_argument("--trainer.accelerator", type=str, default="auto", help="As Lightning's Trainer.")
    parser.add_argument("--trainer.devices", type=int | str | list[int], default="auto", help="As Lightning's Trainer.")
    parser.add_argument("--trainer.num_nodes", type=int, default=1, help="As Lightning's Trainer.")
    parser.add_argument("--trainer.strategy", type=str, default="auto", help="As Lightning's Trainer.")
    with readable():
        settings = parser.parse_args(words)
    quiet()
    leave_at_exit()
    validate(settings.ckpt_path, settings.data.store, settings.trainer.as_dict())


def validate(ckpt_path: str, store: str | None, place: dict[str, Any]) -> None:
    """Print the table of a checkpoint and log it as a child of its run.

    Args:
        ckpt_path: The checkpoint.
        store: Store to judge on; None for the one the checkpoint learnt from.
        place: Accelerator, devices, num_nodes, strategy.

    Raises:
        AtomsError: If the checkpoint or the store cannot be read, or they do not fit each other.
    """
    content, record = checkpoint.read(ckpt_path)
    path = store or record.store
    if not locate(path).exists():
        raise AtomsError(f"data.store is {path}, which does not exist: name the store with --data.store")
    data = ActivationDataModule(store=path, **record.data)
    settings = {key: value for key, value in content["hyper_parameters"].items() if not key.startswith("_")}
    module = TSAEModule(**{**settings, "width": data.width})
    found = stored_spec(data.path)
    for config in module.configs.values():
        stored = settings["width"][config.site]
        if data.width[config.site] != stored:
            raise AtomsError(
                f"data.store is {path}, whose {config.site} has width {data.width[config.site]}, not the {stored} the "
                "checkpoint learnt: name a store of the same model"
            )
    if found is not None and found.identity_hash != record.identity and is_first_rank():
        print(f"note     {path} is not the store this checkpoint learnt from", file=sys.stderr)
    use_fast_float32()
    summaries = judge(silent_trainer({**place, "strategy": supported(place["strategy"])}), module, data, ckpt_path)
    if is_first_rank():
        show(summaries, "held-out")
        child = log_child(record, ckpt_path, summaries, "val")
        if child:
            print(f"logged      run {child} in {record.tracking_uri}")
