"""Tests whose runs are programs of their own, which join a Ray: a package, so that this Ray ends with it."""
