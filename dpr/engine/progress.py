"""The progress of a run, as a user sees it."""

from typing import Protocol


class Progress(Protocol):
    """Receives the events of a run from the engine."""

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        """A stage begins; an earlier attempt has done `done_rows` of its rows."""

    def advance(self, rows: int, detail: str = "") -> None:
        """`rows` more rows are done; `detail` is anything else worth showing now."""

    def message(self, topic: str, text: str) -> None:
        """Show a choice, and the reason for it, before the work starts."""

    def finish(self, summary: str) -> None:
        """The stage is done."""
