"""The section ``execution`` of an experiment: how work is cut into steps and what a training asks for; no part of a result."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from aframe_assets.config_quantities import Seconds, Section
from aframe_assets.config_tracking import Tracking
from aframe_assets.tags import resources


class TrainingResources(Section):
    """What one training asks of the machine or cluster that it runs on: `model`, `filter_model`, and each trial of `tuned_model`."""

    gpus: int = Field(default=0, ge=0, description="GPUs of one training, on one machine; a batch is shared out among them")
    devices: list[Annotated[str, Field(pattern=r"^(cpu|cuda(:[0-9]+)?)$")]] | None = Field(
        default=None,
        min_length=1,
        description="devices of one training, of those that its step sees, instead of the first `gpus`: [cpu, cpu] is two processes",
    )
    cpus_per_gpu: int = Field(default=4, ge=1, description="cores for each GPU, and as many without one")
    memory_per_cpu: float = Field(default=2, gt=0, description="GB for each core")
    min_gpu_memory: float = Field(default=0, ge=0, description="GB of a GPU that is large enough; 0: any")
    time: Seconds = Field(
        default=172_800, ge=60, description="time limit; a training that comes near it keeps its state and is tried again"
    )
    max_restarts: int = Field(
        default=20, ge=0, description="how often a training is tried again that came near its time limit or had to make room for others"
    )
    checkpoint_every: Seconds = Field(
        default=600, gt=0, description="the state is kept, here and in the store, so often, also within an epoch; what a kill can cost"
    )
    observe_every: Seconds = Field(default=300, ge=0, description="least time between two looks at the training on the asset's page")
    deterministic: bool = Field(default=False, description="on a GPU: the same weights at every repetition, at the cost of speed")
    compile: bool = Field(
        default=False, description="compile the network (torch.compile): minutes at the start, faster steps; needs a C++ compiler"
    )
    tracking: Tracking = Tracking()

    @field_validator("devices")
    @classmethod
    def _of_one_kind(cls, devices: list[str] | None) -> list[str] | None:
        if devices and len({d.partition(":")[0] for d in devices}) > 1:
            raise ValueError("expected CPUs or GPUs, not both")
        return devices

    @model_validator(mode="after")
    def _enough(self) -> TrainingResources:
        asked = {d for d in self.devices or () if d != "cpu"}
        if len(asked) > self.gpus:
            raise ValueError(f"devices names {len(asked)} GPUs; expected gpus to ask for as many, it is {self.gpus}")
        return self

    @property
    def tags(self) -> dict[str, str]:
        """Op tags of a training."""
        cpus = self.cpus_per_gpu * max(1, self.gpus)
        return resources(
            cpus=cpus,
            memory_gb=cpus * self.memory_per_cpu,
            gpus=self.gpus,
            gpu_memory_gb=self.min_gpu_memory if self.gpus else 0,
            time_min=math.ceil(self.time / 60),
            disk_gb=10,
            container="gpu" if self.gpus else "cpu",
        )


class Execution(Section):
    """How work is cut into steps; never part of a result's identity."""

    segments_per_step: int = Field(default=10, ge=1, description="segments that one step works on")
    min_segment_fraction: float = Field(
        default=1.0, gt=0, le=1, description="with at least this share of the segments, a run goes on without the others"
    )
    max_retries: int = Field(default=1, ge=0, description="how often a step that failed is tried again")
    owners: list[Annotated[str, Field(pattern=r"^(team:[A-Za-z0-9_-]+|[^@\s]+@[^@\s]+\.[^@\s]+)$")]] = Field(
        default=["team:aframe"], description="who answers for this search, as addresses or team:NAME; shown on every asset's page"
    )
    waveform_processes: int = Field(default=1, ge=1, description="processes in which a step makes lalsimulation's signals")
    report_pages: int = Field(
        default=10, ge=0, description="loudest candidates with a page of their own in the report; as many more where a catalogue has them"
    )
    training: TrainingResources = TrainingResources()
