"""Job: the whole run; `ray job submit` runs it. `python -m ray_jobs.nightly --recipe R`"""

from ray_jobs import jobs

if __name__ == "__main__":
    jobs.main(None, "Run a recipe from corpus to published snapshot.")
