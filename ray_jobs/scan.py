"""Job: find what changed in the corpus. `python -m ray_jobs.scan --recipe R`"""

from dpr.pipeline.run import Run
from ray_jobs import jobs


def scan(run: Run, allow_shrink: bool) -> str:
    """The scan stage."""
    changes = run.scan(allow_shrink=allow_shrink)
    return f"{changes.passages:,} passages: {changes.new:,} new, {changes.embed_rows:,} to embed, {changes.dead:,} gone"


if __name__ == "__main__":
    jobs.main("Scan the corpus of a recipe and find what changed.", scan)
