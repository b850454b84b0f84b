"""The assets ``exported_model``, ``engine`` and ``model_repository``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aframe_assets.engine.checks import (
    ENGINE_CHECKS,
    EXPORTED_CHECKS,
    REPOSITORY_CHECKS,
    parity_check,
    preprocessor_check,
    snapshotter_check,
)
from aframe_assets.store.bodies import plain_asset
from aframe_assets.store.job import Job, Product
from aframe_assets.tags import resources

if TYPE_CHECKING:
    from pathlib import Path

    from aframe_assets.config import Config
    from aframe_assets.engine.signature import Signature


def make_exported_model(job: Job) -> Product:
    """The network, and a cascade's filter, as ONNX and torch.export files, compared with the networks they came from."""
    from aframe_assets.engine.engine import FILTER

    files, found = {}, {}
    for asset, prefix in (("model", ""), ("filter_model", f"{FILTER}/")):
        if asset in job.inputs:
            made, parity, signature = _exported(job.path(asset), job.scratch / prefix, job.config.engine.block)
            files |= {prefix + name: path for name, path in made.items()}
            found |= {prefix + name: p for name, p in parity.items()}
            if asset == "model":
                own = signature
    meta = {
        "parity": found,
        "max_difference": max(p["max_difference"] for p in found.values()),
        "ifos": list(own.ifos),
        "kernel": own.kernel,
        "context": own.context,
        "form": own.form,
    }
    return Product(files, meta, [parity_check("exported_equals_torch", found)])


def _exported(model: Path, folder: Path, block: float) -> tuple[dict[str, Path], dict[str, dict[str, Any]], Signature]:
    """Files by name, parity by format, and signature of the bundle in `model`."""
    import shutil

    import torch

    from aframe_assets.engine.engine import open_engine
    from aframe_assets.engine.export import export
    from aframe_assets.engine.parity import EXPORT_TOLERANCE, compare_engine
    from aframe_assets.engine.signature import Signature
    from aframe_assets.model.bundle import DESCRIPTION, WEIGHTS, load_bundle

    bundle = load_bundle(model)
    signature = Signature.of_bundle(bundle, block)
    folder.mkdir(exist_ok=True)
    files = export(bundle.network, signature, folder)
    # the weights are what the head of frames and maps is made of
    for name in (DESCRIPTION,) if signature.form == "windows" else (DESCRIPTION, WEIGHTS):
        files[name] = folder / name
        shutil.copyfile(model / name, files[name])

    def network(windows):
        with torch.inference_mode():
            return bundle.network(torch.from_numpy(windows))[:, 0].numpy()

    formats = {"onnx": "onnxruntime", "torch.export": "torch"}
    parity = {name: compare_engine(open_engine(folder, p), network, EXPORT_TOLERANCE).as_dict() for name, p in formats.items()}
    return files, parity, signature


def make_engine(job: Job) -> Product:
    """The inference engine of the whole search: its platform is chosen once, from a measurement that is kept with it."""
    from aframe_assets.engine.build import build_engine
    from aframe_assets.engine.engine import FILTER
    from aframe_assets.engine.export import SIGNATURE_FILE
    from aframe_assets.engine.signature import Signature
    from aframe_assets.model.bundle import read_description

    exported = job.path("exported_model")
    settings = job.config.engine
    record = build_engine(
        exported,
        job.scratch,
        settings.platform,
        settings.parity_tolerance,
        read_description(exported),
        precision=settings.precision,
        device=settings.device,
        rank_floor=settings.parity_rank,
    )
    signature = Signature.read(exported / SIGNATURE_FILE)
    records = {"": record} | ({f"{FILTER}/": record["filter"]} if "filter" in record else {})
    for prefix, name, found in [(p, n, f) for p, r in records.items() for n, f in r["measured"].items()]:
        job.log.info(
            "%s%s: %.3f ms per %s on %d threads, largest difference %.2g, rank correlation %.6f",
            prefix,
            name,
            found["ms_per_input"],
            "window" if signature.form == "windows" else "block",
            found["threads"],
            found["parity"]["max_difference"],
            found["parity"]["rank_correlation"],
        )
    for name, why in record["passed_over"].items():
        job.log.info("%s was passed over: %s", name, why)
    meta = {
        "platform": record["platform"],
        "device_class": record["device_class"],
        "precision": record["precision"],
        "ms_per_input": record["ms_per_input"],
        "batch": record["batch"],
        "max_difference": max(r["parity"]["max_difference"] for r in records.values()),
        "rank_correlation": min(r["parity"]["rank_correlation"] for r in records.values()),
        "measured": {prefix + name: found for prefix, r in records.items() for name, found in r["measured"].items()},
        "ifos": list(signature.ifos),
        "sample_rate": signature.sample_rate,
        "kernel": signature.kernel,
        "context": signature.context,
        "form": signature.form,
        "block": signature.block,
    }
    check = parity_check("engine_equals_torch", {prefix + r["platform"]: r["parity"] for prefix, r in records.items()})
    return Product(job.scratch, meta, [check], markdown={"platforms": _platforms(meta, record["passed_over"])})


def _platforms(meta: dict[str, Any], passed_over: dict[str, str]) -> str:
    """What was measured of each platform, as a markdown table."""
    what = "window" if meta["form"] == "windows" else "block"
    rows = [f"| platform | ms per {what} | threads | largest difference | rank correlation | |", "|---|---|---|---|---|---|"]
    for name, found in meta["measured"].items():
        p, chosen = found["parity"], "chosen" if name.rsplit("/", 1)[-1] == meta["platform"] else ""
        numbers = f"{found['ms_per_input']:.3g} | {found['threads']} | {p['max_difference']:.2g} | {p['rank_correlation']:.6f}"
        rows.append(f"| {name} | {numbers} | {chosen} |")
    return "\n".join(rows + [f"| {name} | | | | | passed over: {' '.join(str(why).split())} |" for name, why in passed_over.items()])


def make_model_repository(job: Job) -> Product:
    """The engine's networks as a Triton repository, fed strain or whitened streams: snapshotter, preprocessor, network."""
    from aframe_assets.engine.export import SIGNATURE_FILE
    from aframe_assets.engine.repository import write_repository
    from aframe_assets.engine.signature import Signature

    engine = job.path("engine")
    signature = Signature.read(engine / SIGNATURE_FILE)
    stride, batch = round(signature.sample_rate / job.config.inference.inference_rate), job.config.inference.batch_size
    models = write_repository(job.scratch, engine, stride=stride, batch=batch)
    checks = [snapshotter_check(job.scratch), preprocessor_check(job.scratch, signature, stride)]
    meta = {"models": models, "ifos": list(signature.ifos), "window": signature.window, "stride": stride, "batch": batch}
    return Product(job.scratch, meta, checks)


def assets(config: Config) -> list[Any]:
    """Definitions of this room."""
    return [
        plain_asset(
            "exported_model",
            make_exported_model,
            config,
            tags=resources(cpus=1, memory_gb=4, time_min=30),
            kinds={"onnx", "pytorch"},
            checks=EXPORTED_CHECKS,
        ),
        plain_asset(
            "engine",
            make_engine,
            config,
            tags=resources(cpus=1, memory_gb=4, time_min=60, gpus=int(config.engine.device == "cuda")),
            kinds={"onnx"},
            checks=ENGINE_CHECKS,
        ),
        plain_asset(
            "model_repository",
            make_model_repository,
            config,
            tags=resources(cpus=1, memory_gb=2, time_min=30),
            kinds={"onnx"},
            checks=REPOSITORY_CHECKS,
        ),
    ]
