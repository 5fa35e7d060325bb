"""The page of a run's report: one self-contained HTML file, light and dark."""

from collections.abc import Iterator
from pathlib import Path

from dpr.engine.run_state import StageReport
from dpr.evaluate.bars import Bar, draw_bars
from dpr.evaluate.report_page import Lead, Section, render, write_files
from dpr.formats.gate_report import GateReport
from dpr.operations.corpus_sections import files, quarantine, reasons, rows_in_and_out
from dpr.operations.cost_sections import attempts, costs, requests
from dpr.operations.estimate import duration
from dpr.operations.run_report import IndexReport, RunReport
from dpr.plurals import counted
from dpr.stages.embed_meter import STEPS


def render_run(report: RunReport) -> str:
    """Return the page as HTML."""
    facts = {
        "run": report.run,
        "attempt": report.attempt,
        "built upon": "nothing: the first of this encoder" if report.base is None else f"snapshot {report.base}",
        "exit code": "none: it died" if report.ending.exit_code is None else report.ending.exit_code,
    }
    lead = Lead(_sentence(report), report.ending.exit_code == 0, dict(_figures(report)))
    return render(f"Run {report.run}", facts, list(_sections(report)), lead)


def write_run_page(report: RunReport, folder: Path) -> Path:
    """Write the page as `run.html` into a folder, and return its path. Raises StoreError if that fails."""
    write_files(folder, {"run.html": render_run(report).encode()})
    return folder / "run.html"


def _sentence(report: RunReport) -> str:
    ending, stage = report.ending, report.stages[-1] if report.stages else None
    if ending.exit_code == 0:
        return ending.sentence[:1].upper() + ending.sentence[1:]
    text = f"{ending.kind.capitalize()}: {ending.sentence}"
    if stage is None:
        return text
    done = stage.units - stage.waiting
    return f"{text} (it got to the stage {stage.stage}, with {done:,} of {stage.units:,} units done)"


def _figures(report: RunReport) -> Iterator[tuple[str, str]]:
    """Yield the figures that matter most."""
    found, encoding, bill = report.found, report.encoding, report.whole_bill
    yield "time", duration(report.seconds)
    if report.earlier:
        yield "with earlier attempts", duration(report.seconds + sum(each.seconds for each in report.earlier))
    if found.rows:
        yield "rows in", f"{found.rows:,}"
        yield "passages out", f"{found.passages:,}"
        yield "embedded", f"{encoding.passages:,}"
        yield "in quarantine", f"{sum(found.quarantined.values()):,}"
    if encoding.passages:
        yield "encoder busy", f"{encoding.busy_share:.0%}"
    if bill.gpu_hours:
        yield "GPU-hours", f"{bill.gpu_hours:,.3f}"
    if bill.requests:
        yield "requests to S3", f"{bill.requests:,}"
    yield "lost workers", f"{sum(stage.lost_workers for stage in report.stages):,}"
    if bill.dollars is None:
        yield "dollars", "no price of a GPU"
    elif bill.dollars:
        yield "dollars", f"{bill.dollars:,.4f}"
        if (each := bill.per_million(encoding.passages)) is not None:
            yield "a million embedded", f"{each:,.2f} dollars"


def _sections(report: RunReport) -> Iterator[Section]:
    yield _stages(report)
    if report.found.rows:
        yield rows_in_and_out(report)
        yield from reasons(report)
    yield from quarantine(report.found.quarantined)
    if report.encoding.passages:
        yield _embedding(report)
    yield costs(report)
    if report.requests:
        yield requests(report)
    if report.gate is not None:
        yield _gate(report.gate)
    if report.index is not None:
        yield _index(report.index)
    if report.earlier:
        yield attempts(report)
    if report.notes or report.left_out:
        yield files(report)


