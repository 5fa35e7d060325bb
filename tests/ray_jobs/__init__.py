"""Tests of commands and of runs on Ray: a package, so that the Rays which they share end with it."""
