"""What is said of a dictionary at the end: one row of numbers, the same after ``fit`` and in ``validate``."""

from dataclasses import dataclass, field

import torch
from matplotlib.figure import Figure
from rich import box
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from atoms.geometry import Coherence, coherence
from atoms.metrics import QStar, planted_recovery, q_star, q_star_null
from atoms.metrics.q_star import Reading
from atoms.sae import ThresholdSAE
from atoms.training import figures
from atoms.training.members import Member
from atoms.training.scores import BIN_RANGE, NUM_BINS, MemberScores

READINGS: tuple[Reading, ...] = ("pairs", "atoms", "max")
MEMORISATION_GAP = 0.05
"""A gap between R² on training and on held-out rows above which the table warns."""


@dataclass(frozen=True)
class Summary:
    """The final scores of one member.

    Attributes:
        name: Name of the member.
        site: Site it explains.
        width: H.
        atoms: A.
        target_l0: Target of the mean number of atoms per row.
        scores: R² (centred and uncentred, raw and AIP), l0, dead, singleton on held-out rows.
        memorisation_gap: Centred raw R² on as many training rows, less that on held-out rows; NaN if not measured.
        rows: Held-out rows judged.
        rows_seen: Training rows it has seen, over all epochs.
        rows_per_atom: Training rows per atom.
        q: q* by reading.
        q_null: q* of random directions with the same H, A and distribution of K, by reading.
        euclid: Coherence of the raw atoms.
        aip: Coherence under the atomic inner product.
        firing_counts: Held-out rows on which each atom fires, (A,) int64.
        l0_histogram: Held-out rows with k atoms at index k, (A + 1,) int64.
        pre_histogram: Pre-activations per bin, (NUM_BINS,) int64.
        thresholds: Thresholds of the atoms, (A,).
        recovered: Share of planted atoms found, NaN where nothing was planted.
        mcc: Mean matched |cos| with planted atoms, NaN where nothing was planted.
        sae: The dictionary, all atoms of it.
    """

    name: str
    site: str
    width: int
    atoms: int
    target_l0: float
    scores: dict[str, float]
    memorisation_gap: float
    rows: int
    rows_seen: int
    rows_per_atom: float
    q: dict[str, QStar]
    q_null: dict[str, QStar]
    euclid: Coherence = field(repr=False)
    aip: Coherence = field(repr=False)
    firing_counts: Tensor = field(repr=False)
    l0_histogram: Tensor = field(repr=False)
    pre_histogram: Tensor = field(repr=False)
    thresholds: Tensor = field(repr=False)
    sae: ThresholdSAE = field(repr=False)
    recovered: float = float("nan")
    mcc: float = float("nan")

    def scalars(self) -> dict[str, float]:
        """Flat numbers, as they are logged; those that do not apply are left out."""
        numbers = {
            **self.scores,
            "memorisation_gap": self.memorisation_gap,
            "rows_per_atom": self.rows_per_atom,
            "atoms": float(self.atoms),
            "max_cos": self.euclid.maximum,
            "max_cos_aip": self.aip.maximum,
            "planted_recovered": self.recovered,
            "planted_mcc": self.mcc,
        }
        for reading in READINGS:
            numbers[f"q_star_{reading}"] = self.q[reading].q
            numbers[f"q_star_{reading}_null"] = self.q_null[reading].q
        return {key: value for key, value in numbers.items() if value == value}


