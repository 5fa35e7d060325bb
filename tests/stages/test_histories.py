"""After any history of nights the answers are those of an index of the last corpus, built from nothing.

That index is one of plain FAISS, and for searching by words one of bm25s.

Shapes: N passages, Q questions, K hits, D dimensions.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dpr.encoder.compute import Compute
from dpr.encoder.encode import PassageEncoder
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.formats.manifest import SnapshotBody
from dpr.formats.snapshots import numbers
from dpr.operations.rollback import rollback
from dpr.recipe_index import LexicalConfig
from dpr.run_recipe import Allowed
from dpr.search.hits import Hit
from dpr.search.retrieve import Retriever
from dpr.search.vector_search import MORE_LISTS
from tests.collection import FirstNights
from tests.lexical.oracle import bm25s_scores
from tests.tiny import WORDS, random_texts

K = 20
NPROBE = 3
FIRST_ROWS = 240
TOLERANCE = 2e-3
"""Tolerance of scores: vectors are float16, and differ in the last bit if encoded again in other batches."""
INT8_TOLERANCE = TOLERANCE + 0.5 / 127
"""A component of a vector of length 1 is 1 at most, so that rounding changes none by more than half of 1/127."""

Act = tuple[str, int, int]
"""What happens to the corpus in a night, to which passage, and how."""


class History:
    """A collection and the corpus it should hold, night after night; its first night is over."""

    def __init__(self, folder: Path, first_nights: FirstNights, rescore: int, store_as: str = "float16") -> None:
        self.collection = first_nights.copy(
            folder,
            random_texts(FIRST_ROWS, seed=1),
            corpus={"slice_bytes": 8000},
            encoder={"precision": "fp32", "store_as": store_as},
            index={
                "factory": "IVF8,PQ8x6",
                "retrain": "never",
                "nprobe": NPROBE,
                "rescore": rescore,
                "train_rows": 200,
            },
            gate={"min_recall": 0},
            resources={"segment_rows": 40},
        )
        self.rescore, self.tolerance = rescore, TOLERANCE if store_as == "float16" else INT8_TOLERANCE
        self.past: list[dict[str, str]] = [dict(self.corpus)]
        self.seen: Counter[str] = Counter()
        """How often each way of keeping up with the corpus was taken."""
        spec = resolve(self.collection.recipe.encoder)
        self.encode_questions = QuestionEncoder(spec.question, Compute("fp32")).encode
        self.encode_passages = PassageEncoder(spec.passage, Compute("fp32", threads=1)).encode

    @property
    def corpus(self) -> dict[str, str]:
        return self.collection.corpus

    def roll_back(self, how: int) -> None:
        """Make an earlier snapshot live again."""
        if older := numbers(self.collection.store)[:-1]:
            rollback(self.collection.store, older[how % len(older)])

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
            earlier = self.past[how % len(self.past)]
            self.corpus.update({id_: earlier[id_]} if id_ in earlier else {})
        elif kind == "revert":  # everything
            self.collection.corpus = dict(self.past[how % len(self.past)])
        elif len(ids) > FIRST_ROWS // 2:
            count = 1 if kind == "delete" else 20 + how % 60
            for gone in ids[which % len(ids) :][:count]:
                del self.corpus[gone]

    def night(self) -> SnapshotBody:
        """Bring the collection up to date."""
        outcome = self.collection.night(allowed=Allowed(shrink=True))
        self.past.append(dict(self.corpus))
        if outcome.published:
            assert outcome.report is not None
            found = outcome.report.found.model_dump()
            self.seen.update({name: found[name] for name in ("new", "borrowed", "dead", "restored")})
            self.seen["deletion sets"] += outcome.snapshot.body.deletions is not None
        return outcome.snapshot.body

    def loose(self, body: SnapshotBody) -> set[str]:
        """Return the ids of passages that no shard holds."""
        tables = {e.number: pq.read_table(self.collection.file(e.object.name), columns=["id"]) for e in body.segments}
        if body.index.loose is None:
            return set()
        rows = pq.read_table(self.collection.file(body.index.loose.name), columns=["segment", "row"]).to_pylist()
        return {tables[row["segment"]]["id"][row["row"]].as_py() for row in rows}

    def check_answers(self, body: SnapshotBody, questions: list[str]) -> None:
        """The collection holds the corpus, and answers as an index of it made from nothing does.

        A question visits the nearest lists that have rows, and more of them until it has found K. Loose rows are an
        exception: they are always found, with their exact scores.
        """
        rows = self.collection.live_rows(body)
        assert {id_: text for id_, (text, _) in rows.items()} == self.corpus
        ids = list(self.corpus)
        vectors_ND = np.stack([rows[id_][1] for id_ in ids])
        fresh_ND = self.encode_passages([""] * len(ids), list(self.corpus.values()))
        np.testing.assert_allclose(vectors_ND, fresh_ND, atol=self.tolerance)

        index = faiss.read_index(str(self.collection.file(body.codebook.object.name)))
        assert index.ntotal == 0
        index.add(vectors_ND)
        index.nprobe = index.nlist
        questions_QD = self.encode_questions(questions)
        scores_QN, rows_QN = index.search(questions_QD, len(ids))
        lists_N = index.quantizer.assign(vectors_ND.astype(np.float32), 1)[:, 0]
        _, nearest_QL = index.quantizer.search(questions_QD, index.nlist)
        exact_QN = questions_QD @ vectors_ND.T
        loose = self.loose(body)
        self.seen["loose"] += len(loose)
        self.seen["several shards"] += len(body.index.shards) > 1
        with Retriever.open(self.collection.store) as retriever:
            found = retriever.search(questions, K).hits
            exact = retriever.search(questions, K, exact=True).hits
            by_words = retriever.search(questions, K, mode="bm25").hits
        bm25_QN = bm25s_scores([rows[id_][0] for id_ in ids], questions, LexicalConfig())
        for q in range(len(questions)):
            truth = dict(zip(ids, exact_QN[q].tolist(), strict=True))
            assert_best(exact[q], truth)
            assert_best(by_words[q], {id_: score for id_, score in zip(ids, bm25_QN[q].tolist(), strict=True) if score})
            by_code = {ids[row]: float(score) for score, row in zip(scores_QN[q], rows_QN[q], strict=True)}
            there = [number for number in nearest_QL[q] if number in lists_N]
            visited, nprobe = {}, NPROBE
            while len(visited) < K and len(visited) < len(ids):
                some = np.flatnonzero(np.isin(lists_N, there[:nprobe])).tolist()
                visited = {ids[row]: by_code[ids[row]] for row in some} | {id_: truth[id_] for id_ in loose}
                nprobe *= MORE_LISTS
            if self.rescore:
                # the best `rescore` by code are ranked by their vectors; equal codes at the border may fall on either
                # side
                border = sorted(visited.values(), reverse=True)[: self.rescore][-1]
                kept = {id_: truth[id_] for id_, score in visited.items() if score >= border - 1e-6}
                if len(kept) == self.rescore:
                    self.seen["border clear"] += 1
                    assert_best(found[q], kept)
            else:
                assert_best(found[q], visited)


def assert_best(hits: Sequence[Hit], scores: dict[str, float]) -> None:
    """Hits are the K best by `scores` (of all candidates), in order; which of equal ones come last is open."""
    assert len({hit.id for hit in hits}) == len(hits) == min(K, len(scores))
    best = sorted(scores.values(), reverse=True)[:K]
    assert [hit.score for hit in hits] == pytest.approx(best, abs=1e-5)
    assert [scores[hit.id] for hit in hits] == pytest.approx(best, abs=1e-5)


KINDS = ["add", "add", "edit", "edit", "rename", "copy", "undo", "delete", "delete many", "revert", "roll back"]
acts = st.tuples(st.sampled_from(KINDS), st.integers(0, 10_000), st.integers(0, 10_000))


@pytest.fixture(scope="module", autouse=True)
def few_loose_rows() -> Iterator[None]:
    """Allow few loose rows, so that later nights make shards, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpr.index.loose_index.NEW_ROWS", -5)
        yield


