"""Attempts of one `dpr train … --then …`, each killed: `python -m tests.ray_jobs.killed_chain TRAIN RUN PATTERN…`.

The attempt of a pattern gets SIGKILL as soon as one more file matches it in the folder of TRAIN. All are forks of this
process, so that what they import is imported once. What each has ended with is printed.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

import dpr.encoder.encode
import dpr.encoder.trainable  # noqa: F401
import ray_jobs.train_jobs  # noqa: F401
from ray_jobs import cli
from ray_jobs.guard import guarded


def attempt(train: str, run: str, pattern: str) -> int:
    """Start the command in a process of its own; return its status."""
    folder = Path(train).parent
    before = len(list(folder.glob(pattern)))

    def kill() -> None:
        while len(list(folder.glob(pattern))) == before:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        threading.Thread(target=kill, daemon=True).start()
        sys.argv = ["dpr", "train", train, "--then", run, "--local"]
        sys.exit(guarded(cli.run))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    for one in sys.argv[3:]:
        print(attempt(sys.argv[1], sys.argv[2], one), flush=True)
