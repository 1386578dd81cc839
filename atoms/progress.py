"""Progress of a long job: how far, how fast, how long still."""

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0


def duration(seconds: float) -> str:
    """Seconds as people say them: ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(n_bytes: float) -> str:
    """Bytes in binary units with three digits: ``512 B``, ``1.21 GiB``."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


class _Rate(ProgressColumn):
    """Items per second since the start."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "")


class Meter:
    """A progress bar on a terminal, a plain line every ten seconds elsewhere.

    Args:
        label: What is being done.
        total: How many items there are.
        unit: What an item is called.
        enabled: Draw at all; ranks other than the first do not.
        note: What else there is to say at any moment; None for nothing.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str = "tokens",
        enabled: bool = True,
        note: Callable[[], str] | None = None,
    ) -> None:
        self.label, self.total, self.unit, self.enabled = label, total, unit, enabled
        self.note = note or (lambda: "")
        self.done = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        console = Console(stderr=True)
        if enabled and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(label, total=total, unit=unit, note="")

    def __enter__(self) -> "Meter":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to count time."""
        self._started = self._last_line = time.monotonic()
        if self._bar:
            self._bar.start()

    def advance(self, items: int) -> None:
        """Note that ``items`` more are done."""
        self.done += items
        if self._bar:
            self._bar.update(self._task, advance=items, total=self.total, note=self.note())
        elif self.enabled and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            rate = self.done / max(self._last_line - self._started, 1e-9)
            left = duration((self.total - self.done) / rate) if rate else "?"
            said = f"{self.label}: {self.done:,} of {self.total:,} {self.unit}, {rate:,.0f}/s, {left} left"
            self.say(", ".join(filter(None, (said, self.note()))))

    def say(self, line: str) -> None:
        """Print ``line`` above the bar."""
        if not self.enabled:
            return
        if self._bar:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar:
            self._bar.stop()
