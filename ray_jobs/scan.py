"""Job: find what changed in the corpus. `python -m ray_jobs.scan --recipe R`"""

from ray_jobs.leaving import run_and_exit


def run() -> None:
    """Run the job."""
    from ray_jobs import jobs  # imported here, so that an error names a file that shadows a library

    jobs.main("scan", "Scan the corpus of a recipe and find what changed.")


if __name__ == "__main__":
    run_and_exit(run)
