"""The `model` asset: trained here, or imported from a bundle or another run; and `tuned_model`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aframe_assets.store.bodies import plain_asset, plot_markdown
from aframe_assets.store.job import Job, Product
from aframe_assets.tags import resources

if TYPE_CHECKING:
    from aframe_assets.config import Config

CHECKS = [("validation_metric_above_chance", False), ("training_loss_finite", False)]


def background_files(job: Job) -> dict[str, list[Path]]:
    """Background files of the training and validation role, by time.

    Raises:
        ValueError: a role without background.
    """
    index, out = job.handle("background_index").meta["roles"], {}
    for role in ("train", "validation"):
        keys = sorted(index.get(role, {}).get("partitions", []), key=lambda k: float(k.split("-")[0]))
        if not keys:
            raise ValueError(
                f"no background of role '{role}'; expected at least two training chunks: widen segments.train_start ... train_stop,"
                " or lower segments.train_min_duration, max_duration or min_valid_duration"
            )
        out[role] = []
        for key in keys:
            handle = job.store.manifest("background", key).handle
            name = next(f.name for f in handle.files if f.name.startswith("background-"))
            out[role].append(job.store.open_local(handle, name))
    return out


def make_model(job: Job) -> Product:
    """Trains, or imports where ``model.weights`` is set; a bundle folder."""
    return _imported(job) if job.config.model.weights else _trained(job, job.config)


def _imported(job: Job) -> Product:
    from aframe_assets.model.checks import metric_checks
    from aframe_assets.model.importing import check_agreement, find_bundle, weights_identity

    source = find_bundle(job.config.model.weights)
    description = check_agreement(source, job.config)
    folder = job.scratch / "bundle"
    shutil.copytree(source, folder)
    metrics = description["metrics"]
    job.log.info(f"model imported from {job.config.model.weights}: {metrics}")
    identity = weights_identity(job.config.model.weights)
    meta = {"imported": True, "weights_sha256": identity["sha256"], "ifos": description["ifos"], **_numbers(metrics)}
    return Product(folder, meta, metric_checks(metrics))


def _trained(job: Job, config: Config) -> Product:
    from aframe_assets.model.bundle import save_bundle
    from aframe_assets.model.checks import metric_checks
    from aframe_assets.model.progress import learning_curve, write_rows
    from aframe_assets.model.training import train

    config, tuned = _with_tuned(job, config)
    result = train(
        config,
        background=background_files(job),
        training_signals=job.path("training_waveforms", "training_waveforms.hdf5"),
        validation_signals=job.path("validation_waveforms", "val_waveforms.hdf5"),
        workdir=job.workdir,
        seed=job.seed("train"),
        log=job.log,
    )
    rows = write_rows(result.history, job.scratch / "metrics.csv")
    inputs = {a: job.handle(a).identity for a in ("background_index", "training_waveforms", "validation_waveforms")}
    provenance = {"seed": config.seed, "best_epoch": result.best_epoch, "epochs": len(result.history), "inputs": inputs, **tuned}
    folder = save_bundle(
        job.scratch / "bundle", result.network, config, metrics=result.metrics, provenance=provenance, metrics_csv=rows, logs=result.logs
    )
    meta = {
        "imported": False,
        "ifos": list(config.ifos),
        "num_parameters": sum(p.numel() for p in result.network.parameters()),
        "resumed_from_epoch": result.resumed_from,
        **_numbers(result.metrics),
    }
    markdown = {"learning_curve": plot_markdown("learning curve", learning_curve(result.history))}
    return Product(folder, meta, metric_checks(result.metrics), markdown)


def _with_tuned(job: Job, config: Config) -> tuple[Config, dict[str, Any]]:
    if "tuned_model" not in job.inputs:
        return config, {}
    from aframe_assets.model.tuning import best_training

    values = best_training(job.path("tuned_model", "best.json"))
    training = config.model.training.model_copy(update=values)
    return config.model_copy(update={"model": config.model.model_copy(update={"training": training})}), {"tuned": values}


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}


def assets(config: Config) -> list:
    """The definitions of this room for `config`."""
    model = plain_asset(
        "model",
        make_model,
        config,
        description="Trained network as a self-describing bundle: weights, conditioning, input and output, metrics, logs.",
        tags=resources(cpus=4, memory_gb=8, time_min=2880, disk_gb=10),
        kinds={"pytorch"},
        checks=CHECKS,
    )
    if config.model.tune and not config.model.weights:
        from aframe_assets.model.tuning_assets import tuned_model

        return [model, *tuned_model(config)]
    return [model]
