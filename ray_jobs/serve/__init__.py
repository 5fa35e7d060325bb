"""The search service: HTTP application, batching, the Ray Serve deployment and its start and stop."""
