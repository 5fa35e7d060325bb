"""Show progress: a live bar on a terminal, plain lines in a log file. Both show rows, rows/s and time left."""

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from dpr.plurals import counted

LINE_EVERY_SECONDS = 10.0
WAITING_EVERY_SECONDS = 30.0
"""Seconds between lines in a log file on what a stage waits for, while no results come."""


class _Bar(Progress):
    """A bar with a line below, which a narrow terminal may wrap."""

    detail = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.detail:
            yield Text(f"        {self.detail}")


class ConsoleProgress:
    """Progress of one run, on stderr, so that stdout holds nothing but the result."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = _Bar(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._stage, self._total, self._done, self._before = "", 0, 0, 0
        self._detail = self._waits_for = ""
        self._started = self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        self._stage, self._total, self._done, self._before = stage, total_rows, done_rows, done_rows
        self._detail = self._waits_for = ""
        self._started = self._last_line = time.monotonic()
        self._task = self._bar.add_task(stage, total=total_rows or None, completed=done_rows, rate="")

    def advance(self, rows: int, detail: str = "") -> None:
        self._done += rows
        if self._task is not None:
            self._bar.update(self._task, completed=self._done, rate=f"{self._rate():,.0f} rows/s")
        self._detail = detail
        self._show()
        self._log(LINE_EVERY_SECONDS)

    def waiting(self, text: str) -> None:
        """Show what the stage waits for, until it is called again; an empty text: it no longer waits."""
        every_seconds = WAITING_EVERY_SECONDS if self._waits_for else LINE_EVERY_SECONDS
        self._waits_for = text
        self._show()
        if text:
            self._log(every_seconds)

    def message(self, topic: str, text: str) -> None:
        self._console.print(f"{topic:<9} {text}", highlight=False)

    def finish(self, summary: str) -> None:
        seconds = time.monotonic() - self._started
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task, self._bar.detail = None, ""
        self._print(f"{summary}, {counted(self._done, 'row')} in {seconds:.1f} s")

    def _show(self) -> None:
        """Put the details below the bar."""
        self._bar.detail = self._all_details()

    def _all_details(self) -> str:
        return ", ".join(filter(None, (self._detail, self._waits_for)))

    def _log(self, every_seconds: float) -> None:
        """Print a line to a log file, unless the last one is more recent."""
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line > every_seconds:
            self._last_line = now
            rate = self._rate()
            left = f", {max(self._total - self._done, 0) / rate:,.0f} s left" if rate and self._total else ""
            rows = counted(self._done, "row")
            if self._total:
                rows = f"{self._done:,} of {counted(self._total, 'row')}"
            detail = self._all_details()
            self._print(f"{rows}, {rate:,.0f} rows/s{left}{', ' if detail else ''}{detail}")

    def _rate(self) -> float:
        return (self._done - self._before) / max(time.monotonic() - self._started, 1e-9)

    def _print(self, text: str) -> None:
        self.message(self._stage, text)
