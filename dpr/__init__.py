"""Dense passage retrieval as a plain library: every stage of the pipeline, without Ray."""

__version__ = "0.1.0"