def _stages(report: RunReport) -> Section:
    outside = max(0.0, report.seconds - sum(stage.seconds for stage in report.stages))
    bars = [Bar(stage.stage, [stage.seconds], duration(stage.seconds)) for stage in report.stages]
    bars.append(Bar("between stages", [outside], duration(outside)))
    columns = ("stage", "units", "done before", "waiting", "rows", "seconds", "rows/s", "MB read", "MB written")
    return Section(
        name="stages",
        title="Stages",
        description="How long each took. Units that an earlier attempt or night has done are not done again.",
        columns=(*columns, "begun again", "lost workers"),
        rows=[_stage_row(stage) for stage in report.stages],
        drawing=draw_bars("seconds of each stage", bars),
    )


def _stage_row(stage: StageReport) -> tuple[object, ...]:
    rate = f"{stage.rows / stage.seconds:,.0f}" if stage.seconds and stage.rows else ""
    megabytes = (f"{size / 1e6:,.1f}" for size in (stage.read_bytes, stage.written_bytes))
    counts = (stage.units, stage.done_before, stage.waiting, stage.rows)
    return stage.stage, *counts, f"{stage.seconds:,.1f}", rate, *megabytes, stage.repeated, stage.lost_workers


def _embedding(report: RunReport) -> Section:
    encoding, steps = report.encoding, STEPS | {"wait": "encoder without work"}
    seconds = {name: encoding.seconds.get(step, 0.0) for step, name in steps.items()}
    bars = [Bar(name, [value], duration(value)) for name, value in seconds.items()]
    rows: list[tuple[object, ...]] = [
        ("passages", encoding.passages),
        ("tokens", encoding.tokens),
        ("encoder busy", f"{encoding.busy_share:.2f}"),
        ("waited for", encoding.waits_for),
        *(("encoder", choice) for choice in encoding.choices),
    ]
    if encoding.cut.texts:
        rows.append(("long texts", encoding.cut.describe("embedded passages", encoding.passages)))
    return Section(
        name="embedding",
        title="Embedding",
        description="Seconds by step, over all workers; units that were done before are counted with what they took.",
        columns=("", ""),
        rows=rows,
        drawing=draw_bars("seconds of each step", bars),
    )


def _gate(gate: GateReport) -> Section:
    rows: list[tuple[object, ...]] = [("recall against exact search", gate.recall, f"{gate.measured_on:,} asked")]
    if gate.new_recall is not None:
        rows.append(("recall of new passages", gate.new_recall, f"{gate.new_sentences:,} sentences"))
    for rank, share in gate.accuracy_index.items():
        rows.append((f"top-{rank} by the index", share, f"{gate.accuracy_exact.get(rank, 0.0):.4f} by exact search"))
    bars = [
        Bar(f"top-{rank}", [share], f"{share:.4f}; exact {gate.accuracy_exact.get(rank, 0.0):.4f}")
        for rank, share in gate.accuracy_index.items()
    ]
    for loss in gate.losses:
        lost = f"{loss.lost:,} lost and {loss.won:,} won of {loss.questions:,}; at most {loss.at_most:.2%} lost"
        rows.append((f"{loss.kind} by the index", "", lost))
    rows.append(("settings", "", gate.settings))
    if gate.fp8 is not None:
        rows.append(("fp8", "", gate.fp8.summary))
    if gate.modes is not None:
        rows.append(("mode", "", gate.modes.choice))
    questions = counted(gate.questions, gate.question_kind.removesuffix("s"))
    return Section(
        name="gate",
        title="Gate",
        description=f"Measured with {questions} before anything was published.",
        columns=("", "", ""),
        rows=rows,
        drawing=draw_bars("share of questions answered", bars) if bars else "",
    )


def _index(index: IndexReport) -> Section:
    codebook = "a new codebook" if index.trained else "the codebook was kept"
    return Section(
        name="index",
        title="Index",
        description=f"{index.factory}, {index.index_bytes / 1e6:,.1f} MB; {codebook}: {index.reason}",
        columns=("shard", "segments", "rows", "live rows", "MB", "written now"),
        rows=[
            (
                number,
                len(shard.segments),
                shard.rows,
                shard.live_rows,
                f"{shard.size_bytes / 1e6:,.1f}",
                "no" if shard.verification is None else "yes, and verified",
            )
            for number, shard in enumerate(index.shards)
        ],
    )
