"""A run in a process of its own that stops at a chosen call of its store, as if it had been sent SIGSTOP there.

Processes are forked from a server that has loaded everything that a run needs, so that each of them starts at once.
"""

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import dpr.store
from dpr.engine.executor import LocalExecutor
from dpr.recipe_file import load_recipe
from dpr.run import Plan
from dpr.run_recipe import run_plan
from dpr.store import LocalStore
from ray_jobs.guard import guarded
from tests.process_tree import state
from tests.tiny import Quiet

LOADED_BEFORE_FORKING = ["tests.stopping", "dpr.encoder.encode", "transformers.models.bert.modeling_bert", "faiss"]
TIMEOUT_SECONDS = 120.0


class _Stops(LocalStore):
    """Stops this process before the first object is created whose name matches a pattern."""

    pattern = ""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        self._stop_before(name)
        return super().put_if_absent(name, data)

    def put_file_if_absent(self, name: str, path: Path) -> bool:
        self._stop_before(name)
        return super().put_file_if_absent(name, path)

    @classmethod
    def _stop_before(cls, name: str) -> None:
        if cls.pattern and re.search(cls.pattern, name):
            cls.pattern = ""
            os.kill(os.getpid(), signal.SIGSTOP)


class StoppedRun:
    """A run that has stopped, without a heartbeat, until `wake`."""

    def __init__(self, process: BaseProcess, errors: Path) -> None:
        self.process, self._errors = process, errors

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wake(self) -> tuple[int, str]:
        """Let it go on; returns its exit code and what it wrote to stderr."""
        os.kill(self.pid, signal.SIGCONT)
        self.process.join(TIMEOUT_SECONDS)
        assert self.process.exitcode is not None
        return self.process.exitcode, self._errors.read_text()


@contextmanager
def run_stopped_before(recipe: Path, pattern: str, *, lease_seconds: float) -> Iterator[StoppedRun]:
    """Start a run, and give it once it has stopped before it creates an object whose name matches `pattern`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED_BEFORE_FORKING)
    errors = recipe.with_name("errors.txt")
    process = context.Process(target=_run, args=(str(recipe), pattern, lease_seconds, str(errors)))
    process.start()
    stopped = StoppedRun(process, errors)
    try:
        until = time.monotonic() + TIMEOUT_SECONDS
        while (its_state := state(stopped.pid)) != "T":
            assert process.exitcode is None, f"it ended with {process.exitcode}: {errors.read_text()}"
            assert time.monotonic() < until, f"it is in state {its_state}"
            time.sleep(0.02)
        yield stopped
    finally:
        if process.exitcode is None:
            process.kill()
        process.join()


def _run(recipe: str, pattern: str, lease_seconds: float, errors: str) -> None:
    descriptor = os.open(errors, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 2)
    _Stops.pattern = pattern
    dpr.store.LocalStore = _Stops  # type: ignore[misc]  # in this process alone
    plan = Plan.of(load_recipe(recipe))
    sys.exit(guarded(partial(run_plan, plan, LocalExecutor(), Quiet(), lease_seconds=lease_seconds)))