@pytest.mark.slow
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
    tmp_path_factory: pytest.TempPathFactory, first_nights: FirstNights, histories: list[list[Act]], rescore: int
) -> None:
    history = History(tmp_path_factory.mktemp("nights"), first_nights, rescore)
    codebook = history.collection.body(1).codebook
    for acts_of_night in histories:
        for kind, which, how in acts_of_night:
            if kind == "roll back":
                history.roll_back(how)
            else:
                history.act(kind, which, how)
        body = history.night()
        assert body.codebook == codebook
    history.check_answers(body, [*list(history.corpus.values())[:4], "w1 w2", "w150", "w7 w8 w9"])


@pytest.mark.slow
@pytest.mark.parametrize(("rescore", "store_as"), [(0, "float16"), (40, "float16"), (40, "int8")])
def test_a_long_history_of_every_kind(tmp_path: Path, first_nights: FirstNights, rescore: int, store_as: str) -> None:
    history = History(tmp_path, first_nights, rescore, store_as)
    first = history.collection.body(1)
    rng = np.random.default_rng(rescore)
    for night in range(12):
        for kind in rng.choice(["add", "edit", "edit", "rename", "copy", "undo", "delete"], rng.integers(4, 12)):
            history.act(str(kind), int(rng.integers(10_000)), int(rng.integers(10_000)))
        if night % 4 == 2:
            history.act("delete many", int(rng.integers(200)), 40)
        if night % 5 == 3:
            history.roll_back(int(rng.integers(10_000)))
        if night % 5 == 4:
            history.act("revert", 0, night - 2)
        body = history.night()
        history.check_answers(body, [*list(history.corpus.values())[night : night + 3], "w3 w4"])
    assert body.codebook == first.codebook
    assert not rescore or history.seen["border clear"] > 0
    assert min(history.seen[name] for name in ("new", "borrowed", "dead", "restored", "deletion sets", "loose")) > 0
    assert history.seen["several shards"] > 0
    segments = [{entry.segment_id for entry in each.segments} for each in (first, body)]
    assert not segments[0] <= segments[1]  # compacted
