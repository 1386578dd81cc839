"""One experiment: every arm tuned by the same rule, run on the same seeds and batches, and compared."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from atoms.activations.files import write_file
from atoms.activations.language_model import load_causal_model, load_tokenizer, quiet_transformers
from atoms.activations.model_source import ResolvedModel
from atoms.conditioning.selection import Candidate
from atoms.errors import AtomsError
from atoms.silent_trainer import silent_trainer
from atoms.tuning.arms import Arm, Plan, Share, plan
from atoms.tuning.curves import Curve, Recorder
from atoms.tuning.kappa_tune import KappaTune
from atoms.tuning.language_model import CausalLM, batches
from atoms.tuning.text import Text

_VERSION = 3
ASKED_IN_SEARCH = ("train", "val", "general")
"""Losses that are measured while rates are tried. ``val`` alone chooses; the others tell how much hangs on the choice.
The test text is not looked at."""
ASKED_IN_RUNS = ("train", "test", "general")
"""Losses that are measured at the rate that was taken; ``val``, by which it was chosen, has no more to say."""
_STEP = 10**0.5
"""From one learning rate to the next where the search goes on past the end of the list."""
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class Recipe:
    """How every arm is trained; the same for all but the learning rate, which is found for each by the same rule."""

    steps: int = 200
    """Optimizer steps of a run."""
    batch_size: int = 16
    """Blocks of a step, over all ranks."""
    warmup: int = 10
    """Steps until the learning rate is reached; constant after them."""
    learning_rates: list[float] = field(default_factory=lambda: [1e-4, 3e-4, 1e-3, 3e-3])
    """Rates tried for every arm. Where the best is the first or last, the search goes on beyond it."""
    extensions: int = 2
    """Rates tried at most beyond either end."""
    tie: float = 0.05
    """Of rates whose gain in validation loss is less than the best one's by at most this share, the lowest is taken."""
    seeds: int = 5
    """Runs of every arm at its rate; seed 0, on which rates are tried, is none of them."""
    points: int = 10
    """Points of a curve after the start, at equal steps of the square root: dense where most is learnt."""
    eval_tokens: int = 8192
    """Tokens of each text on which losses are measured, at most."""
    clip: float = 1.0
    """Largest norm of a gradient; 0 for none."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        for name in ("steps", "batch_size", "seeds", "points", "eval_tokens"):
            if getattr(self, name) < 1:
                raise AtomsError(f"recipe.{name} is {getattr(self, name)}: give at least 1")
        for name in ("warmup", "extensions", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise AtomsError(f"recipe.{name} is {getattr(self, name)}: give 0 or more")
        if not 0 <= self.tie < 1:
            raise AtomsError(f"recipe.tie is {self.tie}: give a number of at least 0 and below 1")
        rates = self.learning_rates
        if not rates or not all(0 < rate < math.inf for rate in rates) or sorted(set(rates)) != rates:
            raise AtomsError(f"recipe.learning_rates is {rates}: give ascending numbers above 0")

    @property
    def at(self) -> list[int]:
        """Steps at which losses are measured."""
        return sorted({round(self.steps * (k / self.points) ** 2) for k in range(self.points + 1)})


@dataclass(frozen=True)
class Run:
    """One run of an arm.

    Attributes:
        arm: The arm's name.
        lr: Learning rate.
        seed: Of batches, adapters and random choices; 0 while rates are tried.
        trained: Parameters that were trained.
        rank: Of adapters; None where there are none.
        chosen: Tensors that an order chose.
        curve: Losses.
    """

    arm: str
    lr: float
    seed: int
    trained: int
    rank: int | None
    chosen: list[str]
    curve: Curve

    @property
    def best(self) -> float:
        """Lowest loss on the validation text while rates are tried; infinite where the run diverged."""
        return math.inf if self.diverged else min(self.curve.losses["val"])

    @property
    def diverged(self) -> bool:
        """Whether a loss ceased to be a number, on the way or at the end."""
        return not all(math.isfinite(value) for values in self.curve.losses.values() for value in values)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "curve": self.curve.to_json()}

    @staticmethod
    def from_json(record: dict[str, Any]) -> Run:
        """What `to_json` wrote."""
        return Run(**{**record, "curve": Curve(**record["curve"])})


@dataclass(frozen=True, eq=False)
class Bench:
    """What all runs share.

    Attributes:
        model: The model that every run begins with.
        candidates: Its tensors, surveyed.
        text: Blocks.
        recipe: How to train.
        share: How much to train.
        trainer: Where to run: accelerator, devices, strategy, num_nodes, precision.
        folder: Where finished runs are kept.
        keep: Whether the model of every arm's first seed is saved.
        said: Called with tokens that are done.
        expected: Called with tokens that come on top of what was planned.
    """

    model: ResolvedModel
    candidates: Sequence[Candidate]
    text: Text
    recipe: Recipe
    share: Share
    trainer: dict[str, Any]
    folder: Path
    keep: bool = False
    said: Callable[[int], None] = lambda _: None
    expected: Callable[[int], None] = lambda _: None

    @property
    def tokens_per_run(self) -> int:
        """Tokens that a run learns from."""
        return self.recipe.steps * self.tokens_per_step

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step over all ranks."""
        return self.recipe.batch_size * self.text.train.ids.shape[1]


