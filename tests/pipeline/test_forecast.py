"""What `dpr plan` finds, against corpora whose changes are known and against the run that follows."""

from pathlib import Path

import pytest

from dpr.errors import CorpusError
from dpr.engine.stage import LocalExecutor
from dpr.operations.forecast import Forecast, forecast
from dpr.run import Plan
from dpr.run import Run
from dpr.recipe import Recipe
from tests.pipeline.test_run import encoder, passages, recipe, run  # noqa: F401 (encoder is a fixture)
from tests.tiny import Quiet, write_jsonl


@pytest.fixture(autouse=True)
def _quick_and_out_of_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dpr.operations.calibrate.ENCODE_SECONDS", 0.01)


def told(made: Recipe, seconds: float = 60.0) -> Forecast:
    return forecast(Run(Plan.of(made), LocalExecutor(), Quiet()), seconds)


def files(store: Path) -> set[Path]:
    return {path for path in store.rglob("*") if path.is_file()}


def test_the_first_night(tmp_path: Path, encoder: Path) -> None:  # noqa: F811
    corpus = passages(90) | {"same": passages(1)["p0000"]}
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    made = recipe(tmp_path, encoder, resources={"segment_rows": 40, "cpus_per_encoder": 1, "price_per_gpu_hour": 2.5})
    before = told(made)
    assert not (tmp_path / "store").exists()
    assert before.exact
    assert (before.base, before.work.passages, before.new, before.borrowed) == (None, 91, 91, 1)
    words = sum(len(text.split()) for name, text in corpus.items() if name != "same")
    assert before.work.tokens == pytest.approx(words + 2 * 90, rel=0.02)  # the sample has the borrowing passage, too
    assert before.cost.dollars == before.cost.gpu_hours * 2.5

    after = run(made).report.costs
    assert after.estimate == before.cost
    assert (after.outcome.passages, after.outcome.units) == (before.cost.passages, before.cost.units) == (90, 4)


def test_a_later_night_reads_keys_of_the_base(tmp_path: Path, encoder: Path) -> None:  # noqa: F811
    corpus = passages(120)
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    made = recipe(tmp_path, encoder)
    run(made)
    corpus |= {"p0003": "w1 w2 w3", "new": "w9 w9", "copy": corpus["p0004"]}
    del corpus["p0005"], corpus["p0006"]
    write_jsonl(tmp_path / "corpus.jsonl", [*corpus.items(), ("p0007", corpus["p0007"]), ("empty", "")])
    there = files(tmp_path / "store")
    before = told(made)
    assert files(tmp_path / "store") == there
    assert (before.base, before.work.passages, before.new, before.borrowed, before.dead) == (1, 120, 3, 1, 3)
    assert (before.duplicates, before.quarantined, before.work.embed, before.work.copy_rows) == (1, 1, 2, 1)
    assert before.cost.index_seconds > 0  # of the night before

    found = run(made).report.found
    assert (found.new, found.borrowed, found.dead, found.embedded) == (3, 1, 3, 2)
    assert told(made).work.embed == 0
    assert told(made).speeds.encode_tokens == 0.0  # no encoder was started


def test_a_sample_stands_for_the_corpus(tmp_path: Path, encoder: Path) -> None:  # noqa: F811
    write_jsonl(tmp_path / "corpus.jsonl", passages(1200))
    made = recipe(tmp_path, encoder)
    sampled = told(made, seconds=0.0)  # one slice
    assert sampled.slices > 10
    assert (sampled.slices_read, sampled.dead) == (1, None)
    assert sampled.work.embed == pytest.approx(1200, rel=0.15)
    assert any("slices that were not read" in said for said in sampled.assumed)


def test_a_corpus_without_passages_is_one_sentence(tmp_path: Path, encoder: Path) -> None:  # noqa: F811
    write_jsonl(tmp_path / "corpus.jsonl", {"empty": ""})
    with pytest.raises(CorpusError, match="1 of 1 slices of the corpus hold no usable passage"):
        told(recipe(tmp_path, encoder))
