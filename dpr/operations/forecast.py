"""`dpr plan`: what a run would do and cost, before anything runs and without writing to the store."""

import math
from functools import partial

from dpr.engine.executor import Cluster
from dpr.engine.stage import Step, Work
from dpr.errors import CorpusError
from dpr.formats.cut_texts import CutTexts
from dpr.formats.records import Document
from dpr.index.choose import choose
from dpr.operations.calibrate import Calibrate, Calibration, Sample
from dpr.operations.estimate import INDEX_STAGES, Cost, Speeds, Workload, estimate
from dpr.operations.make_report import latest_report
from dpr.operations.remembered_estimate import remember_estimate
from dpr.operations.survey import SURVEY_SECONDS, Survey, survey
from dpr.run import Run
from dpr.stages.diff import Changes
from dpr.stages.embed import compute_of, embed_context

WORDS_SHARE = 1.2
"""Size of a lexical part, as a share of the stored texts: 1.1 for segments of 50,000 passages, 1.4 for 1,300."""


class Forecast(Document):
    """What `dpr plan` reports."""

    run: str
    base: int | None
    """Snapshot that the run would build upon."""
    slices: int
    slices_read: int
    new: int
    borrowed: int
    dead: int | None
    """None: not known until the whole corpus is read."""
    duplicates: int
    quarantined: int
    sampled: int
    """New passages, drawn at random, whose tokens were counted; 0: nothing is to be embedded."""
    cut: CutTexts
    """Tokens that these lose to the encoder's token limit."""
    work: Workload
    speeds: Speeds
    cluster: Cluster
    cost: Cost
    assumed: list[str]
    """Sentences on what was not measured."""

    @property
    def exact(self) -> bool:
        """Return whether the whole corpus was read."""
        return self.slices_read == self.slices


def forecast(run: Run, seconds: float = SURVEY_SECONDS) -> Forecast:
    """Read the corpus for about `seconds`, then encode a sample for a few seconds where the run will encode.

    Nothing is written to the store; this machine's cache keeps the estimate for the report of the run. Raises
    CorpusError if nothing that was read can be used.
    """
    found = survey(run, seconds)
    if not found.changes.rows:
        raise CorpusError(
            f"{found.slices_read} of {found.slices} slices of the corpus hold no usable passage; look at corpus.path"
        )
    calibration, speeds = _measure(run, found)
    work = _work(run, found, calibration.tokens_per_passage if calibration else 0.0)
    cluster = run.executor.cluster()
    cost = estimate(work, speeds, cluster, run.recipe.resources.price_per_gpu_hour)
    if found.exact:  # otherwise the run may read more than the estimate covers
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
        sampled=calibration.passages if calibration else 0,
        cut=calibration.cut if calibration else CutTexts(),
        work=work,
        speeds=speeds,
        cluster=cluster,
        cost=cost,
        assumed=_assumed(found, speeds, cluster),
    )


def _measure(run: Run, found: Survey) -> tuple[Calibration | None, Speeds]:
    """Return the measurements of a sample of passages, and speeds; None if there is nothing to encode."""
    scan_seconds = found.seconds * found.scale
    index_seconds = _index_seconds(run)
    if not found.changes.embed_rows:
        return None, Speeds(scan_seconds=scan_seconds, index_seconds=index_seconds)
    step: Step[Sample, Calibration] = Step(
        "calibrate", partial(Calibrate, embed_context(run), compute_of(run)), "encoder"
    )
    (measured,) = run.executor.run("calibrate", Work.of(step), [Sample(found.sample)])
    speeds = Speeds(
        scan_seconds=scan_seconds,
        start_seconds=measured.start_seconds,
        tokenise_tokens=measured.tokenise_tokens,
        encode_tokens=measured.encode_tokens,
        encoder=measured.encoder,
        index_seconds=index_seconds,
    )
    return measured, speeds


def _index_seconds(run: Run) -> float | None:
    """Return the time of the index stages in the base's run; None if it is unknown or that run was continued."""
    if run.base is None:
        return None
    report = latest_report(run.store, run.base.run_id)
    if report is None:
        return None
    stages = [stage for stage in report.stages if stage.stage in INDEX_STAGES]
    # parts and truth may come from earlier nights; any other finished unit means that the run was continued
    if any(
        stage.done_before
        for stage in stages
        if stage.stage not in ("build", "invert", "questions", "truth", "sentences")
    ):
        return None
    return sum(stage.seconds for stage in stages)


def _work(run: Run, found: Survey, tokens_per_passage: float) -> Workload:
    changes, max_rows = found.changes, found.segment_rows
    passages = round(changes.rows * found.scale)
    embed = round(changes.embed_rows * found.scale)
    copied = _copied(changes) if found.exact else round(changes.borrowed * found.scale)
    index = choose(run.recipe.index, passages, run.spec.dim)
    return Workload(
        slices=found.slices,
        corpus_bytes=found.corpus_bytes,
        passages=passages,
        embed=embed,
        copy_rows=copied,
        embed_units=math.ceil(embed / max_rows),
        copy_units=math.ceil(copied / max_rows),
        tokens=round(embed * tokens_per_passage),
        new_row_bytes=found.new_row_bytes,
        word_row_bytes=WORDS_SHARE * found.new_row_bytes if run.recipe.lexical.build else 0.0,
        vector_bytes=run.spec.stored_bytes,
        index_row_bytes=index.bytes_per_vector,
        train_rows=0 if run.base else index.train_rows,
    )


def _copied(changes: Changes) -> int:
    return sum(unit.rows for unit in changes.planned if unit.kind == "copy")


def _assumed(found: Survey, speeds: Speeds, cluster: Cluster) -> list[str]:
    assumed = ["the store takes what is written as fast as it is made"]
    if not found.exact:
        assumed.append(
            f"the {found.slices - found.slices_read:,} slices that were not read are like the {found.slices_read:,} "
            "that were; texts that occur in several slices are counted in each"
        )
    if speeds.index_seconds is None:
        assumed.append("training, building, merging and gate are left out: no earlier run has measured them")
    else:
        assumed.append("training, building, merging and gate take as long as in the previous run")
    if cluster.overlap and cluster.encoders > 1:
        assumed.append(f"all {cluster.encoders} encoders are as fast as the one that was measured")
    return assumed
