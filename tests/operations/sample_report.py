"""Reports of a run that had everything: GPUs, a bucket, lost workers, an attempt that died."""

from dpr.engine.run_state import Ending, Prices, StageReport
from dpr.operations.bill import all_requests, bill
from dpr.operations.estimate import Cost
from dpr.operations.run_report import EarlierAttempt, Found, RunReport
from dpr.stages.embed_meter import Encoding

PRICES = Prices(gpu_hour=3.0, thousand_reads=0.0004, thousand_writes=0.005)
DIED = Ending(kind="died", exit_code=None, sentence="it did not report its end")
COST = Cost(
    passages=2_000_000,
    units=41,
    tokens=300_000_000,
    read_bytes=10**10,
    written_bytes=4 * 10**9,
    scan_seconds=30.0,
    embed_seconds=260.0,
    index_seconds=50.0,
    seconds=340.0,
    gpu_hours=0.5,
    dollars=1.5,
)


def stage(name: str, seconds: float, **fields: int) -> StageReport:
    counts = {"units": 40, "done_before": 3, "rows": 1_900_000} | fields
    requests = {"GET": 1_000, "PUT": 120, "LIST": 2, "bytes read": 5 * 10**8, "bytes written": 10**8}
    sizes = {"read_bytes": 10**9, "written_bytes": 10**8}
    return StageReport(stage=name, seconds=seconds, requests=requests, **counts, **sizes)


def published_report() -> RunReport:
    """Return the report of a run that published."""
    stages = [stage("scan", 30.0), stage("embed", 260.0, repeated=2, lost_workers=1), stage("merge", 50.0)]
    return RunReport(
        run="0123456789abcdef",
        attempt="20261127T030000_000000Z-01234567",
        ending=Ending(kind="published", exit_code=0, sentence="published snapshot 7", snapshot=7),
        base=6,
        seconds=351.0,
        found=Found(
            rows=2_000_500,
            passages=2_000_100,
            new=2_000_050,
            embedded=2_000_000,
            borrowed=50,
            quarantined={"no text": 150, "duplicate id": 250},
            why_embedded={"new": 1_990_000, "edited": 10_000},
            why_copied={"new": 50},
        ),
        stages=stages,
        encoding=Encoding(
            passages=2_000_000,
            tokens=300_000_000,
            seconds={"read": 20.0, "tokenise": 100.0, "encode": 240.0, "wait": 10.0, "write": 30.0},
        ),
        cost=COST,
        estimate=COST.model_copy(update={"seconds": 400.0, "index_seconds": None}),
        bill=bill(0.5, all_requests(stages, {}), PRICES),
        earlier=[EarlierAttempt(attempt="a", seconds=9.0, last_stage="scan", ending=DIED, bill=bill(0.1, {}, PRICES))],
    )


def failed_report() -> RunReport:
    """Return the report of an attempt that failed while it embedded."""
    return RunReport(
        run="0123456789abcdef",
        attempt="20261127T020000_000000Z-01234567",
        ending=Ending(kind="failed", exit_code=11, sentence="stage embed: the workers of one unit died <again>"),
        base=None,
        seconds=100.0,
        stages=[stage("scan", 30.0), stage("embed", 60.0, waiting=17)],
        cost=COST,
    )
