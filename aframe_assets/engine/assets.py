"""The assets ``exported_model``, ``engine`` and ``model_repository``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aframe_assets.engine.checks import ENGINE_CHECKS, EXPORTED_CHECKS, REPOSITORY_CHECKS, parity_check, snapshotter_check
from aframe_assets.store.bodies import plain_asset
from aframe_assets.store.job import Job, Product
from aframe_assets.tags import resources

if TYPE_CHECKING:
    from aframe_assets.config import Config


def make_exported_model(job: Job) -> Product:
    """Export the model and compare both files with the network they came from."""
    import shutil

    import torch

    from aframe_assets.engine.engine import OnnxRuntimeEngine, TorchEngine
    from aframe_assets.engine.export import ONNX_FILE, TORCH_FILE, Signature, export
    from aframe_assets.engine.parity import EXPORT_TOLERANCE, compare, probes
    from aframe_assets.model.bundle import DESCRIPTION, load_bundle

    folder = job.path("model")
    bundle = load_bundle(folder)
    signature = Signature.of(bundle.ifos, bundle.sample_rate, bundle.conditioning)
    files = export(bundle.network, signature, job.scratch)
    shutil.copyfile(folder / DESCRIPTION, job.scratch / DESCRIPTION)
    files[DESCRIPTION] = job.scratch / DESCRIPTION

    def network(windows):
        with torch.inference_mode():
            return bundle.network(torch.from_numpy(windows))[:, 0].numpy()

    windows = probes(len(signature.ifos), signature.kernel, signature.sample_rate)
    found = {
        "onnx": compare(OnnxRuntimeEngine(files[ONNX_FILE], signature, {}).infer, network, windows, EXPORT_TOLERANCE).as_dict(),
        "torch.export": compare(TorchEngine(files[TORCH_FILE], signature, {}).infer, network, windows, EXPORT_TOLERANCE).as_dict(),
    }
    meta = {
        "parity": found,
        "max_difference": max(p["max_difference"] for p in found.values()),
        "ifos": list(signature.ifos),
        "kernel": signature.kernel,
    }
    return Product(files, meta, [parity_check("exported_equals_torch", found)])


def make_engine(job: Job) -> Product:
    """Choose the platform, once, and record what was measured."""
    from aframe_assets.engine.engine import build_engine
    from aframe_assets.engine.export import SIGNATURE_FILE, Signature
    from aframe_assets.model.bundle import read_description

    exported = job.path("exported_model")
    settings = job.config.engine
    record = build_engine(exported, job.scratch, settings.platform, settings.parity_tolerance, read_description(exported))
    signature = Signature.read(exported / SIGNATURE_FILE)
    for name, found in record["measured"].items():
        job.log.info(
            "%s: %.3f ms per window on %d threads, largest difference %.2g",
            name,
            found["ms_per_window"],
            found["threads"],
            found["parity"]["max_difference"],
        )
    meta = {
        "platform": record["platform"],
        "ms_per_window": record["ms_per_window"],
        "batch": record["batch"],
        "max_difference": record["parity"]["max_difference"],
        "measured": record["measured"],
        "ifos": list(signature.ifos),
        "sample_rate": signature.sample_rate,
        "kernel": signature.kernel,
    }
    return Product(job.scratch, meta, [parity_check("engine_equals_torch", {record["platform"]: record["parity"]})])


def make_model_repository(job: Job) -> Product:
    """The engine's network as a Triton repository that is fed whitened streams."""
    from aframe_assets.engine.export import ONNX_FILE, SIGNATURE_FILE, Signature
    from aframe_assets.engine.repository import ENSEMBLE, NETWORK, SNAPSHOTTER, write_repository

    engine = job.path("engine")
    signature = Signature.read(engine / SIGNATURE_FILE)
    inference = job.config.inference
    shape = {
        "num_ifos": len(signature.ifos),
        "kernel": signature.kernel,
        "stride": round(signature.sample_rate / inference.inference_rate),
        "batch": inference.batch_size,
    }
    write_repository(job.scratch, engine / ONNX_FILE, **shape)
    check = snapshotter_check(job.scratch / SNAPSHOTTER / "1" / "model.onnx", **shape)
    return Product(job.scratch, {**shape, "models": [SNAPSHOTTER, NETWORK, ENSEMBLE], "whitened_input": True}, [check])


def assets(config: Config) -> list[Any]:
    """Definitions of this room."""
    return [
        plain_asset(
            "exported_model",
            make_exported_model,
            config,
            description="The network as ONNX and torch.export files, equal to the trained one.",
            tags=resources(cpus=1, memory_gb=4, time_min=30),
            kinds={"onnx", "pytorch"},
            checks=EXPORTED_CHECKS,
        ),
        plain_asset(
            "engine",
            make_engine,
            config,
            description="The inference engine of the whole search: the platform is chosen once, from a measurement kept with it.",
            tags=resources(cpus=1, memory_gb=4, time_min=30),
            kinds={"onnx"},
            checks=ENGINE_CHECKS,
        ),
        plain_asset(
            "model_repository",
            make_model_repository,
            config,
            description="Triton model repository: snapshotter with state, network, and the ensemble of both, on whitened streams.",
            tags=resources(cpus=1, memory_gb=2, time_min=30),
            kinds={"onnx"},
            checks=REPOSITORY_CHECKS,
        ),
    ]