def search(bench: Bench, arm: Arm) -> list[Run]:
    """Try learning rates, and go on beyond an end of the list while the best lies there.

    Args:
        bench: What all runs share.
        arm: The arm.

    Returns:
        The runs, by ascending rate; `best_of` says which rate is taken.
    """
    recipe = bench.recipe
    found: dict[float, Run] = {}

    def try_(lr: float) -> None:
        found[lr] = run(bench, arm, lr, 0)

    for lr in recipe.learning_rates:
        try_(lr)
    for up in (True, False):
        for _ in range(recipe.extensions):
            edge, best = max(found) if up else min(found), best_of(list(found.values()))
            if best.lr != edge or (up and best.diverged):
                break
            bench.expected(bench.tokens_per_run)
            try_(float(f"{edge * _STEP if up else edge / _STEP:.3g}"))
    return [found[lr] for lr in sorted(found)]


def best_of(runs: Sequence[Run], tie: float = 0.0) -> Run:
    """The run of lowest validation loss at any point of its curve; of runs that come near it, that of the lowest rate.

    A rate three times as high forgets far more: noise of a hundredth of a nat shall not choose it.

    Args:
        runs: Of one arm.
        tie: What counts as near, as a share of the best one's gain over its start.
    """
    best = min(runs, key=lambda each: each.best)
    if best.diverged:
        return min(runs, key=lambda each: each.lr)
    near = best.best + tie * (best.curve.losses["val"][0] - best.best)
    return min((each for each in runs if each.best <= near), key=lambda each: each.lr)


def run(bench: Bench, arm: Arm, lr: float, seed: int) -> Run:
    """Train once, or read what an earlier call of the same experiment left.

    Args:
        bench: What all runs share.
        arm: The arm.
        lr: Learning rate.
        seed: Of batches, adapters and random choices.

    Raises:
        AtomsError: If the arm cannot be run on this model.
    """
    name = f"{arm.name}-lr{lr}-seed{seed}"
    file, kept = bench.folder / "runs" / f"{name}.json", bench.folder / "models" / name
    keep = bench.keep and seed == 1
    if file.exists() and (kept.exists() or not keep):
        bench.said(bench.tokens_per_run)
        return _read(file)
    model: nn.Module = load_causal_model(bench.model)
    planned = plan(arm, model, bench.candidates, bench.share, seed)
    finished, model = _train(bench, planned, model, lr, seed)
    if keep:
        _save(model, planned, bench.model, kept)
    _write(file, finished.to_json())
    return finished


