"""What all answers of the service have in common."""

from pydantic import BaseModel, ConfigDict


class Answered(BaseModel):
    """A part of an answer. A client ignores fields that a newer service adds."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class StepTimings(Answered):
    """Time of a request that is not a search, in milliseconds."""

    work: float
    """Time of the work itself."""
    total: float
    """Time from the request's arrival in the replica to its answer, with the wait for others."""
