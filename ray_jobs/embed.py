"""Job: scan, and embed what is new into segments. `python -m ray_jobs.embed --recipe R`"""

from dpr.pipeline.run import Run
from ray_jobs import jobs


def embed(run: Run, allow_shrink: bool) -> str:
    """Embed what a scan finds; what has been done is not done again."""
    _, segments = run.scan_and_embed(allow_shrink=allow_shrink)
    return f"{len(segments)} segments with {sum(entry.live_rows for entry in segments):,} live passages"


if __name__ == "__main__":
    jobs.main("Embed the new passages of a recipe's corpus into segments.", embed)
