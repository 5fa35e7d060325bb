"""The training loop: a step for each batch, a measurement on the dev questions at intervals, a checkpoint after each.

Shapes: S steps.
"""

import math
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from dpr.engine.progress import Progress
from dpr.errors import TrainingError
from dpr.plurals import counted
from dpr.store import open_store
from dpr.train.all_vectors import AllVectors
from dpr.train.batch_plan import Batch, BatchPlan
from dpr.train.checkpoints import (
    Checkpoint,
    Measured,
    State,
    best_of,
    curve_of,
    latest_checkpoint,
    put_checkpoint,
    read_state,
)
from dpr.train.descent import Descent
from dpr.train.dev_accuracy import DevMeter
from dpr.train.gradient_cache import GradientCache
from dpr.train.loss import Scored
from dpr.train.memory_plan import chunk_tokens, kept_tokens
from dpr.train.refresh_negatives import NegativeFinder
from dpr.train.training_job import LoadedTowers, TrainingJob
from dpr.train.training_set import Belonging
from dpr.train.training_step import StepRunner
from dpr.train.workers import Workers

SHOWN_STEPS = 20
"""Steps over which the figures of the progress are averaged."""
BROKEN = "the new weights give vectors that are not finite"
"""What is wrong with a step whose loss and gradient are finite, since both are of the weights before."""


@dataclass(frozen=True)
class Finished:
    """How a training ended."""

    checkpoint: Checkpoint
    curve_S3: Tensor
    """Loss, accuracy and average rank of each step."""
    stopped_early: bool


