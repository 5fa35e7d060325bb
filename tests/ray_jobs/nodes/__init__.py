"""Tests of a Ray cluster of several nodes on one machine."""
