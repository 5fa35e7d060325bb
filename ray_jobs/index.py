"""Job: everything up to the index, without publishing. `python -m ray_jobs.index --recipe R`"""

from ray_jobs.leaving import run_and_exit


def run() -> None:
    """Run the job."""
    from ray_jobs import jobs  # imported here, so that an error names a file that shadows a library

    jobs.main("index", "Build the index of a recipe without publishing it.")


if __name__ == "__main__":
    run_and_exit(run)
