"""`dpr plan`: what a run would do and cost, before anything runs and without writing to the store."""

import math

from pydantic import ValidationError

from dpr import layout
from dpr.corpus.diff import Changes
from dpr.errors import CorpusError, MissingObjectError
from dpr.index.choose import choose
from dpr.pipeline.calibrate import Calibrate
from dpr.pipeline.embed import to_ipc
from dpr.pipeline.estimate import INDEX_STAGES, Cost, Speeds, Work, estimate
from dpr.pipeline.execute import Cluster, Step
from dpr.pipeline.report import Report, remember_estimate
from dpr.pipeline.run import Run
from dpr.pipeline.survey import SURVEY_SECONDS, Survey, survey
from dpr.records import Document


class Forecast(Document):
    """What `dpr plan` tells."""

    run: str
    base: int | None
    """Snapshot that the run would build upon."""
    slices: int
    slices_read: int
    new: int
    borrowed: int
    dead: int | None
    """None: only a reading of the whole corpus tells what is gone."""
    duplicates: int
    quarantined: int
    work: Work
    speeds: Speeds
    cluster: Cluster
    cost: Cost
    assumed: list[str]
    """What was not measured, a sentence each."""

    @property
    def exact(self) -> bool:
        """Whether all of the corpus was read."""
        return self.slices_read == self.slices


def forecast(run: Run, seconds: float = SURVEY_SECONDS) -> Forecast:
    """Read the corpus for about so many `seconds`, then work for a few on the device that will encode.

    Nothing is written to the store; the estimate is kept on this machine, for the report of the run. Raises CorpusError
    if nothing that was read can be used.
    """
    found = survey(run, seconds)
    if not found.changes.passages:
        raise CorpusError(
            f"{found.slices_read} of {found.slices} slices of the corpus hold no usable passage; look at corpus.path"
        )
    tokens_per_passage, speeds = _measure(run, found)
    work = _work(run, found, tokens_per_passage)
    cluster = run.executor.cluster()
    cost = estimate(work, speeds, cluster, run.recipe.resources.price_per_gpu_hour)
    remember_estimate(run.run_id, cost)

    def whole(count: int) -> int:
        return round(count * found.scale)

    return Forecast(
        run=run.run_id,
        base=run.base.number if run.base else None,
        slices=found.slices,
        slices_read=found.slices_read,
        new=whole(found.changes.new),
        borrowed=whole(found.changes.borrowed),
        dead=found.changes.dead if found.exact else None,
        duplicates=whole(found.changes.duplicates),
        quarantined=whole(found.quarantined),
        work=work,
        speeds=speeds,
        cluster=cluster,
        cost=cost,
        assumed=_assumed(found, speeds, cluster),
    )


def _measure(run: Run, found: Survey) -> tuple[float, Speeds]:
    """Tokens a passage, and speeds; of encoding only if there is something to encode."""
    scan_seconds = found.seconds * found.scale
    index_seconds = _index_seconds(run)
    if not found.changes.embed_rows:
        return 0.0, Speeds(scan_seconds=scan_seconds, index_seconds=index_seconds)
    step = Step(Calibrate, (run.embed_context(), run.compute()), on="encoder")
    (measured,) = run.executor.run("calibrate", [step], [{"passages": to_ipc(found.sample)}])
    tokens_per_passage = measured.pop("tokens_per_passage")
    return tokens_per_passage, Speeds(scan_seconds=scan_seconds, index_seconds=index_seconds, **measured)


def _index_seconds(run: Run) -> float | None:
    """What the index stages took in the run that made the base; None if that is not known, or it was continued."""
    if run.base is None:
        return None
    try:
        report = Report.model_validate_json(run.store.get(layout.report(run.base.run_id)))
    except (MissingObjectError, ValidationError):  # made by another version, or by none
        return None
    stages = [stage for stage in report.stages if stage.stage in INDEX_STAGES]
    # parts of earlier nights are done before, and rightly; a codebook, an index or a gate only if the run was cut off
    if any(stage.done_before for stage in stages if stage.stage != "build"):
        return None
    return sum(stage.seconds for stage in stages)


def _work(run: Run, found: Survey, tokens_per_passage: float) -> Work:
    changes, most = found.changes, run.recipe.resources.segment_rows
    passages = round(changes.passages * found.scale)
    embed = round(changes.embed_rows * found.scale)
    copied = _copied(changes) if found.exact else round(changes.borrowed * found.scale)
    index = choose(run.recipe.index, passages, run.spec.dim)
    return Work(
        slices=found.slices,
        corpus_bytes=found.corpus_bytes,
        passages=passages,
        embed=embed,
        copy_rows=copied,
        embed_units=math.ceil(embed / most),
        copy_units=math.ceil(copied / most),
        tokens=round(embed * tokens_per_passage),
        new_row_bytes=found.new_row_bytes,
        dim=run.spec.dim,
        index_row_bytes=index.bytes_per_vector,
        train_rows=0 if run.base else index.train_rows,
    )


def _copied(changes: Changes) -> int:
    return sum(unit.rows for unit in changes.planned if unit.kind == "copy")


def _assumed(found: Survey, speeds: Speeds, cluster: Cluster) -> list[str]:
    said = ["the store takes what is written as fast as it is made"]
    if not found.exact:
        said.append(
            f"the {found.slices - found.slices_read:,} slices that were not read are like the {found.slices_read:,} "
            "that were; texts that occur in several slices are counted in each"
        )
    if speeds.index_seconds is None:
        said.append("training, building, merging and gate are left out: no run before this one has measured them")
    else:
        said.append("training, building, merging and gate take as long as in the run before")
    if cluster.overlap and cluster.encoders > 1:
        said.append(f"all {cluster.encoders} encoders are as fast as the one that was measured")
    return said
