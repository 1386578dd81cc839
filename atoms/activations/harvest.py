"""Run a language model over the row plan and write what its sites show to a store."""

import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from atoms.activations.files import free_bytes
from atoms.activations.grid import Grid, Span
from atoms.activations.grouping import near_duplicate_groups
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.language_model import (
    ResolvedModel,
    Wrapping,
    load_model,
    load_tokenizer,
    max_context,
    special_ids,
    tokenize,
    wrapping,
)
from atoms.activations.lock import StoreLock
from atoms.activations.moments_writer import MomentsWriter
from atoms.activations.plan import Block, RowPlan
from atoms.activations.sites import SiteReader, resolve_site
from atoms.activations.spec import STORAGE, StoreSpec, stored_spec
from atoms.activations.text import assign_splits, document_order
from atoms.activations.writer import StoreWriter
from atoms.errors import AtomsError
from atoms.progress import Meter, duration, size


class ForwardBatch:
    """Some sequences of a block, padded to the longest.

    Attributes:
        span: The block they belong to.
        block: Its plan.
        members: Indices of the sequences within the block, shape ``(B,)``.
        input_ids: Tokens with special tokens and padding, shape ``(B, L)`` int64.
        attention_mask: 1 for every real token, same shape.
        kept: True where a token's row belongs to the block, same shape.
        slots: Where those rows go in the block, in the order of ``kept``'s true entries.
        last: Whether the block is whole after this batch.
    """

    def __init__(self, block: Block, members: NDArray[np.int64], wrapping: Wrapping, last: bool) -> None:
        self.span, self.last = block.span, last
        before, after = len(wrapping.prefix), len(wrapping.suffix)
        longest = int(block.length[members].max()) + before + after
        ids = np.full((len(members), longest), wrapping.pad, np.int64)
        mask = np.zeros((len(members), longest), np.int64)
        kept = np.zeros((len(members), longest), bool)
        for row, member in enumerate(members):
            tokens = np.concatenate([wrapping.prefix, block.sequence(member), wrapping.suffix])
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
            kept[row, before + block.first[member] : before + block.stop[member]] = True
        self.input_ids, self.attention_mask, self.kept = map(torch.from_numpy, (ids, mask, kept))
        self.slots = torch.from_numpy(np.concatenate([block.slots_of(member) for member in members]))

    def to(self, device: torch.device) -> "ForwardBatch":
        """Move what the model needs; Lightning calls this."""
        self.input_ids, self.attention_mask, self.kept = (
            tensor.to(device) for tensor in (self.input_ids, self.attention_mask, self.kept)
        )
        return self


