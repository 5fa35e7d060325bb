"""How many pairs of question and passage a cross-encoder scores in a second, beside sentence-transformers.

    python benchmarks/rerank.py --data DATA --out FILE

DATA holds `squad/` in BEIR's layout. The network is MiniLM-L6 with a head of random weights: that changes scores, not
speed. Both sides score the same pairs of text, tokenising included, in turns; the best of three rounds counts.
"""

import argparse
import gzip
import json
import platform
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import transformers
from processor import processor
from sentence_transformers import CrossEncoder as TheirCrossEncoder
from sentence_transformers import __version__ as their_version
from transformers import AutoTokenizer, BertForSequenceClassification

from dpr.encoder.cross_encoder import CrossEncoder
from dpr.encoder.cross_encoder_spec import resolve_cross_encoder
from dpr.encoder.sources import fetch_model
from dpr.operations.first_recipe import default_model
from dpr.recipe_service import RerankConfig

QUESTIONS, PASSAGES, ROUNDS = 20, 50, 3


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    questions, passages = read_pairs(arguments.data / "squad")
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder))
        ours = CrossEncoder(resolve_cross_encoder(RerankConfig(model=model)))
        theirs = TheirCrossEncoder(model, device="cpu")
        pairs = list(zip(questions, passages, strict=True))
        sides: dict[str, Callable[[], np.ndarray]] = {
            "dpr": lambda: ours.score(questions, passages),
            "sentence-transformers, 32 a batch (its default)": lambda: theirs.predict(pairs),
            "sentence-transformers, 8 a batch": lambda: theirs.predict(pairs, batch_size=8),
        }
        seconds, scores = measure(sides)
        one = min(timed(lambda: ours.score(questions[:PASSAGES], passages[:PASSAGES]))[0] for _ in range(5))
        tokens = len(ours._tokenizer.passages(questions, passages).ids_T) / len(pairs)
    largest = max(float(np.abs(scores["dpr"] - other).max()) for other in scores.values())
    lines = [
        "# Re-ranking on a CPU",
        "",
        "    python benchmarks/rerank.py --data DATA --out FILE",
        "",
        f"{processor()}, {torch.get_num_threads()} threads, fp32, on a machine that other work may have shared. Python",
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"sentence-transformers {their_version}. MiniLM-L6 (6 layers, 384 wide)",
        f"with a head of random weights; {QUESTIONS} questions of SQuAD with {PASSAGES} passages each, {tokens:.0f} "
        "tokens a pair on average.",
        f"Tokenising is included; the best of {ROUNDS} rounds in turns. The scores differ by {largest:.1e} at most.",
        "",
        "| | pairs/s | against dpr |",
        "|---|---:|---:|",
        *(f"| {name} | {len(pairs) / s:,.0f} | {seconds['dpr'] / s:.2f} |" for name, s in seconds.items()),
        "",
        f"One question with {PASSAGES} passages: {one * 1000:,.0f} ms.",
        "",
    ]
    arguments.out.write_text("\n".join(lines))
    print("\n".join(lines))


def read_pairs(folder: Path) -> tuple[list[str], list[str]]:
    """Return questions and passages of as many pairs: each question with passages drawn at random."""
    with gzip.open(folder / "queries.jsonl.gz", "rt") as file:
        questions = [json.loads(line)["text"] for line in islice(file, QUESTIONS)]
    with gzip.open(folder / "corpus.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    drawn = np.random.default_rng(0).choice(len(rows), QUESTIONS * PASSAGES, replace=False).tolist()
    return [text for text in questions for _ in range(PASSAGES)], [
        f"{rows[n]['title']} {rows[n]['text']}" for n in drawn
    ]


def make_model(folder: Path) -> str:
    """Save MiniLM as a cross-encoder whose head was not trained."""
    body = fetch_model(default_model()).folder
    torch.manual_seed(0)
    BertForSequenceClassification.from_pretrained(body, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(body).save_pretrained(folder)
    return str(folder)


def measure(sides: dict[str, Callable[[], np.ndarray]]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the seconds of the best round of each side, and what it returned."""
    seconds, scores = dict.fromkeys(sides, float("inf")), {}
    for _ in range(ROUNDS):
        for name, work in sides.items():
            took, scores[name] = timed(work)
            seconds[name] = min(seconds[name], took)
    return seconds, scores


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Return how many seconds a piece of work took, and what it returned."""
    started = time.perf_counter()
    made = work()
    return time.perf_counter() - started, made


if __name__ == "__main__":
    main()
