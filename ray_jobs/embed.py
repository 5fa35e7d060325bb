"""Job: scan, and embed what is new into segments. `python -m ray_jobs.embed --recipe R`"""

from dpr.corpus.diff import Changes
from dpr.pipeline.run import Run
from ray_jobs import jobs


def embed(run: Run, changes: Changes) -> str:
    """Embed what the scan found."""
    segments = run.embed(changes)
    return f"{len(segments)} segments with {sum(entry.live_rows for entry in segments):,} live passages"


if __name__ == "__main__":
    jobs.main("Embed the new passages of a recipe's corpus into segments.", embed)
