"""What all sections of the configuration have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
"""A name or a path: an empty one would stand for the folder that one is in."""
_Side = Annotated[int, Field(ge=8, le=512)]
Box = tuple[_Side, _Side, _Side]


class StrictModel(BaseModel):
    """A section: no unknown keys, no silent conversions, never changed after it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
