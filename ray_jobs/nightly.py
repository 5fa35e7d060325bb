"""Job: the whole run; `ray job submit` runs it. `python -m ray_jobs.nightly --recipe R`"""

from ray_jobs.leaving import run_and_exit


def run() -> None:
    """Run the job."""
    from ray_jobs import jobs  # imported here, so that an error names a file that shadows a library

    jobs.main(None, "Run a recipe from corpus to published snapshot.")


if __name__ == "__main__":
    run_and_exit(run)
