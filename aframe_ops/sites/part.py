"""What all parts of a site file have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """A part of site.yaml: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Program = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
"""A program or one of its words: not empty, without control characters."""

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,@:+-]*$")]
"""A plain word, which no shell and no directive reads as anything else."""
