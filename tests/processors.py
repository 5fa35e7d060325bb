"""A stand-in for what Linux says of the processors of a machine."""

from dpr.idle_processors import IdleProcessors


class Processors(IdleProcessors):
    """All processors of the machine are idle, or none is."""

    def __init__(self, *, idle: bool) -> None:
        super().__init__()
        self.idle = idle

    def are_there(self, processors: int) -> bool:  # noqa: ARG002
        """Return whether they are idle."""
        return self.idle
