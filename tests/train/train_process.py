"""A training in a process of its own, to be killed: `python -m tests.train.train_process RECIPE [KILL]`.

With KILL, the process sends itself SIGKILL after KILL steps of this attempt.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from dpr.train.run_training import train_here
from dpr.train.train_recipe import TrainRecipe
from tests.tiny import Quiet


class Deadly(Quiet):
    """Progress that ends its process after some steps."""

    def __init__(self, steps: int | None) -> None:
        super().__init__()
        self._left = steps

    def advance(self, rows: int, detail: str = "") -> None:
        super().advance(rows, detail)
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe = TrainRecipe.model_validate_json(Path(sys.argv[1]).read_text())
    train_here(recipe, Deadly(int(sys.argv[2]) if len(sys.argv) > 2 else None), torch.device("cpu"))
