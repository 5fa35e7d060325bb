"""Whole runs with a tiny encoder: the same end on any executor, after any history, and after any failure."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dpr.store
from dpr.corpus.slices import plan_slices
from dpr.corpus.rows import Slice
from dpr.encoder.encode import QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.errors import CorpusError, DprError, GateError, IndexBuildError, StoreError
from dpr.engine.stage import LocalExecutor
from dpr.nightly import Outcome, run_recipe
from dpr.recipe import CorpusConfig, Recipe
from dpr.search.retrieve import Retriever
from dpr.formats.snapshots import latest_snapshot, numbers, rollback
from dpr.store import LocalStore
from dpr.store.faults import FaultyStore
from tests.tiny import WORDS, Quiet, make_encoder, write_jsonl


def passages(count: int, seed: int = 0) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    return {f"p{n:04d}": " ".join(rng.choice(WORDS, rng.integers(3, 20))) for n in range(count)}


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


def recipe(folder: Path, encoder: Path, **fields: object) -> Recipe:
    document = {
        "store": str(folder / "store"),
        "corpus": {"path": str(folder / "corpus.jsonl"), "format": "jsonl", "slice_bytes": 4000},
        "encoder": {"model": str(encoder), "pooling": "mean", "normalize": True, "title_join": "space"},
        "resources": {"segment_rows": 40, "cpus_per_encoder": 1},
    }
    return Recipe.model_validate(document | fields)


def run(made: Recipe, progress: Quiet | None = None, **options: bool) -> Outcome:
    return run_recipe(made, LocalExecutor(), progress or Quiet(), **options)


def test_hits_are_those_of_brute_force(tmp_path: Path, encoder: Path) -> None:
    corpus = passages(150)
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    made = recipe(tmp_path, encoder)
    outcome = run(made)
    assert outcome.published
    assert outcome.snapshot.number == 1
    assert outcome.snapshot.body.passages == 150

    segments = sorted((tmp_path / "store" / "segments").rglob("*.parquet"))
    table = pa.concat_tables(pq.read_table(path) for path in segments)
    vectors_ND = np.array(table["embedding"].to_pylist(), np.float32)
    retriever = Retriever.open(LocalStore(made.store))
    question = corpus["p0007"]
    hits = retriever.search([question], 5).hits[0]
    question_D = retriever._encoder.encode([question])[0]
    best = np.argsort(-(vectors_ND @ question_D), kind="stable")[:5]
    assert [hit.id for hit in hits] == [table["id"][int(row)].as_py() for row in best]
    assert hits[0].id == "p0007"
    assert hits[0].text == question
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]


def test_a_run_without_changes_does_nothing(tmp_path: Path, encoder: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", passages(90))
    made = recipe(tmp_path, encoder)
    first = run(made)
    progress = Quiet()
    again = run(made, progress)
    assert (again.published, again.snapshot) == (False, first.snapshot)
    assert progress.rows == {}
    corpus.touch()  # looks changed, and is not
    touched = run(made, progress)
    assert (touched.published, touched.snapshot) == (False, first.snapshot)
    assert (progress.rows["embed"], progress.rows["gate"]) == (0, 0)


def test_a_night_costs_what_changed(tmp_path: Path, encoder: Path) -> None:
    corpus = passages(120)
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    made = recipe(tmp_path, encoder)
    run(made)
    corpus["p0003"] = "w1 w2 w3"
    corpus["new"] = corpus["p0004"]  # the same text under another id
    del corpus["p0005"]
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    progress = Quiet()
    outcome = run(made, progress)
    assert outcome.snapshot.number == 2
    assert progress.rows["embed"] == 1
    assert progress.rows["copy"] == 1
    assert outcome.snapshot.body.passages == 120
    hits = {hit.id for hit in Retriever.open(LocalStore(made.store)).search(["w1 w2 w3"], 120).hits[0]}
    assert hits == set(corpus)


def test_questions_are_encoded_once_and_asked_of_every_night(tmp_path: Path, encoder: Path) -> None:
    corpus = passages(90)
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    asked = [{"question": corpus[name], "answers": [name]} for name in ("p0001", "p0002", "p0003")]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    made = recipe(tmp_path, encoder, gate={"questions": str(tmp_path / "questions.jsonl"), "at": [1]})
    assert run(made).snapshot.body.gate["accuracy_exact"] == {"1": 1.0}
    stored = next((tmp_path / "store" / "truth").rglob("questions.parquet"))
    vectors_QD = np.array(pq.read_table(stored)["embedding"].to_pylist(), np.float32)
    expected_QD = QuestionEncoder(resolve(made.encoder)).encode([line["question"] for line in asked])
    assert np.array_equal(vectors_QD, expected_QD)
    written = stored.stat().st_mtime_ns
    corpus["p0002"] = "w1 w2 w3"
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    assert run(made).snapshot.body.gate["accuracy_exact"] == {"1": pytest.approx(2 / 3)}
    assert stored.stat().st_mtime_ns == written


def test_two_stores_end_in_the_same_bytes(tmp_path: Path, encoder: Path) -> None:
    bodies = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "corpus.jsonl", passages(1100))
        made = recipe(tmp_path / name, encoder, resources={"segment_rows": 400, "cpus_per_encoder": 1})
        bodies.append(run(made).snapshot.body_bytes())
    assert bodies[0] == bodies[1]
    assert b"IVF" in bodies[0]


class _Counted(FaultyStore):
    """One count of calls over all stores that a run opens."""

    last: "_Counted | None" = None

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch, fail_at: int, mode: str) -> None:
        cls.last = None

        def open_counted(url: str) -> "_Counted":
            if cls.last is None:
                cls.last = cls(LocalStore(url), fail_at, mode)
            return cls.last

        monkeypatch.setattr(dpr.store, "LocalStore", open_counted)


@pytest.mark.parametrize("mode", ["before", "after"])
def test_a_run_that_fails_at_any_call_ends_in_the_same_body(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    def prepared(name: str) -> Recipe:
        folder = tmp_path / name
        folder.mkdir()
        corpus = passages(60)
        write_jsonl(folder / "corpus.jsonl", corpus)
        made = recipe(folder, encoder)
        run(made)
        corpus |= {"p0001": "w5 w6", "other": corpus["p0002"]}
        del corpus["p0003"]
        write_jsonl(folder / "corpus.jsonl", corpus)
        return made

    made = prepared("whole")
    with monkeypatch.context() as patch:
        _Counted.install(patch, 0, mode)
        expected = run(made).snapshot.body_bytes()
        calls = _Counted.last.calls
    assert calls > 30

    failed = 0
    for fail_at in range(1, calls + 1):
        made = prepared(f"{fail_at}")
        with monkeypatch.context() as patch:
            _Counted.install(patch, fail_at, mode)
            try:
                run(made)
            except StoreError:
                failed += 1
        outcome = run(made)
        assert outcome.snapshot.body_bytes() == expected, f"after a failure at call {fail_at}"
        assert numbers(LocalStore(made.store)) == [1, 2]
    assert failed > calls // 2


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"corpus": {"path": "{}/none.jsonl", "format": "jsonl"}}, CorpusError, "none.jsonl"),
        ({"gate": {"questions": "{}/questions.jsonl", "min_accuracy": {1: 1.0}, "at": [1]}}, GateError, "top-1"),
        ({"index": {"factory": "IVF4096,Flat"}}, IndexBuildError, "4096"),
        ({"index": {"factory": "Nonsense"}}, IndexBuildError, "Nonsense"),
    ],
)
def test_bad_input_leaves_the_store_without_a_snapshot(
    tmp_path: Path, encoder: Path, fields: dict, error: type[DprError], said: str
) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", passages(50))
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": "w1", "answers": ["nothing"]}) + "\n")
    fields = json.loads(json.dumps(fields).replace("{}", str(tmp_path)))
    with pytest.raises(error, match=said) as refused:
        run(recipe(tmp_path, encoder, **fields))
    assert "\n" not in str(refused.value)
    assert latest_snapshot(LocalStore(tmp_path / "store")) is None


def test_a_shrunken_corpus_needs_permission(tmp_path: Path, encoder: Path) -> None:
    corpus = passages(50)
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    made = recipe(tmp_path, encoder)
    run(made)
    write_jsonl(tmp_path / "corpus.jsonl", dict(list(corpus.items())[:30]))
    with pytest.raises(CorpusError, match="shrank from 50 to 30"):
        run(made)
    assert run(made, allow_shrink=True).snapshot.body.passages == 30


def test_unusable_rows_are_kept_counted_and_limited(tmp_path: Path, encoder: Path) -> None:
    path = write_jsonl(tmp_path / "corpus.jsonl", [("a", "w1"), ("b", "w2"), ("a", "w3"), ("c", "")])
    with pytest.raises(CorpusError, match="2 of 4 corpus rows"):
        run(recipe(tmp_path, encoder, limits={"max_quarantine_rows": 1}))
    outcome = run(recipe(tmp_path, encoder))
    assert outcome.snapshot.body.passages == 2
    stored = next((tmp_path / "store" / "runs").rglob("quarantine.parquet"))
    rows = pq.read_table(stored).to_pylist()
    assert len(rows) == 2
    lines = path.read_bytes().splitlines()
    for row in rows:
        assert row["source"] == str(path)
        assert row["raw"].rstrip(b"\n") in lines
        assert path.read_bytes()[row["position"] :].startswith(row["raw"].rstrip(b"\n"))


class _RollsBack(Quiet):
    """Somebody else publishes while the gate of the first attempt is measured."""

    def __init__(self, store: LocalStore) -> None:
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

    def counted(corpus: CorpusConfig) -> list[Slice]:
        listed.append(corpus.path)
        return plan_slices(corpus)

    monkeypatch.setattr("dpr.run.plan_slices", counted)
    corpus = passages(60)
    recipes = [recipe(tmp_path, encoder, gate={"at": at}) for at in ([1], [1, 5], [1, 20])]
    for number, made in enumerate(recipes[:2], start=1):
        write_jsonl(tmp_path / "corpus.jsonl", corpus | {f"new{number}": f"w{number}"})
        run(made)
        assert len(listed) == number

    store = LocalStore(recipes[2].store)
    write_jsonl(tmp_path / "corpus.jsonl", corpus | {"new3": "w3"})
    outcome = run(recipes[2], _RollsBack(store))
    assert len(listed) == 4
    assert (outcome.snapshot.number, outcome.snapshot.parent) == (4, 3)
    found = {hit.id for hit in Retriever.open(store).search(["w3"], 100).hits[0]}
    assert found == {*corpus, "new3"}


def test_another_encoder_starts_its_own_lineage_and_flips_at_once(tmp_path: Path, encoder: Path) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", passages(50))
    blue = recipe(tmp_path, encoder)
    latest = run(blue).snapshot
    other = make_encoder(tmp_path / "other", seed=1)
    green = blue.model_copy(update={"encoder": blue.encoder.model_copy(update={"model": str(other)})})
    progress = Quiet()
    outcome = run(green, progress)
    assert progress.rows["embed"] == 50
    assert outcome.snapshot.number == 2
    assert outcome.snapshot.body.encoder_id != latest.body.encoder_id
    back = run(blue, progress)
    assert progress.rows["embed"] == 50  # nothing more: the segments of the first encoder are still there
    assert back.snapshot.body == latest.body
    assert back.snapshot.number == 3
