"""After any history of nights the answers are those of an index of the last corpus, built from nothing by plain FAISS.

Shapes: N passages, Q questions, K hits, D dimensions.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dpr.encoder.encode import Compute, PassageEncoder, QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.formats.manifest import SnapshotBody
from dpr.engine.stage import LocalExecutor
from dpr.nightly import run_recipe
from dpr.recipe import Recipe
from dpr.search.retrieve import Retriever
from dpr.store import LocalStore
from tests.tiny import WORDS, Quiet, make_encoder, write_jsonl

K = 20
NPROBE = 3
FIRST_ROWS = 320
TOLERANCE = 2e-3
"""Of scores: vectors are float16, and encoded anew in other batches they differ in the last bit."""

Act = tuple[str, int, int]
"""What happens to the corpus in a night, to which passage, and how."""


@dataclass
class Nights:
    """A collection and the corpus it should hold, night after night."""

    folder: Path
    encoder: Path
    rescore: int
    corpus: dict[str, str] = field(default_factory=dict)
    past: list[dict[str, str]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    """How often each way of keeping up with the corpus was taken."""

    def __post_init__(self) -> None:
        rng = np.random.default_rng(1)
        self.corpus = {f"p{n}": " ".join(rng.choice(WORDS, rng.integers(3, 12))) for n in range(FIRST_ROWS)}
        self.recipe = Recipe.model_validate(
            {
                "store": str(self.folder / "store"),
                "corpus": {"path": str(self.folder / "corpus.jsonl"), "format": "jsonl", "slice_bytes": 8000},
                "encoder": {
                    "model": str(self.encoder),
                    "pooling": "mean",
                    "normalize": True,
                    "title_join": "space",
                    "precision": "fp32",
                },
                "index": {
                    "factory": "IVF8,PQ8x6",
                    "retrain": "never",
                    "nprobe": NPROBE,
                    "rescore": self.rescore,
                    "train_rows": 200,
                },
                "resources": {"segment_rows": 50, "cpus_per_encoder": 1, "compact_below": 0.5},
            }
        )
        self.encode_questions = QuestionEncoder(resolve(self.recipe.encoder), Compute()).encode
        self.encode_passages = PassageEncoder(resolve(self.recipe.encoder), Compute("fp32", threads=1)).encode

    def act(self, kind: str, which: int, how: int) -> None:
        """Change the corpus."""
        ids = list(self.corpus)
        id_ = ids[which % len(ids)]
        if kind == "add":
            self.corpus[f"new{which}-{how}"] = f"{WORDS[which % 200]} {WORDS[how % 200]}"
        elif kind == "edit":
            self.corpus[id_] += f" {WORDS[how % 200]}"
        elif kind == "rename":
            self.corpus[f"{id_}-{how}"] = self.corpus.pop(id_)
        elif kind == "copy":
            self.corpus[f"copy{how}"] = self.corpus[id_]
        elif kind == "undo":  # one passage as it was on an earlier night
            earlier = self.past[how % len(self.past)] if self.past else {}
            self.corpus |= {id_: earlier[id_]} if id_ in earlier else {}
        elif kind == "revert":  # everything
            self.corpus = dict(self.past[how % len(self.past)]) if self.past else self.corpus
        elif len(ids) > FIRST_ROWS // 2:
            count = 1 if kind == "delete" else 20 + how % 60
            for gone in ids[which % len(ids) :][:count]:
                del self.corpus[gone]

    def night(self) -> SnapshotBody:
        """Bring the collection up to date."""
        write_jsonl(self.folder / "corpus.jsonl", self.corpus)
        outcome = run_recipe(self.recipe, LocalExecutor(), Quiet(), allow_shrink=True)
        self.past.append(dict(self.corpus))
        if outcome.published:
            assert outcome.report is not None
            found = outcome.report.found.model_dump()
            self.seen.update({name: found[name] for name in ("new", "borrowed", "dead", "restored")})
            body = outcome.snapshot.body
            self.seen["deletion sets"] += sum(entry.deletions is not None for entry in body.segments)
        return outcome.snapshot.body


def stored(folder: Path, body: SnapshotBody) -> dict[str, tuple[str, np.ndarray]]:
    """Id → text and vector of every live row, read by plain pyarrow."""
    found: dict[str, tuple[str, np.ndarray]] = {}
    for entry in body.segments:
        table = pq.read_table(folder / entry.object.name, columns=["id", "text", "embedding"])
        if entry.deletions is not None:
            dead = pq.read_table(folder / entry.deletions.object.name)["row"].to_numpy()
            table = table.take(pa.array(np.setdiff1d(np.arange(len(table)), dead)))
        for row in table.to_pylist():
            assert row["id"] not in found
            found[row["id"]] = row["text"], np.array(row["embedding"], np.float32)
    return found


def assert_best(hits: Sequence[Any], scores: dict[str, float]) -> None:
    """Hits are the K best by `scores` (of all candidates), in order; which of equal ones come last is open."""
    assert len({hit.id for hit in hits}) == len(hits) == min(K, len(scores))
    best = sorted(scores.values(), reverse=True)[:K]
    assert [hit.score for hit in hits] == pytest.approx(best, abs=1e-5)
    assert [scores[hit.id] for hit in hits] == pytest.approx(best, abs=1e-5)


def check_answers(nights: Nights, body: SnapshotBody, questions: list[str]) -> None:
    """The collection holds the corpus, and answers as an index of it made from nothing does."""
    folder = nights.folder / "store"
    rows = stored(folder, body)
    assert {id_: text for id_, (text, _) in rows.items()} == nights.corpus
    ids = list(nights.corpus)
    vectors_ND = np.stack([rows[id_][1] for id_ in ids])
    fresh_ND = nights.encode_passages([""] * len(ids), list(nights.corpus.values()))
    np.testing.assert_allclose(vectors_ND, fresh_ND, atol=TOLERANCE)

    index = faiss.read_index(str(folder / body.codebook.object.name))
    assert index.ntotal == 0
    index.add(vectors_ND)
    index.nprobe = NPROBE
    questions_QD = nights.encode_questions(questions)
    scores_QN, rows_QN = index.search(questions_QD, len(ids))
    exact_QN = questions_QD @ vectors_ND.T
    retriever = Retriever.open(LocalStore(folder))
    found = retriever.search(questions, K).hits
    exact = retriever.search(questions, K, exact=True).hits
    for q in range(len(questions)):
        truth = dict(zip(ids, exact_QN[q].tolist(), strict=True))
        assert_best(exact[q], truth)
        visited = {ids[row]: float(score) for score, row in zip(scores_QN[q], rows_QN[q], strict=True) if row >= 0}
        if nights.rescore:
            # the first so many by code compete by their vectors; equal codes at the border may fall on either side
            border = sorted(visited.values(), reverse=True)[: nights.rescore][-1]
            kept = {id_: truth[id_] for id_, score in visited.items() if score >= border - 1e-6}
            if len(kept) == nights.rescore:
                nights.seen["border clear"] += 1
                assert_best(found[q], kept)
        else:
            assert_best(found[q], visited)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


acts = st.tuples(
    st.sampled_from(["add", "add", "edit", "edit", "rename", "copy", "undo", "delete", "delete many", "revert"]),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
)


@settings(
    max_examples=5,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink a failure would take hundreds of nights
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    histories=st.lists(st.lists(acts, min_size=1, max_size=12), min_size=4, max_size=8),
    rescore=st.sampled_from([0, 40]),
)
def test_any_history_answers_as_an_index_made_from_nothing(
    tmp_path_factory: pytest.TempPathFactory, encoder: Path, histories: list[list[Act]], rescore: int
) -> None:
    nights = Nights(tmp_path_factory.mktemp("nights"), encoder, rescore)
    codebook = nights.night().codebook
    for acts_of_night in histories:
        for act in acts_of_night:
            nights.act(*act)
        body = nights.night()
        assert body.codebook == codebook
    asked = [*list(nights.corpus.values())[:4], "w1 w2", "w150", "w7 w8 w9"]
    check_answers(nights, body, asked)


@pytest.mark.parametrize("rescore", [0, 40])
def test_a_long_history_of_every_kind(tmp_path: Path, encoder: Path, rescore: int) -> None:
    nights = Nights(tmp_path, encoder, rescore)
    first = nights.night()
    rng = np.random.default_rng(rescore)
    for night in range(12):
        kinds = ["add", "edit", "edit", "rename", "copy", "undo", "delete"]
        for kind in rng.choice(kinds, rng.integers(4, 12)):
            nights.act(str(kind), int(rng.integers(10_000)), int(rng.integers(10_000)))
        if night % 4 == 2:
            nights.act("delete many", int(rng.integers(200)), 40)
        if night % 5 == 4:
            nights.act("revert", 0, night - 2)
        body = nights.night()
        check_answers(nights, body, [*list(nights.corpus.values())[night : night + 3], "w3 w4"])
    assert body.codebook == first.codebook
    assert not rescore or nights.seen["border clear"] > 0
    assert min(nights.seen[name] for name in ("new", "borrowed", "dead", "restored", "deletion sets")) > 0
    assert not {entry.segment_id for entry in first.segments} <= {
        entry.segment_id for entry in body.segments
    }  # compacted
