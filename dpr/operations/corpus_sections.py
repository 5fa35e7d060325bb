"""Sections of a run's page on its corpus: rows in and out, why passages were embedded, quarantine, files."""

from collections.abc import Iterator, Mapping

from dpr.evaluate.bars import Bar, draw_bars
from dpr.evaluate.report_page import Section
from dpr.formats.changes import Reason
from dpr.operations.run_report import RunReport

MAX_FILES = 50
"""Left-out files that the page names, at most; the JSON names more."""
MEANINGS = {reason.label: reason.sentence for reason in Reason}


def rows_in_and_out(report: RunReport) -> Section:
    """Return the section on the findings of scan and diff."""
    found = report.found
    rows = [
        ("rows of the corpus", found.rows, "usable or not"),
        ("passages", found.passages, "of the new snapshot, each once"),
        ("new or edited", found.new, "no live row of a segment held them"),
        ("embedded", found.embedded, "by the encoder"),
        ("copied", found.borrowed, "new or edited, and their text has a vector already"),
        ("gone", found.dead, "live in the previous snapshot, and no longer in the corpus"),
        ("back", found.restored, "rows that were dead and live again, at no cost"),
        ("repeated ids", found.duplicates, "in quarantine: the first passage with an id counts"),
        ("in quarantine", sum(found.quarantined.values()), "all reasons together"),
    ]
    if found.windows:
        rows.append(("windows", found.windows, f"of {found.split_passages:,} passages with long texts"))
    return Section(
        name="rows",
        title="Rows in and out",
        description="What scan and diff found.",
        columns=("what", "rows", ""),
        rows=rows,
    )


def reasons(report: RunReport) -> Iterator[Section]:
    """Yield the section on why passages were embedded or copied, if any were."""
    embedded, copied = report.found.why_embedded, report.found.why_copied
    names = [name for name in MEANINGS if embedded.get(name) or copied.get(name)]
    if not names:
        return
    bars = [
        Bar(name, [embedded.get(name, 0), copied.get(name, 0)], f"{embedded.get(name, 0) + copied.get(name, 0):,}")
        for name in names
    ]
    yield Section(
        name="why",
        title="Why passages were embedded or copied",
        description="A vector is copied where its text has one already. The command dpr why answers for one passage.",
        columns=("reason", "embedded", "copied", "what it means"),
        rows=[(name, embedded.get(name, 0), copied.get(name, 0), MEANINGS[name]) for name in names],
        drawing=draw_bars("rows by reason", bars, ("embedded", "copied")),
    )


def quarantine(quarantined: Mapping[str, int]) -> Iterator[Section]:
    """Yield the section on unusable rows by reason, if there are any."""
    if quarantined:
        rows = sorted(quarantined.items(), key=lambda item: item[1], reverse=True)
        yield Section(
            name="quarantine",
            title="Quarantine",
            description="Rows that cannot be used, by reason. The run's folder has a file with all of them.",
            columns=("reason", "rows"),
            rows=rows,
        )


def files(report: RunReport) -> Section:
    """Return the section on the files of the corpus."""
    left_out = report.left_out[:MAX_FILES]
    return Section(
        name="files",
        title="Files of the corpus",
        description=" ".join(report.notes) or "Files that are not read.",
        columns=("file", "why it is not read") if left_out else (),
        rows=[(each.path, each.reason) for each in left_out],
    )