class TrainingLoop:
    """Trains the towers of a job as one of its workers."""

    def __init__(self, job: TrainingJob, workers: Workers, device: torch.device, progress: Progress) -> None:
        self._job, self._workers, self._progress = job, workers, progress
        recipe = job.recipe
        self._store = open_store(recipe.store)
        self._loaded = LoadedTowers(job, device)
        self._negatives: Belonging | None = None
        """The hard negatives of this epoch; None: those of the data."""
        self._plan = self._make_plan()
        self._descent = Descent(self._loaded.weights, recipe.optimiser, self._plan.steps)
        chunk = chunk_tokens(recipe.resources, device)
        config = self._loaded.passage.network.loaded.body.config
        kept = kept_tokens(recipe.resources, device, config, self._loaded.dtype)
        cache = GradientCache(device, chunk, kept)
        self._runner = StepRunner(self._loaded.towers, workers, cache, job.temperature)
        self._meter = DevMeter(job.dev, workers, device, chunk) if job.dev else None
        self._vectors = AllVectors(workers, device, chunk)
        self._finder = NegativeFinder(job.examples, job.spec.passage, workers, self._vectors)
        self._curve: list[tuple[float, float, float]] = []
        self._measured: list[Measured] = []
        self._checkpoint: Checkpoint | None = None
        progress.message("training", f"{self._loaded.describe()}; activations of {kept:,} tokens are kept")

    def run(self) -> Finished | None:
        """Train from the last checkpoint, or from the beginning, to the end; None for all workers but the first.

        Raises TrainingError if a loss or a gradient is not finite; the last checkpoint stays.
        """
        self._restore()
        size = len(self._plan.batch(0).questions_B)
        self._progress.start("training", self._plan.steps * size, len(self._curve) * size)
        if not self._curve:
            self._measure()  # the state that training starts from
        for step in range(len(self._curve), self._plan.steps):
            if self._is_enough():
                break
            if self._job.recipe.objective.refresh_negatives and step > 0 and step % self._plan.steps_per_epoch == 0:
                self._refresh()
            self._step(self._plan.batch(step))
            self._progress.advance(size, self._figures())
            if self._is_due(step + 1):
                self._measure()
                self._keep()
        self._progress.finish(self._figures())
        if self._workers.rank > 0 or self._checkpoint is None:
            return None
        return Finished(self._checkpoint, curve_of(self._curve), len(self._curve) < self._plan.steps)

    def _restore(self) -> None:
        self._checkpoint = latest_checkpoint(self._store)
        if self._checkpoint is None:
            return
        state = read_state(self._store, self._checkpoint)
        self._descent.restore(state)
        self._curve = [(loss, share, rank) for loss, share, rank in state.curve_S3.tolist()]
        self._measured = list(self._checkpoint.measured)
        self._negatives = state.negatives
        self._plan = self._make_plan()
        self._progress.message("training", f"goes on after {len(self._curve):,} of {self._plan.steps:,} steps")

    def _make_plan(self) -> BatchPlan:
        """Return the plan of all batches, with the hard negatives of this epoch."""
        job, negatives = self._job, self._negatives
        examples = replace(job.examples, negatives=negatives) if negatives else job.examples
        return BatchPlan(examples, job.recipe.objective, job.recipe.optimiser)

    def _refresh(self) -> None:
        """Find the hard negatives of the epoch that begins."""
        self._loaded.set_training(on=False)
        self._negatives = self._finder.find(self._loaded.question, self._loaded.passage)
        self._loaded.set_training(on=True)
        self._plan = self._make_plan()
        found = len(self._negatives.rows_R)
        self._progress.message(
            "training", f"{found:,} new hard negatives found after {counted(len(self._curve), 'step')}"
        )

    def _step(self, batch: Batch) -> None:
        # each step has random numbers of its own, so that a continued training draws the same ones
        seed = np.random.SeedSequence([self._job.recipe.optimiser.seed, batch.step, self._workers.rank])
        torch.manual_seed(int(seed.generate_state(1)[0]))
        try:
            scored = self._runner.run(self._job.examples, batch)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"step {batch.step + 1} of {self._plan.steps} does not fit the device's memory ({error}); lower "
                "resources.kept_tokens or resources.chunk_tokens, and start the training again"
            ) from error
        if batch.step + 1 < self._plan.steps:
            self._plan.batch(batch.step + 1)  # overlaps with a GPU's work
        length = self._descent.clip()
        self._check(batch, scored, length)
        self._descent.step(batch.step)
        self._curve.append((float(scored.loss), scored.accuracy, scored.average_rank))

    def _check(self, batch: Batch, scored: Scored, length: float) -> None:
        """Raise TrainingError if the loss or the gradient is not finite; the weights are still those before."""
        loss = float(scored.loss)
        if not math.isfinite(loss):
            self._stop(batch, f"the loss is {loss}")
        if not math.isfinite(length):
            self._stop(batch, f"the length of the gradient is {length}")

    def _check_vectors(self) -> None:
        """Raise TrainingError if the last step has broken the weights: no loss has shown yet what came of it."""
        batch, examples = self._plan.batch(len(self._curve) - 1), self._job.examples
        self._loaded.set_training(on=False)
        with torch.inference_mode():
            question_BD = self._vectors.of(self._loaded.question, examples.question_tokens.select(batch.questions_B))
            passage_PD = self._vectors.of(self._loaded.passage, examples.passage_tokens.select(batch.passages_P))
        self._loaded.set_training(on=True)
        if not (question_BD.isfinite().all() and passage_PD.isfinite().all()):
            self._stop(batch, BROKEN)

    def _stop(self, batch: Batch, what: str) -> NoReturn:
        epoch, place = divmod(batch.step, self._plan.steps_per_epoch)
        last = latest_checkpoint(self._store)
        kept = f"the checkpoint after step {last.step:,} is kept" if last else "there is no checkpoint yet"
        raise TrainingError(
            f"{what} at step {batch.step + 1} of {self._plan.steps} (epoch {epoch + 1}, batch {place + 1}, whose first "
            f"question is {self._job.examples.questions[int(batch.questions_B[0])][:80]!r}); {kept}; lower "
            "optimiser.learning_rate or raise objective.temperature in a new store"
        )

    def _is_due(self, steps: int) -> bool:
        """Return whether to measure on the dev questions after this many steps."""
        every = self._job.recipe.stopping.every_steps or self._plan.steps_per_epoch
        return steps % every == 0 or steps == self._plan.steps

    def _is_enough(self) -> bool:
        """Return whether the accuracy has not improved for too long."""
        if self._meter is None:
            return False
        best = best_of(self._measured)
        later = [each for each in self._measured if best is not None and each.step > best.step]
        return len(later) >= self._job.recipe.stopping.patience

    def _measure(self) -> None:
        if self._meter is None:
            return
        self._loaded.set_training(on=False)
        found = self._meter.measure(self._loaded.question, self._loaded.passage, len(self._curve))
        self._loaded.set_training(on=True)
        if math.isnan(found.average_rank):
            self._stop(self._plan.batch(max(0, found.step - 1)), BROKEN)
        self._measured.append(found)
        self._progress.message(
            "training",
            f"dev after {found.step:,} of {self._plan.steps:,} steps: accuracy {found.accuracy:.4f}, average rank "
            f"{found.average_rank:.2f}",
        )

    def _keep(self) -> None:
        """Store a checkpoint; the first worker writes it.

        Raises TrainingError if the weights are broken; then the checkpoint before is the last one.
        """
        self._check_vectors()
        if self._workers.rank == 0:
            curve_S3 = curve_of(self._curve)
            state = State(self._loaded.weights, self._descent.moments(), curve_S3, self._negatives)
            self._checkpoint = put_checkpoint(self._store, state, self._measured, self._checkpoint)

    def _figures(self) -> str:
        some = np.array(self._curve[-SHOWN_STEPS:])
        loss, accuracy, rank = some.mean(0).tolist()
        rate = self._descent.learning_rate(max(0, len(self._curve) - 1))
        return f"loss {loss:.4f}, accuracy {accuracy:.3f}, average rank {rank:.2f}, learning rate {rate:.1e}"
