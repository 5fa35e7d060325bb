"""Whole nights in one process, without a model: for the fault simulator, and for measuring how stages grow."""
