"""Whether a threshold on a linear encoder finds which atoms a row is made of, as the theorem on threshold SAEs says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Claim, Section, Verdict
from atoms.checks.row_table import RowTable
from atoms.checks.sampling import judged_places, spread
from atoms.checks.separability import Separability
from atoms.checks.support_refit import refit
from atoms.checks.threshold_windows import Amplitudes, Windows, best_threshold, windows_of
from atoms.errors import AtomsError
from atoms.geometry import welch

_SOURCE = "Towards Atoms (arXiv 2509.20784), T5"
_WORK = 1e11  # K⁴ of the rows refitted, summed: seconds on one core


@dataclass(frozen=True, eq=False)
class Identifiability:
    """What the theorem's encoder does on rows that use an atom, in S.

    `synthetic` rows are ``δ D``, of which the unit's codes δ are the truth; `real` ones are ``x - centre``. The encoder
    is the theorem's, ``W_enc = D̂ S`` with atoms of unit length, whatever the unit's own. On the support of a row its
    pre-activations are ``on`` or more, off it ``off`` or less: any threshold in between finds the support exactly.

    Attributes:
        index: Place of each row in its split, (rows,) int64.
        k: Atoms of each row, (rows,) int64.
        amplitudes: In ``"S"`` and, for a unit whose encoder works in ``S^p``, in ``"encoder"``.
        synthetic_on: ``on`` of the synthetic row, (rows,) float64.
        synthetic_off: ``off`` of it, at least 0.
        synthetic_error: ``‖z_T - δ‖ / ‖δ‖``: how far what passes the threshold is from the amplitudes.
        real_on: ``on`` of the real row.
        real_off: ``off`` of it, at least 0.
        real_overlap: Share of the support among the K largest pre-activations of the real row.
        synthetic_deployed: 1 where the deployed thresholds find the support of the synthetic row, else 0.
        real_deployed: 1 where they find that of the real row.
        silent: Rows without an atom, which are left out of all of the above.
        refits: Columns of a sample of rows, (sampled,) float64 each: see `atoms.checks.support_refit`.
    """

    index: Tensor
    k: Tensor
    amplitudes: dict[str, Amplitudes]
    synthetic_on: Tensor
    synthetic_off: Tensor
    synthetic_error: Tensor
    real_on: Tensor
    real_off: Tensor
    real_overlap: Tensor
    synthetic_deployed: Tensor
    real_deployed: Tensor
    silent: int
    refits: dict[str, Tensor]


class IdentifiabilityCheck(Check):
    """Identifiability by thresholds: the theorem's windows, and what its encoder does."""

    name: ClassVar[str] = "identifiability"
    title: ClassVar[str] = "Identifiability by thresholds"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._norms, self._directions = subject.norms, subject.directions
        threshold: Tensor | None = getattr(subject.unit, "threshold", None)
        self._threshold = None if threshold is None else threshold.detach().to(subject.device).double()
        power: float | None = getattr(subject.unit, "power", None)
        self._lengths = {"S": self._norms}
        if power is not None and power != 1:
            blocks = torch.split(subject.unit.atoms.to(subject.device), 8192)
            lengths = [subject.geometry.whiten(block.double(), power).norm(dim=1) for block in blocks]
            self._lengths["encoder"] = torch.cat(lengths)
        # Blocks of rows by all atoms are kept and used again: freed and asked for anew amid numbers that stay, they
        # leave holes that the C library does not fill.
        self._space = torch.empty(2, 0, subject.num_atoms, dtype=torch.float64, device=subject.device)
        self._rows, self._refits = RowTable(), RowTable()
        self._sample = spread(judged_places(subject, "val"), 8 * subject.settings.solved_rows)

    def update(self, batch: Encoded) -> None:
        """Look at a batch, as many rows at once as fit."""
        rows = max(1, min(len(batch.index), self.subject.settings.memory_mib * 2**20 // (32 * len(self._norms))))
        if self._space.shape[1] < rows:
            self._space = self._space.new_empty(2, rows, len(self._norms))
        offsets = batch.codes.offsets.tolist()
        for start in range(0, len(batch.index), rows):
            stop = min(start + rows, len(batch.index))
            entries = slice(offsets[start], offsets[stop])
            self._look(
                batch.index[start:stop],
                batch.rows[start:stop],
                batch.codes.rows[entries] - start,
                batch.codes.indices[entries].long(),
                batch.codes.values[entries],
            )

    def _look(self, index: Tensor, rows: Tensor, owner: Tensor, atom: Tensor, value: Tensor) -> None:
        """Rows (B, H), and their entries by row: which row of these, which atom, which coefficient."""
        size = len(rows)
        present = (value != 0) & (self._norms[atom] > 0)  # an atom of zero norm adds nothing
        owner, atom, raw = owner[present], atom[present], value[present].double()
        k = torch.bincount(owner, minlength=size)
        value = raw * self._norms[atom]
        pre, codes = self._space[:, :size]
        codes.zero_().index_put_((owner, atom), value)
        whole = self.subject.geometry.whiten(rows.double() - self.subject.unit.centre.double())
        columns: dict[str, Tensor] = {"k": k}
        support = codes != 0
        for name, made in (("synthetic", codes @ self._directions), ("real", whole)):
            torch.mm(made, self._directions.T, out=pre)
            passed = pre[owner, atom]
            columns[f"{name}_on"] = _least(passed, owner, size)
            if name == "synthetic":
                wrong, whole_square = torch.zeros(2, size, dtype=torch.float64, device=k.device)
                wrong.index_add_(0, owner, (passed - value).square())
                whole_square.index_add_(0, owner, value.square())
                columns["synthetic_error"] = (wrong / whole_square).sqrt()
            else:
                columns["real_overlap"] = _overlap(pre, k, owner, atom)
            fires = support if self._threshold is None else pre >= self._threshold * self._norms
            columns[f"{name}_deployed"] = ((fires & (self._norms > 0)) == support).all(1).long()
            columns[f"{name}_off"] = pre.masked_fill_(support, -math.inf).amax(1).clamp_min_(0)
        for name, lengths in self._lengths.items():
            amplitudes = raw * lengths[atom]
            columns[f"{name}_low"] = _least(amplitudes, owner, size)
            columns[f"{name}_high"] = -_least(-amplitudes.abs(), owner, size)
            theta = torch.full_like(lengths, math.nan) if self._threshold is None else self._threshold * lengths
            columns[f"{name}_theta_on"] = -_least(-theta[atom], owner, size)
            pre.copy_(torch.where(self._norms > 0, theta, math.inf)).masked_fill_(support, math.inf)
            columns[f"{name}_theta_off"] = pre.amin(1)
        self._rows.add(index, **columns)
        whole = whole.cpu()
        for line in torch.isin(index.cpu(), self._sample).nonzero().squeeze(1).tolist():
            place = int(torch.searchsorted(self._sample, index[line].cpu()))
            every = math.ceil(int(k[line]) ** 4 * len(self._sample) / _WORK)
            if every and place % every == 0:
                mine = owner == line
                chosen = self._directions[atom[mine]].cpu().numpy()
                numbers = refit(chosen, value[mine].cpu().numpy(), whole[line].numpy())
                self._refits.add(index[line : line + 1], **{n: torch.tensor([number]) for n, number in numbers.items()})

    def compute(self) -> Identifiability:
        """Gather.

        Raises:
            AtomsError: If no row uses an atom.
        """
        rows, refits = self._rows.gather(), self._refits.gather()
        active = rows["k"] > 0 if rows else torch.zeros(0, dtype=torch.bool)
        if not active.any():
            raise AtomsError(
                f"unit {self.subject.unit.name}: no held-out row uses an atom, so there is no support to find; "
                "look at its thresholds"
            )
        columns = {name: column[active] for name, column in rows.items()}
        amplitudes = {
            name: Amplitudes(*(columns.pop(f"{name}_{part}") for part in ("low", "high", "theta_on", "theta_off")))
            for name in self._lengths
        }
        return Identifiability(**columns, amplitudes=amplitudes, silent=int((~active).sum()), refits=refits)

    def report(self, found: Mapping[str, Any]) -> Section:
        """The section; the theorem's windows need the result of ``separability``."""
        own: Identifiability = found[self.name]
        separability: Separability | None = found.get("separability")
        windows = windows_of(own.k, own.amplitudes, separability)
        tau, _ = best_threshold(own.synthetic_off, own.synthetic_on)
        numbers = _numbers(own, tau) | {
            "epsilon": math.nan if separability is None else separability.maximum,
            **{("" if name == "S" else f"{name}_") + key: n for name, w in windows.items() for key, n in w.numbers()},
        }
        if self._threshold is None:
            numbers |= dict.fromkeys(("synthetic_deployed", "real_deployed"), math.nan)
        claims = [] if separability is None else _window_claims(own, separability, windows)
        claims += [
            _support_claim("synthetic", own.index, own.synthetic_off, own.synthetic_on, tau),
            _support_claim("real", own.index, own.real_off, own.real_on, tau),
        ]
        notes = [
            "The theorem is about supports: what passes the threshold is z_T = G_T δ_T, not δ_T. Amplitudes off by "
            f"{numbers['synthetic_amplitude_q50']:.1%} in half of the rows; least squares on the support mends it.",
            "Windows are known in S and in the encoder's inner product; a miss there says nothing about others.",
        ]
        if own.silent:
            notes.append(f"{own.silent:,} rows use no atom and are left out.")
        if numbers["signed"]:
            notes.append(f"{numbers['signed']:.1%} of the rows have a negative coefficient, which no threshold passes.")
        if self._threshold is None:
            notes.append("The unit has no thresholds of its own to hold against the windows.")
        tables = {"windows": _quantiles(own, windows), "thresholds": _curves(own, windows)}
        return Section(self.name, self.title, numbers, tuple(claims), tables, tuple(notes))


def _window_claims(own: Identifiability, separability: Separability, windows: dict[str, Windows]) -> list[Claim]:
    rows, largest = f"{len(own.k):,} held-out rows", int(own.k.max())
    least = welch(separability.width, separability.alive) * (2 * largest - 1)
    missed = Verdict.UNATTAINABLE if least >= 1 else Verdict.NOT_GUARANTEED
    beyond = f"; at K = {largest} no dictionary of this size leaves a window" if least >= 1 else ""
    signed = bool((own.amplitudes["S"].low < 0).all())

    best = max(windows.values(), key=lambda w: w.coverage)
    shares = ", ".join(f"{w.coverage:.1%} ({name})" for name, w in windows.items())
    why = f"the best threshold lies in the windows of {shares} of the rows; mu = {separability.maximum:.4f} in S"
    if signed:
        verdict, why = Verdict.NOT_APPLICABLE, "every row has a negative coefficient: the theorem is about others"
    elif best.coverage == 1:
        verdict = Verdict.GUARANTEED
    else:
        verdict, why = missed, why + beyond
    claims = [
        Claim(
            name="t5",
            statement="One threshold on the theorem's encoder finds the atoms of every row that is made of them.",
            verdict=verdict,
            why=why,
            source=_SOURCE,
            computed_on=rows,
            value=best.coverage,
            threshold=1.0,
            inputs={"epsilon": separability.maximum, "k_max": largest},
        )
    ]

    held = [w.deployed.double().mean().item() for w in windows.values() if w.deployed is not None]
    if signed or not held:
        verdict = Verdict.NOT_APPLICABLE
        why = why if signed else "the unit has no thresholds"
    elif max(held) == 1:
        verdict, why = Verdict.GUARANTEED, "they lie in every row's window"
    else:
        verdict, why = missed, f"they lie in the windows of {max(held):.1%} of the rows{beyond}"
    claims.append(
        Claim(
            name="t5_deployed",
            statement="The unit's thresholds on the theorem's encoder find the atoms of every row made of them.",
            verdict=verdict,
            why=why,
            source=_SOURCE,
            computed_on=rows,
            value=max(held, default=None),
            threshold=1.0,
        )
    )
    return claims


def _support_claim(kind: str, index: Tensor, off: Tensor, on: Tensor, tau: float) -> Claim:
    exact = (off < tau) & (tau <= on)
    missed = (~exact).nonzero().squeeze(1)
    what = {
        "synthetic": "the atoms of every row δ D made of the unit's codes",
        "real": "the atoms that the unit's own encoder gives every held-out row",
    }[kind]
    if len(missed):
        first = int(missed[0])
        verdict = Verdict.REFUTED
        at = "at any threshold" if math.isnan(tau) else f"at tau = {tau:.3g}"
        why = f"found in {exact.double().mean():.1%} of the rows {at}; not in row {index[first]}"
    else:
        verdict, why = Verdict.NOT_REFUTED, f"found in every row looked at, at tau = {tau:.3g}"
    return Claim(
        name=f"support_{kind}",
        statement=f"One threshold on the theorem's encoder finds {what}.",
        verdict=verdict,
        why=why,
        source="measured; the threshold is the best one for the synthetic rows",
        computed_on=f"{len(index):,} held-out rows",
        value=exact.double().mean().item(),
        threshold=1.0,
    )


def _numbers(own: Identifiability, tau: float) -> dict[str, float]:
    def share(which: Tensor) -> float:
        return which.double().mean().item()

    numbers = {
        "rows": len(own.k),
        "silent": own.silent,
        "signed": share(own.amplitudes["S"].low < 0),
        "synthetic_tau": tau,
        "synthetic_separable": share(own.synthetic_off < own.synthetic_on),
        "synthetic_exact": share((own.synthetic_off < tau) & (tau <= own.synthetic_on)),
        "synthetic_deployed": share(own.synthetic_deployed),
        "synthetic_amplitude_q50": _median(own.synthetic_error),
        "synthetic_amplitude_max": own.synthetic_error.max().item(),
        "real_separable": share(own.real_off < own.real_on),
        "real_exact": share((own.real_off < tau) & (tau <= own.real_on)),
        "real_exact_best": best_threshold(own.real_off, own.real_on)[1],
        "real_deployed": share(own.real_deployed),
        "real_overlap": own.real_overlap.mean().item(),
        "refitted": len(own.refits["index"]) if own.refits else 0,
    }
    for name in ("synthetic_ls", "synthetic_nnls"):
        numbers[f"{name}_max"] = own.refits[name].max().item() if own.refits else math.nan
    for name in ("real_ls", "real_nnls", "error_unit", "error_ls", "error_nnls"):
        numbers[f"{name}_q50"] = _median(own.refits[name]) if own.refits else math.nan
    return numbers


def _quantiles(own: Identifiability, windows: dict[str, Windows]) -> dict[str, list[float] | list[str]]:
    at = np.arange(101) / 100
    columns = {
        "window_low": windows["S"].low,
        "window_high": windows["S"].high,
        "synthetic_off": own.synthetic_off,
        "synthetic_on": own.synthetic_on,
        "real_off": own.real_off,
        "real_on": own.real_on,
    }
    return {"q": at.tolist(), **{name: np.quantile(column.numpy(), at).tolist() for name, column in columns.items()}}


def _curves(own: Identifiability, windows: dict[str, Windows]) -> dict[str, list[float] | list[str]]:
    """Share of rows whose support a threshold finds, by threshold: surely, on synthetic rows and on real ones."""
    top = float(np.quantile(own.amplitudes["S"].high.numpy(), 0.99))
    tau = torch.linspace(0, top, 201, dtype=torch.float64)[1:]
    columns: dict[str, list[float] | list[str]] = {"tau": tau.tolist()}
    for name, (start, stop) in {
        "guaranteed": (windows["S"].low, windows["S"].high),
        "synthetic": (own.synthetic_off, own.synthetic_on),
        "real": (own.real_off, own.real_on),
    }.items():
        columns[name] = [((start < t) & (t < stop)).double().mean().item() for t in tau]
    return columns


def _median(column: Tensor) -> float:
    return float(np.median(column.numpy()))


def _least(values: Tensor, owner: Tensor, size: int) -> Tensor:
    """Least value of each row, (size,); infinity for a row without one."""
    return values.new_full((size,), math.inf).scatter_reduce_(0, owner, values, "amin")


def _overlap(pre: Tensor, k: Tensor, owner: Tensor, atom: Tensor) -> Tensor:
    """Share of each row's atoms among its K largest of `pre` (B, A), (B,)."""
    most = int(k.max())
    if not most:
        return torch.full_like(pre[:, 0], math.nan)
    floor = pre.topk(most, dim=1).values.gather(1, (k - 1).clamp_min(0).unsqueeze(1)).squeeze(1)
    hits = (pre[owner, atom] >= floor[owner]).double()
    return torch.zeros_like(floor).index_add_(0, owner, hits) / k
