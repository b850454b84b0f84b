"""The assets `model` and `filter_model`, trained here or imported from a bundle or another run; and `tuned_model`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aframe_assets.store.bodies import plain_asset
from aframe_assets.store.job import Declared, Job, Product
from aframe_assets.store.plots import plot_markdown
from aframe_assets.tags import resources

if TYPE_CHECKING:
    from pathlib import Path

    from aframe_assets.config import Config
    from aframe_assets.store.ranges import Source

VALIDATION_SIGNALS = ("validation_waveforms", "val_waveforms.hdf5")

CHECKS = [
    Declared("validation_metric_above_chance", False, "Partial AUROC of the kept epoch is above 0.5, that of guessing."),
    Declared("training_loss_finite", False, "Training loss of the kept epoch is a finite number."),
]


def background_files(job: Job) -> dict[str, list[Source]]:
    """Background files of the training and validation role, by time; of those in a remote store, parts are fetched as they are read.

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
            out[role].append(job.store.open_ranges(handle, name))
    return out


def make_model(job: Job) -> Product:
    """The network as a self-describing bundle: weights, conditioning, input and output, metrics of its best epoch.

    Trained here, or imported where `model.weights` is set.
    """
    return _made(job, job.config)


def make_filter_model(job: Job) -> Product:
    """The network of `model.filter`, a bundle as `model`: it chooses what the network of `model` scores.

    Where it is trained, it follows `model`.
    """
    from aframe_assets.model.background_scores import filter_experiment

    return _made(job, filter_experiment(job.config))


def _made(job: Job, config: Config) -> Product:
    return _imported(job, config) if config.model.weights else _trained(job, config)


def _imported(job: Job, config: Config) -> Product:
    from aframe_assets.model.checks import metric_checks, numbers
    from aframe_assets.model.importing import (
        BUNDLE_FILES,
        KEYS,
        check_agreement,
        find_bundle,
        is_weight_file,
        require_scores,
        weights_identity,
    )

    weights = config.model.weights
    if job.config.model.filter is not None:
        require_scores(weights, job.asset)
    if is_weight_file(weights):
        from aframe_assets.model.weight_files import bundle_of_file

        source = bundle_of_file(weights, config, job.scratch / "read", KEYS[job.asset][0])
    else:
        source = find_bundle(weights, job.asset)
    description = check_agreement(source, config, job.asset)
    folder = job.scratch / "bundle"
    folder.mkdir()
    # what else a folder holds, as the card and the background of shipped weights, is not the model
    for name in BUNDLE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    metrics = description["metrics"]
    job.log.info(f"{job.asset} imported from {weights}: {metrics}")
    identity = weights_identity(weights, job.asset)
    meta = {"imported": True, "weights_sha256": identity["sha256"], "ifos": description["ifos"], **numbers(metrics)}
    return Product(folder, meta, metric_checks(metrics))


def _train(job: Job, config: Config, **how: Any):
    from aframe_assets.model.training import train

    leader = None
    if job.asset == "filter_model":
        from aframe_assets.inference.cascade import Thresholds
        from aframe_assets.model.background_scores import BackgroundScores
        from aframe_assets.model.bundle import load_bundle
        from aframe_assets.model.importing import BACKGROUND_SCORES

        # too little background for a cascade's thresholds is told here, and not by the search after this training
        scores = BackgroundScores.read(job.path("model", BACKGROUND_SCORES)).slides
        Thresholds.of(scores, scores, job.config.inference)
        leader = load_bundle(job.path("model")).network
    return train(
        config,
        background=background_files(job),
        training_signals=job.ranges("training_waveforms", "training_waveforms.hdf5") if "training_waveforms" in job.inputs else None,
        validation_signals=job.ranges(*VALIDATION_SIGNALS),
        workdir=job.workdir,
        seed=job.seed("train") + config.model.training.seed,
        log=job.log,
        leader=leader,
        unfinished=job.unfinished,
        watch=lambda values, plots: job.observe(values, {title: plot_markdown(title, png) for title, png in plots.items()}),
        **how,
    )


