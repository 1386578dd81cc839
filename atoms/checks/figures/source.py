"""What the figures of a certificate are drawn from: its tables, column by column, and its numbers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from atoms.checks.certificate import Certificate

Floats = NDArray[np.float64]
"""What columns and counts are, shape ``(rows of the table,)``."""


class NothingToShow(Exception):  # noqa: N818  # no error
    """A certificate has nothing for a figure."""


class Source:
    """Columns and numbers of a certificate.

    Args:
        certificate: Fresh or loaded.

    Attributes:
        unit: What was judged.
    """

    def __init__(self, certificate: Certificate) -> None:
        self.unit = certificate.unit
        self._tables = {
            (section.name, name): table for section in certificate.sections for name, table in section.tables.items()
        }
        self._numbers = certificate.numbers()

    def table(self, section: str, name: str) -> dict[str, list[float] | list[str]]:
        """A table with at least one row.

        Args:
            section: Of the certificate.
            name: Of the table.

        Returns:
            Columns by name.

        Raises:
            NothingToShow: If there is no such table, or it has no rows.
        """
        table = self._tables.get((section, name), {})
        if not table or not all(table.values()):
            raise NothingToShow
        return table

    def column(self, section: str, table: str, name: str) -> Floats:
        """A column with at least one finite value.

        Args:
            section: Of the certificate.
            table: Name of the table.
            name: Of the column.

        Returns:
            The column, NaN where nothing was measured.

        Raises:
            NothingToShow: If there is no such column, or nothing was measured in it.
        """
        values = np.array(self.table(section, table).get(name, []), np.float64)
        if not np.isfinite(values).any():
            raise NothingToShow
        return values

    def counts(self, section: str, table: str, name: str) -> Floats:
        """A column of counts.

        Args:
            section: Of the certificate.
            table: Name of the table.
            name: Of the column.

        Returns:
            The column, 0 for what was not counted.

        Raises:
            NothingToShow: If there is no such column.
        """
        values = self.table(section, table).get(name)
        if values is None:
            raise NothingToShow
        return np.nan_to_num(np.array(values, np.float64))

    def number(self, name: str) -> float:
        """A number of the certificate.

        Args:
            name: ``section/name``.

        Returns:
            The number, NaN if it does not exist.
        """
        return self._numbers.get(name, math.nan)


def shares_of(counts: Floats) -> Floats:
    """Counts as shares of their sum, 0 where nothing was counted.

    Args:
        counts: One count a bin.
    """
    return np.asarray(counts / max(counts.sum(), 1), np.float64)
