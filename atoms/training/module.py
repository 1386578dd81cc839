"""The LightningModule: glue between rows, dictionaries, optimizer and metrics. It holds no mathematics."""

from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from atoms.activations.datamodule import ActivationDataModule
from atoms.activations.stream import OrderedBatch, TrainStream
from atoms.errors import AtomsError
from atoms.sae import Activation, SparseCodes, eager_step, learning_rate_factor, parameter_groups
from atoms.sae.model import Encoder
from atoms.training.checkpoint import KEY, Record
from atoms.training.members import Member, MemberOverrides, member_configs
from atoms.training.mlflow_logger import AtomsMLFlowLogger
from atoms.training.parallel import Layout, supported
from atoms.training.scores import MemberScores

STAGES = ("val", "test", "train_rows")


class TSAEModule(L.LightningModule):
    """Trains one or several sparse autoencoders on the rows of one store.

    Args:
        width: Width of every site; linked from the data, never set by hand.
        site: Site whose rows are learnt; may be left out where the store holds only one.
        expansion: Atoms per coordinate: A = expansion · H.
        power: p, where on the metric path the SAE lives: 0 Euclidean, 1 fully whitened.
        error_power: r, the metric of the reconstruction error: 0 Euclidean, 1 the atomic inner product.
        encoder: ``tied``, ``aligned`` (each encoder row has product one with its decoder row) or ``free``.
        activation: What keeps codes sparse: ``threshold`` (learnt, one per atom), ``relu`` (under an L1 penalty),
            ``topk`` (the largest of a row) or ``batch_topk`` (the largest of a batch). The last three are controls.
        target_l0: Mean number of active atoms per row at the end of training; ``topk`` rounds it.
        lr: Learning rate of Adam, for rows standardised to unit mean square per coordinate; null for 0.12 / sqrt(H).
        clip: Largest norm of a member's gradient.
        seed: Seed of the initial directions.
        members: Several dictionaries in one pass: by name, the settings in which each differs from the above.
    """

    hparams: Any

    def __init__(
        self,
        width: dict[str, int],
        site: str | None = None,
        expansion: float = 4.0,
        power: float = 0.5,
        error_power: float = 0.25,
        encoder: Encoder = "free",
        activation: Activation = "threshold",
        target_l0: float = 32.0,
        lr: float | None = None,
        clip: float = 1.0,
        seed: int = 0,
        members: dict[str, MemberOverrides] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        base = {
            "site": site,
            "expansion": expansion,
            "power": power,
            "error_power": error_power,
            "encoder": encoder,
            "activation": activation,
            "target_l0": target_l0,
            "lr": lr,
            "clip": clip,
            "seed": seed,
        }
        self.configs = member_configs(base, members, list(width))
        self._curves: tuple[int, dict[str, Tensor]] = (0, {})
        """The step last taken and what was logged of it."""
        self.members = nn.ModuleDict()
        self.scores = nn.ModuleDict()

    # ------------------------------------------------------------------------------------------ building

    @property
    def data(self) -> ActivationDataModule:
        """The datamodule of the running trainer."""
        return cast("ActivationDataModule", cast("Any", self.trainer).datamodule)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole fit.

        Counted here: Lightning's own estimate would build the train loader before its state is restored.
        """
        trainer = self.trainer
        limit = trainer.limit_train_batches
        per_epoch = self.data.num_train_batches
        if isinstance(limit, int):
            per_epoch = min(per_epoch, limit)
        else:
            per_epoch = int(per_epoch * (1.0 if limit is None else limit))
        per_epoch = -(-per_epoch // trainer.accumulate_grad_batches)
        if trainer.max_epochs is None or trainer.max_epochs < 0:
            return trainer.max_steps
        steps = per_epoch * trainer.max_epochs
        return min(steps, trainer.max_steps) if trainer.max_steps >= 0 else steps

    def setup(self, stage: str) -> None:
        """Refuse what cannot work before anything is built."""
        if supported(self.trainer.strategy) is not self.trainer.strategy:
            raise AtomsError("trainer.strategy is ModelParallelStrategy: give atoms.training.parallel.TensorParallel")
        if str(self.trainer.precision) in ("bf16-true", "16-true"):
            raise AtomsError(
                f"trainer.precision is {self.trainer.precision!r}: thresholds and sums cannot live in 16 bits; "
                "use 'bf16-mixed' or '32-true'"
            )
        if self.trainer.gradient_clip_val is not None:
            raise AtomsError(
                f"trainer.gradient_clip_val is {self.trainer.gradient_clip_val}, but each member is clipped alone: "
                "set model.clip instead"
            )
        self.data.used_sites = sorted({config.site for config in self.configs.values()})
        if stage == "fit":
            self.data.require_batch()
        if stage == "fit" and self.total_steps < 1:
            raise AtomsError("trainer.max_epochs and trainer.max_steps leave no step to take: set one of them above 0")

    def configure_model(self) -> None:
        """Build the members once the store, and with it the geometry, is known."""
        if self.members:
            return
        self.layout = Layout.of(self)
        rows = max(1, self.total_steps) * self.data.batch_size * self.trainer.accumulate_grad_batches
        for name, config in self.configs.items():
            self.members[name] = Member(
                config, self.data.geometry(config.site), rows, self.layout.shard, self.layout.world
            )
        for stage in STAGES:
            self.scores[stage] = nn.ModuleDict({name: self._new_scores(name) for name in self.configs})
        # Identical on every rank by construction (reduced once a step), so DDP need not broadcast them.
        buffers = [name for name, _ in self.named_buffers()]
        cast("Any", self)._ddp_params_and_buffers_to_ignore = buffers

    def member(self, name: str) -> Member:
        """A member by name."""
        return cast("Member", self.members[name])

    def score(self, stage: str, name: str) -> MemberScores:
        """Running scores of a member on one kind of rows."""
        return cast("MemberScores", cast("nn.ModuleDict", self.scores[stage])[name])

    def _new_scores(self, name: str) -> MemberScores:
        return MemberScores(self.member(name).sae, self.layout.replicas)

    def label(self, stage: str, name: str) -> str:
        """Prefix of a member's metrics: the stage alone where there is one member."""
        return stage if len(self.configs) == 1 else f"{stage}/{name}"

    # ------------------------------------------------------------------------------------------ training

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One Adam with each member's groups; a warm-up, a plateau and a linear fall over the whole fit."""
        groups = [
            group
            for name, config in self.configs.items()
            for group in parameter_groups(self.member(name).sae, config.lr)
        ]
        for group in groups:
            group.pop("name")
        steps = self.total_steps
        fused = self.device.type in ("cuda", "cpu")
        optimizer = torch.optim.Adam(groups, fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Tell loggers what a step is worth and what this run is."""
        self._stats: list[Tensor] | None = None
        for logger in self.trainer.loggers:
            if isinstance(logger, AtomsMLFlowLogger):
                logger.rows_per_step = self.data.batch_size * self.trainer.accumulate_grad_batches

    def on_train_epoch_start(self) -> None:
        """Begin the epoch's own order of rows, also where `limit_train_batches` cut the last one short.

        Lightning does not call this on resuming amid an epoch, where the stream's saved position holds.
        """
        cast("TrainStream", self.trainer.train_dataloader).seek(self.current_epoch, 0)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Sum of the members' losses; statistics wait for the optimizer step."""
        losses, stats = [], []
        for name, config in self.configs.items():
            member = self.member(name)
            out = eager_step(member.sae, member.control, batch[config.site].float())
            losses.append(out.loss)
            curves = torch.stack([out.loss.detach(), out.parts["revival"]]).double()
            # Weighed by the rows this process answers for, the first of the statistics.
            stats.append(torch.cat([curves * out.stats[0], out.stats]))
        self._stats = stats if self._stats is None else [old + new for old, new in zip(self._stats, stats, strict=True)]
        return torch.stack(losses).sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Add the ranks' statistics in one reduction and let every control act on them."""
        assert self._stats is not None
        self.layout.average_gradients_(self.parameters())
        flat = torch.cat(self._stats)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(flat)
        sizes = [len(stats) for stats in self._stats]
        self._stats = None
        logged: dict[str, Tensor] = {}
        for name, stats in zip(self.configs, torch.split(flat, sizes), strict=True):
            member = self.member(name)
            control = member.control
            control.update(stats[2:])
            control.project_gradients_(member.sae)
            loss, revival = stats[:2] / stats[2]
            curves = {
                "loss": loss,
                "error": control.residual,
                "revival": revival,
                "l0": control.mean_l0,
            }
            logged |= {f"{self.label('train', name)}/{key}": value.float() for key, value in curves.items()}
        self.log_dict(logged)
        self._curves = (self.trainer.global_step + 1, logged)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip each member by its own norm, so that it trains as it would alone."""
        for name, config in self.configs.items():
            self.member(name).sae.clip_gradients_(config.clip)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then put decoder rows and thresholds back where they belong."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for name in self.configs:
            member = self.member(name)
            member.control.after_step_(member.sae)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record of the run."""
        logger = next((logger for logger in self.trainer.loggers if isinstance(logger, AtomsMLFlowLogger)), None)
        if logger:
            logger.settle()  # what a resumed fit will not log again
        step, curves = self._curves
        every = cast("Any", self.trainer).log_every_n_steps
        unsent = logger is not None and step > 0 and every > 0 and step % every == 0
        checkpoint[KEY] = Record(
            store=self.data.path.absolute,
            identity=self.data.store.identity_hash,
            data=self.data.order_settings(),
            run_id=logger.run_id if logger else None,
            tracking_uri=logger.tracking_uri if logger else None,
            curves={key: float(value) for key, value in curves.items()} if unsent else {},
            rows=step * self.data.batch_size * self.trainer.accumulate_grad_batches,
        ).to_dict()

    # ------------------------------------------------------------------------------------------ judging

    def score_batch(self, batch: dict[str, Tensor], stage: str) -> None:
        """Take one batch into every member's scores."""
        for name, config in self.configs.items():
            self.score(stage, name).update(self.member(name).sae, batch[config.site].float())

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Held-out rows first; a second loader holds as many training rows, for the memorisation gap."""
        self.score_batch(batch, ("val", "train_rows")[dataloader_idx])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Rows of the test split."""
        self.score_batch(batch, "test")

    def on_validation_epoch_start(self) -> None:
        """Forget the rows of the last validation."""
        self._forget("val", "train_rows")

    def on_test_epoch_start(self) -> None:
        """Forget the rows of the last test."""
        self._forget("test")

    def _forget(self, *stages: str) -> None:
        for stage in stages:
            for name in self.configs:
                sae = self.member(name).sae
                if self.score(stage, name).geometry is sae.geometry:
                    self.score(stage, name).reset()
                else:  # a checkpoint brought its own
                    cast("nn.ModuleDict", self.scores[stage])[name] = self._new_scores(name).to(self.device)

    def on_validation_epoch_end(self) -> None:
        """Log the cheap scores."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the cheap scores."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        for name in self.configs:
            values = {
                f"{self.label(stage, name)}/{key}": value.float()
                for key, value in self.score(stage, name).compute().items()
            }
            # Already reduced over ranks by the metrics themselves; sync_dist only tells Lightning so.
            self.log_dict(values, sync_dist=True)

    # ------------------------------------------------------------------------------------------ predicting

    def predict_step(self, batch: OrderedBatch, batch_idx: int) -> dict[str, SparseCodes]:
        """Sparse codes of a batch, by member."""
        if self.layout.shard.size > 1:
            raise AtomsError(
                "trainer.strategy shards atoms, but codes are written by whole rows: predict under ddp, or with "
                "trainer.devices=1"
            )
        return {
            name: self.member(name).sae.encode_sparse(batch.rows[config.site].float())
            for name, config in self.configs.items()
        }
