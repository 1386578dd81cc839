"""Numbers of single rows, from all ranks, in one order."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class RowTable:
    """Columns of numbers, one line per row looked at.

    Example:
        >>> table = RowTable()
        >>> table.add(torch.tensor([3, 1]), error=torch.tensor([0.5, 0.25]))
        >>> table.gather()["error"]
        tensor([0.2500, 0.5000], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self._index: list[Tensor] = []
        self._columns: dict[str, list[Tensor]] = {}

    def add(self, index: Tensor, **columns: Tensor) -> None:
        """Add lines.

        Args:
            index: Place of each row in its split, (B,) int64.
            columns: By name, a number for each, (B,) of any type; the names are the same every time.

        Raises:
            ValueError: If lengths or names disagree.
        """
        if self._index and columns.keys() != self._columns.keys():
            raise ValueError(f"columns are {sorted(columns)}, not {sorted(self._columns)} as before")
        if any(column.shape != index.shape for column in columns.values()):
            raise ValueError(f"columns are not all of shape {tuple(index.shape)}")
        self._index.append(index.cpu())
        for name, column in columns.items():
            kind = torch.float64 if column.dtype.is_floating_point else torch.int64
            self._columns.setdefault(name, []).append(column.detach().to("cpu", kind))

    def gather(self) -> dict[str, Tensor]:
        """All ranks' lines by ascending row; every rank must call it.

        Returns:
            ``index`` and every column, (rows,) float64 or int64 on the CPU; empty without any line.
        """
        own = {name: torch.cat(parts) for name, parts in {"index": self._index, **self._columns}.items() if parts}
        tables = [own]
        if dist.is_available() and dist.is_initialized():
            tables = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(tables, own)
        tables = [table for table in tables if table]
        if not tables:
            return {}
        whole = {name: torch.cat([table[name] for table in tables]) for name in tables[0]}
        order = whole["index"].argsort()
        return {name: column[order] for name, column in whole.items()}
