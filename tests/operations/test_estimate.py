"""The arithmetic of an estimate, against numbers worked out by hand."""

import pytest

from dpr.engine.executor import Cluster
from dpr.engine.run_state import StageReport
from dpr.operations.estimate import Speeds, Workload, estimate, measured_cost
from dpr.stages.embed_meter import Encoding

WORK = Workload(
    slices=4,
    corpus_bytes=8_000,
    passages=1_000,
    embed=100,
    copy_rows=20,
    embed_units=5,
    copy_units=1,
    tokens=12_000,
    new_row_bytes=200.0,
    word_row_bytes=140.0,
    vector_bytes=20,
    index_row_bytes=18,
    train_rows=500,
)
SPEEDS = Speeds(
    scan_seconds=40.0,
    start_seconds=17.0,
    tokenise_tokens=50.0,
    encode_tokens=20.0,
    index_seconds=60.0,
)


def cluster(cpus: int, encoders: int, gpus: float, *, overlap: bool = True) -> Cluster:
    return Cluster(cpus=cpus, encoders=encoders, gpus_per_encoder=gpus, overlap=overlap)


def test_gpus_encode_while_cpus_tokenise() -> None:
    cost = estimate(WORK, SPEEDS, cluster(8, 2, 1.0), price=3.0)
    # 12,000 / 20 = 600 encoder-seconds in 5 units of 120; two encoders need three rounds
    assert cost.embed_seconds == (17 - 10) + 3 * 120  # they start while the corpus is scanned
    assert cost.scan_seconds == 40 / 4  # no more cores than slices
    assert cost.index_seconds == 60
    assert cost.seconds == 10 + 367 + 60
    assert cost.gpu_hours == pytest.approx(2 * 367 / 3600)
    assert cost.dollars == pytest.approx(3 * 2 * 367 / 3600)
    assert (cost.passages, cost.units, cost.tokens) == (100, 6, 12_000)


def test_units_are_not_divided_among_encoders() -> None:
    """Two encoders need three rounds for five units, five encoders need one; a sixth encoder has nothing to do."""
    seconds = [estimate(WORK, SPEEDS, cluster(99, encoders, 1.0), None).embed_seconds for encoders in (1, 2, 3, 5, 6)]
    start = 17 - 10
    assert seconds == [start + 5 * 120, start + 3 * 120, start + 2 * 120, start + 120, start + 120]


def test_slow_tokenising_holds_gpus_up() -> None:
    # 240 core-seconds on one core, five encoders need 120 each, and scanning takes longer than their start
    assert estimate(WORK, SPEEDS, cluster(1, 5, 1.0), None).embed_seconds == 240


@pytest.mark.parametrize("overlap", [True, False])
def test_on_cpus_encoding_and_tokenising_share_the_cores(overlap: bool) -> None:
    cost = estimate(WORK, SPEEDS, cluster(2, 1, 0.0, overlap=overlap), None)
    assert cost.embed_seconds == 17 + 600 + 120
    assert cost.scan_seconds == (20 if overlap else 40)
    assert (cost.gpu_hours, cost.dollars) == (0.0, None)


def test_bytes_by_stage() -> None:
    cost = estimate(WORK, SPEEDS, cluster(8, 2, 1.0), None)
    segments = 120 * (200 + 20)
    before_merge = 8_000 + 33_000 + 120 * 200 + 500 * 20 + segments + 120 * 200  # scan to invert
    assert cost.read_bytes == before_merge + 18_000 + (18_000 + 200_000 + 20_000)  # merge, gate
    # keys, new passages, segments, parts, lexical parts, index
    assert cost.written_bytes == 33_000 + 100 * 200 + segments + 120 * 18 + 120 * 140 + 18_000


def test_nothing_to_embed_needs_no_encoder() -> None:
    work = WORK.model_copy(update={"embed": 0, "embed_units": 0, "tokens": 0, "copy_rows": 0, "copy_units": 0})
    cost = estimate(work, Speeds(scan_seconds=40.0), cluster(8, 2, 1.0), 3.0)
    assert (cost.embed_seconds, cost.gpu_hours, cost.dollars, cost.index_seconds) == (0.0, 0.0, 0.0, None)
    assert cost.seconds == 10.0


def test_an_outcome_has_the_work_of_the_run_and_the_times_of_this_attempt() -> None:
    def stage(name: str, units: int, before: int, rows: int, seconds: float) -> StageReport:
        size = {"read_bytes": 1_000, "written_bytes": 10}
        return StageReport(stage=name, units=units, done_before=before, rows=rows, seconds=seconds, **size)

    stages = [
        stage("scan", 4, 0, 1_000, 9.0),
        stage("diff", 1, 0, 1_000, 1.0),
        stage("embed", 5, 2, 60, 360.0),
        stage("copy", 1, 0, 20, 4.0),
        stage("build", 6, 0, 120, 8.0),
        stage("gate", 1, 0, 0, 2.0),
    ]
    cost = measured_cost(stages, Encoding(passages=100, tokens=12_000), cluster(8, 2, 0.5).gpus, 6.0)
    assert (cost.passages, cost.units, cost.tokens) == (100, 6, 12_000)
    assert (cost.scan_seconds, cost.embed_seconds, cost.index_seconds, cost.seconds) == (10.0, 364.0, 10.0, 384.0)
    assert (cost.read_bytes, cost.written_bytes) == (6_000, 60)
    assert (cost.gpu_hours, cost.dollars) == pytest.approx((0.1, 0.6))  # two halves of a GPU for 360 seconds
