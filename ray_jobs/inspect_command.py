"""The command of `dpr` that shows what a snapshot is made of: inspect."""

import typer
from rich.console import Console

from dpr.formats import layout
from dpr.formats.manifest import Snapshot
from dpr.formats.records import read_record
from dpr.formats.snapshots import live_snapshot, read_history, read_snapshot
from dpr.stages.build import PartResult
from dpr.stages.merge import ShardResult
from dpr.store import Store, open_store
from ray_jobs.cli_common import (
    Fields,
    Json,
    SnapshotNumber,
    StoreArgument,
    draw_history,
    field_table,
    history_rows,
    show,
    table,
)

app = typer.Typer()


@app.command()
def inspect(store: StoreArgument, snapshot: SnapshotNumber = None, json_: Json = False) -> None:
    """Show segments, parts, snapshots and the verification of the index as tables."""
    opened = open_store(store)
    shown = live_snapshot(opened) if snapshot is None else read_snapshot(opened, snapshot)
    history = read_history(opened)
    segments, shards = _segment_rows(opened, shown), _shard_rows(opened, shown)

    def draw(console: Console) -> None:
        draw_history(console, "snapshots", history)
        console.print(table(f"segments and parts of snapshot {shown.number}", segments))
        for number, shard in enumerate(shards):
            console.print(field_table(f"shard {number} of snapshot {shown.number}, as verified when merged", shard))

    show(json_, {"snapshots": history_rows(history), "segments": segments, "shards": shards}, draw)


def _segment_rows(store: Store, snapshot: Snapshot) -> list[Fields]:
    codebook = snapshot.body.codebook.object.sha256
    rows: list[Fields] = []
    for entry in snapshot.body.segments:
        part = read_record(store, layout.record(layout.part(codebook, entry.object.sha256)), PartResult)
        rows.append(
            {
                "number": entry.number,
                "segment": entry.segment_id,
                "rows": entry.rows,
                "live": entry.live_rows,
                "bytes": entry.object.size_bytes,
                "part_bytes": part.part.size_bytes if part else 0,
            }
        )
    return rows


def _shard_rows(store: Store, snapshot: Snapshot) -> list[Fields]:
    rows: list[Fields] = []
    for shard in snapshot.body.index.shards:
        merged = read_record(store, layout.record(layout.stem_of(shard.object.name)), ShardResult)
        rows.append(
            {
                "segments": len(shard.segments),
                "rows": shard.rows,
                "live": shard.live_rows,
                "bytes": shard.object.size_bytes,
                **(merged.verification.model_dump(mode="json") if merged else {}),
            }
        )
    return rows
