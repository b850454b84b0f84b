"""What evaluates one file of an exported network: the small protocol behind every engine, and the platforms by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import nn


class Runner(Protocol):
    """An exported file, ready to run.

    A runner that has several calls under way at a time also has ``each(parts)``, which gives their answers in order.

    Attributes:
        threads: of the CPU that it uses.
    """

    threads: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(batch, ifo, samples) float32, contiguous -> what the file's output is, float32."""
        ...


def default_threads() -> int:
    """Threads of an engine: OMP_NUM_THREADS, which the executor sets to a step's cores, or 1."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(value)) if value.isdigit() else 1


class OnnxRuntimeRunner:
    """ONNX Runtime on the CPU.

    Args:
        path: an ONNX file.
        threads: used by an operator.
    """

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        self.threads = threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # idle threads that spin would take the cores of the step beside this one
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        return self._session.run(None, {self._input: x})[0]


class TorchRunner:
    """A torch module on a device; sets torch's number of threads for the process.

    Args:
        module: maps (batch, ifo, samples) to a tensor.
        threads: of the process.
        device: of torch.
    """

    def __init__(self, module: nn.Module, threads: int, device: str = "cpu") -> None:
        import torch

        self.threads, self.device = threads, device
        torch.set_num_threads(threads)
        self._module = module.to(device)

    @classmethod
    def open(cls, path: Path, threads: int, device: str = "cpu") -> TorchRunner:
        """The program of ``torch.export`` in `path`."""
        import warnings

        import torch

        with warnings.catch_warnings():
            # torch's own reader makes a tensor of a read-only buffer, and warns of it
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            return cls(torch.export.load(str(path)).module(), threads, device)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        import torch

        with torch.inference_mode():
            return self._module(torch.from_numpy(x).to(self.device)).float().cpu().numpy()


@dataclass(frozen=True)
class Platform:
    """A way to run an exported network.

    Attributes:
        files: ending of the files that it reads.
        open: (file, threads) -> runner.
    """

    files: str
    open: Callable[[Path, int], Any]


PLATFORMS = {"onnxruntime": Platform("onnx", OnnxRuntimeRunner), "torch": Platform("pt2", TorchRunner.open)}
