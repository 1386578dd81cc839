"""``atoms tune``: what fine-tuning recipes learn and what they forget, at equal loss."""

import contextlib
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from rich.console import Console
from torch import nn

from atoms.activations.language_model import load_causal_model, load_tokenizer, max_context, require_causal
from atoms.activations.model_source import ModelSpec, ResolvedModel, resolve
from atoms.commands.findings import log_files, png, say_unlogged, write
from atoms.commands.parser import AtomsArgumentParser, is_first_rank, quiet, readable
from atoms.conditioning.selection import candidates_of
from atoms.conditioning.survey import MAX_DIM, survey
from atoms.conditioning.weights import weights_of
from atoms.errors import AtomsError, printable
from atoms.memory import require_memory
from atoms.precision import use_fast_float32
from atoms.processes import leave_at_exit
from atoms.progress import Meter, duration, size
from atoms.training.certificate_log import NOWHERE
from atoms.training.mlflow_logger import AtomsMLFlowLogger, child_run
from atoms.tuning import experiment
from atoms.tuning.adapters import require_peft
from atoms.tuning.arms import ARMS, Plan, Share, plan
from atoms.tuning.comparison import comparisons
from atoms.tuning.curves import LOSSES, mean_loss
from atoms.tuning.experiment import (
    ASKED_IN_RUNS,
    ASKED_IN_SEARCH,
    Bench,
    Recipe,
    Run,
    best_of,
    claim,
    make_trainer,
    search,
)
from atoms.tuning.figures import draw
from atoms.tuning.language_model import CausalLM
from atoms.tuning.record import Found, csv_rows, notes, numbers, screen, to_json
from atoms.tuning.text import GeneralText, TaskText, Text, read_text

FILE = "tune.json"
_NOT_IN_A_RUN = ("learning_rates", "extensions", "tie", "seeds")  # of a recipe; they may change in a folder
USUAL = ["full", "lora", "kappa", "kappa_lora", "reversed", "random", "random_lora", "relative"]
"""Arms that are run where none are named."""


