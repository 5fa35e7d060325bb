"""The report on a store's nights: accuracy, recall and passages of each snapshot that is kept."""

from collections.abc import Sequence
from pathlib import Path

from dpr.evaluate.pictures import THEMES, Line, draw_nights
from dpr.evaluate.report_page import Section, write_page
from dpr.formats.manifest import Snapshot
from dpr.formats.snapshots import History
from dpr.store import Store


def write_nights(store: Store, history: History, folder: Path) -> Path:
    """Draw the figures of snapshots into `folder`, and name the damaged ones; return the path of the page."""
    snapshots = history.snapshots
    accuracy = [
        Line(f"top-{rank}", [snapshot.body.gate.accuracy_index.get(str(rank)) for snapshot in snapshots])
        for rank in sorted({int(rank) for snapshot in snapshots for rank in snapshot.body.gate.accuracy_index})
    ]
    recall = [
        Line("all passages", [snapshot.body.gate.recall for snapshot in snapshots]),
        Line("new passages", [snapshot.body.gate.new_recall for snapshot in snapshots]),
    ]
    passages = [Line("passages", [snapshot.body.passages for snapshot in snapshots])]
    sections = [
        _section("recall", "Recall of the index against exact search", recall, snapshots),
        _section("passages", "Passages", passages, snapshots),
    ]
    if accuracy:
        sections.insert(0, _section("accuracy", "Share of questions answered", accuracy, snapshots))
    facts = {"store": store.url, "snapshots": len(snapshots), "live": snapshots[-1].number}
    notes = {f"snapshot {snapshot.number}": snapshot.note for snapshot in snapshots if snapshot.note}
    notes |= {f"snapshot {damaged.number}": damaged.problem for damaged in history.damaged}
    return write_page(folder, "history.html", f"Nights of {store.url}", facts | notes, sections)


def _section(name: str, title: str, lines: Sequence[Line], snapshots: Sequence[Snapshot]) -> Section:
    numbers = [snapshot.number for snapshot in snapshots]
    rows = [
        (snapshot.number, snapshot.published_at, *("" if value is None else value for value in values))
        for snapshot, values in zip(snapshots, zip(*(line.values for line in lines), strict=True), strict=True)
    ]
    return Section(
        name=name,
        title=title,
        description="By snapshot, as the gate measured it before publishing.",
        pictures={theme: draw_nights(title, numbers, lines, colours) for theme, colours in THEMES.items()},
        columns=("snapshot", "published", *(line.name for line in lines)),
        rows=rows,
    )
