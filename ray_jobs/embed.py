"""Job: scan, and embed what is new into segments. `python -m ray_jobs.embed --recipe R`"""

from ray_jobs import jobs

if __name__ == "__main__":
    jobs.main("embed", "Embed the new passages of a recipe's corpus into segments.")
