"""What a person watches while a run works."""

from typing import Protocol


class Progress(Protocol):
    """Told by the engine what goes on."""

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        """A stage begins; `done_rows` are there from an earlier attempt."""

    def advance(self, rows: int, detail: str = "") -> None:
        """So many more rows are done; `detail`: what else is worth watching, as of now."""

    def message(self, topic: str, text: str) -> None:
        """What was chosen, and why, before it is done."""

    def finish(self, summary: str) -> None:
        """The stage is done."""