def forward_batches(block: Block, wrapping: Wrapping, batch_tokens: int) -> Iterator[ForwardBatch]:
    """Cut a block into batches of sequences of similar length, padded tokens counted.

    Args:
        block: The block.
        wrapping: Special tokens around a sequence.
        batch_tokens: Most tokens of a batch; a longer single sequence still makes one.
    """
    order = np.argsort(-block.length, kind="stable")
    extra = len(wrapping.prefix) + len(wrapping.suffix)
    start = 0
    while start < len(order):
        # Sorted from the longest, so the first sequence of a batch sets its padded length.
        count = max(1, batch_tokens // (int(block.length[order[start]]) + extra))
        yield ForwardBatch(block, order[start : start + count], wrapping, last=start + count >= len(order))
        start += count


class _Batches(IterableDataset[ForwardBatch]):
    """The forward batches of the blocks a rank still has to write."""

    def __init__(self, plan: RowPlan, spans: list[Span], wrapping: Wrapping, batch_tokens: int) -> None:
        self.plan, self.spans, self.wrapping, self.batch_tokens = plan, spans, wrapping, batch_tokens

    def __iter__(self) -> Iterator[ForwardBatch]:
        for span in self.spans:
            yield from forward_batches(self.plan.block(span), self.wrapping, self.batch_tokens)


class HarvestModule(L.LightningModule):
    """A language model in ``trainer.predict``: every rank runs its own blocks and writes them when they are whole.

    Args:
        resolved: The model, found and checked.
        plan: Where every row will live.
        spec: The store to write.
        path: Where.
        wrapping: Special tokens around a sequence.
        batch_tokens: Most tokens of one forward.
        facts: What is noted in the finished store beside its identity.
    """

    def __init__(
        self,
        resolved: ResolvedModel,
        plan: RowPlan,
        spec: StoreSpec,
        path: Path,
        wrapping: Wrapping,
        batch_tokens: int,
        facts: dict[str, Any],
    ) -> None:
        super().__init__()
        self.resolved, self.plan, self.spec, self.path = resolved, plan, spec, path
        self.wrapping, self.batch_tokens, self.facts = wrapping, batch_tokens, facts

    def configure_model(self) -> None:
        """Load the weights."""
        self.model = load_model(self.resolved)
        self.reader = SiteReader(self.model, [resolve_site(self.model, site) for site in self.spec.sites])

    def setup(self, stage: str) -> None:
        """Lay out the store once, join it everywhere, and see which blocks are this rank's to write."""
        strategy = self.trainer.strategy
        if self.trainer.is_global_zero:
            self.writer = StoreWriter.open(self.path, self.spec)
        strategy.barrier("store laid out")
        if not self.trainer.is_global_zero:
            self.writer = StoreWriter.attach(self.path, self.spec)
        # Every rank must have looked before any commits.
        pending = self.writer.pending
        strategy.barrier("blocks counted")
        rank, world = self.trainer.global_rank, self.trainer.world_size
        own = [span for number, span in enumerate(self.spec.spans) if number % world == rank]
        self.spans = [span for span in own if span in pending]
        self.moments = MomentsWriter(self.writer, own, rank, world, self.trainer.strategy.root_device)
        self.meter = Meter("harvest", sum(span.rows for span in pending), enabled=rank == 0)
        self.world = world

    def predict_dataloader(self) -> DataLoader[ForwardBatch]:
        """The rank's own batches; no sampler may redistribute them."""
        dataset = _Batches(self.plan, self.spans, self.wrapping, self.batch_tokens)
        return DataLoader(dataset, batch_size=None, num_workers=0)

    def on_predict_start(self) -> None:
        """Say how long it will take, measured on one batch."""
        self.buffer: dict[str, Tensor] = {}
        self.started = time.monotonic()
        self.reader.__enter__()
        if self.spans and self.trainer.is_global_zero:
            batch = next(iter(_Batches(self.plan, self.spans[:1], self.wrapping, self.batch_tokens))).to(self.device)
            begin = time.monotonic()
            self.read(batch)
            rate = int(batch.kept.sum()) / (time.monotonic() - begin)
            self.meter.say(f"time     about {duration(self.meter.total / rate / self.world)} for the forward passes")
        self.meter.start()

    def read(self, batch: ForwardBatch) -> dict[str, Tensor]:
        """Rows of every site for a batch, shape ``(kept, H)`` in the store's type, on the CPU."""
        with torch.inference_mode():
            states = self.reader.read(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            return {site: state[batch.kept].cpu() for site, state in states.items()}

    def predict_step(self, batch: ForwardBatch, batch_idx: int) -> None:
        """Put a batch's rows into the block's buffer; write the block when it is whole."""
        rows = self.read(batch)
        if not self.buffer:
            self.buffer = {
                site: torch.empty(batch.span.rows, width, dtype=rows[site].dtype)
                for site, width in self.spec.sites.items()
            }
        for site, values in rows.items():
            self.buffer[site][batch.slots] = values
        self.meter.advance(len(batch.slots) * self.world)
        if batch.last:
            block = self.plan.block(batch.span)
            self.writer.write_block(
                batch.span, self.buffer, token_id=block.token_id, doc_id=block.doc_id, position=block.position
            )
            self.buffer = {}
            self.moments.after(batch.span)

    def on_predict_end(self) -> None:
        """Pool the moments and mark the store complete."""
        self.reader.__exit__(None, None, None)
        self.meter.stop()
        self.moments.finish()
        self.trainer.strategy.barrier("blocks written")
        if self.trainer.is_global_zero:
            self.moments.pool()
            self.writer.finalise({**self.facts, "seconds": round(time.monotonic() - self.started, 1)})
        self.trainer.strategy.barrier("store complete")
        # The weights are not needed again; a reference from the trainer would keep them alive through the fit.
        del self.model, self.reader


def harvest(settings: HarvestSpec, path: Path, trainer_settings: dict[str, Any]) -> None:
    """Harvest into ``path``, going on where an earlier try ended. Every rank calls it, outside any running trainer.

    Args:
        settings: What to harvest.
        path: The store to write.
        trainer_settings: Where to run: accelerator, devices, strategy, num_nodes; ``settings.trainer`` overrides them.

    Raises:
        AtomsError: For whatever stands in the way. Blocks already written stay and are taken up again.
    """
    with StoreLock(path) if rank_zero_only.rank == 0 else nullcontext():
        module = _prepare(settings, path)
        trainer = L.Trainer(
            **{**trainer_settings, **settings.trainer},
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.predict(module, return_predictions=False)


def _prepare(settings: HarvestSpec, path: Path) -> HarvestModule:
    """Tokenise, group, deal and plan; say what it will cost."""
    resolved = settings.resolved
    tokenizer = load_tokenizer(resolved)
    around = wrapping(tokenizer)
    longest = max_context(resolved.config, tokenizer)
    if settings.context > longest:
        raise AtomsError(
            f"data.harvest.context is {settings.context}, but {settings.model.name} reads at most {longest} tokens "
            f"beside its special ones: set it to {longest} or less"
        )
    tokens = tokenize(tokenizer, (document.text for document in settings.corpus.documents()))
    special = np.array(sorted(special_ids(tokenizer)), np.int32)
    tokens = [document[~np.isin(document, special)] for document in tokens]
    groups = near_duplicate_groups(tokens)
    lengths = np.array([len(document) for document in tokens])
    shares = {"train": 1 - settings.val - settings.test, "val": settings.val, "test": settings.test}
    dealt = assign_splits(groups, lengths, shares, settings.seed)
    order = document_order(groups, settings.seed)
    splits = {split: order[dealt.splits[order] == number] for number, split in enumerate(shares)}
    rows = RowPlan.count(tokens, splits)
    widths = settings.widths()
    row_bytes = [width * STORAGE[settings.storage][0].itemsize for width in widths.values()]
    stored = stored_spec(path)
    # A store begun with another memory setting is continued on the grid it has.
    grid = stored.grid if stored else Grid.choose(row_bytes, rows, settings.memory_mib * 2**20)
    plan = RowPlan(tokens, splits, context=settings.context, grid=grid, seed=settings.seed)
    spec = StoreSpec(widths, settings.storage, plan.n_rows, grid, settings.seed, settings.identity)
    for line in (
        f"harvest  {settings.model.name}: {', '.join(f'{site} ({width})' for site, width in widths.items())}",
        f"text     {len(tokens):,} documents in {len(np.unique(groups)):,} groups, {sum(rows.values()):,} tokens "
        f"({', '.join(f'{split} {count:,}' for split, count in rows.items())})",
        *([f"note     {dealt.note}"] if dealt.note else []),
        f"disk     {size(spec.disk_bytes)} in {path} ({size(free_bytes(path))} free)",
        f"memory   {size(grid.block_rows * sum(row_bytes))} a rank for a block of rows, beside the model",
    ):
        announce(line)
    facts = {"documents": len(tokens), "groups": len(np.unique(groups)), "model_path": str(resolved.path)}
    return HarvestModule(resolved, plan, spec, path, around, settings.batch_tokens, facts)


@rank_zero_only
def announce(line: str) -> None:
    """Tell the user, once."""
    print(line, file=sys.stderr, flush=True)
