"""LightningDataModule over one activation store, which it can have made."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from torch import Tensor

from atoms.activations.cache import GIB, ChunkCache, default_folder
from atoms.activations.harvest import harvest as harvest_store
from atoms.activations.harvest_spec import HarvestSpec
from atoms.activations.location import locate
from atoms.activations.lock import sweep_lock
from atoms.activations.manifest import is_complete
from atoms.activations.matrix import MatrixSpec, import_matrix
from atoms.activations.order import Order
from atoms.activations.planted import PlantedSpec, load_truth, plant
from atoms.activations.spec import stored_spec
from atoms.activations.store import ActivationStore
from atoms.activations.stream import OrderedStream, TrainStream
from atoms.errors import AtomsError
from atoms.geometry import AtomicInnerProduct, Moments

MIB = 2**20


class RowLoader:
    """A split in stored order as ``{site: rows}``, for Lightning's evaluation loops."""

    def __init__(self, stream: OrderedStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (batch.rows for batch in self.stream)


class ActivationDataModule(L.LightningDataModule):
    """Rows of hidden states, streamed from a Zarr store.

    Say where rows come from with one of ``store`` (an existing store: neither model, corpus nor network is needed),
    ``harvest`` (a language model over a corpus), ``matrix`` (activations of your own, from files) or ``planted``
    (synthetic rows with known atoms). ``store`` together with one of the others names the directory to write.

    Args:
        store: Directory or URL (s3://, gs://, http://) of the store; found from the settings' digest if left out.
        harvest: The language model, corpus and sites to harvest if the store is missing.
        planted: Synthetic rows to make if the store is missing.
        matrix: Files of activations to import if the store is missing.
        batch_size: Rows of an optimizer step's batch, all ranks together.
        lanes: Lanes the shuffled order is dealt to; a multiple of the number of ranks that divides the batch.
        pool_mib: Memory of the shuffle pools in MiB, all ranks together.
        max_norm: Leave out rows whose norm exceeds this multiple of the site's median; null keeps all finite ones.
        train_rows: Learn from only so many training rows, spread evenly over the split; null for all. The geometry is
            still that of all of them.
        seed: Seed of the order of rows.
        verify: ``first`` checks each chunk's checksum on its first read, ``always`` on every read.
        cache_dir: Where chunks of a store behind a URL are kept; $ATOMS_CACHE or ~/.cache/atoms if left out.
        cache_gib: Most GiB kept there; 0 keeps none.
    """

    def __init__(
        self,
        store: str | None = None,
        harvest: HarvestSpec | None = None,
        planted: PlantedSpec | None = None,
        matrix: MatrixSpec | None = None,
        batch_size: int = 4096,
        lanes: int = 8,
        pool_mib: int = 1024,
        max_norm: float | None = 10.0,
        train_rows: int | None = None,
        seed: int = 0,
        verify: Literal["first", "always"] = "first",
        cache_dir: str | None = None,
        cache_gib: float = 20.0,
    ) -> None:
        super().__init__()
        sources = {"harvest": harvest, "planted": planted, "matrix": matrix}
        given = [f"data.{name}" for name, source in sources.items() if source is not None]
        if len(given) > 1:
            raise AtomsError(f"{' and '.join(given)} are both set: keep one of them")
        self.source = harvest or planted or matrix
        Order(seed, batch_size, lanes, pool_batches=1)  # refuses what does not fit, before a long harvest
        if pool_mib < 1:
            raise AtomsError(f"data.pool_mib is {pool_mib}: give at least 1")
        if max_norm is not None and not max_norm > 1:
            raise AtomsError(f"data.max_norm is {max_norm}: give a multiple of the median above 1, or null to keep all")
        if train_rows is not None and train_rows < 1:
            raise AtomsError(f"data.train_rows is {train_rows}: give at least 1, or null for all")
        if not cache_gib >= 0:
            raise AtomsError(f"data.cache_gib is {cache_gib}: give a number of GiB, or 0 for no cache")
        self.cache_dir, self.cache_gib = cache_dir, cache_gib
        self.batch_size, self.lanes, self.pool_mib = batch_size, lanes, pool_mib
        self.max_norm, self.seed, self.verify = max_norm, seed, verify
        self.train_rows = train_rows
        if store is not None:
            self.path = locate(store)
        elif self.source is not None:
            self.path = self.source.directory()
        else:
            raise AtomsError(
                "data has neither store, harvest, matrix nor planted: set data.store to the directory of a store"
            )
        self.width = self._find_widths()
        self.train_rows_beside = False
        self.predict_split = "val"
        self.used_sites: list[str] | None = None
        """Sites to read; the module that trains names those its members learn. None reads all."""
        self._store: ActivationStore | None = None
        self._masks: dict[str, NDArray[np.bool_] | None] = {}

    def _find_widths(self) -> dict[str, int]:
        stored = stored_spec(self.path)
        if stored is not None:
            if self.source is not None:
                stored.require_equal(replace(stored, provenance=self.source.identity), self.path)
            return stored.sites
        if self.source is None:
            raise AtomsError(f"data.store is {self.path}, where there is no store: mend the path, or set data.harvest")
        return self.source.widths()

    # ------------------------------------------------------------------------------------------ making the store

    @property
    def complete(self) -> bool:
        """Whether the store is there and every block of it committed."""
        stored = stored_spec(self.path)
        return stored is not None and is_complete(self.path, stored)

    def ensure(self, trainer_settings: dict[str, Any]) -> None:
        """Make the store if it is not whole. Every rank calls it; outside any running trainer.

        Args:
            trainer_settings: Where to run (accelerator, devices, strategy, num_nodes); the source may override them.

        Raises:
            AtomsError: If the store is not whole and nothing says how to make it, or making it fails.
        """
        if self.complete:
            if self.source is not None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                sweep_lock(self.path)
            return
        if self.source is None:
            ActivationStore.open(self.path)  # says what is wrong with it
            return
        if isinstance(self.source, HarvestSpec):
            harvest_store(self.source, self.path, trainer_settings)
        elif rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            self._await_store()
        elif isinstance(self.source, MatrixSpec):
            import_matrix(self.source, self.path)
        else:
            plant(self.source, self.path)

    def _await_store(self) -> None:
        """Wait for the first rank, which makes the store alone."""
        while not self.complete:
            time.sleep(0.2)

    def prepare_data(self) -> None:
        """Fail clearly where the store is not whole; making it is `ensure`'s."""
        self._open()

    # ------------------------------------------------------------------------------------------ reading it

    def setup(self, stage: str) -> None:
        """Open the store."""
        _ = self.store

    @property
    def store(self) -> ActivationStore:
        """The open store."""
        if self._store is None:
            self._store = self._open()
        return self._store

    def _open(self) -> ActivationStore:
        cache = None
        if self.path.remote and self.cache_gib > 0:
            cache = ChunkCache(self.cache_dir or default_folder(), int(self.cache_gib * GIB))
        return ActivationStore.open(self.path, self.verify, cache)

    @property
    def truth(self) -> Tensor | None:
        """Planted atoms (T, H), or None."""
        return load_truth(self.store)

    def valid(self, split: str) -> NDArray[np.bool_] | None:
        """Rows of a split that are used, (N,) bool; None where all are.

        Those within the norm, and among them, of the training split, the rows to learn from.
        """
        within = self.within_norm(split)
        if split != "train" or self.train_rows is None:
            return within
        rows = np.arange(self.store.n_rows(split)) if within is None else np.flatnonzero(within)
        count = min(self.train_rows, len(rows))
        chosen = np.zeros(self.store.n_rows(split), bool)
        chosen[rows[np.arange(count) * len(rows) // max(count, 1)]] = True
        return chosen

    def within_norm(self, split: str) -> NDArray[np.bool_] | None:
        """Rows that no site's norm excludes, (N,) bool; None where all are kept.

        The medians are those of the training rows, for every split. Rows that are not finite are never kept.
        """
        if self.max_norm is None and not self.store.sealed.nonfinite_rows(split):
            return None
        if split not in self._masks:
            mask = np.ones(self.store.n_rows(split), bool)
            for site in self.store.sites:
                norms = self.store.norms(split, site)
                mask &= np.isfinite(norms)
                if self.max_norm is not None:
                    training = self.store.norms("train", site)
                    training = training[np.isfinite(training)]
                    mask &= norms <= self.max_norm * float(np.median(training)) if len(training) else False
            self._masks[split] = None if mask.all() else mask
        return self._masks[split]

    def num_rows(self, split: str) -> int:
        """Rows of a split that are used."""
        mask = self.valid(split)
        return self.store.n_rows(split) if mask is None else int(mask.sum())

    @property
    def num_train_batches(self) -> int:
        """Global batches of an epoch."""
        return self.num_rows("train") // self.batch_size

    def require_batch(self) -> None:
        """Refuse a batch that the training rows cannot fill.

        Raises:
            AtomsError: If there are fewer training rows than a batch has.
        """
        if self.num_train_batches < 1:
            raise AtomsError(
                f"data.batch_size is {self.batch_size}, but the store has only {self.num_rows('train')} training rows: "
                "lower it, or harvest more text"
            )

    def moments(self, site: str) -> Moments:
        """Moments of the training rows that no norm excludes."""
        moments = self.store.moments(site)
        mask = self.within_norm("train")
        if mask is None:
            return moments
        # The few rows left out are subtracted: only their chunks are read. What is not finite was never counted.
        left_out = ~mask & np.isfinite(self.store.norms("train", site))
        for chunk, rows in enumerate(self.store.chunks("train")):
            excluded = np.flatnonzero(left_out[rows.start : rows.stop])
            if len(excluded):
                values = self.store.to_torch(self.store.read_chunk("train", site, chunk))
                out = Moments.from_rows(values[torch.from_numpy(excluded)])
                moments = Moments(moments.count - out.count, moments.total - out.total, moments.outer - out.outer)
        return moments

    def geometry(self, site: str) -> AtomicInnerProduct:
        """The atomic inner product of a site, from its training rows."""
        return AtomicInnerProduct.from_moments(self.moments(site))

    def order_settings(self) -> dict[str, Any]:
        """Settings that fix which rows make up which batch, as keyword arguments; a resumed fit must share them."""
        return {
            "batch_size": self.batch_size,
            "lanes": self.lanes,
            "pool_mib": self.pool_mib,
            "max_norm": self.max_norm,
            "train_rows": self.train_rows,
            "seed": self.seed,
        }

    # ------------------------------------------------------------------------------------------ loaders

    @property
    def _ranks(self) -> dict[str, int]:
        # Ranks that share the atoms see the same rows; Lightning's name for those that do not is its sampler's.
        shares = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        if shares is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": shares["rank"], "world_size": shares["num_replicas"]}

    def train_dataloader(self) -> TrainStream:
        """Shuffled training rows."""
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return TrainStream(
            self.store,
            "train",
            self.used_sites,
            batch_size=self.batch_size,
            lanes=self.lanes,
            seed=self.seed,
            pool_bytes=self.pool_mib * MIB,
            valid=self.valid("train"),
            pin_memory=on_cuda,
            **self._ranks,
        )

    def ordered(self, split: str, limit_rows: int | None = None) -> OrderedStream:
        """A split in stored order, row numbers included."""
        return OrderedStream(
            self.store,
            split,
            self.used_sites,
            batch_size=self.batch_size,
            valid=self.valid(split),
            limit_rows=limit_rows,
            rank=self._ranks["rank"],
            world_size=self._ranks["world_size"],
        )

    def val_dataloader(self) -> list[RowLoader]:
        """Held-out rows; with `train_rows_beside` also as many training rows, for the memorisation gap."""
        loaders = [RowLoader(self.ordered("val"))]
        if self.train_rows_beside:
            loaders.append(RowLoader(self.ordered("train", limit_rows=self.num_rows("val"))))
        return loaders

    def test_dataloader(self) -> RowLoader:
        """Rows of the test split."""
        return RowLoader(self.ordered("test"))

    def predict_dataloader(self) -> OrderedStream:
        """Rows of `predict_split` with their row numbers."""
        return self.ordered(self.predict_split)