def _trained(job: Job, config: Config) -> Product:
    from aframe_assets.model.bundle import save_bundle
    from aframe_assets.model.checks import metric_checks, numbers
    from aframe_assets.model.progress import learning_curve, roc_curve, write_rows

    tuned: dict[str, Any] = {}
    if "tuned_model" in job.inputs:
        from aframe_assets.model.tuning import BEST, tuned_experiment

        config, tuned["tuned"] = tuned_experiment(config, job.path("tuned_model", BEST))
    result = _train(job, config)
    rows = write_rows(result.history, job.scratch / "metrics.csv")
    inputs = {a: job.handle(a).identity for a in ("background_index", "training_waveforms", "validation_waveforms") if a in job.inputs}
    if job.asset == "filter_model":
        inputs["model"] = job.handle("model").identity
    provenance = {"seed": config.seed, "best_epoch": result.best_epoch, "epochs": len(result.history), "inputs": inputs, **tuned}
    folder = save_bundle(
        job.scratch / "bundle",
        result.network,
        config,
        metrics=result.metrics,
        provenance=provenance,
        metrics_csv=rows,
    )
    meta = {
        "imported": False,
        "ifos": list(config.ifos),
        "num_parameters": sum(p.numel() for p in result.network.parameters()),
        "resumed_from_epoch": result.resumed_from,
        "resumed_from_step": result.resumed_step,
        **numbers(result.metrics),
    }
    if config.model.architecture.name in ("streaming", "map"):
        from aframe_assets.model.background_scores import add_background_scores

        # it may be a network of a cascade, here or elsewhere
        scored = add_background_scores(folder, config, background_files(job)["validation"], job.ranges(*VALIDATION_SIGNALS))
        meta["background_livetime"] = scored
    plots = {"learning_curve": lambda: learning_curve(result.history)}
    if result.roc is not None:
        plots["roc"] = lambda: roc_curve(*result.roc, config.model.training.max_fpr)
    return Product(folder, meta, metric_checks(result.metrics), plots, result.logs)


def make_trial(job: Job, record: Mapping[str, Any]) -> Product:
    """One training of a study; see `aframe_assets.model.trials.train_trial`."""
    from aframe_assets.model.trials import train_trial

    return train_trial(job, record, _train)


def tell_study(config: Config, records: Sequence[Mapping[str, Any]], folder: Path) -> Product:
    """What a study knows after a round: optuna's journal and the plots."""
    from aframe_assets.model.tuning import best_trial, trials_of, write_journal
    from aframe_assets.model.tuning_plots import write_plot

    made = [write_journal(config, records, folder / "journal.log"), write_plot(config, records, folder / "study.png")]
    trials = trials_of(records)
    meta: dict[str, Any] = {"num_trials": len(trials), "failed_trials": sum(t.failed is not None for t in trials)}
    if meta["failed_trials"] < len(trials):
        best = best_trial(records)
        meta |= {"best_trial": best.number, "best_value": best.value, "best_epochs": best.epochs}
    return Product({p.name: p for p in made}, meta, plots={"study": made[-1].read_bytes})


def finish_tuning(job: Job, records: Sequence[Mapping[str, Any]]) -> Product:
    """Study of settings in fixed rounds of trials: best values, all trials, plots; `model` trains with the best ones."""
    from aframe_assets.model.checks import metric_checks, numbers
    from aframe_assets.model.tuning import best_trial, trials_of, write_study
    from aframe_assets.model.tuning_plots import write_plot

    best = best_trial(records)
    made = [*write_study(job.config, records, job.scratch), write_plot(job.config, records, job.scratch / "study.png")]
    found = best.records[-1]["meta"]
    meta = {"num_trials": len(trials_of(records)), "num_trainings": len(records), "best": dict(best.params), **numbers(found)}
    return Product({p.name: p for p in made}, meta, metric_checks(found)[:1], {"study": made[-1].read_bytes})


def assets(config: Config) -> list:
    """The definitions of this room for `config`."""
    training, importing = config.execution.training.tags, resources(cpus=4, memory_gb=8, time_min=60, disk_gb=10)
    model = plain_asset(
        "model",
        make_model,
        config,
        tags=importing if config.model.weights else training,
        kinds={"pytorch"},
        checks=CHECKS,
    )
    models = [model]
    if config.model.filter is not None:
        models += [
            plain_asset(
                "filter_model",
                make_filter_model,
                config,
                tags=importing if config.model.filter_weights else training,
                kinds={"pytorch"},
                checks=CHECKS,
            )
        ]
    if not config.model.tune or config.model.weights:
        return models
    from aframe_assets.model.tuning import ask
    from aframe_assets.store.rounds import rounds_asset

    tuned = rounds_asset(
        "tuned_model",
        ask,
        make_trial,
        tell_study,
        finish_tuning,
        config,
        num_rounds=config.model.tune.num_rounds,
        tags=training,
        kinds={"optuna"},
        checks=CHECKS[:1],
    )
    return [*models, *tuned]
