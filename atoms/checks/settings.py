"""What can be asked of the checks."""

from __future__ import annotations

from dataclasses import dataclass, field

from atoms.errors import AtomsError

_COUNTS = ("solved_rows", "null_rows", "refit_rows", "probe_rows", "certified_k", "classes")


@dataclass(frozen=True)
class CheckSettings:
    """How a unit is judged. All of it is printed with the certificate."""

    eta: float = 0.2
    """Largest relative squared error of a row that counts as rebuilt."""
    etas: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2, 0.3])
    """Errors for which F is drawn over K."""
    max_k: int | None = None
    """Most atoms a row may have; null for twice the unit's target L0 (or its median L0, where it has no target)."""
    share: float = 0.5
    """Share of held-out rows that must be rebuilt, sparse and certified at once for the joint claim."""
    rows: int | None = None
    """Held-out rows to judge, the first ones; null for all."""
    train_rows: int | None = None
    """Training rows to judge beside, for the memorisation gap; null for as many as held-out ones."""
    solved_rows: int = 128
    """Rows, spread over the held-out ones, on which optimisation problems are solved."""
    certified_k: int = 128
    """Rows of more atoms than this, and than may be, get no certificate: its cost grows with their square."""
    null_rows: int = 1024
    """Rows, spread over the held-out ones, that random dictionaries are judged on."""
    refit_rows: int = 2048
    """Rows of each split, spread over those judged, whose coefficients are solved for again on the atoms they have."""
    probe_rows: int = 20_000
    """Rows of each split on which probes are fitted and scored; fewer where memory_mib does not hold them."""
    classes: int = 256
    """Classes that rows are put in, to ask which atoms tell them apart; fewer where there are fewer rows."""
    bootstrap: int = 200
    """Resamplings of document groups behind every interval."""
    batch_rows: int = 1024
    """Rows encoded at once."""
    memory_mib: int = 2048
    """Memory the checks may take beside unit and rows."""
    seed: int = 0
    """Seed of everything drawn."""
    skip: list[str] = field(default_factory=list)
    """Checks to leave out, by name."""

    def __post_init__(self) -> None:
        """Refuse what cannot be asked."""
        for name in ("eta", "share"):
            if not 0 < getattr(self, name) <= 1:
                raise AtomsError(f"checks.{name} is {getattr(self, name)}: give a number above 0 and at most 1")
        for name in ("max_k", "rows", "train_rows", "batch_rows", "memory_mib", "bootstrap", *_COUNTS):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise AtomsError(f"checks.{name} is {value}: give at least 1")
        if not self.etas or not all(0 < eta <= 1 for eta in self.etas):
            raise AtomsError(f"checks.etas is {self.etas}: give numbers above 0 and at most 1")

    def counts(self, held_out: int, train: int) -> dict[str, int]:
        """How many rows of ``val`` and ``train`` are judged, the first ones, where there are so many of either."""
        judged = held_out if self.rows is None else min(self.rows, held_out)
        return {"val": judged, "train": min(judged if self.train_rows is None else self.train_rows, train)}
