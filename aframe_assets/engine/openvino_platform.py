"""OpenVINO on the CPU (extra ``[openvino]``): bf16 where the processor multiplies in it, float32 where not."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from aframe_assets.engine.runners import How, Platform, Runner, require_file
from aframe_assets.engine.support import Device, not_installed

_HINTS = {"fp32": "f32", "bf16": "bf16"}


@functools.cache
def _core() -> Any:
    """The process's only one, never released.

    OpenVINO gives the thread that first compiles a stack for signals and takes it back with the core, whichever thread
    lets that go: the first thread's next signal then ended the process by a segmentation fault.
    """
    import openvino

    return openvino.Core()


class OpenVinoRunner:
    """A compiled model with one stream.

    Args:
        path: an ONNX file.
        how: threads and precision.
    """

    def __init__(self, path: Path, how: How) -> None:
        self.threads = how.settled().threads
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[how.precision],
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            # the executor gives a step its cores; a library that pins its threads takes others' as well
            "ENABLE_CPU_PINNING": False,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._request = _core().compile_model(str(path), "CPU", settings).create_infer_request()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        return np.array(self._request.infer({0: x}, share_inputs=True)[0], np.float32)


class OpenVinoPlatform:
    """See `Platform`."""

    def missing(self, device: Device) -> str | None:
        """See `Platform`."""
        return not_installed("openvino")

    def build(self, exported: Path, folder: Path, stem: str, how: How) -> None:
        """See `Platform`."""
        shutil.copyfile(exported / f"{stem}.onnx", folder / f"{stem}.onnx")

    def open(self, folder: Path, stem: str, how: How) -> Runner:
        """See `Platform`."""
        reason = self.missing(how.device)
        if reason:
            raise ValueError(f"{folder}: its engine is of OpenVINO; {reason}")
        return OpenVinoRunner(require_file(folder / f"{stem}.onnx", "openvino"), how)


PLATFORM: Platform = OpenVinoPlatform()
