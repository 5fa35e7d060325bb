"""Programs of this project in processes that are forked from one which has imported what they need.

To import PyTorch, Ray Data and the rest takes a program three seconds of a CPU, and a fork none. What Ray reads from
its environment when it is imported, such as the token, holds for all forks: so each Ray has a server of its own.
"""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

IMPORTED = (
    "dpr.encoder.encode",
    "faiss",
    "pyarrow.dataset",
    "ray_jobs.guard",
    "ray_jobs.jobs",
    "ray.dag",
    "ray.data._internal.execution.streaming_executor",
    "ray.data._internal.planner.planner",
    "tests.ray_jobs.stopping_worker",
)


@dataclass(frozen=True)
class Forked:
    """A program that was started, `python -m MODULE ARGUMENT…`, and the files that it writes to."""

    pid: int
    log: Path

    def poll(self) -> int | None:
        """Return its exit code, negative after a signal, or None while it runs."""
        status = self.log.with_suffix(".status")
        return int(status.read_text()) if status.exists() else None

    def wait(self, timeout: float = 60) -> int:
        """Return its exit code once it has ended."""
        give_up = time.monotonic() + timeout
        while (code := self.poll()) is None:
            assert time.monotonic() < give_up, f"process {self.pid} has not ended in {timeout:g} s: {self.errors()}"
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, and wait until it has ended."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def output(self) -> str:
        """Return what it has written to stdout."""
        return self.log.with_suffix(".out").read_text()

    def errors(self) -> str:
        """Return what it has written to stderr."""
        return self.log.with_suffix(".err").read_text()


@dataclass(frozen=True)
class Forks:
    """The server that programs are forked from."""

    server: "subprocess.Popen[str]"

    def start(self, log: Path, module: str, *arguments: object) -> Forked:
        """Start a program; what it writes, and its exit code, go to files named `log` with other suffixes."""
        assert self.server.stdin
        assert self.server.stdout
        log.with_suffix(".status").unlink(missing_ok=True)
        for suffix in (".out", ".err"):
            log.with_suffix(suffix).touch()
        print(json.dumps([str(log), module, *map(str, arguments)]), file=self.server.stdin, flush=True)
        return Forked(int(self.server.stdout.readline()), log)


@contextmanager
def forks(environment: Mapping[str, str]) -> Iterator[Forks]:
    """Start a server with an environment; it ends with the block."""
    command = [sys.executable, "-m", "tests.ray_jobs.forked"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as server:
        yield Forks(server)


def main() -> None:
    """Import what programs need, and start those that stdin names."""
    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for programs
    for line in sys.stdin:
        log, module, *arguments = json.loads(line)
        if os.fork() == 0:
            _run_and_report(Path(log), module, arguments)
            break


def _run_and_report(log: Path, module: str, arguments: list[str]) -> None:
    """Run a program in one more process, and leave its exit code in a file."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        _run(log, module, arguments)
        return
    print(pid, flush=True)
    draft = log.with_suffix(".draft")
    draft.write_text(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    draft.rename(log.with_suffix(".status"))
    os._exit(0)


def _run(log: Path, module: str, arguments: list[str]) -> None:
    flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    for number, path in enumerate(("/dev/null", log.with_suffix(".out"), log.with_suffix(".err"))):
        descriptor = os.open(path, flags if number else os.O_RDONLY)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
