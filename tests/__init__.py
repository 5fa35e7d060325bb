"""Tests, as a package, so that a folder of them can be one (tests/ray_jobs)."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # one of several test processes has one thread; numpy, PyTorch and FAISS read this when they are first imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
