"""The model card of trained towers: data, metrics and recipe, as Markdown that the Hugging Face hub shows."""

import re
from collections.abc import Sequence

import yaml

from dpr.plurals import counted
from dpr.train.checkpoints import Measured, best_of
from dpr.train.training_job import TrainingJob
from dpr.train.training_set import TrainingSet

MAX_ROWS = 20
"""Measurements that the card shows."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(job: TrainingJob, measured: Sequence[Measured], steps: int, encoder: str) -> str:
    """Return the card. `encoder`: the section of a recipe that uses the model."""
    recipe = job.recipe
    tags = ["sentence-transformers", "feature-extraction", "sentence-similarity", "dense-passage-retrieval"]
    front: dict[str, object] = {"tags": tags, "pipeline_tag": "feature-extraction"}
    base = recipe.encoder.model.partition("@")[0]
    if _HUB_ID.fullmatch(base):  # the hub refuses a card whose base model is a path
        front["base_model"] = base
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {'A shared tower' if recipe.towers == 'shared' else 'Two towers'} for dense passage retrieval",
        "",
        f"Trained from `{recipe.encoder.model}` by dpr, with the objective of Karpukhin et al. 2020: the negatives",
        "of a question are the passages of the other questions of its batch, and hard negatives.",
        "",
        "## Use",
        "",
        "In a recipe of dpr:",
        "",
        "```yaml",
        encoder.rstrip(),
        "```",
        "",
        "## Data",
        "",
        f"- Training: {job.examples.describe()}.",
        *(f"- {note}." for note in job.examples.counts.notes),
        f"- Lengths: {_lengths(job.examples)}.",
        *([f"- Dev: {job.dev.describe()}."] if job.dev else []),
        "",
        "## Metrics",
        "",
        *_metrics(measured, steps, recipe.stopping.keep),
        "",
        "## Recipe",
        "",
        "```yaml",
        yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _metrics(measured: Sequence[Measured], steps: int, keep: str) -> list[str]:
    best = best_of(list(measured))
    if best is None:
        return [f"{counted(steps, 'step')}; no measurements were made."]
    kept = "those of the last step"
    if keep == "best":
        kept = f"those after step {best.step:,}, the best on the dev questions"
    shown = {*measured[:1], *measured[-MAX_ROWS:], best}
    return [
        f"{counted(steps, 'step')}; the weights are {kept}. Each dev question was compared with all passages of",
        "the dev questions, exactly; step 0 is the encoder that training started from.",
        "",
        "| step | accuracy of the first passage | average rank of the first right passage |",
        "|---:|---:|---:|",
        *(f"| {each.step:,} | {each.accuracy:.4f} | {each.average_rank:.2f} |" for each in measured if each in shown),
    ]


def _lengths(examples: TrainingSet) -> str:
    questions, passages = (
        f"{tokens.lengths().mean():.0f} tokens, {tokens.cut().texts:,} cut"
        for tokens in (examples.question_tokens, examples.passage_tokens)
    )
    return f"questions of {questions}; passages of {passages}"
