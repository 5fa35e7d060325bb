"""The stages of a run in order, from corpus to snapshot. Each is a module of `dpr.stages`.

A unit that is done is not done again, so a run that died is continued by starting it again.
"""

from dpr.formats.manifest import SnapshotBody
from dpr.run import Run
from dpr.stages import (
    build,
    choose_mode,
    copy_rows,
    diff,
    drift,
    embed,
    gate,
    invert,
    load_ahead,
    merge,
    publish,
    scan,
    settle,
    train,
)
from dpr.stages.made import Indexed, Segments


def make_segments(run: Run, *, allow_shrink: bool = False) -> Segments:
    """Scan the corpus, find changes, embed new passages, copy moved rows.

    Raises IndexBuildError before anything is embedded if the recipe's index cannot be made of so many rows.
    """
    work = embed.begin_encoders(run)
    scans = scan.scan(run)
    changes = diff.diff(run, scans, allow_shrink=allow_shrink)
    drift.check_rows(run, changes.rows)
    load_ahead.begin_index(run, changes)
    embedded = embed.embed(run, work, changes, scans)
    copied = copy_rows.copy_rows(run, changes, scans, embedded)
    return Segments(scans, changes, embedded, settle.settle(run, scans, changes, [*embedded, *copied]))


def make_index(run: Run, made: Segments) -> Indexed:
    """Train the codebook or keep the base's, code each segment once, merge the parts; index the words, too."""
    context = train.index_context(run, made.settled.segments, made.changes.deletions)
    codebook, choice = drift.keep_or_train(run, context)
    gate.begin_gate(run)
    parts = build.build(run, made.settled.segments, codebook, choice)
    index, shards = merge.merge_index(run, context, codebook, choice, parts)
    lexical = invert.index_words(run, made.settled)
    return Indexed(context, codebook, choice, shards, index, lexical)


def make_body(run: Run, made: Segments, indexed: Indexed) -> tuple[SnapshotBody, gate.GateResult]:
    """Measure the index and bind everything together; `publish` comes last."""
    index, measured = gate.gate(run, indexed.context, indexed.codebook, indexed.index)
    lexical, modes = choose_mode.choose_mode(run, indexed.context, index, indexed.lexical, measured.report)
    report = measured.report.model_copy(update={"modes": modes})
    chosen = publish.Chosen(indexed.codebook, index, lexical, report)
    return publish.snapshot_body(run, made.changes, made.settled.segments, chosen), measured
