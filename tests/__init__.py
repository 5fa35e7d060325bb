"""Tests, as a package, so that a folder of them can be one (tests/ray_jobs)."""
