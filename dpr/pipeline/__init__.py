"""The nightly pipeline: plan, run units, validate, commit. It runs on any executor, Ray's or this process."""
