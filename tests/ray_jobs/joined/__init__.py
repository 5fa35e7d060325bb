"""Tests whose runs are separate programs that join a Ray: a package, so that this Ray ends with it."""
