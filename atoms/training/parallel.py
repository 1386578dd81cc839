"""Fits on several processes: replicas that share the rows, shards that share the atoms, or a grid of both."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)
from torch import nn
from torch.optim import Optimizer

from atoms.errors import AtomsError
from atoms.sae import Shard, ThresholdSAE
from atoms.sae.model import PER_ATOM

NAME = "tensor_parallel"
"""What ``--trainer.strategy`` calls it."""


@dataclass(frozen=True)
class Layout:
    """Where this process stands in the grid of processes.

    Attributes:
        shard: The atoms it holds; all of them unless the strategy is `TensorParallel`.
        replicas: The processes that hold the same atoms and see other rows; None stands for all processes.
        world: All processes; None where there is only one.
    """

    shard: Shard
    replicas: dist.ProcessGroup | None = None
    world: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, module: L.LightningModule) -> "Layout":
        """The layout of a module whose strategy has set up its processes."""
        world = dist.group.WORLD if module.trainer.world_size > 1 else None
        mesh = module.device_mesh
        if mesh is None:
            return cls(Shard(), world=world)
        across = mesh["tensor_parallel"]
        shard = Shard(across.get_local_rank(), across.size(), across.get_group())
        return cls(shard, mesh["data_parallel"].get_group(), world)

    def average_gradients_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients over the replicas; where the strategy does that itself, as DDP, nothing is left to do."""
        if self.replicas is None or self.replicas.size() == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        works = [dist.all_reduce(gradient, group=self.replicas, async_op=True) for gradient in gradients]
        for gradient, work in zip(gradients, works, strict=True):
            work.wait()
            gradient.div_(self.replicas.size())


class TensorParallel(ModelParallelStrategy):
    """Deals the atoms of every dictionary to the processes of a group; several such groups share the rows.

    Lightning's own strategy of the same arguments, from which it takes processes and mesh. It differs in what is
    sharded, which our modules do themselves (`atoms.sae.shard`), and in that checkpoints are those of any other
    strategy: one file with whole tensors, which any number of processes can go on from. To save one, its first process
    collects weights and optimizer state in host memory, three times the weights; to load one, every process maps the
    file and reads its own atoms.

    Args:
        data_parallel_size: Groups that share the rows; auto for as many as the other size leaves, or one per node.
        tensor_parallel_size: Processes that share the atoms; auto for as many as the other size leaves, or those of a
            node.
    """

    def __init__(
        self,
        data_parallel_size: Literal["auto"] | int = "auto",
        tensor_parallel_size: Literal["auto"] | int = "auto",
    ) -> None:
        super().__init__(data_parallel_size, tensor_parallel_size, save_distributed_checkpoint=False)
        self.sizes = (data_parallel_size, tensor_parallel_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Both sizes, settled.

        Raises:
            AtomsError: If they do not multiply to the number of processes.
        """
        world = self.num_processes * self.num_nodes
        data, tensor = (None if size == "auto" else size for size in self.sizes)
        if data is None:
            data = self.num_nodes if tensor is None else max(1, world // tensor)
        if tensor is None:
            tensor = max(1, world // data)
        if data * tensor != world:
            raise AtomsError(
                f"trainer.strategy: data_parallel_size {data} times tensor_parallel_size {tensor} is not {world}, the "
                "number of processes (trainer.devices times trainer.num_nodes): change one of them"
            )
        return data, tensor

    def setup_environment(self) -> None:
        """Start the processes and lay them out."""
        self._data_parallel_size, self._tensor_parallel_size = self.grid
        super().setup_environment()

    # ------------------------------------------------------------------------------------------ checkpoints

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The optimizer's state comes with the checkpoint that `load_checkpoint` returns."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors on the first process, nothing elsewhere; every process must call it."""
        assert self.lightning_module is not None
        shards = _sharded(self.lightning_module)
        state = self.lightning_module.state_dict()
        for name, (shard, total) in shards.items():
            state[name] = shard.gather(state[name], total)
        return state if self.is_global_zero else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole tensors on the first process, nothing elsewhere; every process must call it."""
        state: dict[str, Any] = super(ModelParallelStrategy, self).optimizer_state(optimizer)
        # Not changed in place: the inner dictionaries are the optimizer's own.
        whole = {
            index: {
                key: shard.gather(value, total) if shard and value.ndim else value
                for key, value in state["state"][index].items()
            }
            for index, (shard, total) in self._parts(optimizer).items()
            if index in state["state"]
        }
        return {**state, "state": whole} if self.is_global_zero else {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write one file, as every other strategy does."""
        super(ModelParallelStrategy, self).save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Map the file, so that only what is taken from it is read."""
        content: dict[str, Any] = torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)
        return content

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's atoms of a checkpoint of any strategy."""
        assert self.lightning_module is not None
        state = dict(checkpoint["state_dict"])
        for name, (shard, total) in _sharded(self.lightning_module).items():
            if name in state:
                state[name] = state[name][shard.atoms(total)]
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the state of this process's atoms."""
        states = []
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parts = self._parts(optimizer)
            own = {}
            for index, values in state["state"].items():
                shard, total = parts[index]
                # Copied out of the mapped file: the optimizer would hold on to all of it.
                own[index] = {
                    key: (value[shard.atoms(total)] if shard and value.ndim else value).clone()
                    for key, value in values.items()
                }
            states.append({**state, "state": own})
        super(ModelParallelStrategy, self).load_optimizer_state_dict({"optimizer_states": states})

    def _parts(self, optimizer: Optimizer) -> dict[int, tuple[Shard | None, int]]:
        """By index in the optimizer's state: the shard of a parameter and its atoms in all, or None and 0."""
        assert self.lightning_module is not None
        shards = _sharded(self.lightning_module)
        names = {id(parameter): name for name, parameter in self.lightning_module.named_parameters()}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return {index: shards.get(names[id(parameter)], (None, 0)) for index, parameter in enumerate(parameters)}


StrategyRegistry.register(NAME, TensorParallel, description="Deals the atoms of every dictionary to the devices")


def _sharded(module: nn.Module) -> dict[str, tuple[Shard, int]]:
    """By name in the state dict: the shard of a parameter that has a row per atom, and the number of atoms in all."""
    return {
        f"{prefix}.{name}": (sae.shard, sae.num_atoms)
        for prefix, sae in module.named_modules()
        if isinstance(sae, ThresholdSAE)
        for name, _ in sae.named_parameters()
        if name in PER_ATOM
    }


def supported(strategy: str | Strategy) -> str | Strategy:
    """The strategy a fit runs under when asked for one; Lightning's `ModelParallelStrategy` becomes ours.

    Raises:
        AtomsError: If it is one that a fit cannot run under.
    """
    if type(strategy) is ModelParallelStrategy:
        return TensorParallel(strategy._data_parallel_size, strategy._tensor_parallel_size)
    known = (DDPStrategy, SingleDeviceStrategy, TensorParallel)
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    # "auto" and the names that only Lightning can resolve come again as objects, when a fit begins.
    sharding = isinstance(strategy, str) and strategy.partition("_")[0] in ("fsdp", "deepspeed")
    if sharding or not isinstance(strategy, (str, *known)):
        raise AtomsError(
            f"trainer.strategy is {name}, under which atoms does not train: use ddp, or {NAME}, which shards "
            "weights, gradients and optimizer state by atoms"
        )
    return strategy


def fresh(strategy: str | Strategy) -> str | Strategy:
    """A strategy of the same settings for another trainer, where one object cannot serve two."""
    return TensorParallel(*strategy.sizes) if isinstance(strategy, TensorParallel) else strategy
