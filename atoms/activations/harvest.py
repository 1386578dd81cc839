"""Run a language model over the row plan and write what its sites show to a store."""

import copy
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerBase

from atoms.activations.document_groups import GROUPS_FILE, DocumentGroups
from atoms.activations.grid import Grid, Span
from atoms.activations.grouping import near_duplicate_groups
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.language_model import (
    SpecialTokens,
    load_model,
    load_tokenizer,
    max_context,
    meta_model,
    pad_batch,
    special_tokens,
)
from atoms.activations.location import Location, Where, locate
from atoms.activations.lock import StoreLock
from atoms.activations.model_source import ResolvedModel
from atoms.activations.moments_writer import MomentsWriter
from atoms.activations.plan import Block, RowPlan
from atoms.activations.sequences import Cut, Frame, Sequences
from atoms.activations.site_check import check_sites
from atoms.activations.site_reader import SiteReader
from atoms.activations.spec import STORAGE, StoreSpec, stored_spec
from atoms.activations.text import assign_splits, document_order
from atoms.activations.tokenised import tokenise
from atoms.activations.writer import StoreWriter
from atoms.errors import AtomsError
from atoms.memory import peak_memory
from atoms.processes import leave_at_exit
from atoms.progress import Meter, duration, size
from atoms.silent_trainer import silent_trainer


class ForwardBatch:
    """Some sequences of a block, padded to the longest.

    Args:
        block: The block they belong to.
        members: Indices of the sequences within the block, shape ``(B,)``.
        pad_id: The tokenizer's padding id, if it has one.
        last: Whether the block is whole after this batch.

    Attributes:
        inputs: ``input_ids`` and ``attention_mask``, shape ``(B, L)`` int64.
        kept: True where a token's row belongs to the block, same shape.
        slots: Where those rows go in the block, in the order of ``kept``'s true entries.
    """

    def __init__(self, block: Block, members: NDArray[np.int64], pad_id: int | None, last: bool) -> None:
        self.block, self.last = block, last
        self.inputs = pad_batch([block.sequence(member) for member in members], pad_id)
        kept = np.zeros(self.inputs["input_ids"].shape, bool)
        for row, member in zip(kept, members, strict=True):
            row[block.places(member)] = True
        self.kept = torch.from_numpy(kept)
        self.slots = torch.from_numpy(np.concatenate([block.slots_of(member) for member in members]))

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def tokens(self) -> int:
        """Tokens of the forward, padding included."""
        return self.kept.numel()

    def halves(self) -> "tuple[ForwardBatch, ForwardBatch]":
        """The same sequences in two batches, in order, each padded to its own longest."""
        middle = len(self) // 2
        before = int(self.kept[:middle].sum())
        return (
            self._part(slice(None, middle), slice(None, before)),
            self._part(slice(middle, None), slice(before, None)),
        )

    def _part(self, rows: slice, slots: slice) -> "ForwardBatch":
        part = copy.copy(self)
        longest = int(self.inputs["attention_mask"][rows].sum(1).max())
        part.inputs = {name: tensor[rows, :longest] for name, tensor in self.inputs.items()}
        part.kept, part.slots = self.kept[rows, :longest], self.slots[slots]
        return part

    def to(self, device: torch.device) -> "ForwardBatch":
        """Move what the model needs; Lightning calls this."""
        self.inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        self.kept = self.kept.to(device)
        return self


