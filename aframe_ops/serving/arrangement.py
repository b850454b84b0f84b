"""A model repository made ready for one server: how many instances of each model, and on which devices.

The repository in the store is the same everywhere; the copy that a server reads says what this machine has.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from aframe_ops.serving.errors import ServingError

CONFIG = "config.pbtxt"
THREADS = "intra_op_thread_count"


def models(repository: Path) -> list[str]:
    """Names of the models in `repository`.

    Raises:
        ServingError: there are none.
    """
    found = sorted(p.parent.name for p in Path(repository).glob(f"*/{CONFIG}"))
    if not found:
        raise ServingError(f"{repository}: holds no Triton model (no MODEL/{CONFIG}); expected a folder that `model_repository` made")
    return found


def gpus() -> list[int]:
    """Indices of the NVIDIA devices that a process started here may use, as it counts them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [part for part in visible.split(",") if part.strip() and part.strip() != "-1"]
        return list(range(len(named)))
    folder = Path("/proc/driver/nvidia/gpus")
    return list(range(len(list(folder.iterdir())))) if folder.is_dir() else []


def arrange(
    repository: Path,
    folder: Path,
    *,
    devices: Sequence[int] = (),
    per_device: int = 1,
    streams: int | None = None,
    threads: int | None = None,
) -> list[str]:
    """Copy `repository` to `folder` with the instances of this machine.

    A model with sequences keeps its state on the cores, with `streams` instances, one for each sequence served at once. A
    network gets `per_device` instances on each of `devices`, or stays on the cores when there are none. What the repository
    wants on the cores (KIND_CPU), and what the Python backend runs, is left as it is.

    Args:
        repository: models, each with a config.pbtxt.
        folder: new; files are linked where they can be.
        devices: GPUs to use.
        per_device: instances of the network on each.
        streams: sequences at once; None for what the repository says.
        threads: of the network's instances; None for what the repository says.

    Returns:
        Names of the models.

    Raises:
        ServingError: no models, a configuration that Triton could not read either, or a TensorRT plan without a GPU.
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2 as schema
    except ImportError:
        raise ServingError("serving needs tritonclient, which is not installed; install this project with [triton]") from None

    names = models(repository)
    for name in names:
        source, target = Path(repository) / name, folder / name
        shutil.copytree(source, target, copy_function=_link, ignore=shutil.ignore_patterns(CONFIG))
        try:
            config = text_format.Parse((source / CONFIG).read_text(), schema.ModelConfig())
        except text_format.ParseError as e:
            raise ServingError(f"{source / CONFIG}: not a model's configuration: {e}; make the repository again") from None
        runtime = config.platform in ("onnxruntime_onnx", "tensorrt_plan") or config.backend in ("onnxruntime", "tensorrt")
        if runtime and config.HasField("sequence_batching"):
            _instances(config, schema.ModelInstanceGroup.KIND_CPU, streams or sum(g.count for g in config.instance_group) or 1)
        elif runtime and not _on_cores(config):
            if not devices and "tensorrt" in (config.platform + config.backend):
                raise ServingError(
                    f"{name} is a TensorRT plan, and this machine has no GPU that may be used; set engine.platform: onnxruntime"
                )
            _instances(config, schema.ModelInstanceGroup.KIND_GPU if devices else schema.ModelInstanceGroup.KIND_CPU, per_device, devices)
            if threads:
                config.parameters[THREADS].string_value = str(threads)
        elif config.HasField("sequence_batching") and streams:
            _instances(config, schema.ModelInstanceGroup.KIND_CPU, streams)
        (target / CONFIG).write_text(text_format.MessageToString(config))
    return names


def _on_cores(config) -> bool:
    kinds = {g.kind for g in config.instance_group}
    return bool(kinds) and kinds == {type(config.instance_group[0]).KIND_CPU}


def _instances(config, kind: int, count: int, devices: Sequence[int] = ()) -> None:
    del config.instance_group[:]
    config.instance_group.add(kind=kind, count=count, gpus=list(devices))


def _link(source: str, target: str) -> None:
    """A hard link where both are on one file system, else a copy. (A symbolic one would lead out of a container's mount.)"""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
