"""The pictures of a run. Each function takes numbers and returns a figure; none keeps global state."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from atoms.figures import ACCENT, ALERT, QUIET, canvas, remark
from atoms.geometry import Coherence
from atoms.metrics import random_cosine_density


def pre_activations(edges: NDArray[np.float64], counts: NDArray[np.int64], thresholds: Tensor) -> Figure:
    """Pre-activations of all atoms on held-out rows, and where the thresholds cut them.

    Args:
        edges: Bin edges, shape ``(bins + 1,)``, in units of the standardised coordinates.
        counts: Pre-activations per bin, shape ``(bins,)``.
        thresholds: Thresholds of the atoms, shape ``(A,)``.
    """
    figure, axes = canvas("Pre-activations on held-out rows, and the thresholds", "pre-activation", "count")
    seen = np.flatnonzero(counts)
    if len(seen):
        shown = slice(int(seen[0]), int(seen[-1]) + 1)
        shown_edges = edges[shown.start : shown.stop + 1]
        axes.stairs(counts[shown], shown_edges, fill=True, color=QUIET, label="pre-activations, all atoms")
        axes.set_yscale("log")
    low, middle, high = np.quantile(thresholds.double().numpy(), [0.05, 0.5, 0.95])
    axes.axvspan(low, high, color=ACCENT, alpha=0.25, label="θ: 5 to 95 % of atoms")
    axes.axvline(middle, color=ACCENT, label=f"θ: median {middle:.2f}")
    axes.legend(frameon=False)
    return figure


def firing_rates(rates: Tensor, target: float) -> Figure:
    """Share of held-out rows on which each atom fires, sorted.

    Args:
        rates: Firing rate per atom, shape ``(A,)``, in [0, 1].
        target: Rate that the target L0 would give every atom if all fired alike.
    """
    ordered = rates.double().sort(descending=True).values.numpy()
    figure, axes = canvas("How often atoms fire", "atoms, most frequent first", "share of held-out rows")
    alive = ordered > 0
    axes.plot(np.arange(1, len(ordered) + 1)[alive], ordered[alive], color=ACCENT)
    axes.axhline(target, color=QUIET, linestyle="--", label="target L0 / atoms")
    axes.set_yscale("log")
    axes.set_xlim(0, len(ordered))
    remark(axes, f"{int((~alive).sum())} never fire")
    axes.legend(frameon=False)
    return figure


def coherence(euclid: Coherence, aip: Coherence, width: int) -> Figure:
    """|cos| between atoms, Euclidean beside the atomic inner product, with random directions for comparison.

    Args:
        euclid: Coherence of the raw atoms.
        aip: Coherence of the same atoms under the atomic inner product.
        width: Dimension H, for the density of random directions.
    """
    figure, axes = canvas("|cos| between pairs of atoms", "|cos|", "density")
    bins = 400
    for statistics, colour, name in ((euclid, ALERT, "Euclid"), (aip, ACCENT, "atomic inner product")):
        fine = statistics.histogram.numpy()
        coarse = (
            fine.reshape(bins, -1).sum(1)
            if len(fine) % bins == 0
            else np.histogram((np.arange(len(fine)) + 0.5) / len(fine), bins=bins, range=(0, 1), weights=fine)[0]
        )
        density = coarse / max(coarse.sum(), 1) * bins
        axes.stairs(
            np.where(density > 0, density, np.nan),
            np.linspace(0, 1, bins + 1),
            color=colour,
            label=f"{name}: max {statistics.maximum:.2f}",
        )
    grid = np.linspace(1e-3, 1 - 1e-3, 500)
    axes.plot(grid, random_cosine_density(grid, width), color=QUIET, linestyle="--", label="random directions")
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1e2)
    axes.set_xlim(0, min(1.0, 1.15 * max(euclid.maximum, aip.maximum)))
    axes.legend(frameon=False)
    return figure


def atoms_per_row(histogram: Tensor, target: float) -> Figure:
    """Histogram of K, the number of atoms in a row.

    Args:
        histogram: Rows with k atoms at index k, shape ``(A + 1,)``.
        target: Target L0.
    """
    counts = histogram.double().numpy()
    mean = float((counts * np.arange(len(counts))).sum() / max(counts.sum(), 1))
    last = int(np.nonzero(counts)[0].max(initial=1))
    figure, axes = canvas("Atoms in a row (K)", "K", "share of held-out rows")
    axes.stairs(counts[: last + 1] / max(counts.sum(), 1), np.arange(last + 2) - 0.5, fill=True, color=QUIET)
    axes.axvline(mean, color=ACCENT, label=f"mean {mean:.1f}")
    axes.axvline(target, color=ALERT, linestyle="--", label=f"target {target:g}")
    axes.legend(frameon=False)
    return figure
