"""How sparse codes are, which atoms never fire, and which only memorise one activation."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torchmetrics import Metric

from atoms.sae.shard import Shard
from atoms.sae.sparse_codes import SparseCodes

_LARGEST = torch.iinfo(torch.int64).max
_SMALLEST = torch.iinfo(torch.int64).min
# Codes looked at in one go: dense codes then cost a few hundred megabytes of indices, not a few gigabytes.
_BLOCK = 1 << 24


class SparsityCounts(NamedTuple):
    """Integer counts behind the sparsity scores.

    Attributes:
        l0_histogram: Number of rows by number of atoms firing, (A+1,) int64.
        firing_counts: Number of rows each atom fires on, (A,) int64.
        lowest: Smallest fingerprint among the rows each atom fires on, (A,) int64; the largest integer if none.
        highest: Largest such fingerprint; the smallest integer if none.
    """

    l0_histogram: Tensor
    firing_counts: Tensor
    lowest: Tensor
    highest: Tensor


def row_fingerprints(rows: Tensor) -> Tensor:
    """Return a 64-bit fingerprint of each row: equal for equal rows, different for others but by rare accident.

    Rows are compared in float32, in which every half-precision row is exact. The fingerprint is a sum of the
    coordinates' bits with random odd weights modulo 2^64, the same on every machine and rank.

    Args:
        rows: Activations (B, H).

    Returns:
        (B,) int64.
    """
    generator = torch.Generator().manual_seed(0x61746F6D)
    weights = torch.randint(_SMALLEST, _LARGEST, (rows.shape[1],), generator=generator) | 1
    # adding zero turns -0 into +0, which equals it
    bits = (rows.to(torch.float32) + 0.0).view(torch.int32)
    return (bits * weights.to(rows.device)).sum(1)


def _sparsity_update(codes: Tensor | SparseCodes, rows: Tensor, atoms: int, shard: Shard) -> SparsityCounts:
    if isinstance(codes, SparseCodes):
        return _by_entry(codes, rows, atoms, shard)
    held = shard.atoms(atoms)
    total, atoms = atoms, held.stop - held.start
    if codes.ndim != 2 or codes.shape[1] != atoms or rows.ndim != 2 or len(rows) != len(codes):
        raise ValueError(f"codes are {tuple(codes.shape)} and rows {tuple(rows.shape)}, not (B, {atoms}) and (B, H)")
    l0 = torch.empty(len(codes), dtype=torch.int64, device=codes.device)
    firing_counts = torch.zeros(atoms, dtype=torch.int64, device=codes.device)
    lowest, highest = torch.full_like(firing_counts, _LARGEST), torch.full_like(firing_counts, _SMALLEST)
    step = max(1, _BLOCK // atoms)
    for start in range(0, len(codes), step):
        fires = codes[start : start + step] != 0
        l0[start : start + step] = fires.sum(1)
        firing_counts += fires.sum(0)
        row, atom = fires.nonzero(as_tuple=True)
        fingerprints = row_fingerprints(rows[start : start + step])[row]
        lowest.scatter_reduce_(0, atom, fingerprints, "amin")
        highest.scatter_reduce_(0, atom, fingerprints, "amax")
    l0_histogram = torch.bincount(shard.add(l0), minlength=total + 1)
    return SparsityCounts(l0_histogram, firing_counts, lowest, highest)


def _by_entry(codes: SparseCodes, rows: Tensor, atoms: int, shard: Shard) -> SparsityCounts:
    if shard.size > 1:
        raise ValueError("sparse codes are of all atoms: they cannot be those of a shard")
    if codes.width != atoms or rows.ndim != 2 or len(rows) != len(codes):
        raise ValueError(f"codes are ({len(codes)}, {codes.width}) and rows {tuple(rows.shape)}, not (B, {atoms})")
    atom = codes.indices.long()
    fingerprints = row_fingerprints(rows)[codes.rows]
    lowest = torch.full((atoms,), _LARGEST, dtype=torch.int64, device=atom.device)
    highest = torch.full_like(lowest, _SMALLEST)
    return SparsityCounts(
        torch.bincount(codes.l0, minlength=atoms + 1),
        torch.bincount(atom, minlength=atoms),
        lowest.scatter_reduce_(0, atom, fingerprints, "amin"),
        highest.scatter_reduce_(0, atom, fingerprints, "amax"),
    )


def _sparsity_compute(counts: SparsityCounts) -> dict[str, Tensor]:
    rows = counts.l0_histogram.sum().to(torch.float64)
    atoms = len(counts.firing_counts)
    fired = counts.firing_counts > 0
    return {
        "l0": counts.firing_counts.sum() / rows,
        # 0 / 0: without rows nothing is known about any atom
        "dead": (~fired).sum() / atoms + 0 / rows,
        "singleton": (fired & (counts.lowest == counts.highest)).sum() / atoms + 0 / rows,
    }


@torch.no_grad()
def sparsity_profile(codes: Tensor | SparseCodes, rows: Tensor) -> dict[str, Tensor]:
    """Score one set of codes; see :class:`SparsityProfile`.

    Args:
        codes: Codes (B, A), dense or by row.
        rows: The activations (B, H) they encode.

    Returns:
        The scores by name, 0-dim float64; NaN without rows.

    Raises:
        ValueError: If the shapes disagree.
    """
    atoms = codes.width if isinstance(codes, SparseCodes) else codes.shape[-1]
    return _sparsity_compute(_sparsity_update(codes, rows, atoms, Shard()))


class SparsityProfile(Metric):
    r"""Atoms firing per row, atoms that never fire, and atoms that fire on a single distinct row.

    An atom fires where its code is not zero. An atom that fires on one distinct activation only, however often it
    is repeated, has memorised it: a dictionary of such atoms reconstructs noise perfectly.

    As input to ``forward`` and ``update`` the metric accepts:

    - ``codes`` (Tensor or SparseCodes): codes, shape (B, A), B may be 0; by row they are never made dense
    - ``rows`` (Tensor): the activations they encode, shape (B, H)

    As output of ``forward`` and ``compute`` the metric returns a dictionary of 0-dim float64 tensors, NaN without rows:
    ``l0`` (mean number of atoms firing per row), ``dead`` and ``singleton`` (shares of all atoms).

    The states are integers of size O(A), exact under any merging: :attr:`l0_histogram` (A+1,) and
    :attr:`firing_counts` (A,) of this rank can be read directly, :meth:`pooled` gives them over all ranks.

    Args:
        atoms: Number of atoms A.
        shard: Which of them this process holds: ``codes`` then have a column for each of those, and the counts of
            single atoms are those of its own until they are pooled.
        process_group: The ranks that hold the same atoms and different rows; all if None.

    Example:
        >>> import torch
        >>> metric = SparsityProfile(3)
        >>> metric.update(torch.tensor([[0.5, 0.0, 2.0], [0.0, 0.0, 1.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> {name: round(value.item(), 2) for name, value in metric.compute().items()}
        {'l0': 1.5, 'dead': 0.33, 'singleton': 0.33}
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound = 0.0

    l0_histogram: Tensor
    firing_counts: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, atoms: int, shard: Shard | None = None, process_group: ProcessGroup | None = None) -> None:
        super().__init__(process_group=process_group)
        if atoms < 1:
            raise ValueError(f"atoms is {atoms}, less than 1")
        self.atoms, self.shard = atoms, shard or Shard()
        held = self.shard.atoms(atoms)
        zeros = torch.zeros(held.stop - held.start, dtype=torch.int64)
        self.add_state("l0_histogram", torch.zeros(atoms + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("firing_counts", zeros, dist_reduce_fx="sum")
        self.add_state("lowest", torch.full_like(zeros, _LARGEST), dist_reduce_fx="min")
        self.add_state("highest", torch.full_like(zeros, _SMALLEST), dist_reduce_fx="max")

    def update(self, codes: Tensor | SparseCodes, rows: Tensor) -> None:
        """Add codes and the activations they encode."""
        counts = _sparsity_update(codes, rows, self.atoms, self.shard)
        # not in place: a state reset under inference mode could not be changed outside it
        self.l0_histogram = self.l0_histogram + counts.l0_histogram
        self.firing_counts = self.firing_counts + counts.firing_counts
        self.lowest = torch.minimum(self.lowest, counts.lowest)
        self.highest = torch.maximum(self.highest, counts.highest)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores of all rows added so far, on all ranks."""
        return _sparsity_compute(self._counts())

    def pooled(self) -> SparsityCounts:
        """Return the counts over all ranks; every rank must call it."""
        with self.sync_context():
            return SparsityCounts(*(count.clone() for count in self._counts()))

    def _counts(self) -> SparsityCounts:
        own = self.firing_counts, self.lowest, self.highest
        return SparsityCounts(self.l0_histogram, *(self._of_all_atoms(counts) for counts in own))

    def _of_all_atoms(self, own: Tensor) -> Tensor:
        """Put the counts of all shards together, on each of them."""
        if self.shard.size == 1:
            return own
        held = self.shard.atoms(self.atoms)
        counts = own.new_zeros(self.atoms)
        counts[held] = own
        return self.shard.add(counts)
