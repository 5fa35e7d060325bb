"""What all sections of a recipe have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(min_length=1)]
"""An empty path would be the folder of the recipe itself."""
MAX_PROCESSORS = 1024
"""More processors than a machine has. Far more threads than that would never all start."""
Processors = Annotated[int, Field(ge=1, le=MAX_PROCESSORS)]
"""A number of processors, or of processes that each need some."""


class Section(BaseModel):
    """A section: unknown fields are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
