"""Job: find what changed in the corpus. `python -m ray_jobs.scan --recipe R`"""

from ray_jobs import jobs

if __name__ == "__main__":
    jobs.main("scan", "Scan the corpus of a recipe and find what changed.")
