"""TensorRT 10 and 11 (extra ``[gpu]``): a plan for one GPU architecture and one version, run in torch's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from aframe_assets.engine.runners import How, Platform, Runner
from aframe_assets.engine.support import Device, not_installed
from aframe_assets.engine.tensorrt_builder import build_plan, strongly_typed
from aframe_assets.engine.torch_platform import no_cuda

TIMING_CACHE = "timing.cache"


def plan_name(stem: str, version: str, architecture: tuple[int, int]) -> str:
    """A plan runs on its architecture with its version and nowhere else."""
    return f"{stem}.sm{architecture[0]}{architecture[1]}.trt{version}.plan"


class TensorRtRunner:
    """A plan.

    Args:
        plan: file.
        how: threads.

    Raises:
        ValueError: TensorRT does not take the plan.
    """

    def __init__(self, plan: Path, how: How) -> None:
        import tensorrt as trt

        self.threads = how.settled().threads
        # both must outlive the context
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise ValueError(f"{plan}: TensorRT {trt.__version__} does not take this plan; build the engine again on this machine")
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._input = next(n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
        self._output = next(n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        stream = torch.cuda.current_stream()
        given = torch.from_numpy(x).pin_memory().cuda(non_blocking=True)
        self._context.set_input_shape(self._input, tuple(given.shape))
        answer = torch.empty(tuple(self._context.get_tensor_shape(self._output)), device="cuda")
        self._context.set_tensor_address(self._input, given.data_ptr())
        self._context.set_tensor_address(self._output, answer.data_ptr())
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError(f"TensorRT failed on data of shape {x.shape}")
        return answer.cpu().numpy()


class TensorRtPlatform:
    """See `Platform`. The timing cache is kept beside the plans, and serves both."""

    def missing(self, device: Device) -> str | None:
        """See `Platform`."""
        return not_installed("tensorrt") or no_cuda()

    def build(self, exported: Path, folder: Path, stem: str, how: How) -> None:
        """See `Platform`."""
        import tensorrt as trt

        from aframe_assets.engine.build import batches
        from aframe_assets.engine.export import SIGNATURE_FILE, export_reduced
        from aframe_assets.engine.signature import Signature

        onnx = exported / f"{stem}.onnx"
        if how.precision in ("fp16", "bf16") and strongly_typed(trt):
            onnx = folder / f"{stem}.{how.precision}.onnx"
            export_reduced(exported, stem, how.precision, onnx)
        signature = Signature.read(exported / SIGNATURE_FILE)
        sizes = batches("windows" if stem == signature.windows_stem else signature.form, "tensorrt", "cuda")
        cache = folder / TIMING_CACHE
        known = cache.read_bytes() if cache.is_file() else b""
        plan, known = build_plan(trt, onnx, how.precision, (1, sizes[len(sizes) // 2], sizes[-1]), timing_cache=known)
        (folder / plan_name(stem, trt.__version__, torch.cuda.get_device_capability())).write_bytes(plan)
        cache.write_bytes(known)

    def open(self, folder: Path, stem: str, how: How) -> Runner:
        """See `Platform`."""
        reason = self.missing("cuda")
        if reason:
            raise ValueError(f"{folder}: its engine is of TensorRT; {reason}")
        import tensorrt as trt

        wanted = plan_name(stem, trt.__version__, torch.cuda.get_device_capability())
        if not (folder / wanted).is_file():
            there = ", ".join(sorted(p.name for p in folder.glob(f"{stem}.*.plan"))) or "none"
            raise ValueError(
                f"{folder}: no plan {wanted} for this GPU and TensorRT; there is {there}. Run the search on GPUs of one kind with one "
                "version of TensorRT, or build the engine again"
            )
        return TensorRtRunner(folder / wanted, how)


PLATFORM: Platform = TensorRtPlatform()
