"""Sections of a run's page on its cost: estimate and outcome, requests, earlier attempts."""

from dpr.evaluate.bars import Bar, draw_bars
from dpr.evaluate.report_page import Section
from dpr.operations.estimate import cost_rows, duration
from dpr.operations.run_report import RunReport
from dpr.store.requests import READ_BYTES, REQUEST_CLASSES, WRITTEN_BYTES


def costs(report: RunReport) -> Section:
    """Return estimate and outcome side by side, and the bill."""
    outcome, estimate = cost_rows(report.cost), cost_rows(report.estimate) if report.estimate else {}
    bill = report.whole_bill
    rows: list[tuple[str, str, str]] = [(name, estimate.get(name, ""), value) for name, value in outcome.items()]
    rows.append(("dollars for requests", "", f"{bill.request_dollars:,.4f}"))
    rows.append(("dollars", "", "no price of a GPU" if bill.dollars is None else f"{bill.dollars:,.4f}"))
    if (each := bill.per_million(report.encoding.passages)) is not None:
        rows.append(("dollars for a million embedded passages", "", f"{each:,.2f}"))
    without = "" if estimate else " There is no estimate: dpr plan was not run on this machine before the run."
    return Section(
        name="cost",
        title="Estimate and outcome",
        description="Times and bytes are those of this attempt; the dollars of the bill are those of all attempts of "
        f"the run. GPU-hours count the GPUs that encoders hold while they embed.{without}",
        columns=("", "estimate", "outcome") if estimate else ("", "outcome"),
        rows=rows if estimate else [(name, value) for name, _, value in rows],
    )


def requests(report: RunReport) -> Section:
    """Return the requests of each stage to an object store."""
    counted = [(stage.stage, stage.requests) for stage in report.stages]
    counted += [("outside of stages", report.other_requests), ("all", report.requests)]
    rows = [
        (
            name,
            *(found.get(column, 0) for column in REQUEST_CLASSES),
            *(f"{found.get(column, 0) / 1e6:,.1f}" for column in (READ_BYTES, WRITTEN_BYTES)),
        )
        for name, found in counted
    ]
    bars = []
    for name, found in counted[:-1]:
        reads, all_ = found.get("GET", 0), sum(found.get(each, 0) for each in REQUEST_CLASSES)
        bars.append(Bar(name, [reads, all_ - reads], f"{all_:,}"))
    return Section(
        name="requests",
        title="Requests to the store",
        description="By stage. The lease, planning and publishing are outside of stages.",
        columns=("stage", *REQUEST_CLASSES, "MB read", "MB written"),
        rows=rows,
        drawing=draw_bars("requests of each stage", bars, ("reads", "others")),
        chosen=len(rows) - 1,
    )


def attempts(report: RunReport) -> Section:
    """Return the earlier attempts of the run."""
    rows = [
        (
            each.attempt,
            each.ending.kind,
            duration(each.seconds),
            each.last_stage,
            "" if each.bill.dollars is None else f"{each.bill.dollars:,.4f}",
            each.ending.sentence,
        )
        for each in report.earlier
    ]
    return Section(
        name="attempts",
        title="Earlier attempts",
        description="Each began where the previous one had stopped.",
        columns=("attempt", "ended", "time", "last stage", "dollars", "how"),
        rows=rows,
    )
