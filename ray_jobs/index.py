"""Job: everything up to the index, without publishing. `python -m ray_jobs.index --recipe R`"""

from ray_jobs import jobs

if __name__ == "__main__":
    jobs.main("index", "Build the index of a recipe without publishing it.")
