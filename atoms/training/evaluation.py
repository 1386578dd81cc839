"""The final pass: held-out rows, as many training rows, and what follows from them."""

import math
import sys
from pathlib import Path

import lightning as L
from rich.console import Console

from atoms.activations.datamodule import ActivationDataModule
from atoms.errors import printable
from atoms.training import checkpoint
from atoms.training.mlflow_logger import AtomsMLFlowLogger, child_run
from atoms.training.module import TSAEModule
from atoms.training.outbox import short
from atoms.training.summary import Summary, draw, summarise, table


def judge(
    trainer: L.Trainer, module: TSAEModule, data: ActivationDataModule, ckpt_path: str | None = None
) -> list[Summary]:
    """Read held-out rows and as many training rows, and summarise every member.

    Args:
        trainer: From `silent_trainer`; it must not be the one that trained, whose loops keep their state.
        module: The members.
        data: Their rows.
        ckpt_path: Weights to load first, or None for those in ``module``.
    """
    data.train_rows_beside = True
    try:
        trainer.validate(module, datamodule=data, ckpt_path=ckpt_path, verbose=False, weights_only=True)
    finally:
        data.train_rows_beside = False
    return summaries_of(module, data, "val")


def summaries_of(module: TSAEModule, data: ActivationDataModule, stage: str) -> list[Summary]:
    """Summarise every member from scores that have been filled. Every rank must call it; the first gets the answer.

    Args:
        module: The members and their scores.
        data: Where the rows came from.
        stage: ``val`` (with training rows beside) or ``test``.
    """
    summaries = []
    for name in module.configs:
        found = summarise(
            name,
            module.member(name),
            module.score(stage, name),
            module.score("train_rows", name) if stage == "val" else None,
            data.num_rows("train"),
            data.truth,
            first=module.global_rank == 0,
        )
        if found:
            summaries.append(found)
    return summaries


def final_scalars(summaries: list[Summary], prefix: str) -> dict[str, float]:
    """All members' numbers under ``<prefix>/`` (with the member's name where there are several)."""
    single = len(summaries) == 1
    return {
        f"{prefix}/{key}" if single else f"{prefix}/{summary.name}/{key}": value
        for summary in summaries
        for key, value in summary.scalars().items()
        if math.isfinite(value)
    }


def log_final(logger: AtomsMLFlowLogger, summaries: list[Summary], prefix: str) -> None:
    """Log final numbers and figures to a run.

    Args:
        logger: The run.
        summaries: Numbers of every member.
        prefix: First part of the metrics' names: ``final`` or ``test``.
    """
    logger.log_at(final_scalars(summaries, prefix), summaries[0].rows_seen)
    for summary in summaries:
        for name, figure in draw(summary).items():
            logger.log_figure(figure, name if len(summaries) == 1 else f"{summary.name}/{name}")


def log_child(record: checkpoint.Record, ckpt_path: str | Path, summaries: list[Summary], stage: str) -> str | None:
    """Log a judgement of a checkpoint as a child of the run that made it, and copy its numbers to that run.

    Args:
        record: The checkpoint's record.
        ckpt_path: The checkpoint.
        summaries: Numbers of its members.
        stage: ``val`` or ``test``.

    Returns:
        Identifier of the child run, or None where the checkpoint belongs to no run that can be found.
    """
    if record.run_id is None or record.tracking_uri is None:
        return None
    name = "validate" if stage == "val" else stage
    prefix = "final" if stage == "val" else stage
    tags = {"command": name, "checkpoint": checkpoint.digest(ckpt_path)}
    try:
        child = child_run(record.tracking_uri, record.run_id, name, tags)
    except Exception as error:
        reason = f"run {record.run_id} is not in {record.tracking_uri} ({short(error)})"
        print(f"note     not logged: {printable(reason)}", file=sys.stderr)
        return None
    log_final(child, summaries, prefix)
    child.finalize("success")
    parent = AtomsMLFlowLogger(tracking_uri=record.tracking_uri, run_id=record.run_id, synchronous=True)
    parent.log_at(final_scalars(summaries, prefix), summaries[0].rows_seen)
    return child.run_id


def show(summaries: list[Summary], rows_name: str) -> None:
    """Print the table on standard output."""
    Console(width=100 if not sys.stdout.isatty() else None).print(table(summaries, rows_name))
