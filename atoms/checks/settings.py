"""What can be asked of the checks."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class CheckSettings:
    """How a unit is judged. All of it is printed with the certificate."""

    eta: float = 0.2
    """Largest relative squared error of a row that counts as rebuilt."""
    etas: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2, 0.3])
    """Errors for which F is drawn over K."""
    max_k: int | None = None
    """Most atoms a row may have; null for twice the unit's target L0 (or its median L0, where it has no target)."""
    rows: int | None = None
    """Held-out rows to judge, the first ones; null for all."""
    train_rows: int | None = None
    """Training rows to judge beside, for the memorisation gap; null for as many as held-out ones."""
    solved_rows: int = 128
    """Rows, spread over the held-out ones, on which optimisation problems are solved."""
    probe_rows: int = 20_000
    """Rows of each split on which probes are fitted and scored; fewer where memory_mib does not hold them."""
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
