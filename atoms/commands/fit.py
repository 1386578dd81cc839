"""``atoms fit``, ``cache``, ``test`` and ``predict``: one LightningCLI."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from mlflow.exceptions import MlflowException

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.harvest_spec import PLACE
from atoms.commands.import_words import expand_import
from atoms.commands.parser import AtomsArgumentParser, is_first_rank, one_line, quiet, readable, require_settings
from atoms.errors import AtomsError, printable
from atoms.memory import keep_freed_memory
from atoms.precision import use_fast_float32
from atoms.processes import leave_at_exit
from atoms.progress import duration, size
from atoms.sae import default_lr
from atoms.silent_trainer import silent_trainer
from atoms.training import checkpoint
from atoms.training.checkpoint_file import SealedCheckpointIO
from atoms.training.codes_writer import CodesWriter
from atoms.training.evaluation import judge, log_child, log_final, show, summaries_of
from atoms.training.mlflow_logger import AtomsMLFlowLogger
from atoms.training.module import TSAEModule
from atoms.training.parallel import TensorParallel, fresh, supported
from atoms.training.progress_bar import FitProgress
from atoms.training.summary import Summary

LAST = "last"
"""The value of ``ckpt_path`` that goes on where the same command ended, or begins."""


class AtomsTrainer(L.Trainer):
    """Lightning's Trainer with the arguments of our own subcommands; the CLI runs them."""

    def cache(self, model: TSAEModule, datamodule: ActivationDataModule) -> None:
        """Run the language model over the corpus and write the store of activations."""

    def predict(  # type: ignore[override]
        self,
        model: TSAEModule,
        datamodule: ActivationDataModule,
        ckpt_path: str | None = None,
        output: str = "codes.zarr",
        splits: list[Literal["train", "val", "test"]] | None = None,
    ) -> None:
        """Write the sparse codes of every row to a Zarr group.

        Args:
            model: Built from the checkpoint's settings.
            datamodule: The rows.
            ckpt_path: Checkpoint whose atoms encode the rows.
            output: Zarr group to write; it must not exist.
            splits: Splits to encode; all if left out.
        """
        super().predict(model, datamodule=datamodule, ckpt_path=ckpt_path, return_predictions=False, weights_only=True)


class SaveConfigToRun(SaveConfigCallback):
    """Keep the resolved config as an artifact of the run instead of a file in the working directory."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Log the config; Lightning calls this on the first rank only."""
        # A resumed fit leaves the config that started the run as it is.
        resumed = self.config.get("ckpt_path")
        name = f"config-after-{Path(resumed).stem}.yaml" if resumed else "config.yaml"
        for logger in trainer.loggers:
            if isinstance(logger, AtomsMLFlowLogger) and stage == "fit":
                logger.log_text(self.parser.dump(self.config, skip_none=False), name)


