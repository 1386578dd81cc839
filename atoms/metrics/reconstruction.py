"""How much of the activations a reconstruction explains."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torchmetrics import Metric

from atoms.geometry import AtomicInnerProduct


class _Sums(NamedTuple):
    """Sums over rows; ``shifted`` means about a reference point near the mean. Float64 but for the count."""

    rows: Tensor  # () int64, how many
    total: Tensor  # (H,) shifted rows
    energies: Tensor  # (3,) or (6,) squared norms of shifted row, row and error; then the same three in ‖·‖_S


def _reconstruction_update(x: Tensor, x_hat: Tensor, shift: Tensor, root: Tensor | None) -> _Sums:
    width = len(shift)
    if x.ndim != 2 or x.shape[1] != width or x_hat.shape != x.shape:
        raise ValueError(f"x is {tuple(x.shape)} and x_hat {tuple(x_hat.shape)}, not both (B, {width})")
    exact = x.to(torch.float64)
    vectors = exact - shift, exact, exact - x_hat.to(torch.float64)
    energies = [v.square().sum() for v in vectors]
    if root is not None:
        energies += [(v @ root).square().sum() for v in vectors]
    return _Sums(torch.tensor(len(x), device=x.device), vectors[0].sum(0), torch.stack(energies))


def _reconstruction_compute(sums: _Sums, root: Tensor | None) -> dict[str, Tensor]:
    def scores(total: Tensor, energies: Tensor) -> tuple[Tensor, Tensor]:
        shifted, raw, error = energies
        variation = (shifted - total.square().sum() / sums.rows).clamp_min(0)
        return 1 - error / variation, 1 - error / raw

    r2, uncentred = scores(sums.total, sums.energies[:3])
    result = {"r2": r2, "r2_uncentred": uncentred}
    if root is not None:
        result["r2_aip"], result["r2_aip_uncentred"] = scores(sums.total @ root, sums.energies[3:])
    return result


@torch.no_grad()
def reconstruction_r2(x: Tensor, x_hat: Tensor, aip: AtomicInnerProduct | None = None) -> dict[str, Tensor]:
    """Score one set of reconstructed rows; see :class:`ReconstructionR2`.

    Args:
        x: Activations (B, H).
        x_hat: Their reconstructions (B, H).
        aip: Adds the scores in the norm of this inner product.

    Returns:
        The scores by name, 0-dim float64; NaN without rows.

    Raises:
        ValueError: If the shapes disagree.
    """
    shift = x.to(torch.float64).mean(0) if len(x) else x.new_zeros(x.shape[1], dtype=torch.float64)
    root = None if aip is None else aip.map().to(x.device)
    return _reconstruction_compute(_reconstruction_update(x, x_hat, shift, root), root)


class ReconstructionR2(Metric):
    r"""Share of the activations' variation that their reconstructions explain, pooled over dimensions.

    .. math:: R^2 = 1 - \frac{\sum_i \lVert x_i - \hat x_i \rVert^2}{\sum_i \lVert x_i - \bar x \rVert^2}

    where :math:`\bar x` is the mean of the rows seen. The uncentred score divides by
    :math:`\sum_i \lVert x_i \rVert^2`; a strong mean direction then brings even the constant mean close to 1. With an
    inner product, both are given in its norm too. Sums stay float64 whatever type the module around the metric is cast
    to, because single precision gets the variation wrong where a dimension's mean is large against its spread.

    As input to ``forward`` and ``update`` the metric accepts:

    - ``x`` (Tensor): activations, shape (B, H), B may be 0
    - ``x_hat`` (Tensor): their reconstructions, shape (B, H)

    As output of ``forward`` and ``compute`` the metric returns a dictionary of 0-dim float64 tensors, NaN without rows:
    ``r2``, ``r2_uncentred`` and, with an inner product, ``r2_aip``, ``r2_aip_uncentred``.

    Source: Towards Atoms (arXiv 2509.20784), faithfulness.

    Args:
        width: Width H of the rows.
        aip: Inner product for the ``aip`` scores.
        shift: Any point (H,) near the mean, the same on all ranks; it only improves the rounding. The mean of ``aip``
            by default, else zero.
        process_group: The ranks that hold different rows; all if None.

    Raises:
        ValueError: If ``aip`` or ``shift`` is not of this width.

    Example:
        >>> import torch
        >>> metric = ReconstructionR2(2)
        >>> metric.update(torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0]]))
        >>> metric.compute()["r2"]
        tensor(0.7500, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_upper_bound = 1.0

    rows: Tensor
    total: Tensor
    energies: Tensor
    shift: Tensor
    root: Tensor | None

    def __init__(
        self,
        width: int,
        aip: AtomicInnerProduct | None = None,
        shift: Tensor | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(process_group=process_group)
        if aip is not None and aip.width != width:
            raise ValueError(f"the inner product has width {aip.width}, not {width}")
        if shift is None:
            shift = torch.zeros(width, dtype=torch.float64) if aip is None else aip.mean
        if shift.shape != (width,):
            raise ValueError(f"shift is {tuple(shift.shape)}, not ({width},)")
        self.register_buffer("shift", shift.to(torch.float64, copy=True), persistent=False)
        self.register_buffer("root", None if aip is None else aip.map(), persistent=False)
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("energies", torch.zeros(3 if aip is None else 6, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add rows and their reconstructions."""
        sums = _reconstruction_update(x, x_hat, self.shift, self.root)
        # not in place: a state reset under inference mode could not be changed outside it
        self.rows = self.rows + sums.rows
        self.total = self.total + sums.total
        self.energies = self.energies + sums.energies

    def compute(self) -> dict[str, Tensor]:
        """Return the scores of all rows added so far, on all ranks."""
        return _reconstruction_compute(_Sums(self.rows, self.total, self.energies), self.root)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Follow the module to its device but never to its precision."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, exclude_state)
