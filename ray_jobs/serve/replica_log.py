"""The destination of this project's log messages in a process of Ray Serve."""

import logging


def log_with_serve() -> None:
    """Let messages of this project into the replica's own log: Serve drops what goes to stderr, where they would go."""
    for name in ("dpr", "ray_jobs"):
        logging.getLogger(name).parent = logging.getLogger("ray.serve")