class AtomsCLI(LightningCLI):
    """Composes data, dictionaries and trainer from a config, and says the result."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands of this parser; ``validate`` has its own."""
        lightning = LightningCLI.subcommands()
        return {
            "fit": lightning["fit"] | {"weights_only"},
            "cache": {"model", "datamodule"},
            "test": lightning["test"] | {"weights_only", "verbose"},
            "predict": {"model", "datamodule"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the widths, and add the checkpoint's settings."""
        parser.link_arguments("data.width", "model.width", apply_on="instantiate")
        parser.add_lightning_class_args(checkpoint.KeepLast, "checkpoint")
        parser.set_defaults({"checkpoint.filename": "step-{step:07d}", "checkpoint.auto_insert_metric_name": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; keep what was said explicitly apart from defaults."""
        words = cast("list[str]", args)
        with readable():
            self.config = parser.parse_args(words)
            self.explicit = parser.parse_args(words, defaults=False)
        made = {"model": TSAEModule, "data": ActivationDataModule, "trainer": L.Trainer}
        require_settings(self.config[self.config.subcommand], made)

    def _parse_ckpt_path(self) -> None:
        # Lightning would put the checkpoint's settings over whatever was asked for, without a word.
        command = self.config.subcommand
        ckpt_path = self.config[command].get("ckpt_path")
        self.record: checkpoint.Record | None = None
        self.go_on = command == "fit" and ckpt_path == LAST
        if self.go_on:  # found once the store and the model are there to compare with
            self.config.fit.ckpt_path = None
        if ckpt_path is None or self.go_on:
            return
        content, self.record = checkpoint.read(ckpt_path)
        stored = content.get("hyper_parameters", {})
        explicit = self.explicit[command]
        named = explicit.model.keys() if "model" in explicit else ()
        asked = {key: _plain(self.config[command].model[key]) for key in named}
        conflicts = [
            f"model.{key} is {value!r} but {stored[key]!r} in the checkpoint"
            for key, value in asked.items()
            if key in stored and value != _plain(stored[key])
        ]
        data = explicit.get("data") or {}
        if command == "fit":
            conflicts += [
                f"data.{key} is {data[key]!r} but {value!r} in the checkpoint"
                for key, value in self.record.data.items()
                if key in data and data[key] != value
            ]
        if conflicts:
            raise AtomsError(
                f"ckpt_path {ckpt_path}: {'; '.join(conflicts)}: leave them out, or train without ckpt_path"
            )
        super()._parse_ckpt_path()
        for key, value in self.record.data.items():
            if key not in data:
                self.config[command].data[key] = value

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except (ValueError, TypeError, OverflowError) as error:
            raise AtomsError(f"seed_everything: {printable(str(error))}") from error

    def before_instantiate_classes(self) -> None:
        """Leave out what this command does not need of the settings of a fit."""
        config = self.config[self.subcommand]
        # Only the first rank of a fit needs a logger, and MLflow's makes a database as soon as it is built.
        if self.subcommand != "fit" or config.trainer.fast_dev_run or not is_first_rank():
            config.trainer.logger = False
        # Rows of several sites can be cached without saying which of them will be learnt.
        if self.subcommand == "cache" and config.model.site is None:
            data = config.data
            sites = data.harvest.sites if data.harvest else data.matrix.files if data.matrix else ()
            config.model.site = next(iter(sites), None)

    def instantiate_classes(self) -> None:
        """Build everything; what a settings class refuses is said as it said it."""
        try:
            super().instantiate_classes()
        except MisconfigurationException as error:
            raise AtomsError(f"trainer or checkpoint: {printable(str(error))}") from error
        except (ValueError, TypeError) as error:
            # jsonargparse wraps the refusal in a list of the types it tried.
            if isinstance(error.__cause__, AtomsError):
                raise error.__cause__ from None
            raise AtomsError(f"the settings cannot be used: {one_line(str(error))}") from error

    def _instantiate_trainer(self, config: Any, callbacks: list[L.Callback]) -> L.Trainer:
        if config.get("enable_checkpointing") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, checkpoint.KeepLast)]
        if config.get("enable_progress_bar") is not False:
            callbacks = [*callbacks, FitProgress()]
        self.strategy = config["strategy"] = supported(config["strategy"])
        # Plugins may be a list, or a single one.
        given = config.get("plugins") or []
        plugins = [*given] if isinstance(given, (list, tuple)) else [given]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config["plugins"] = [*plugins, SealedCheckpointIO()]
        try:
            trainer = super()._instantiate_trainer(config, callbacks)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise AtomsError(f"trainer: {' '.join(str(error).split())}") from error
        strategy = trainer.strategy
        self.shards = strategy.grid[1] if isinstance(strategy, TensorParallel) else 1
        return trainer

    @property
    def place(self) -> dict[str, Any]:
        """Where to run, for trainers beside the main one."""
        settings = {key: self.config[self.subcommand].trainer[key] for key in PLACE}
        # An object serves one trainer; `config` only describes it.
        built = settings["strategy"] if isinstance(settings["strategy"], str) else self.strategy
        return {**settings, "strategy": fresh(built)}

    # ------------------------------------------------------------------------------------------ commands

    def before_fit(self) -> None:
        """Make the store if need be; take up the run of a checkpoint; say what the fit will cost."""
        self.started = time.monotonic()
        self._ensure_store()
        self.datamodule.require_batch()
        data = self.datamodule
        if self.go_on:
            self._find_last()
        if self.record and self.record.identity != data.store.identity_hash:
            raise AtomsError(
                f"data.store is {data.path}, but the checkpoint learnt from other rows, those of {self.record.store}: "
                "set data.store to that, or train without ckpt_path"
            )
        if self.mlflow and not cast("Any", self.trainer).fast_dev_run:
            self._take_up_run(self.mlflow)
        atoms = sum(config.num_atoms(data.width[config.site]) for config in self.model.configs.values())
        weights = sum(
            2 * config.num_atoms(data.width[config.site]) * data.width[config.site]
            for config in self.model.configs.values()
        )
        dense = 5 * 4 * data.batch_size * atoms
        stored = data.num_rows("train") * sum(data.store.spec.row_bytes)
        _say(f"fit      {atoms:,} atoms on {data.num_rows('train'):,} rows of {data.path}")
        pools = min(data.pool_mib * 2**20, 2 * stored)
        needed = size((16 * weights + dense) / self.shards + pools)
        each = " on each device" if self.shards > 1 else ""
        _say(f"memory   {needed} for weights, Adam, one batch and the pools{each}")

    def after_fit(self) -> None:
        """Judge the last weights on held-out rows; table, figures, and where to look."""
        if cast("Any", self.trainer).fast_dev_run or not self.trainer.state.finished:
            return
        logger = self.mlflow
        try:
            summaries = judge(silent_trainer(self.place), self.model, self.datamodule)
        except BaseException:
            if logger:
                logger.finalize("failed")
            raise
        if logger:
            log_final(logger, summaries, "final")
            logger.finalize("success")  # waits until everything is written
        self._report(summaries, "held-out")
        if is_first_rank():
            print(f"checkpoint  {self._last_checkpoint()}")
            for name, folder in self._save_artefacts(summaries).items():
                print(f"atoms       {folder}" if len(summaries) == 1 else f"atoms       {name}: {folder}")
            print(f"time        {duration(time.monotonic() - self.started)}")
            if logger:
                print(f"compare     mlflow ui --backend-store-uri {logger.tracking_uri}")

    def cache(self, model: TSAEModule, datamodule: ActivationDataModule) -> None:
        """Make the store, or say that it is there."""
        self._ensure_store()
        if is_first_rank():
            store = datamodule.store
            rows = ", ".join(f"{split} {store.n_rows(split):,}" for split in store.splits)
            print(f"store    {store.path}: {', '.join(store.sites)}; rows {rows}; {size(store.spec.disk_bytes)}")

    def before_test(self) -> None:
        """A dictionary without training has nothing to show."""
        self._require_checkpoint()

    def test(self, model: TSAEModule, datamodule: ActivationDataModule, ckpt_path: str | None = None) -> None:
        """Score the test split."""
        assert ckpt_path is not None
        assert self.record is not None
        trainer = silent_trainer(self.place)
        trainer.test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=True)
        summaries = summaries_of(model, datamodule, "test")
        self._report(summaries, "test")
        if is_first_rank():
            log_child(self.record, ckpt_path, summaries, "test")

    def before_predict(self) -> None:
        """Nothing may be overwritten."""
        self._require_checkpoint()
        output = self.config.predict.output
        if not output or printable(output) != output:
            raise AtomsError(f"output is {output!r}: name a folder to write")
        if Path(output).exists():
            raise AtomsError(f"output is {output}, which exists: choose another name, or delete it")
        if is_first_rank():
            shutil.rmtree(_partial(output), ignore_errors=True)  # what a run that broke off left

    def predict(
        self,
        model: TSAEModule,
        datamodule: ActivationDataModule,
        ckpt_path: str | None = None,
        output: str = "codes.zarr",
        splits: list[str] | None = None,
    ) -> None:
        """Write the codes of every row, split by split."""
        assert ckpt_path is not None
        about = {"checkpoint": checkpoint.digest(ckpt_path), "store": datamodule.store.identity_hash}
        for split in splits or datamodule.store.splits:
            datamodule.predict_split = split
            trainer = AtomsTrainer(
                **self.place,
                callbacks=[CodesWriter(_partial(output), split, about)],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            trainer.predict(model, datamodule, ckpt_path)
        if is_first_rank():
            _partial(output).rename(output)
        _say(f"codes    {output}: {', '.join(splits or datamodule.store.splits)}")

    # ------------------------------------------------------------------------------------------ parts

    @property
    def mlflow(self) -> AtomsMLFlowLogger | None:
        """The run's MLflow logger, if it has one."""
        return next((logger for logger in self.trainer.loggers if isinstance(logger, AtomsMLFlowLogger)), None)

    def _ensure_store(self) -> None:
        self.datamodule.ensure(self.place)
        # The language model drew from the global generators; a fit on a store found and one just made must be equal.
        self._set_seed()

    def _find_last(self) -> None:
        """Take up the newest checkpoint that these settings have written on these rows."""
        model, data = self.model.hparams, self.datamodule

        def fits(content: dict[str, Any], record: checkpoint.Record) -> bool:
            stored = content.get("hyper_parameters", {})
            return (
                (record.identity, record.data) == (data.store.identity_hash, data.order_settings())
                and stored.keys() == model.keys()
                and all(_plain(stored[key]) == _plain(value) for key, value in model.items())
            )

        own = getattr(self.trainer.checkpoint_callback, "dirpath", None)
        folders = [folder for folder in (self.trainer.default_root_dir, own) if folder]
        path = checkpoint.newest(folders, fits)
        if path is None:
            _say(f"note     no checkpoint of these settings in {' or '.join(folders)}: starting from the beginning")
            return
        _say(f"resume   {path}")
        self.record = checkpoint.read(path)[1]
        self.config.fit.ckpt_path = self.config_init.fit.ckpt_path = path

    def _require_checkpoint(self) -> None:
        if self.record is None:
            raise AtomsError("ckpt_path is not set: name the checkpoint with --ckpt_path; `atoms fit` prints its path")

    def _last_checkpoint(self) -> str:
        callback = self.trainer.checkpoint_callback
        saved = isinstance(callback, checkpoint.KeepLast) and callback.newest
        # A fit taken up at its end saves nothing more.
        return saved or self.config_init.fit.ckpt_path or "none was saved"

    def _save_artefacts(self, summaries: list[Summary]) -> dict[str, Path]:
        """Every member as a folder that loads without Lightning, beside the checkpoints."""
        callback = self.trainer.checkpoint_callback
        folder = Path(getattr(callback, "dirpath", None) or self.trainer.default_root_dir) / "atoms"
        saved = {}
        for summary in summaries:
            saved[summary.name] = folder / summary.name
            about = {
                "site": summary.site,
                "target_l0": summary.target_l0,
                "seed": self.model.configs[summary.name].seed,
                "store": self.datamodule.store.identity_hash,
                "provenance": self.datamodule.store.provenance,
                "scores": summary.scalars(),
            }
            summary.sae.save(saved[summary.name], about)
        return saved

    def _report(self, summaries: list[Summary], rows_name: str) -> None:
        if is_first_rank():
            show(summaries, rows_name)

    def _take_up_run(self, logger: AtomsMLFlowLogger) -> None:
        """Go on with the run of the checkpoint, or describe a new one."""
        logger.folder = Path(self.trainer.default_root_dir)
        if self.record and self.record.run_id and self.record.tracking_uri == logger.tracking_uri:
            try:
                logger.reattach(self.record.run_id)
                logger.log_missing(self.record.curves, self.record.rows)
                return
            except MlflowException:
                _say(
                    f"note     run {self.record.run_id} is not in {logger.tracking_uri}; this fit gets a run of its own"
                )
        self._describe_run(logger)

    def _describe_run(self, logger: AtomsMLFlowLogger) -> None:
        """Few flat numbers as parameters, so that charts have axes; the rest is in config.yaml."""
        data, configs = self.datamodule, self.model.configs
        first = next(iter(configs.values()))
        params = {
            "members": len(configs),
            "width": data.width[first.site],
            "atoms": first.num_atoms(data.width[first.site]),
            "expansion": first.expansion,
            "power": first.power,
            "error_power": first.error_power,
            "target_l0": first.target_l0,
            "lr": first.lr if first.lr is not None else default_lr(data.width[first.site]),
            "batch_size": data.batch_size,
            "epochs": self.trainer.max_epochs or 0,
            "train_rows": data.num_rows("train"),
            "seed": first.seed,
        }
        logger.log_hyperparams(params)
        counts = [str(config.num_atoms(data.width[config.site])) for config in configs.values()]
        tags = {
            "site": ", ".join(dict.fromkeys(config.site for config in configs.values())),
            "encoder": first.encoder,
            "activation": first.activation,
            "store": data.store.identity_hash[:16],
            "model": str(data.store.provenance.get("model_name", data.store.provenance.get("kind", "?"))),
        }
        if logger.run_name is None:
            # MLflow would draw a name from the seeded generator: the same for every run.
            tags["mlflow.runName"] = f"{tags['site']} {' '.join(counts)} atoms"
        for key, value in tags.items():
            logger.log_tag(key, value)


def run(words: list[str]) -> None:
    """Run ``fit``, ``cache``, ``test`` or ``predict``.

    Args:
        words: The subcommand and its arguments.
    """
    quiet()
    leave_at_exit()
    keep_freed_memory()
    use_fast_float32()
    AtomsCLI(
        TSAEModule,
        ActivationDataModule,
        trainer_class=AtomsTrainer,
        trainer_defaults={
            "logger": {"class_path": "atoms.training.mlflow_logger.AtomsMLFlowLogger"},
            "default_root_dir": "runs",
            "max_epochs": 5,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "log_every_n_steps": 20,
            "use_distributed_sampler": False,
        },
        parser_class=AtomsArgumentParser,
        save_config_callback=SaveConfigToRun,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        args=expand_import(words),
    )


def _partial(output: str) -> Path:
    return Path(output).with_name(f"{Path(output).name}.partial")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value.as_dict() if isinstance(value, Namespace) else value


@rank_zero_only
def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
