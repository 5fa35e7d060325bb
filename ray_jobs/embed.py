"""Job: scan, and embed what is new into segments. `python -m ray_jobs.embed --recipe R`"""

from ray_jobs.leaving import run_and_exit


def run() -> None:
    """Run the job."""
    from ray_jobs import jobs  # imported here, so that an error names a file that shadows a library

    jobs.main("embed", "Embed the new passages of a recipe's corpus into segments.")


if __name__ == "__main__":
    run_and_exit(run)
