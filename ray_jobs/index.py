"""Job: everything up to the serving index, without publishing. `python -m ray_jobs.index --recipe R`"""

from dpr.pipeline.run import Run
from ray_jobs import jobs


def index(run: Run, allow_shrink: bool) -> str:
    """Scan, embed, train, build and merge; what has been done is not done again."""
    _, segments = run.scan_and_embed(allow_shrink=allow_shrink)
    codebook, choice = run.train(segments)
    run.build(segments, codebook, choice)
    entry = run.merge(segments, codebook, choice)
    return f"index {entry.index_id} ({codebook.factory}) with {entry.rows:,} passages"


if __name__ == "__main__":
    jobs.main("Build the serving index of a recipe without publishing it.", index)