def _train(bench: Bench, planned: Plan, model: nn.Module, lr: float, seed: int) -> tuple[Run, nn.Module]:
    recipe, text = bench.recipe, bench.text
    torch.manual_seed(seed)
    if planned.arm.method == "full":
        model = model.float()  # as tensors and adapters are trained in
    model = planned.apply(model)
    names = ASKED_IN_SEARCH if seed == 0 else ASKED_IN_RUNS
    few = {name: getattr(text, name).take(recipe.eval_tokens) for name in names}
    recorder = Recorder(few, recipe.at, recipe.batch_size, bench.tokens_per_step, bench.said)
    callbacks: list[L.Callback] = [recorder]
    if planned.arm.method == "tensors":
        callbacks.append(KappaTune(selection=planned.selection, submodule="model"))
    trainer = make_trainer(bench.trainer, callbacks, max_steps=recipe.steps, gradient_clip_val=recipe.clip or None)
    rank, world = trainer.global_rank, trainer.world_size
    if recipe.batch_size % world:
        raise AtomsError(f"recipe.batch_size is {recipe.batch_size}: give a multiple of the {world} processes")
    trainer.fit(
        CausalLM(model, lr, recipe.warmup), batches(text.train, recipe.batch_size, recipe.steps, seed, rank, world)
    )
    chosen = [] if planned.selection is None else planned.selection.names
    return Run(planned.arm.name, lr, seed, planned.trained, planned.rank, chosen, recorder.curve), model


@rank_zero_only
def _save(model: Any, planned: Plan, source: ResolvedModel, folder: Path) -> None:
    """The whole model with its tokenizer, adapters merged, as any other command reads it."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    whole = model if planned.rank is None else model.merge_and_unload()
    # Training took it away.
    whole.config.use_cache = getattr(source.config, "use_cache", True)
    with quiet_transformers():
        whole.save_pretrained(partial)
    load_tokenizer(source).save_pretrained(partial)
    if planned.selection is not None:
        _write(partial / "selection.json", planned.selection.to_json())
    shutil.rmtree(folder, ignore_errors=True)  # there where a run was killed right after this, or its file deleted
    partial.rename(folder)


def make_trainer(place: dict[str, Any], callbacks: list[L.Callback], **settings: Any) -> L.Trainer:
    """A silent trainer under which runs can be compared.

    Args:
        place: Where to run.
        callbacks: What happens on the way.
        settings: What else the trainer is told.

    Raises:
        AtomsError: If there is no such place, or runs cannot be compared there.
    """
    trainer = silent_trainer(place, callbacks, **settings)
    # Losses are measured by this very object, in these processes; a sharded model could not be asked.
    spawning = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
    if spawning or not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        name = place.get("strategy", "auto")
        raise AtomsError(f"trainer.strategy is {name}, under which atoms does not tune: use ddp, or auto on one device")
    if trainer.precision not in _PRECISIONS:
        raise AtomsError(f"trainer.precision is {trainer.precision}: give one of {', '.join(_PRECISIONS)}")
    return trainer


def claim(folder: Path, identity: dict[str, Any], look: bool = False) -> None:
    """Take a folder for one experiment, new or begun before.

    Args:
        folder: The folder.
        identity: All that the runs depend on, as plain values.
        look: Only whether it can be taken; nothing is written.

    Raises:
        AtomsError: If it holds another experiment.
    """
    content = json.dumps({"version": _VERSION, **identity}, sort_keys=True, default=str)
    mark = hashlib.sha256(content.encode()).hexdigest()
    file = folder / "experiment.json"
    if file.exists():
        try:
            known = json.loads(file.read_text()).get("digest")
        except (ValueError, AttributeError):
            known = None
        if known != mark:
            raise AtomsError(f"output is {folder}, which holds another experiment: name another folder, or delete it")
    elif not look:
        _write(file, {"digest": mark, "settings": json.loads(content)})


@rank_zero_only
def _write(file: Path, record: dict[str, Any]) -> None:
    write_file(file, json.dumps(record, indent=1).encode())


def _read(file: Path) -> Run:
    try:
        return Run.from_json(json.loads(file.read_text()))
    except (ValueError, TypeError, KeyError) as error:
        raise AtomsError(f"{file} is damaged ({error}): delete it, and it is run again") from error
