"""``slurm:`` of site.yaml."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from aframe_ops.sites.node import NodeSite
from aframe_ops.sites.part import Part, Program, Word

OWN_DIRECTIVES = {
    "partition": "slurm.partition",
    "account": "slurm.account",
    "qos": "slurm.qos",
    "time": "the step's resources and executor.max_time_min",
    "cpus-per-task": "the step's resources",
    "mem": "the step's resources and executor.max_memory_gb",
    "mem-per-cpu": "the step's resources and executor.max_memory_gb",
    "mem-per-gpu": "the step's resources and executor.max_memory_gb",
    "gres": "the step's resources and slurm.gpu.types",
    "gpus": "the step's resources and slurm.gpu.types",
    "signal": "slurm.signal_seconds",
    "export": "executor.env",
    "export-file": "executor.env",
} | dict.fromkeys(
    "array chdir error input job-name no-requeue nodes ntasks open-mode output parsable requeue test-only wait wrap".split(),
    "the executor alone",
)
"""Options of sbatch that are not for `directives`, and what sets them."""


def _directive(text: str) -> str:
    found = re.fullmatch(r'--([a-z][a-z0-9-]*)(=[^\x00-\x1f\x7f"\\]+)?', text)
    if not found:
        raise ValueError('expected --option or --option=value, without quotes, backslashes and line ends, as in "--constraint=avx2"')
    for option, owner in OWN_DIRECTIVES.items():
        if option.startswith(found[1]):  # sbatch takes the beginning of a name for the name
            raise ValueError(f"--{option} is set by {owner}")
    return text


class SlurmQueue(Part):
    """Where in SLURM a job goes. None leaves it to the cluster."""

    partition: Word | None = Field(default=None, description="queue of the jobs")
    account: Word | None = Field(default=None, description="account that they are charged to")
    qos: Word | None = Field(default=None, description="quality of service")
    directives: list[Annotated[str, AfterValidator(_directive)]] = Field(default=[], description="further #SBATCH lines: --option=value")


class SlurmGpuQueue(SlurmQueue):
    """What is different for steps that ask for a GPU; None and [] say: nothing."""

    types: dict[Word, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="gres types in order of preference, with their memory in GB; each attempt takes the next one that is large enough",
    )


class SlurmSite(SlurmQueue, NodeSite):
    """How to use SLURM. The run directory, the store and the Python environment or a wheelhouse are on a disk that the nodes see."""

    gpu: SlurmGpuQueue = SlurmGpuQueue()
    command: list[Program] = Field(default=[], description="words in front of sbatch, squeue, ...: [ssh, login] for a login node elsewhere")
    setup: str = Field(
        default="", description="shell lines that every job runs before Python, such as module loads; one that fails ends it"
    )
    arrays: bool = Field(default=True, description="steps of a fan-out are submitted together, as one array")
    array_limit: int | None = Field(default=None, ge=1, description="most jobs of one array that run at once; None: as many as fit")
    signal_seconds: int = Field(default=120, ge=0, le=65535, description="how long before its time limit a step is interrupted; 0: not")
