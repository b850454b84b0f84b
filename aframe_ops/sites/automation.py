"""New data: what is watched and when it is analysed (section ``automation`` of site.yaml)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from aframe_ops.sites.part import Part


class AutomationSite(Part):
    """Sensors of new data. All are off until they are switched on: on the web page, by `dagster sensor start`, or by `on`."""

    on: bool = Field(default=False, description="the sensors of new data run as soon as Dagster's daemon does")
    watch: list[str] = Field(default=[], description="folders and s3://bucket/prefix in which strain files are dropped")
    land: str = Field(default="strain", min_length=1, description="folder that good files are put in; strain.files names it")
    take: Literal["copy", "link"] = Field(default="copy", description="how: link makes hard links where the disk is the same")
    poll_seconds: int = Field(default=60, ge=1, description="places and segments are looked at so often")
    settle_seconds: float = Field(default=60, ge=0, description="a file is read when it has not changed for so long")
    quiet_seconds: float = Field(default=300, ge=0, description="good files go in together when no new one has come for so long")
    max_wait_seconds: float = Field(default=3600, ge=0, description="or when the first of them has waited so long")
    look_up_hours: float = Field(default=6, ge=0.1, description="segment servers are asked so often whether there is more science time")
    until: Literal["background", "inference_results"] = Field(
        default="inference_results", description="how far new segments are taken; nothing is ever trained"
    )
    attempts: int = Field(default=3, ge=1, description="times that a segment is tried before it is given up")
    retry_minutes: float = Field(default=10, ge=0, description="wait before the second try; doubled before each further one")

    @model_validator(mode="after")
    def _without_keys(self) -> AutomationSite:
        for place in self.watch:
            if "://" in place and (not place.startswith("s3://") or "@" in place):
                raise ValueError(f"watch: {place.split('@')[-1]!r}: expected a folder, or s3://bucket/prefix without user and keys")
        return self
