"""Whole runs with a tiny encoder: the right answers, at the cost of what changed, the same end after any failure."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpr.store
from dpr.corpus.slices import CorpusPlan, plan_slices
from dpr.encoder.compute import Compute
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.errors import CorpusError, DprError, GateError, IndexBuildError, RecipeError, StoreError
from dpr.formats import layout
from dpr.formats.snapshots import latest_snapshot, numbers
from dpr.operations.rollback import rollback
from dpr.recipe import CorpusConfig
from dpr.run_recipe import Allowed
from dpr.search.retrieve import Retriever
from dpr.store import LocalStore, Store
from tests.collection import Collection, FirstNights
from tests.faulty_store import FailureMode, FaultyStore
from tests.tiny import Quiet, make_encoder, random_texts


def test_hits_are_those_of_brute_force(tmp_path: Path, first_nights: FirstNights) -> None:
    collection = first_nights.copy(tmp_path)
    rows = collection.live_rows(collection.body(1))
    assert {id_: text for id_, (text, _) in rows.items()} == collection.corpus
    ids = list(rows)
    vectors_ND = np.stack([vector for _, vector in rows.values()])
    questions = [collection.corpus["p007"], "w1 w2", "w150"]
    encode = QuestionEncoder(resolve(collection.recipe.encoder).question, Compute()).encode
    exact_QN = encode(questions) @ vectors_ND.T
    with Retriever.open(collection.store) as retriever:
        found = retriever.search(questions, 5).hits
    for exact_N, hits in zip(exact_QN, found, strict=True):
        best = np.argsort(-exact_N, kind="stable")[:5]
        assert [hit.id for hit in hits] == [ids[row] for row in best]
        assert [hit.score for hit in hits] == pytest.approx(exact_N[best].tolist(), abs=1e-5)
        assert [hit.text for hit in hits] == [collection.corpus[hit.id] for hit in hits]
        assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    assert found[0][0].id == "p007"


def test_a_run_without_changes_does_nothing(tmp_path: Path, encoder: Path) -> None:
    collection = Collection(tmp_path, encoder)
    first = collection.night()
    assert (first.published, first.snapshot.number, first.snapshot.body.passages) == (True, 1, 30)
    progress = Quiet()
    again = collection.night(progress=progress)
    assert (again.published, again.snapshot) == (False, first.snapshot)
    assert progress.rows == {}
    collection.path.touch()  # the file looks changed, but its rows are not
    touched = collection.night(progress=progress)
    assert (touched.published, touched.snapshot) == (False, first.snapshot)
    assert (progress.rows["embed"], progress.rows["gate"]) == (0, 0)


def test_a_night_costs_what_changed(tmp_path: Path, first_nights: FirstNights) -> None:
    collection = first_nights.copy(tmp_path)
    collection.corpus["p003"] = "w1 w2 w3"
    collection.corpus["new"] = collection.corpus["p004"]  # the same text under another id
    del collection.corpus["p005"]
    progress = Quiet()
    outcome = collection.night(progress=progress)
    assert outcome.snapshot.number == 2
    assert (progress.rows["embed"], progress.rows["copy"]) == (1, 1)
    assert outcome.snapshot.body.passages == 30
    rows = collection.live_rows(outcome.snapshot.body)
    assert {id_: text for id_, (text, _) in rows.items()} == collection.corpus
    assert (rows["new"][1] == rows["p004"][1]).all()
    with Retriever.open(collection.store) as retriever:
        assert {hit.id for hit in retriever.search(["w1 w2 w3"], 120).hits[0]} == set(collection.corpus)


@pytest.mark.slow
def test_two_stores_end_in_the_same_bytes(tmp_path: Path, encoder: Path) -> None:
    bodies = []
    for name in ("one", "two"):
        collection = Collection(tmp_path / name, encoder, random_texts(160), index={"factory": "IVF4,PQ8x4"})
        bodies.append(collection.night().snapshot.body.to_bytes())
    assert bodies[0] == bodies[1]


class _Counted(FaultyStore):
    """One count of calls over all stores that a run opens."""

    def __init__(self, store: Store, fail_at: int, mode: FailureMode) -> None:
        super().__init__(store, fail_at, mode)
        self.names: list[str] = []
        """What each call was: `put of NAME`."""

    def _call(self, call: str, operation: Callable[[], Any]) -> Any:
        self.names.append(call)
        return super()._call(call, operation)


def _install(patch: pytest.MonkeyPatch, url: str, fail_at: int = 0, mode: FailureMode = "before") -> _Counted:
    counted = _Counted(LocalStore(url), fail_at, mode)
    patch.setattr(dpr.store, "LocalStore", lambda _: counted)
    return counted


SHARES = 4
"""Number of tests that share the calls; they may run side by side."""


def state_of(store: str) -> frozenset[str]:
    """Return the names of all that a later run can read of a store: they hold the digests of the objects' bytes.

    Reports, which no run reads, have names of their own each time.
    """
    found = (path.relative_to(store) for path in Path(store).rglob("*") if path.is_file())
    return frozenset(str(name) for name in found if name.parent.name != "reports")


@pytest.mark.slow
@pytest.mark.parametrize("share", range(SHARES))
def test_a_run_that_fails_at_any_call_ends_in_the_same_body(
    tmp_path: Path, static_encoder: Path, monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    """Each call fails before it has an effect; each call that changes the store also fails after its effect.

    Each state of the store that is left is continued once: after calls that only read, it is the same.
    """
    fields = {"encoder": {"precision": "fp32", "packing": "never"}}
    first = Collection(tmp_path / "first", static_encoder, **fields)
    first.write_corpus()
    first.change(corpus={"path": str(first.path.rename(tmp_path / "corpus.jsonl"))})  # one file for all copies
    first.night()
    first.path = tmp_path / "corpus.jsonl"
    first.corpus |= {"p001": "w5 w6", "other": first.corpus["p002"]}
    del first.corpus["p003"]
    first.write_corpus()

    whole = first.copy(tmp_path / "whole")
    with monkeypatch.context() as patch:
        counted = _install(patch, whole.recipe.store)
        expected = whole.night().snapshot.body.to_bytes()
    assert counted.calls == len(counted.names) > 80
    cases: list[tuple[int, FailureMode]] = [(number, "before") for number in range(1, counted.calls + 1)]
    changing = [number for number, name in enumerate(counted.names, 1) if name.startswith(("put", "delete"))]
    assert len(changing) > 20
    cases += [(number, "after") for number in changing]
    cases = sorted(cases)[share * len(cases) // SHARES : (share + 1) * len(cases) // SHARES]

    failed, continued = 0, set[frozenset[str]]()
    for fail_at, mode in cases:
        collection = first.copy(tmp_path / f"{mode}-{fail_at}")  # a process remembers things by the store's URL
        with monkeypatch.context() as patch:
            counted = _install(patch, collection.recipe.store, fail_at, mode)
            try:
                collection.night()
            except StoreError:
                failed += 1
        where = f"{mode} call {fail_at}, {counted.names[fail_at - 1]}"
        if (state := state_of(collection.recipe.store)) not in continued:
            continued.add(state)
            assert collection.night().snapshot.body.to_bytes() == expected, where
            assert numbers(collection.store) == [1, 2], where
        shutil.rmtree(collection.folder)
    print(f"{len(cases)} failures left {len(continued)} states")
    # the others are answers that are not needed, heartbeats, or probes, which may fail
    assert failed > 0.8 * len(cases)


STRINGS = {"questions": "{}/questions.jsonl", "answers": "strings"}


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"corpus": {"path": "{}/none.jsonl"}}, CorpusError, "none.jsonl"),
        ({"gate": STRINGS | {"min_accuracy": {1: 1.0}, "at": [1]}}, GateError, "top-1"),
        ({"gate": {"questions": "{}/questions.jsonl"}}, RecipeError, "none of the 1 passage ids"),
        ({"index": {"factory": "IVF4096,Flat"}}, IndexBuildError, "4096"),
        ({"index": {"factory": "Nonsense"}}, IndexBuildError, "Nonsense"),
    ],
)
def test_bad_input_leaves_the_store_without_a_snapshot(
    tmp_path: Path, encoder: Path, fields: dict[str, Any], error: type[DprError], message: str
) -> None:
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": "w1", "answers": ["nothing"]}) + "\n")
    collection = Collection(tmp_path, encoder, **json.loads(json.dumps(fields).replace("{}", str(tmp_path))))
    with pytest.raises(error, match=message) as refused:
        collection.night()
    assert "\n" not in str(refused.value)
    assert latest_snapshot(collection.store) is None


def test_a_factory_that_faiss_refuses_ends_a_run_before_anything_is_embedded(tmp_path: Path, encoder: Path) -> None:
    collection = Collection(tmp_path, encoder, index={"factory": "IVF16,PQ5"})  # 32 dimensions are not 5 equal parts
    with pytest.raises(IndexBuildError, match=r"or auto$"):
        collection.night()
    assert list(collection.store.list("")) == []


def test_an_index_that_needs_more_rows_ends_a_run_before_anything_is_embedded(
    tmp_path: Path, encoder: Path, first_nights: FirstNights
) -> None:
    def segments(collection: Collection) -> list[str]:
        return [info.name for info in collection.store.list(layout.SEGMENTS)]

    first = Collection(tmp_path / "first", encoder, random_texts(50), index={"factory": "IVF64,Flat"})
    with pytest.raises(IndexBuildError, match="IVF64,Flat needs at least 64 training vectors and there are 50; choose"):
        first.night()
    assert segments(first) == []
    later = first_nights.copy(tmp_path / "later")
    before = segments(later)
    later.corpus |= {"new": "w1 w2 w3 w4"}
    later.change(index={"factory": "IVF64,Flat"})
    with pytest.raises(IndexBuildError, match="IVF64,Flat needs at least 64 training vectors and there are 31; choose"):
        later.night()
    assert segments(later) == before
    later.change(index={"factory": "IVF4,Flat", "retrain": "never"})
    with pytest.raises(IndexBuildError, match=r"index\.retrain is never; set retrain to auto"):
        later.night()
    assert segments(later) == before
    later.change(index={"factory": "IVF4,Flat", "retrain": "auto"})
    assert later.night().snapshot.body.passages == 31


def test_a_shrunken_corpus_needs_permission(tmp_path: Path, first_nights: FirstNights) -> None:
    collection = first_nights.copy(tmp_path)
    collection.change(limits={"max_shrink": 0.2})
    collection.corpus = dict(list(collection.corpus.items())[:20])
    with pytest.raises(CorpusError, match="shrank from 30 to 20"):
        collection.night()
    assert collection.night(allowed=Allowed(shrink=True)).snapshot.body.passages == 20


class _RollsBack(Quiet):
    """Another run publishes while the gate of the first attempt is measured."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        super().start(stage, total_rows, done_rows)
        if stage == "gate" and len(numbers(self._store)) == 2:
            rollback(self._store, 1)