def run(words: list[str]) -> None:
    """Run ``tune``.

    Args:
        words: The command's arguments.

    Raises:
        AtomsError: If the experiment cannot be run.
    """
    parser = AtomsArgumentParser(
        prog="atoms tune",
        description="Fine-tune a causal language model by several recipes, and compare what they forget where they "
        "have learnt the same.",
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML file with the settings below.")
    parser.add_argument("--model", type=ModelSpec, help="The model that every run begins with.")
    parser.set_defaults({"model.dtype": "float32"})
    parser.add_argument("--task", type=TaskText, help="What is learnt.")
    parser.add_argument("--general", type=GeneralText, help="What may be forgotten.")
    parser.add_argument("--context", type=int, default=128, help="Tokens of a block of text.")
    parser.add_argument("--arms", type=list[str], default=USUAL, help=f"Recipes: {', '.join(ARMS)}.")
    parser.add_argument(
        "--references",
        type=list[str],
        default=["full", "lora", "random", "random_lora"],
        help="Arms to hold the others against.",
    )
    parser.add_argument("--budget", type=Share, help="What all arms but full train.")
    parser.add_argument("--recipe", type=Recipe, default=Recipe())
    parser.add_argument("--max_dim", type=int, default=MAX_DIM, help="Larger matrices are no candidates.")
    parser.add_argument("--seed", type=int, default=0, help="Of splits and of the order of documents.")
    parser.add_argument("--trainer.accelerator", type=str, default="auto", help="As Lightning's Trainer.")
    parser.add_argument("--trainer.devices", type=int | str | list[int], default="auto", help="As Lightning's Trainer.")
    parser.add_argument("--trainer.num_nodes", type=int, default=1, help="As Lightning's Trainer.")
    parser.add_argument("--trainer.strategy", type=str, default="auto", help="As Lightning's Trainer.")
    parser.add_argument("--trainer.precision", type=str, default="32-true", help="As Lightning's Trainer.")
    parser.add_argument("--keep_models", type=bool, default=False, help="Save the model of every arm's first seed.")
    parser.add_argument("--output", type=str, default="tune", help="Folder; a killed experiment goes on in it.")
    parser.add_argument("--tracking_uri", type=str | None, default=None, help="Of MLflow; 'none' keeps no run.")
    parser.add_argument("--experiment", type=str, default="tune", help="MLflow experiment.")
    parser.add_argument("--plain", type=bool, default=False, help="No colours.")
    with readable():
        settings = parser.parse_args(words)
        built = parser.instantiate_classes(settings)
    for name in ("model", "task", "general", "budget"):
        if built.get(name) is None:
            raise AtomsError(f"{name} is not set: configs/tune/stdlib.yaml shows all settings")
    quiet()
    leave_at_exit()
    use_fast_float32()
    settings.pop("config", None)
    try:
        tune(built, settings.as_dict())
    except AtomsError as error:
        raise AtomsError(str(error).replace("data.harvest.model.", "model.").replace("data.harvest.", "")) from error


def tune(built: Any, asked: dict[str, Any]) -> Found:
    """Run an experiment, print what came out, and leave files and MLflow runs.

    Args:
        built: The command's settings, as objects.
        asked: The same as plain values, for the record.

    Raises:
        AtomsError: If it cannot be run.
    """
    arms = _arms(built)
    bench, plans, seconds, stored = _prepare(built, arms)
    recipe = bench.recipe
    folder, first = bench.folder, is_first_rank()
    total = len(arms) * (len(recipe.learning_rates) + recipe.seeds) * bench.tokens_per_run
    if first:
        _say_cost(built, bench, plans, total, seconds, stored)
    claim(folder, _identity(built, bench.model))
    logged = _Log(built, bench) if first else None
    try:
        searched, runs = _run_all(bench, arms, Meter("tune", total, enabled=first), logged)
        start = {name: values[0] for name, values in _any_losses(searched, runs).items()}  # all runs begin alike
        curves = {arm: {each.seed: each.curve for each in group} for arm, group in runs.items()}
        title = f"{Path(built.model.name).name} on {type(built.task.corpus).__name__}"
        found = Found(title, start, searched, runs, comparisons(curves, built.references))
        if first:
            _leave(found, built, folder, asked, logged)
    except BaseException:
        if logged:
            logged.failed()
        raise
    return found


def _run_all(
    bench: Bench, arms: list[str], meter: Meter, logged: "_Log | None"
) -> tuple[dict[str, list[Run]], dict[str, list[Run]]]:
    """Runs at the rates that were tried, and at the rate that was taken, by arm."""
    recipe = bench.recipe
    doing = ""
    meter.note = lambda: doing
    searched: dict[str, list[Run]] = {}
    runs: dict[str, list[Run]] = {}

    def expect(tokens: int) -> None:
        meter.total += tokens

    with meter:
        bench = replace(bench, said=meter.advance, expected=expect)
        for name in arms:
            doing = f"{name}: rates"
            searched[name] = search(bench, ARMS[name])
            taken = best_of(searched[name], recipe.tie)
            if taken.diverged:
                expect(-recipe.seeds * bench.tokens_per_run)
            else:
                runs[name] = []
                for seed in range(1, recipe.seeds + 1):
                    doing = f"{name}: seed {seed}"
                    runs[name].append(experiment.run(bench, ARMS[name], taken.lr, seed))
            if logged:
                logged.runs(searched[name], runs.get(name, []))
    if not runs:
        raise AtomsError(f"arms {', '.join(arms)} diverge at every rate: set recipe.learning_rates lower")
    return searched, runs


def _any_losses(searched: dict[str, list[Run]], runs: dict[str, list[Run]]) -> dict[str, list[float]]:
    """Losses of one run of the search and of one after it, which together are all."""
    arm = next(iter(runs))
    asked = searched[arm][0].curve.losses | runs[arm][0].curve.losses
    return {name: asked[name] for name in LOSSES}


def _arms(built: Any) -> list[str]:
    for setting in ("arms", "references"):
        for name in getattr(built, setting):
            if name not in ARMS:
                raise AtomsError(f"{setting} names {name!r}: there are {', '.join(ARMS)}")
    names = list(dict.fromkeys(built.arms))
    if not names:
        raise AtomsError(f"arms is empty: name some of {', '.join(ARMS)}")
    if any(ARMS[name].method == "adapters" for name in names):
        require_peft()
    return names


def _prepare(built: Any, arms: list[str]) -> tuple[Bench, list[Plan], float, int]:
    """Everything that all runs share, what each arm trains, seconds of a forward for a token, bytes of the model."""
    trainer = make_trainer(built.trainer.as_dict(), [])
    if built.recipe.batch_size % trainer.world_size:
        raise AtomsError(
            f"recipe.batch_size is {built.recipe.batch_size}: give a multiple of the {trainer.world_size} processes"
        )
    if built.model.device_map is not None:
        raise AtomsError(
            f"model.device_map is {built.model.device_map}: a model is tuned where trainer says; leave it out"
        )
    resolved = resolve(built.model)
    require_causal(resolved.config, built.model.name)
    tokenizer = load_tokenizer(resolved)
    longest = max_context(resolved.config, tokenizer)
    if built.context < 2 or (longest is not None and built.context > longest):
        most = "" if longest is None else f" and at most {longest}"
        raise AtomsError(f"context is {built.context}: give at least 2{most}")
    vocabulary = getattr(resolved.config.get_text_config(), "vocab_size", None)
    text = read_text(built.task, built.general, tokenizer, vocabulary, built.context, built.seed)
    claim(Path(built.output), _identity(built, resolved), look=True)
    if is_first_rank():
        for note in text.notes:
            print(f"note     {printable(note)}")
    model: nn.Module = load_causal_model(resolved)
    _require_mixed(model, trainer.precision)
    device = trainer.strategy.root_device
    seconds = _seconds_a_token(model.to(device), text, built.recipe.batch_size)
    weights = weights_of(model)
    with Meter("survey", len(weights), "tensors", enabled=is_first_rank()) as meter:
        at = torch.device("cpu") if device.type == "mps" else device  # no float64 there
        candidates = candidates_of(survey(weights, built.max_dim, device=at, done=lambda _: meter.advance(1)))
    model.to("cpu")
    bench = Bench(
        resolved,
        candidates,
        text,
        built.recipe,
        built.budget,
        built.trainer.as_dict(),
        Path(built.output),
        built.keep_models,
    )
    plans = []
    for name in arms:  # before anything is trained, every draw that will be
        draws = range(built.recipe.seeds + 1) if ARMS[name].order == "random" else (1,)
        plans.append([plan(ARMS[name], model, candidates, built.budget, seed) for seed in draws][-1])
    if is_first_rank():
        _say_plans(plans, built.budget.of(candidates), text)
    return bench, plans, seconds, sum(each.nbytes for each in model.parameters())


def _require_mixed(model: nn.Module, precision: str) -> None:
    """Refuse what would be found when the first tensors are trained, hours later."""
    kinds = {each.dtype for each in model.parameters() if each.is_floating_point() and each.element_size() < 4}
    if kinds and not precision.endswith("-mixed"):
        said = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise AtomsError(
            f"trainer.precision is {precision} and the model in {said}: what is trained is held in float32, so set "
            "trainer.precision to bf16-mixed, or model.dtype to float32"
        )


def _seconds_a_token(model: nn.Module, text: Text, batch_size: int) -> float:
    """How long a forward takes where runs will be, for a token of a batch."""
    module = CausalLM(model, 0.0)
    few = text.train.take(batch_size * text.train.ids.shape[1])
    mean_loss(module, few, batch_size)  # the first call also finds its kernels
    began = time.monotonic()
    mean_loss(module, few, batch_size)
    return (time.monotonic() - began) / few.tokens


def _say_plans(plans: list[Plan], wanted: int, text: Text) -> None:
    parts = (f"{name} {getattr(text, name).tokens:,}" for name in LOSSES)
    print(f"text     tokens: {', '.join(parts)}")
    for each in plans:
        rank = "" if each.rank is None else f", rank {each.rank}"
        tensors = "" if each.selection is None else f" in {len(each.selection.chosen)} tensors"
        far = each.arm.method != "full" and abs(each.trained - wanted) > 0.1 * wanted
        said = f"; the budget is {wanted:,}" if far else ""
        print(f"arm      {each.arm.name}: {each.trained:,} parameters{tensors}{rank}{said}")


def _say_cost(built: Any, bench: Bench, plans: list[Plan], total: int, seconds: float, stored: int) -> None:
    recipe = bench.recipe
    runs = len(plans) * (len(recipe.learning_rates) + recipe.seeds)
    asked = {name: getattr(bench.text, name).take(recipe.eval_tokens).tokens for name in LOSSES}
    searched = len(recipe.learning_rates) * sum(asked[name] for name in ASKED_IN_SEARCH)
    after = recipe.seeds * sum(asked[name] for name in ASKED_IN_RUNS)
    measured = len(plans) * len(recipe.at) * (searched + after)
    # Backward costs twice a forward.
    print(
        f"cost     {runs} runs of {recipe.steps} steps, {total:,} tokens to learn from and {measured:,} to measure on"
        f", about {duration(seconds * (3 * total + measured))} on one device"
    )
    trained = 16 * max(each.trained for each in plans)
    print(f"memory   {size(stored)} for the model, beside activations; {size(trained)} for what the largest arm")
    print("         trains, with gradients and two moments in float32")
    if built.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        fix = "set model.dtype to bfloat16, lower budget, leave full out of arms, or name a smaller model"
        require_memory(stored + trained, "the model with what is trained of it", fix)
    if bench.keep:
        print(f"disk     {size(len(plans) * (stored + trained // 4))} at most for the models in {built.output}/models")


def _identity(built: Any, model: ResolvedModel) -> dict[str, Any]:
    """All that runs depend on."""
    return {
        "model": model.identity,
        "dtype": built.model.dtype,
        "task": built.task.corpus.digest(),
        "general": built.general.corpus.digest(),
        "shares": [
            built.task.max_tokens,
            built.task.val,
            built.task.test,
            built.general.max_tokens,
            built.general.share,
        ],
        "context": built.context,
        "budget": asdict(built.budget),
        "recipe": {key: value for key, value in asdict(built.recipe).items() if key not in _NOT_IN_A_RUN},
        "max_dim": built.max_dim,
        "seed": built.seed,
        "precision": built.trainer.precision,
    }


def _leave(found: Found, built: Any, folder: Path, asked: dict[str, Any], logged: "_Log | None") -> None:
    """Print the result, write files and end the run."""
    console = Console(highlight=False, color_system=None if built.plain else "auto")
    if not sys.stdout.isatty():
        console.width = 120
    console.print(screen(found))
    for note in notes(found, built.references):
        print(f"note     {note}")
    record = to_json(found, asked)
    text = json.dumps(record, indent=1, default=str, allow_nan=False)
    content = {FILE: text.encode(), "curves.csv": csv_rows(found).encode()}
    pictures = png(draw(found))
    write(folder, content, built.output)
    write(folder / "figures", pictures, built.output)
    print(f"found    {folder}/")
    if logged:
        logged.end(found, content | pictures)


class _Log:
    """One MLflow run for the experiment and a child for every run of an arm; silent once MLflow fails."""

    def __init__(self, built: Any, bench: Bench) -> None:
        self.parent: AtomsMLFlowLogger | None = None
        if built.tracking_uri == NOWHERE:
            return
        try:
            self.parent = AtomsMLFlowLogger(
                experiment_name=built.experiment,
                run_name=Path(built.output).name,
                tracking_uri=built.tracking_uri,
                tags={"command": "tune", "model": built.model.name},
                synchronous=True,
            )
            flat = {"model": built.model.name, "context": built.context, "precision": built.trainer.precision}
            flat |= {f"recipe.{key}": value for key, value in asdict(built.recipe).items()}
            flat |= {f"budget.{key}": value for key, value in asdict(built.budget).items()}
            self.parent.log_hyperparams(flat)
        except Exception as error:  # here and below: hours of training must not end with the database
            self._fail(error)

    def runs(self, searched: list[Run], runs: list[Run]) -> None:
        """Log the runs of an arm as children."""
        for stage, group in (("search", searched), ("run", runs)):
            for each in group:
                if self.parent is None:
                    return
                try:
                    self._child(each, stage)
                except Exception as error:
                    self._fail(error)

    def _child(self, each: Run, stage: str) -> None:
        assert self.parent is not None
        name = f"{each.arm} lr {each.lr:g} seed {each.seed}"
        tags = {"command": "tune", "arm": each.arm, "stage": stage}
        child = child_run(self.parent.tracking_uri, str(self.parent.run_id), name, tags)
        child.log_hyperparams({"arm": each.arm, "lr": each.lr, "seed": each.seed, "trained": each.trained})
        for at, tokens in enumerate(each.curve.tokens):
            known = each.curve.losses | ({"forgetting": forgotten} if (forgotten := each.curve.forgetting()) else {})
            child.log_at({f"tune/{name}": values[at] for name, values in known.items()}, tokens)
        child.finalize("success")

    def end(self, found: Found, content: dict[str, bytes]) -> None:
        """Log what follows from all of them."""
        if self.parent is None:
            return
        try:
            self.parent.log_at({f"tune/{name}": value for name, value in numbers(found).items()}, 0)
            log_files(self.parent, content)
            self.parent.finalize("success")
            print(f"logged   run {self.parent.run_id} in {self.parent.tracking_uri}")
        except Exception as error:
            self._fail(error)

    def failed(self) -> None:
        """End the run of an experiment that did not come to its end."""
        if self.parent is not None:
            with contextlib.suppress(Exception):  # what went wrong is told, and not that
                self.parent.finalize("failed")

    def _fail(self, error: Exception) -> None:
        self.parent = None
        say_unlogged(error)
