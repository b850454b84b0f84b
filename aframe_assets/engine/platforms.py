"""The platforms by name; each is imported when it is asked for."""

from __future__ import annotations

import platform as system
from importlib import import_module

from aframe_assets.engine.runners import Platform
from aframe_assets.engine.support import SUPPORT, Device


def get_platform(name: str) -> Platform:
    """A platform of `SUPPORT`. Raises KeyError for another name."""
    if name not in SUPPORT:
        raise KeyError(name)
    return import_module(f"aframe_assets.engine.{name}_platform").PLATFORM


def best_device() -> Device:
    """'cuda' where torch sees such a device."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_class(device: Device) -> str:
    """The kind of device that a measurement is good for, as 'cpu x86_64 AVX512, NAME' or 'cuda sm_90, NAME'."""
    import torch

    if device == "cuda":
        return "cuda sm_{}{}, {}".format(*torch.cuda.get_device_capability(), torch.cuda.get_device_name())
    return f"cpu {system.machine()} {torch.backends.cpu.get_cpu_capability()}, {_processor()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return system.processor() or "unknown"