def test_a_run_plans_once_and_again_only_after_a_lost_publish(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = []

    def counted(corpus: CorpusConfig, *known: Any) -> CorpusPlan:
        listed.append(corpus.path)
        return plan_slices(corpus, *known)

    monkeypatch.setattr("dpr.run.plan_slices", counted)
    collection = Collection(tmp_path, encoder)
    for number, at in enumerate(([1], [1, 5]), start=1):
        collection.corpus["new"] = f"w{number}"
        collection.change(gate={"at": at})
        collection.night()
        assert len(listed) == number

    collection.corpus["new"] = "w3"
    outcome = collection.night(progress=_RollsBack(collection.store))
    assert len(listed) == 4
    assert (outcome.snapshot.number, outcome.snapshot.parent) == (4, 3)
    assert {i: text for i, (text, _) in collection.live_rows(outcome.snapshot.body).items()} == collection.corpus


def test_another_encoder_starts_its_own_lineage_and_flips_at_once(tmp_path: Path, encoder: Path) -> None:
    collection = Collection(tmp_path, encoder)
    latest = collection.night().snapshot
    progress = Quiet()
    collection.change(encoder={"model": str(make_encoder(tmp_path / "other", seed=1))})
    outcome = collection.night(progress=progress)
    assert progress.rows["embed"] == 30
    assert outcome.snapshot.number == 2
    assert outcome.snapshot.body.encoder_id != latest.body.encoder_id
    collection.change(encoder={"model": str(encoder)})
    back = collection.night(progress=progress)
    assert progress.rows["embed"] == 30  # nothing more: the segments of the first encoder are still there
    assert back.snapshot.body == latest.body
    assert back.snapshot.number == 3
