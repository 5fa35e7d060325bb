"""While a stage waits, progress shows what it waits for, on a terminal and in a log file."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console

from ray_jobs import console
from ray_jobs.console import ConsoleProgress

pytestmark = pytest.mark.without_ray


@contextmanager
def waiting_terminal() -> Iterator[tuple[ConsoleProgress, io.StringIO]]:
    """A stage that has something to show and waits, and its screen; the last frame is drawn when the block ends."""
    screen = io.StringIO()
    with ConsoleProgress(Console(file=screen, force_terminal=True, width=120)) as progress:
        progress.start("embed", 10, 0)
        progress.advance(1, "7 texts a second")
        progress.waiting("process 5 hangs")
        yield progress, screen


def test_a_terminal_shows_the_detail_again_when_the_stage_no_longer_waits() -> None:
    with waiting_terminal() as (progress, screen):
        begun = screen.tell()
        progress.waiting("")
    assert "7 texts a second" in screen.getvalue()[begun:]  # the frame that is drawn last
    assert "process 5 hangs" not in screen.getvalue()[begun:]


def test_a_terminal_shows_the_detail_and_what_the_stage_waits_for() -> None:
    with waiting_terminal() as (_, screen):
        pass
    assert "7 texts a second, process 5 hangs" in screen.getvalue()


def test_a_log_file_gets_a_line_only_while_the_stage_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_EVERY_SECONDS", -1.0)
    monkeypatch.setattr(console, "WAITING_EVERY_SECONDS", -1.0)
    log = io.StringIO()
    with ConsoleProgress(Console(file=log, width=120)) as progress:
        progress.start("embed", 10, 0)
        progress.waiting("process 5 hangs")
        progress.waiting("")
        progress.advance(1, "7 texts a second")
    waits, goes_on = log.getvalue().splitlines()
    assert waits.endswith("rows/s, process 5 hangs")
    assert goes_on.endswith(", 7 texts a second")
    assert "hangs" not in goes_on
