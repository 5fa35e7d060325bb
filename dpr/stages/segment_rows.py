"""The number of rows of a segment: as many as this kind of machine embeds in about 25 seconds.

A segment is a unit of work, so its size decides how often a run shows progress and how much a killed worker loses. The
size follows from the encoder, the corpus and the kind of machine, and from no measured time: so Ray and one process
plan the same segments, and so does a run that is planned again.
"""

import os
from collections.abc import Sequence

from dpr.corpus.rows import Slice
from dpr.encoder.flops import passage_flops
from dpr.run import Run
from dpr.stages.scan import ScanResult

UNIT_SECONDS = 25.0
CORE_FLOPS = 6e10
"""Operations a second that an encoder reaches on one core, overheads included: 4e10 without bf16 products (AVX2), 7e10
and more with them."""
GPU_FLOPS = 2e14
"""Operations a second of an encoder on a data-centre GPU."""
MIN_ROWS = 250
"""A smaller segment would cost a large share of its time in objects, records and index parts."""
MIN_CORES = 2
"""A Ray of our own has at least this many cores, so one process counts as many."""


def segment_rows_for(limit: int, flops_per_passage: float, flops_per_second: float) -> int:
    """Return the rows that are embedded in `UNIT_SECONDS`: at least `MIN_ROWS`, but never more than `limit`.

    Pure.
    """
    if flops_per_passage <= 0:
        return limit
    return min(limit, max(MIN_ROWS, int(UNIT_SECONDS * flops_per_second / flops_per_passage)))


def segment_rows(run: Run, slices: Sequence[Slice], scans: Sequence[ScanResult]) -> int:
    """Return the rows that a segment of a run takes at most, given the scanned slices of its corpus."""
    rows = sum(scanned.rows + scanned.unusable_rows for scanned in scans)
    corpus_bytes = sum(slice_.size_bytes for slice_ in slices)
    flops = passage_flops(run.spec.passage, corpus_bytes / max(1, rows))
    return segment_rows_for(run.recipe.resources.segment_rows, flops, _encoder_flops(run))


def _encoder_flops(run: Run) -> float:
    """Return the operations a second of one encoder of a run."""
    resources, cluster = run.recipe.resources, run.executor.cluster()
    if cluster.gpus_per_encoder:
        return GPU_FLOPS * min(1.0, cluster.gpus_per_encoder)
    cores = max(MIN_CORES, run.executor.hardware().threads or os.cpu_count() or 1)
    return CORE_FLOPS * (resources.cpus_per_encoder or max(1, cores // resources.encoders))
