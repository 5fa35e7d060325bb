"""One of two real processes that share a batch: `python -m tests.train.gloo_worker RANK MODEL EXAMPLES FOLDER`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from dpr.train.gradient_cache import GradientCache
from dpr.train.training_step import StepRunner
from dpr.train.workers import Group
from tests.train.tiny_training import CPU, first_batch, gradients, make_set, make_spec, make_towers


def main(rank: int, model: Path, path: Path, folder: Path) -> None:
    """Compute half of the first batch, and save the gradients that this worker ends with."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    spec = make_spec(model)
    examples, towers = make_set(path, spec), make_towers(spec)
    batch = first_batch(examples)
    scored = StepRunner(towers, Group(), GradientCache(CPU, 40, 60), 0.1).run(examples, batch)
    save_file(gradients(towers) | {"loss": scored.loss.reshape(1)}, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(Path, sys.argv[2:5]))
