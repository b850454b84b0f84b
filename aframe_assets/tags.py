"""The neutral resource tag: what a step needs, never where it runs."""

from __future__ import annotations

import json

RESOURCES_TAG = "aframe/resources"
"""Op tag; the executor's handlers translate it (Kubernetes limits, #SBATCH lines, request_*)."""


CODE_VARIABLE = "AFRAME_CODE"
"""Names the version of the code in processes that run another one than that which is installed; kept with what they make."""


def resources(
    *,
    cpus: int = 1,
    memory_gb: float = 2,
    gpus: int = 0,
    gpu_memory_gb: float = 0,
    time_min: int = 60,
    disk_gb: float = 2,
    container: str = "cpu",
) -> dict[str, str]:
    """The op tags of a step that needs this much: cores, GB, minutes."""
    return {
        RESOURCES_TAG: json.dumps(
            {
                "cpus": cpus,
                "memory_gb": memory_gb,
                "gpus": gpus,
                "gpu_memory_gb": gpu_memory_gb,
                "time_min": time_min,
                "disk_gb": disk_gb,
                "container": container,
            }
        )
    }