@torch.no_grad()
def summarise(
    name: str,
    member: Member,
    held_out: MemberScores,
    train_rows: MemberScores | None,
    num_train_rows: int,
    truth: Tensor | None,
    first: bool = True,
) -> Summary | None:
    """Draw the final numbers from scores that have seen all rows. Every rank must call it; the first gets the answer.

    Args:
        name: Name of the member.
        member: The member.
        held_out: Scores on held-out rows.
        train_rows: Scores on training rows, for the memorisation gap; None where they were not read.
        num_train_rows: Rows of the training split.
        truth: Planted atoms (T, H), or None.
        first: Whether this is the first rank; the others only hand over what they hold.
    """
    scores = {key: float(value) for key, value in held_out.compute().items()}
    gap = float("nan")
    if train_rows is not None:
        gap = float(train_rows.reconstruction.compute()["r2"]) - scores["r2"]
    counts = held_out.sparsity.pooled()
    pre_histogram = held_out.pre.compute().cpu()
    sae = member.sae.whole()
    if sae is None or not first:
        return None
    histogram = counts.l0_histogram.cpu()
    atoms = sae.atoms.cpu()
    aip = coherence(atoms, aip=sae.geometry)
    recovery = planted_recovery(atoms, truth) if truth is not None else None
    return Summary(
        name=name,
        site=member.config.site,
        width=sae.width,
        atoms=sae.num_atoms,
        target_l0=member.config.target_l0,
        scores=scores,
        memorisation_gap=gap,
        rows=int(histogram.sum()),
        rows_seen=int(member.control.rows_seen),
        rows_per_atom=num_train_rows / sae.num_atoms,
        q={reading: q_star(aip, histogram, reading) for reading in READINGS},
        q_null={reading: q_star_null(sae.width, sae.num_atoms, histogram, reading) for reading in READINGS},
        euclid=coherence(atoms, aip=None),
        aip=aip,
        firing_counts=counts.firing_counts.cpu(),
        l0_histogram=histogram,
        pre_histogram=pre_histogram,
        thresholds=sae.threshold.detach().cpu(),
        sae=sae,
        recovered=recovery.recovered if recovery else float("nan"),
        mcc=recovery.mcc if recovery else float("nan"),
    )


def table(summaries: list[Summary], rows_name: str) -> Table:
    """The final numbers for people.

    Args:
        summaries: One per member.
        rows_name: What the rows are, for the title: ``held-out`` or ``test``.
    """
    view = Table(box=box.SIMPLE_HEAD, title=f"{summaries[0].rows:,} {rows_name} rows", title_justify="left")
    view.add_column("")
    for summary in summaries:
        name = summary.site if len(summaries) == 1 else f"{summary.name}: {summary.site}"
        view.add_column(f"{escape(name)}\n{summary.atoms} atoms", justify="right")

    def row(label: str, cells: list[str]) -> None:
        view.add_row(label, *cells)

    row("R² centred, raw", [f"{s.scores['r2']:.3f}" for s in summaries])
    row("R² centred, AIP", [f"{s.scores['r2_aip']:.3f}" for s in summaries])
    row("L0 (target)", [f"{s.scores['l0']:.1f} ({s.target_l0:g})" for s in summaries])
    row("dead atoms", [f"{s.scores['dead']:.1%}" for s in summaries])
    row("singleton atoms", [f"{s.scores['singleton']:.1%}" for s in summaries])
    for reading in READINGS:
        row(f"q* {reading} (null)", [f"{s.q[reading].q:.3f} ({s.q_null[reading].q:.3f})" for s in summaries])
    row("max |cos| AIP (Euclid)", [f"{s.aip.maximum:.2f} ({s.euclid.maximum:.2f})" for s in summaries])
    row("training rows per atom", [f"{s.rows_per_atom:,.0f}" for s in summaries])
    if any(s.memorisation_gap == s.memorisation_gap for s in summaries):
        row(
            "memorisation gap (R² train - held out)",
            [
                f"{s.memorisation_gap:+.3f}{' MEMORISED' if s.memorisation_gap > MEMORISATION_GAP else ''}"
                for s in summaries
            ],
        )
    if any(s.recovered == s.recovered for s in summaries):
        row("planted atoms recovered (mean |cos|)", [f"{s.recovered:.1%} ({s.mcc:.3f})" for s in summaries])
    return view


def draw(summary: Summary) -> dict[str, Figure]:
    """The figures of one member, by name."""
    edges = torch.linspace(*BIN_RANGE, NUM_BINS + 1, dtype=torch.float64).numpy()
    return {
        "pre_activations": figures.pre_activations(edges, summary.pre_histogram.numpy(), summary.thresholds),
        "firing_rates": figures.firing_rates(
            summary.firing_counts.double() / max(summary.rows, 1), summary.target_l0 / summary.atoms
        ),
        "coherence": figures.coherence(summary.euclid, summary.aip, summary.width),
        "atoms_per_row": figures.atoms_per_row(summary.l0_histogram, summary.target_l0),
    }
