"""TensorRT plans from ONNX files, with the two generations of its Python API.

Up to TensorRT 10 a network is created with EXPLICIT_BATCH and the builder is told which precisions it may use. From 11 on networks are
strongly typed: what is not float32 must be so in the ONNX file. TensorRT-RTX has the API of 11 and builds without a GPU or driver,
which is how this module is tested; its plans are not TensorRT's.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

Shape = tuple[int, ...]


class PlanError(ValueError):
    """An ONNX file that TensorRT does not accept, or a plan that it cannot build; the message has TensorRT's own words."""


def strongly_typed(trt: ModuleType) -> bool:
    """Whether types come from the ONNX file alone: the API of TensorRT 11."""
    return not hasattr(trt.BuilderFlag, "FP16")


def build_plan(
    trt: ModuleType,
    onnx: Path,
    precision: str,
    batches: tuple[int, int, int],
    *,
    timing_cache: bytes = b"",
    capability: str | None = None,
) -> tuple[bytes, bytes]:
    """Build a plan for the GPU of this machine.

    Args:
        trt: the package ``tensorrt``, or ``tensorrt_rtx``.
        onnx: file with one input whose first axis is the batch. For fp16 and bf16 in TensorRT 11 its weights have that type.
        precision: 'fp32', 'tf32', 'fp16' or 'bf16'.
        batches: least, usual and largest batch.
        timing_cache: that an earlier build gave; TensorRT ignores one of another GPU or version.
        capability: name in ``trt.ComputeCapability`` to build for (TensorRT-RTX); None for the GPU of this machine.

    Returns:
        The plan and the timing cache.

    Raises:
        PlanError: TensorRT refuses the file or finds no way to build it.
    """
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_creation_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(onnx).read_bytes()):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise PlanError(f"{onnx}: TensorRT {trt.__version__} cannot read it: {errors}")
    config = builder.create_builder_config()
    _set_precision(trt, config, precision)
    profile, given = builder.create_optimization_profile(), network.get_input(0)
    profile.set_shape(given.name, *((n, *tuple(given.shape)[1:]) for n in batches))
    config.add_optimization_profile(profile)
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    cache = config.create_timing_cache(timing_cache)
    if cache is not None:
        config.set_timing_cache(cache, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise PlanError(
            f"{onnx}: TensorRT {trt.__version__} built no plan with {precision} for batches {batches}: {'; '.join(logger.said)}"
        )
    kept = config.get_timing_cache()
    return bytes(plan), b"" if kept is None else bytes(kept.serialize())


def _creation_flags(trt: ModuleType) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED if strongly_typed(trt) else flags.EXPLICIT_BATCH)


def _set_precision(trt: ModuleType, config: Any, precision: str) -> None:
    flags = trt.BuilderFlag
    # on by default, and not float32
    (config.set_flag if precision == "tf32" else config.clear_flag)(flags.TF32)
    if precision in ("fp16", "bf16") and not strongly_typed(trt):
        config.set_flag(getattr(flags, precision.upper()))


def _logger(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):
        """Keeps errors, which the builder's answer does not hold."""

        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.said.append(message)

    return Logger()
