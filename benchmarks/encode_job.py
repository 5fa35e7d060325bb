"""The whole job: from Parquet to published segments, on Ray, as a nightly run does it."""

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from encode_alone import cards_watched
from encode_report import Report
from encode_subject import Subject

from dpr.nightly import make_segments
from dpr.recipe import Recipe
from dpr.run import Plan, Run
from ray_jobs.connect import connected
from ray_jobs.ray_executor import RayExecutor


class Timeline:
    """A Progress that remembers when rows were done: (seconds, rows) of each stage."""

    def __init__(self) -> None:
        self.stages: dict[str, list[tuple[float, int]]] = {}
        self._stage = ""

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:  # noqa: ARG002
        self._stage = stage
        self.stages[stage] = [(time.perf_counter(), 0)]

    def advance(self, rows: int, detail: str = "") -> None:  # noqa: ARG002
        self.stages[self._stage].append((time.perf_counter(), rows))

    def message(self, topic: str, text: str) -> None:
        print(f"{topic}: {text}", flush=True)

    def finish(self, summary: str) -> None:
        self.stages[self._stage].append((time.perf_counter(), 0))
        print(f"{self._stage}: {summary}", flush=True)

    def seconds(self, stage: str) -> float:
        """Return the seconds of a whole stage."""
        return self.stages[stage][-1][0] - self.stages[stage][0][0]

    def first(self, stage: str) -> float:
        """Return the seconds until the first unit was done."""
        return self.stages[stage][1][0] - self.stages[stage][0][0]


def whole_job(
    report: Report, subject: Subject, files: Sequence[Path], devices: int, cpus: int, rows: int
) -> tuple[float, float]:
    """Scan and embed `files`, of `rows` passages, on so many devices and CPUs.

    Returns passages a second of the embed stage and of everything, planning and Ray's start included.
    """
    folder = Path(tempfile.mkdtemp(prefix="encode-job-"))
    recipe = Recipe.model_validate(
        {
            "store": str(folder / "store"),
            "corpus": {"path": [str(path) for path in files], "format": "parquet"},
            "encoder": subject.config.model_dump(),
            "resources": {"encoders": devices, "segment_rows": 10_000 if subject.device.type == "cuda" else 500},
        }
    )
    gpus = devices if subject.device.type == "cuda" else 0
    where = f"{devices} {'GPU' if gpus else 'CPU encoder'}{'s' if devices > 1 else ''}, {cpus} CPUs"
    timeline, started = Timeline(), time.perf_counter()
    try:
        with cards_watched(report, f"whole job, {where}") as busy_seconds:
            plan = Plan.of(recipe)
            with connected(cpus=cpus, gpus=gpus):
                connected_seconds = time.perf_counter() - started
                run = Run(plan, RayExecutor(recipe.resources), timeline)
                segments = make_segments(run).settled.segments
                seconds = time.perf_counter() - started
    finally:
        shutil.rmtree(folder)
    written = sum(entry.rows for entry in segments)
    if written != rows:
        raise RuntimeError(f"{rows} passages went in and {written} came out")
    if busy_seconds:
        what = f"whole job, {where}: from the first GPU's first work to the last one's last"
        report.add(what, rows / busy_seconds[0], devices)
    report.add(f"whole job, {where}: embed stage from start to end", rows / timeline.seconds("embed"), devices)
    read_to_published = rows / (seconds - connected_seconds)
    report.add(f"whole job, {where}: from the corpus in Parquet to published segments", read_to_published, devices)
    report.add(f"whole job, {where}: the same with planning and Ray's start", rows / seconds, devices)
    report.note(
        f"whole job, {where}: {rows:,} passages, {len(segments)} segments; planning and Ray's start "
        f"{connected_seconds:.1f} s, scan {timeline.seconds('scan'):.1f} s, diff {timeline.seconds('diff'):.1f} s, "
        f"embed {timeline.seconds('embed'):.1f} s (first segment after {timeline.first('embed'):.1f} s)"
    )
    return rows / timeline.seconds("embed"), rows / seconds
