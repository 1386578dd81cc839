"""Which held-out rows are rebuilt, by few atoms, in the only way there is: row by row, with a certificate for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from atoms.checks.check import Check, Encoded, Subject
from atoms.checks.claim import Claim, Section, Verdict
from atoms.checks.judged_code import judged_codes
from atoms.checks.recovery_margins import CERTIFIED, DEPENDENT, recovery_margins
from atoms.checks.row_table import RowTable
from atoms.errors import AtomsError

_POINTS = 256  # of a curve over K


@dataclass(frozen=True, eq=False)
class RowCertificates:
    """What is known of every row judged, in ascending order of rows, on the CPU.

    Attributes:
        index: Place of the row in its split, (N,) int64.
        k: Atoms of the unit's own code, those of zero norm and zero coefficients left out, (N,) int64.
        used: Atoms of the code that is judged; fewer than `k` where a dense code was cut, 0 where it was left out.
        error: ``‖m - m̂‖² / ‖m - mu‖²`` of the code that is judged, mu the mean of the training rows, (N,) float64.
        error_aip: The same in S.
        fuchs: Two-sided Fuchs margin (`recovery_margins.Margins`), infinite without a certificate, (N,) float64.
        fuchs_one_sided: One-sided one, infinite for rows with a negative coefficient.
        erc: Tropp's margin.
        singular: Whether the atoms of the code are linearly dependent, (N,) bool.
        smallest: Smallest eigenvalue of their Gram matrix where they are, else NaN, (N,) float64.
        cut: Whether the code is dense and was cut, (N,) bool.
        left_out: Whether it has too many atoms to be judged, (N,) bool.
        one_sided: Whether no code of any row has a negative coefficient, so that the one-sided certificate counts.
        max_k: K of the headline: `Subject.max_k`, or twice the median K, but no more than H/2.
    """

    index: Tensor
    k: Tensor
    used: Tensor
    error: Tensor
    error_aip: Tensor
    fuchs: Tensor
    fuchs_one_sided: Tensor
    erc: Tensor
    singular: Tensor
    smallest: Tensor
    cut: Tensor
    left_out: Tensor
    one_sided: bool
    max_k: int

    def __len__(self) -> int:
        return len(self.index)

    @property
    def margin(self) -> Tensor:
        """The margin of the certificate that counts, (N,) float64."""
        return self.fuchs_one_sided if self.one_sided else self.fuchs

    @property
    def certified(self) -> Tensor:
        """Rows with the certificate that counts, (N,) bool."""
        return self.margin < CERTIFIED

    def joint(self, eta: float, k: int) -> Tensor:
        """Rows that are rebuilt to ``eta`` by one to ``k`` atoms with the certificate that counts, (N,) bool.

        A row without atoms is the unit's centre; to be near it is no decomposition.
        """
        return self._close(eta, k) & self.certified

    def joint_two_sided(self, eta: float, k: int) -> Tensor:
        """The same with a certificate against codes of both signs, (N,) bool."""
        return self._close(eta, k) & (self.fuchs < CERTIFIED)

    def _close(self, eta: float, k: int) -> Tensor:
        return (self.error <= eta) & (self.used > 0) & (self.used <= k)

    def F(self, eta: float, k: int) -> float:  # noqa: N802  # its name in the field
        """The share of those rows.

        Args:
            eta: Largest relative squared error.
            k: Most atoms.
        """
        return self.joint(eta, k).to(torch.float64).mean().item()

    def curves(self, etas: Sequence[float]) -> dict[str, list[float]]:
        """F over K from 1 on, for each eta: columns ``k`` and ``eta <value>`` of equal length."""
        top = max(self.max_k, int(self.used.max()))
        k = torch.linspace(1, top, min(top, _POINTS), dtype=torch.float64).round().long()
        columns = {"k": k.to(torch.float64).tolist()}
        for eta in etas:
            per_k = torch.bincount(self.used[self.joint(eta, top)], minlength=top + 1).cumsum(0)
            columns[f"eta {eta:g}"] = (per_k[k].to(torch.float64) / len(self)).tolist()
        return columns


class RowCertificatesCheck(Check):
    """Row certificates: error, sparsity and recovery margins of every held-out row."""

    name: ClassVar[str] = "rows"
    title: ClassVar[str] = "Row certificates"
    splits: ClassVar[frozenset[str]] = frozenset({"val"})

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._table = RowTable()
        self._mean = subject.train.moments.mean.to(subject.device)

    def update(self, batch: Encoded) -> None:
        """Certify a batch."""
        subject = self.subject
        judged = judged_codes(batch.codes, subject)
        reconstruction = batch.reconstruction
        if judged.cut.any():
            rebuilt = subject.unit.decode(judged.codes)
            reconstruction = torch.where(judged.cut[:, None], rebuilt, reconstruction)
        error, error_aip = relative_errors(subject, batch.rows, reconstruction, self._mean)
        margins = recovery_margins(
            subject.directions, judged.support, judged.coefficients, memory_mib=subject.settings.memory_mib // 4
        )
        negative = torch.zeros_like(judged.cut)
        negative[batch.codes.rows[batch.codes.values < 0]] = True
        self._table.add(
            batch.index,
            k=judged.k,
            used=judged.used,
            error=error,
            error_aip=error_aip,
            fuchs=margins.fuchs.masked_fill(judged.left_out, torch.inf),
            fuchs_one_sided=margins.one_sided.masked_fill(judged.left_out, torch.inf),
            erc=margins.erc.masked_fill(judged.left_out, torch.inf),
            singular=margins.singular,
            smallest=margins.smallest,
            cut=judged.cut,
            left_out=judged.left_out,
            negative=negative,
        )

    def compute(self) -> RowCertificates:
        """All rows.

        Raises:
            AtomsError: If there were none.
        """
        columns = self._table.gather()
        if not columns:
            raise AtomsError("no held-out row was looked at: row certificates need some")
        for name in ("singular", "cut", "left_out", "negative"):
            columns[name] = columns[name].bool()
        one_sided = not columns.pop("negative").any()
        return RowCertificates(**columns, one_sided=one_sided, max_k=self._max_k(columns["k"]))

    def _max_k(self, k: Tensor) -> int:
        if self.subject.max_k is not None:
            return self.subject.max_k
        return max(1, min(2 * int(k.median()), self.subject.width // 2))

    def report(self, found: Mapping[str, Any]) -> Section:
        """The section."""
        rows: RowCertificates = found[self.name]
        settings = self.subject.settings
        numbers = {
            "f": rows.F(settings.eta, rows.max_k),
            "f_eta": settings.eta,
            "f_k": float(rows.max_k),
            "rows": float(len(rows)),
            "certified": _share(rows.certified),
            "fuchs": _share(rows.fuchs < CERTIFIED),
            "fuchs_one_sided": _share(rows.fuchs_one_sided < CERTIFIED),
            "erc": _share(rows.erc < CERTIFIED),
            "rebuilt": _share(rows.error <= settings.eta),
            "sparse": _share(~rows.left_out & (rows.used <= rows.max_k)),
            "error_median": rows.error.median().item(),
            "error_aip_median": rows.error_aip.median().item(),
            "margin_median": rows.margin.median().item(),
            "k_median": rows.k.median().item(),
            "rows_without_atoms": float((rows.k == 0).sum()),
            "singular": float(rows.singular.sum()),
            "cut": float(rows.cut.sum()),
            "left_out": float(rows.left_out.sum()),
        }
        tables: dict[str, dict[str, list[float] | list[str]]] = {
            "f": dict(rows.curves(settings.etas)),
            "margins": _margin_quantiles(rows),
        }
        return Section(self.name, self.title, numbers, (independence_claim(rows),), tables, tuple(self._notes(rows)))

    def _notes(self, rows: RowCertificates) -> list[str]:
        notes = [
            "No code has a negative coefficient: the one-sided Fuchs certificate counts."
            if rows.one_sided
            else "Codes have both signs: the two-sided Fuchs certificate counts."
        ]
        if self.subject.max_k is None:
            notes.append(
                f"The unit has no target L0: the headline's K = {rows.max_k} is twice its median L0, or H/2 if that is "
                "less; checks.max_k sets another."
            )
        if cut := int(rows.cut.sum()):
            notes.append(
                f"{cut:,} rows have dense codes, of more than H/2 = {self.subject.width // 2} atoms: their "
                f"{self.subject.max_k} strongest atoms are judged, with the error of those."
            )
        if left := int(rows.left_out.sum()):
            most = max(self.subject.settings.certified_k, self.subject.max_k or 0)
            notes.append(
                f"{left:,} rows have too many atoms to be judged (more than {most}, or dense and without checks.max_k)."
            )
        if empty := int((rows.k == 0).sum()):
            notes.append(f"{empty:,} rows have no atom at all: their code is unique, whatever their error.")
        return notes


def relative_errors(subject: Subject, rows: Tensor, reconstruction: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of each row as a share of its squared distance from the mean: raw and in S, (B,) float64 each."""
    missing, spread = rows.double() - reconstruction.double(), rows.double() - mean
    raw = missing.square().sum(1), spread.square().sum(1)
    aip = subject.geometry.norm(missing).square(), subject.geometry.norm(spread).square()
    return _ratio(*raw), _ratio(*aip)


