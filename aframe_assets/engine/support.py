"""Which platform runs which precision where, and what it needs installed; light enough to be asked before anything starts."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Literal

Name = Literal["torch", "aotinductor", "onnxruntime", "openvino", "tensorrt"]
Precision = Literal["fp32", "tf32", "fp16", "bf16"]
Device = Literal["cpu", "cuda"]

_ALL: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16")
SUPPORT: dict[str, dict[Device, tuple[Precision, ...]]] = {
    "onnxruntime": {"cpu": ("fp32",), "cuda": ("fp32", "tf32", "fp16")},
    "torch": {"cpu": ("fp32", "bf16"), "cuda": _ALL},
    "openvino": {"cpu": ("fp32", "bf16")},
    "aotinductor": {"cpu": ("fp32", "bf16"), "cuda": _ALL},
    "tensorrt": {"cuda": _ALL},
}
"""Precisions by platform and device. ONNX Runtime has no bf16 convolutions, and the CPU no tf32 at all."""

TOLERANCES: dict[str, float] = {"fp32": 1e-3, "tf32": 2e-2, "fp16": 5e-2, "bf16": 0.5}
"""Largest accepted difference of logits by precision, where none is asked for: ten times what trained networks showed."""


def precisions(platform: str, device: str) -> list[str]:
    """Precisions that an engine can have.

    Args:
        platform: one of SUPPORT, or 'auto' for any.
        device: 'cpu', 'cuda', or 'auto' for any.
    """
    names = SUPPORT if platform == "auto" else (platform,)
    found = {p for name in names for place, known in SUPPORT[name].items() if device in ("auto", place) for p in known}
    return [p for p in _ALL if p in found]


def supported(platform: str, precision: str, device: str) -> bool:
    """Whether an engine can have this precision; see `precisions`."""
    return precision in precisions(platform, device)


def _package(name: str, advice: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        return None if importlib.util.find_spec(name) else f"the package {name} is not installed; {advice}"

    return missing


def _compiler() -> str | None:
    found = shutil.which(os.environ.get("CXX", "g++"))
    return None if found else "AOTInductor compiles C++ and finds no compiler; install g++ or set CXX"


_NEEDS: dict[str, Callable[[], str | None]] = {
    "openvino": _package("openvino", "install it with pip install 'aframe-dagster[openvino]'"),
    "tensorrt": _package("tensorrt", "install it with pip install 'aframe-dagster[gpu]' where a GPU of NVIDIA is"),
    "aotinductor": _compiler,
}


def not_installed(platform: str) -> str | None:
    """What `platform` lacks here, in words that say what to install; None when nothing is. Imports nothing heavy."""
    return _NEEDS[platform]() if platform in _NEEDS else None
