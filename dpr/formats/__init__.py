"""What lies in a store: the names of its objects, and the form of each kind."""

MISSING = -1
"""Stands in an array of ids, rows, places or numbers for one that does not exist."""
