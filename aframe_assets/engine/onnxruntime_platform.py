"""ONNX Runtime, on the CPU or by its CUDA execution provider (package onnxruntime-gpu in place of onnxruntime)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from aframe_assets.engine.runners import How, Platform, Runner, require_file
from aframe_assets.engine.support import Device

_CUDA = "CUDAExecutionProvider"


class OnnxRuntimeRunner:
    """A session.

    Args:
        path: an ONNX file.
        how: device and threads; of the precisions only tf32 is the session's affair.

    Raises:
        ValueError: the session did not start on the device asked for.
    """

    def __init__(self, path: Path, how: How) -> None:
        import onnxruntime

        self.threads = how.settled().threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        # idle threads that spin would take the cores of the step beside this one
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        providers: list[object] = ["CPUExecutionProvider"]
        if how.device == "cuda":
            providers.insert(0, (_CUDA, {"use_tf32": str(int(how.precision == "tf32"))}))
        self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        if how.device == "cuda" and self._session.get_providers()[0] != _CUDA:
            # it falls back on the CPU with no more than a line in its log
            raise ValueError(f"{path}: ONNX Runtime could not start on a CUDA device; its libraries or the driver are missing here")
        self._input = self._session.get_inputs()[0].name

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        return self._session.run(None, {self._input: x})[0]


class OnnxRuntimePlatform:
    """See `Platform`."""

    def missing(self, device: Device) -> str | None:
        """See `Platform`."""
        import onnxruntime

        if device == "cuda" and _CUDA not in onnxruntime.get_available_providers():
            return "this ONNX Runtime has no CUDA provider; install onnxruntime-gpu in place of onnxruntime"
        return None

    def build(self, exported: Path, folder: Path, stem: str, how: How) -> None:
        """See `Platform`."""
        if how.precision == "fp16":
            from aframe_assets.engine.export import export_reduced

            export_reduced(exported, stem, how.precision, folder / self._file(stem, how))
        else:
            shutil.copyfile(exported / f"{stem}.onnx", folder / f"{stem}.onnx")

    def open(self, folder: Path, stem: str, how: How) -> Runner:
        """See `Platform`."""
        return OnnxRuntimeRunner(require_file(folder / self._file(stem, how), "onnxruntime"), how)

    @staticmethod
    def _file(stem: str, how: How) -> str:
        return f"{stem}.{how.precision}.onnx" if how.precision == "fp16" else f"{stem}.onnx"


PLATFORM: Platform = OnnxRuntimePlatform()