def forward_batches(block: Block, pad_id: int | None, batch_tokens: int) -> Iterator[ForwardBatch]:
    """Cut a block into batches of sequences of similar length, padded tokens counted.

    Args:
        block: The block.
        pad_id: The tokenizer's padding id, if it has one.
        batch_tokens: Most tokens of a batch; a longer single sequence still makes one.
    """
    order = np.argsort(-block.length, kind="stable")
    start = 0
    while start < len(order):
        # Sorted from the longest, so the first sequence of a batch sets its padded length.
        count = max(1, batch_tokens // int(block.length[order[start]]))
        yield ForwardBatch(block, order[start : start + count], pad_id, last=start + count >= len(order))
        start += count


class _Batches(IterableDataset[ForwardBatch]):
    """The forward batches of the blocks a rank still has to write."""

    def __init__(self, plan: RowPlan, spans: list[Span], pad_id: int | None, batch_tokens: int) -> None:
        self.plan, self.spans, self.pad_id, self.batch_tokens = plan, spans, pad_id, batch_tokens

    def __iter__(self) -> Iterator[ForwardBatch]:
        for span in self.spans:
            yield from forward_batches(self.plan.block(span), self.pad_id, self.batch_tokens)


class HarvestModule(L.LightningModule):
    """A language model in ``trainer.predict``: every rank runs its own blocks and writes them when they are whole.

    Args:
        resolved: The model, found and checked.
        plan: Where every row will live.
        spec: The store to write.
        path: Where.
        pad_id: The tokenizer's padding id, if it has one.
        batch_tokens: Most tokens of one forward.
        groups: Groups of near-duplicate documents, kept with the store.
        facts: What is noted in the finished store beside its identity.
    """

    def __init__(
        self,
        resolved: ResolvedModel,
        plan: RowPlan,
        spec: StoreSpec,
        path: Location,
        pad_id: int | None,
        batch_tokens: int,
        groups: DocumentGroups,
        facts: dict[str, Any],
    ) -> None:
        super().__init__()
        self.resolved, self.plan, self.spec, self.path = resolved, plan, spec, path
        self.pad_id, self.batch_tokens, self.groups, self.facts = pad_id, batch_tokens, groups, facts
        self.running = ExitStack()
        """Hooks and progress bar while the model runs; whoever runs the trainer closes it, also after a failure."""

    def configure_model(self) -> None:
        """Load the weights."""
        model = load_model(self.resolved)
        if self.resolved.device_map is None:
            self.model = model
        else:  # out of sight of Lightning, which would move all of it to one device
            self.__dict__["model"] = model
        self.reader = SiteReader(self.model, self.spec.sites)

    def setup(self, stage: str) -> None:
        """Lay out the store once, join it everywhere, and see which blocks are this rank's to write."""
        if self.resolved.device_map is not None and self.trainer.world_size > 1:
            raise AtomsError(
                f"data.harvest.model.device_map is {self.resolved.device_map}, which spreads the model over the "
                f"devices of one process, but there are {self.trainer.world_size}: set data.harvest.trainer.devices to "
                "1, or leave device_map out"
            )
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
        total = sum(span.rows for span in pending)
        self.meter = Meter("harvest", total, enabled=rank == 0, note=lambda: peak_memory(self.device))
        self.world = world

    def predict_dataloader(self) -> DataLoader[ForwardBatch]:
        """The rank's own batches; no sampler may redistribute them."""
        return DataLoader(self._batches(self.spans), batch_size=None, num_workers=0)

    def _batches(self, spans: list[Span]) -> _Batches:
        return _Batches(self.plan, spans, self.pad_id, self.batch_tokens)

    def on_predict_start(self) -> None:
        """Check that the sites are what they are called, and say how long it will take, measured on one batch."""
        self.buffer: dict[str, Tensor] = {}
        self.started = time.monotonic()
        self.running.enter_context(self.reader)
        if self.spans:
            batch = next(iter(self._batches(self.spans[:1]))).to(self.device)
            for note in check_sites(self.model, self.spec.sites, batch.inputs):
                self.meter.say(note)
        if self.spans and self.trainer.is_global_zero:
            begin = time.monotonic()
            self.read(batch)
            rate = int(batch.kept.sum()) / (time.monotonic() - begin)
            self.meter.say(f"time     about {duration(self.meter.total / rate / self.world)} for the forward passes")
        self.running.enter_context(self.meter)

    def read(self, batch: ForwardBatch) -> dict[str, Tensor]:
        """Rows of every site for a batch, shape ``(kept, H)`` in the type the model computes in, on the CPU.

        What the device has no memory for is read in halves, and so is everything as large from then on.

        Raises:
            AtomsError: If there is too little memory for one sequence.
        """
        asked = self.batch_tokens
        rows = self._read(batch)
        if self.batch_tokens < asked:
            self.meter.say(
                f"note     {self.device} has too little memory for data.harvest.batch_tokens={asked:,}; going on with "
                f"{self.batch_tokens:,}"
            )
        return rows

    def _read(self, batch: ForwardBatch) -> dict[str, Tensor]:
        if batch.tokens <= self.batch_tokens or len(batch) == 1:
            try:
                with torch.inference_mode():
                    states = self.reader.read(**batch.inputs)
                    return {site: state[batch.kept.to(state.device)].cpu() for site, state in states.items()}
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise AtomsError(
                        f"data.harvest.context: one sequence of {batch.tokens} tokens is too much for the memory of "
                        f"{self.device}: lower it, run the model in bfloat16 (model.dtype), or spread it over several "
                        "devices (model.device_map); blocks already written are kept"
                    ) from error
            # Out of the handler, whose traceback holds on to what the failed forward had made.
            self.batch_tokens = batch.tokens // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        first, second = (self._read(half) for half in batch.halves())
        return {site: torch.cat([rows, second[site]]) for site, rows in first.items()}

    def predict_step(self, batch: ForwardBatch, batch_idx: int) -> tuple[()]:
        """Put a batch's rows into the block's buffer; write the block when it is whole.

        Returns:
            Nothing to keep; Lightning would warn of None.
        """
        rows, span = self.read(batch), batch.block.span
        if not self.buffer:
            self.buffer = {
                site: torch.empty(span.rows, width, dtype=rows[site].dtype) for site, width in self.spec.sites.items()
            }
        for site, values in rows.items():
            self.buffer[site][batch.slots] = values
        self.meter.advance(len(batch.slots) * self.world)
        if batch.last:
            block = batch.block
            self.writer.write_block(
                span, self.buffer, token_id=block.token_id, doc_id=block.doc_id, position=block.position
            )
            self.buffer = {}
            self.moments.after(span)
        return ()

    def on_predict_end(self) -> None:
        """Pool the moments and mark the store complete."""
        self.running.close()
        self.moments.finish()
        self.trainer.strategy.barrier("blocks written")
        if self.trainer.is_global_zero:
            self.moments.pool()
            self.writer.write_file(GROUPS_FILE, self.groups.to_bytes())
            self.moments.sweep()
            seconds = round(time.monotonic() - self.started, 1)
            sealed = self.writer.finalise({**self.facts, "seconds": seconds})
            if warning := sealed.warning(self.spec.dtype):
                announce(f"note     {warning}")
        self.trainer.strategy.barrier("store complete")
        # The weights are not needed again; a reference from the trainer would keep them alive through the fit.
        del self.model, self.reader


def harvest(settings: HarvestSpec, path: Where, trainer_settings: dict[str, Any]) -> None:
    """Harvest into ``path``, going on where an earlier try ended. Every rank calls it, outside any running trainer.

    Args:
        settings: What to harvest.
        path: The store to write.
        trainer_settings: Where to run: accelerator, devices, strategy, num_nodes; ``settings.trainer`` overrides them.

    Raises:
        AtomsError: For whatever stands in the way. Blocks already written stay and are taken up again.
    """
    leave_at_exit()
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    place = locate(path)
    with StoreLock(place) if first else nullcontext():
        module = _prepare(settings, place)
        trainer = _trainer(settings, trainer_settings)
        with module.running:
            trainer.predict(module, return_predictions=False)


def _trainer(settings: HarvestSpec, trainer_settings: dict[str, Any]) -> L.Trainer:
    """A trainer where the harvest is to run; what the harvest's own settings spoil is said of them."""
    try:
        return silent_trainer({**trainer_settings, **settings.trainer})
    except AtomsError as error:
        if settings.trainer:
            silent_trainer(trainer_settings)  # what is wrong without them is said of the trainer
            raise AtomsError(f"data.harvest.{error}") from error
        raise


def _prepare(settings: HarvestSpec, path: Location) -> HarvestModule:
    """Tokenise, group, deal and plan; say what it will cost."""
    resolved = settings.resolved
    tokenizer = load_tokenizer(resolved)
    longest = max_context(resolved.config, tokenizer)
    if longest is not None and settings.context > longest:
        raise AtomsError(
            f"data.harvest.context is {settings.context}, but {settings.model.name} reads at most {longest} tokens "
            f"beside its special ones: set it to {longest} or less"
        )
    widths = settings.widths()
    if settings.packing:
        _check_causal(settings, tokenizer)
    text = tokenise(
        settings.corpus,
        tokenizer,
        tokens=settings.tokens,
        keep_special=settings.special == "all",
        max_tokens=settings.max_tokens,
        vocabulary=getattr(resolved.config.get_text_config(), "vocab_size", None),
    )
    frame = _frame(settings, text.special, tokenizer)
    held = np.flatnonzero(text.rows)  # what leaves no row must not tie together what does
    groups = near_duplicate_groups([text.compared[i] for i in held.tolist()], together=text.together[held])
    shares = {"train": 1 - settings.val - settings.test, "val": settings.val, "test": settings.test}
    dealt = assign_splits(groups, text.rows[held], shares, settings.seed)
    how: Cut = "packed" if settings.packing else "pieces" if settings.tokens == "all" else "windows"
    splits = {
        split: Sequences.cut(
            text.ids,
            document_order(held[dealt.documents(split)], settings.seed),
            context=settings.context,
            keep=text.keep,
            how=how,
            frame=frame,
        )
        for split in shares
    }
    rows = {split: sequences.rows for split, sequences in splits.items()}
    row_bytes = [width * STORAGE[settings.storage][0].itemsize for width in widths.values()]
    # A block is held as the model computes it, and when written also as it is stored if the types differ.
    held_bytes = sum(widths.values()) * getattr(torch, settings.compute_dtype).itemsize
    held_bytes += sum(row_bytes) if settings.storage != settings.compute_dtype else 0
    stored = stored_spec(path)
    memory = settings.memory_mib * 2**20 * sum(row_bytes) // held_bytes
    # A store begun with another memory setting is continued on the grid it has.
    grid = stored.grid if stored else Grid.choose(row_bytes, rows, memory)
    plan = RowPlan(splits, grid=grid, seed=settings.seed)
    spec = StoreSpec(widths, settings.storage, plan.n_rows, grid, settings.seed, settings.identity)
    block_bytes = min(grid.block_rows, max(rows.values())) * held_bytes
    moment_bytes = 8 * sum(width**2 for width in widths.values())
    free = path.free()
    for line in (
        f"harvest  {settings.model.name}: {', '.join(f'{site} ({width})' for site, width in widths.items())}",
        f"text     {len(text.ids):,} documents in {len(np.unique(groups)):,} groups, {text.n_tokens:,} tokens",
        f"rows     {sum(rows.values()):,} ({', '.join(f'{split} {count:,}' for split, count in rows.items())})",
        *(f"note     {note}" for note in (*text.notes, *dealt.warnings)),
        f"disk     {size(spec.disk_bytes)} in {path}" + ("" if free is None else f" ({size(free)} free)"),
        f"memory   {size(block_bytes)} a rank for a block of rows, {size(moment_bytes)} for moments, beside the model",
    ):
        announce(line)
    facts = {
        "documents": len(text.ids),
        "groups": len(np.unique(groups)),
        "splits": {
            split: {"documents": len(documents), "groups": len(np.unique(groups[documents]))}
            for split in shares
            for documents in [dealt.documents(split)]
        },
        "model_path": str(resolved.path),
    }
    return HarvestModule(
        resolved,
        plan,
        spec,
        path,
        tokenizer.pad_token_id,
        settings.batch_tokens,
        DocumentGroups.from_labels(held, groups),
        facts,
    )


def _check_causal(settings: HarvestSpec, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse to pack for a model in which a document would be read in the light of the next."""
    modules = meta_model(settings.resolved.config).modules()
    if any(getattr(module, "is_causal", None) is False for module in modules) or special_tokens(tokenizer).suffix:
        raise AtomsError(
            f"data.harvest.packing: {settings.model.name} reads in both directions, so that a document would be read "
            "in the light of the next; leave packing out"
        )


def _frame(settings: HarvestSpec, special: SpecialTokens, tokenizer: PreTrainedTokenizerBase) -> Frame:
    """The special tokens of a sequence, and which of them leave rows."""
    if settings.special == "bos" and not special.prefix:
        raise AtomsError(
            f"data.harvest.special=bos, but {settings.model.name} reads this corpus without a special token in front: "
            "set it to drop"
        )
    separator: tuple[int, ...] = ()
    if settings.packing:
        end = tokenizer.eos_token_id
        # What a model was trained on: the end of the text, then whatever is in front of every text.
        separator = special.prefix if end is None or end in special.prefix else (end, *special.prefix)
        if not separator:
            raise AtomsError(
                f"data.harvest.packing: the tokenizer of {settings.model.name} has no token that ends a text; leave "
                "packing out"
            )
    return Frame(special.prefix, special.suffix, separator, settings.special)


@rank_zero_only
def announce(line: str) -> None:
    """Tell the user, once."""
    print(line, file=sys.stderr, flush=True)
