"""Everything measured about one dictionary on one kind of rows."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric

from atoms.metrics import ReconstructionR2, SparsityProfile
from atoms.sae import ThresholdSAE

BIN_RANGE = (-20.0, 30.0)
NUM_BINS = 500


class PreActivationHistogram(Metric):
    """Histogram of pre-activations, pooled over atoms, in fixed bins of the standardised coordinates.

    As input to ``update`` the metric accepts pre-activations (Tensor) of any shape; ``compute`` returns counts,
    shape ``(NUM_BINS,)`` int64. Values outside `BIN_RANGE` count in the outermost bins.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(NUM_BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pre: Tensor) -> None:
        """Count a batch."""
        self.counts = self.counts + torch.histc(pre.float().clamp(*BIN_RANGE), NUM_BINS, *BIN_RANGE).long()

    def compute(self) -> Tensor:
        """Counts over all batches and ranks."""
        return self.counts


class MemberScores(nn.Module):
    """Reconstruction, sparsity and pre-activations of one SAE.

    Args:
        sae: The dictionary that will be scored; its geometry is the metric of the AIP scores.
        replicas: The processes that hold the same atoms; None for all, as in `atoms.training.parallel.Layout`.
    """

    def __init__(self, sae: ThresholdSAE, replicas: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.geometry = sae.geometry
        # Processes that share the atoms see the same rows, which must count once.
        self.reconstruction = ReconstructionR2(sae.width, sae.geometry, process_group=replicas)
        self.sparsity = SparsityProfile(sae.num_atoms, sae.shard, process_group=replicas)
        self.pre = PreActivationHistogram()

    @torch.no_grad()
    def update(self, sae: ThresholdSAE, rows: Tensor) -> None:
        """Encode ``rows`` (B, H), B may be 0, and count them in."""
        pre = sae.pre_activations(sae.standardise(rows))
        codes = sae.activate(pre)
        self.reconstruction.update(rows, sae.decode(codes))
        self.sparsity.update(codes, rows)
        self.pre.update(pre)

    def compute(self) -> dict[str, Tensor]:
        """Scalars over all rows and ranks: four R², l0, dead, singleton."""
        return {**self.reconstruction.compute(), **self.sparsity.compute()}

    def reset(self) -> None:
        """Forget all rows."""
        for metric in (self.reconstruction, self.sparsity, self.pre):
            metric.reset()
