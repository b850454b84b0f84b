"""``htcondor:`` of site.yaml."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from aframe_ops.sites.node import NodeSite
from aframe_ops.sites.part import Part, Program, Word

ACCOUNT = r"[A-Za-z0-9_][A-Za-z0-9_.@-]*"
"""Pattern of an accounting group and of its user."""

OWN_COMMANDS = {
    "accounting_group": "htcondor.accounting_group",
    "accounting_group_user": "htcondor.accounting_group_user",
    "request_cpus": "the step's resources",
    "request_memory": "the step's resources and executor.max_memory_gb",
    "request_disk": "the step's resources and htcondor.disk_gb",
    "request_gpus": "the step's resources",
    "gpus_minimum_memory": "the step's resources",
    "gpus_minimum_capability": "htcondor.gpu.minimum_capability",
    "require_gpus": "htcondor.gpu.require",
    "container_image": "htcondor.container_image",
    "docker_image": "htcondor.container_image",
    "requirements": "htcondor.requirements",
    "use_oauth_services": "htcondor.oauth_services",
    "environment": "executor.env",
    "env": "executor.env",
    "getenv": "executor.env",
    "allowed_job_duration": "the step's resources and executor.max_time_min",
    "allowed_execute_duration": "the step's resources and executor.max_time_min",
} | dict.fromkeys(
    "args arguments batch_name cmd dollar else elif endif err error executable if in include initialdir input iwd kill_sig "
    "kill_sig_timeout log log_xml max_materialize max_retries num_job_starts on_exit_hold on_exit_remove out output "
    "periodic_release periodic_remove queue retry_until should_transfer_files stream_error stream_output transfer_executable "
    "transfer_input_files transfer_output_files transfer_output_remaps universe use user_log when_to_transfer_output".split(),
    "the executor alone",
)
"""Submit commands that are not for `HTCondorSite.commands`, and what sets them."""


def _command(name: str) -> str:
    bare = name.lower().removeprefix("+").removeprefix("my.")
    for own, owner in OWN_COMMANDS.items():
        if bare.replace("_", "") == own.replace("_", ""):  # request_cpus is the attribute RequestCpus
            raise ValueError(f"{own} is set by {owner}")
    return name


def _expression(text: str) -> str:
    depth = 0
    for mark in re.findall(r'"[^"]*"|[()"]', text):
        depth += {"(": 1, ")": -1}.get(mark, 0)
        if depth < 0 or mark == '"':
            break
    else:
        if depth == 0:
            return text
    raise ValueError("expected a ClassAd expression whose brackets and quotes are closed")


_Value = Annotated[str, Field(pattern=r"^[^\x00-\x20\x7f$\\]([^\x00-\x1f\x7f$\\]*[^\x00-\x20\x7f$\\])?$")]
"""One line without $ (which starts a macro of HTCondor) and backslashes."""

_Expression = Annotated[_Value, AfterValidator(_expression)]
_Command = Annotated[str, Field(pattern=r"^(\+|[Mm][Yy]\.)?[A-Za-z_][A-Za-z0-9_]*$"), AfterValidator(_command)]
_Account = Annotated[str, Field(pattern=f"^{ACCOUNT}$")]


class HTCondorGpu(Part):
    """What GPUs have to be, besides having the memory that the step asks for."""

    minimum_capability: float | None = Field(default=None, gt=0, description="CUDA compute capability, such as 7.0")
    require: _Expression | None = Field(default=None, description='ClassAd expression, such as DeviceName == "NVIDIA A100-SXM4-40GB"')


class HTCondorSite(NodeSite):
    """How to use HTCondor. Values are written into submit descriptions as they are."""

    accounting_group: _Account | None = Field(default=None, description="None: $LIGO_GROUP")
    accounting_group_user: _Account | None = Field(default=None, description="None: $LIGO_USERNAME")
    container_image: _Value | None = Field(default=None, description="a .sif file, docker://... or osdf://... with this project in it")
    requirements: _Expression | None = Field(default=None, description="ClassAd expression that nodes must fulfil")
    disk_gb: float = Field(default=2.0, gt=0, description="disk for steps that do not say what they need")
    gpu: HTCondorGpu = HTCondorGpu()
    oauth_services: list[Word] = Field(default=[], description="tokens that jobs get, as in [scitokens]")
    commands: dict[_Command, _Value] = Field(default={}, description="further submit commands, such as +WantIGWN: 'true'")
    shared_disk: bool = Field(
        default=True,
        description="nodes see the run directory; false: the step's files are transferred, and the store has to be on S3",
    )
    command: list[Program] = Field(default=[], description="words in front of condor_submit, condor_q, ...: [ssh, login]")
    setup: str = Field(default="", description="shell lines that every job runs before Python; one that fails ends it")
    signal_seconds: int = Field(default=120, ge=0, description="how long before its time limit a step is interrupted; 0: not")

    @model_validator(mode="after")
    def _sees_wheelhouse(self) -> HTCondorSite:
        if self.wheelhouse and (self.container_image or not self.shared_disk):
            raise ValueError("wheelhouse is for jobs on a shared disk without container_image; a container brings the project with it")
        return self