def independence_claim(rows: RowCertificates) -> Claim:
    """Whether atoms that fire together are linearly independent; a dependent support is a witness of two codes."""
    looked_at = int((~rows.left_out).sum())
    dependent = rows.smallest <= DEPENDENT
    count = int(dependent.sum())
    why = f"the smallest eigenvalue of no support's Gram matrix is zero, in {looked_at:,} rows"
    if count:
        first = int(dependent.nonzero()[0])
        why = (
            f"{count:,} of {looked_at:,} rows use dependent atoms; row {int(rows.index[first])}: "
            f"{int(rows.used[first])} atoms whose Gram matrix has an eigenvalue of {rows.smallest[first]:.1e}"
        )
    return Claim(
        name="independent",
        statement="The atoms of a row's code are linearly independent, so that no part of them gives the same row.",
        verdict=Verdict.REFUTED if count else Verdict.NOT_REFUTED,
        why=why,
        source="Donoho and Elad 2003 (spark)",
        computed_on=f"{looked_at:,} held-out rows",
        value=float(count),
        threshold=0.0,
    )


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Part over whole; a row that is the mean itself is rebuilt exactly or not at all."""
    return torch.where(whole > 0, part / whole, torch.where(part > 0, torch.inf, 0.0))


def _share(rows: Tensor) -> float:
    return rows.to(torch.float64).mean().item()


def _margin_quantiles(rows: RowCertificates) -> dict[str, list[float] | list[str]]:
    """Margins that a share of the rows do not exceed; infinite where they have no certificate at all."""
    shares = [i / 20 for i in range(21)]
    places = [round(q * (len(rows) - 1)) for q in shares]
    table: dict[str, list[float] | list[str]] = {"share": list(shares)}
    for name in ("fuchs", "fuchs_one_sided"):
        table[name] = getattr(rows, name).sort().values[places].tolist()
    return table
