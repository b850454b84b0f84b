"""The assets `training_waveforms`, `validation_waveforms` and `injections`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aframe_assets.store.fanout import partitioned_asset, sharded_asset
from aframe_assets.store.job import Job, Product
from aframe_assets.tags import resources
from aframe_assets.waveforms import checks

if TYPE_CHECKING:
    from pathlib import Path

    from aframe_assets.config import Config
    from aframe_assets.store.handle import Handle

TRAINING, VALIDATION, INJECTIONS, REJECTED = "training_waveforms.hdf5", "val_waveforms.hdf5", "waveforms.hdf5", "rejected-parameters.hdf5"


def make_training_shard(job: Job, index: int) -> Product:
    """Raw polarisations of one shard."""
    from aframe_assets.waveforms.generation import WaveformGenerator
    from aframe_assets.waveforms.priors import get_prior
    from aframe_assets.waveforms.sets import shard_size, training_set

    w = job.config.waveforms
    start = time.perf_counter()
    number = shard_size(w.num_training_signals, w.num_training_jobs, index)
    made, failed = training_set(number, get_prior(w.prior), WaveformGenerator.of(job.config), job.seed())
    _log(job, number, start)
    path = made.write(job.scratch / TRAINING)
    return Product({TRAINING: path}, {"num_failed": failed, "num_bad": checks.silent_or_not_finite(made.waveforms)})


def make_validation_shard(job: Job, index: int) -> Product:
    """Projected signals of one shard, against the most sensitive validation PSD."""
    from aframe_assets.strain.psd import read_psd
    from aframe_assets.waveforms.generation import WaveformGenerator
    from aframe_assets.waveforms.priors import get_prior
    from aframe_assets.waveforms.rejection import Selection
    from aframe_assets.waveforms.sets import shard_size, validation_set

    w = job.config.waveforms
    start = time.perf_counter()
    number = shard_size(w.num_validation_signals, w.num_validation_jobs, index)
    psds = read_psd(job.path("psd", "psd.hdf5"), "validation", job.config.ifos, most_sensitive=True)
    selection = Selection.of(job.config, psds, "the most sensitive validation PSD")
    prior = get_prior(w.validation_prior or w.prior)
    made, draws = validation_set(number, prior, WaveformGenerator.of(job.config), selection, job.seed(), w.max_num_samples)
    _log(job, draws.num_injections, start)
    path = made.write(job.scratch / VALIDATION)
    return Product({VALIDATION: path}, {"num_failed": draws.num_failed, "num_bad": checks.silent_or_not_finite(made.waveforms)})


def _merged(job: Job, shards: list[Handle], kind: Any, name: str, wanted: int) -> tuple[Any, dict[str, Any], list[Any]]:
    paths = [job.store.open_local(s, name) for s in shards]
    path = kind.aggregate(paths, job.scratch / name)
    head = kind.read_metadata(path)
    found = checks.count(head["length"], wanted, head["num_injections"])
    whole = checks.finite(sum(s.meta["num_bad"] for s in shards), sum(s.meta["num_failed"] for s in shards))
    return path, {"num_signals": head["length"], "num_injections": head["num_injections"]}, [found, whole]


def merge_training(job: Job, shards: list[Handle]) -> Product:
    """Polarisations of the training population, plus and cross, without a cut on SNR; made in parallel shards."""
    from aframe_assets.waveforms.ledger import WaveformPolarizationSet

    path, meta, found = _merged(job, shards, WaveformPolarizationSet, TRAINING, job.config.waveforms.num_training_signals)
    return Product({TRAINING: path}, meta, found, {"population": lambda: _population(path, WaveformPolarizationSet, meta)})


def _population(path: Path, kind: Any, meta: dict[str, Any]) -> bytes:
    from aframe_assets.waveforms.plots import POPULATION, population_plot

    made = kind.read(path, waveforms=False)
    return population_plot({k: getattr(made, k) for k in POPULATION}, f"{meta['num_signals']} of {meta['num_injections']} signals drawn")


def merge_validation(job: Job, shards: list[Handle]) -> Product:
    """Signals in the detectors above the SNR threshold against the most sensitive validation PSD; made in parallel shards."""
    from aframe_assets.waveforms.ledger import WaveformSet
    from aframe_assets.waveforms.plots import snr_plot

    w = job.config.waveforms
    path, meta, found = _merged(job, shards, WaveformSet, VALIDATION, w.num_validation_signals)
    snr = WaveformSet.read(path, waveforms=False).snr
    found += [checks.snr_threshold(snr, w.snr_threshold), checks.snr_distribution(snr, w.snr_threshold)]
    plots = {
        "snr": lambda: snr_plot(snr, w.snr_threshold, "Validation signals"),
        "population": lambda: _population(path, WaveformSet, meta),
    }
    return Product({VALIDATION: path}, meta, found, plots)


def make_injections(job: Job) -> Product:
    """Signals placed in this segment's slides, above the SNR threshold against the most sensitive test PSD, and the draws rejected.

    Chunks that are not of the test role get none.
    """
    from aframe_assets.segments.catalog import catalog_times
    from aframe_assets.segments.frozen import planned_rows
    from aframe_assets.segments.vetoes import vetoes_of
    from aframe_assets.strain.psd import read_psd
    from aframe_assets.waveforms.generation import WaveformGenerator
    from aframe_assets.waveforms.injections import share
    from aframe_assets.waveforms.plots import snr_plot
    from aframe_assets.waveforms.priors import get_prior
    from aframe_assets.waveforms.rejection import Selection
    from aframe_assets.waveforms.sets import injection_sets

    config = job.config
    start = time.perf_counter()
    slides = []
    if job.row["role"] == "test":
        mergers = catalog_times(config.inference.exclude_catalog)
        planned = planned_rows(job.handle("segments").meta)
        slides = share(config, planned, job.partition, mergers, vetoes_of(job), late=job.row)
    psds = read_psd(job.path("psd", "psd.hdf5"), "test", config.ifos, most_sensitive=True) if slides else {}
    selection = Selection.of(config, psds, "the most sensitive test PSD")
    placed, rejected, draws = injection_sets(
        slides, get_prior(config.injections.prior), WaveformGenerator.of(config), selection, job.seed(), config.waveforms.max_num_samples
    )
    _log(job, draws.num_injections, start)
    files = {INJECTIONS: placed.write(job.scratch / INJECTIONS), REJECTED: rejected.write(job.scratch / REJECTED)}
    meta = {
        "num_signals": len(placed),
        "num_rejected": len(rejected),
        "num_injections": draws.num_injections,
        "num_failed": draws.num_failed,
        "num_slides": len(slides),
        "prior": config.injections.prior,
    }
    found = [
        checks.count(len(placed), sum(len(s.times) for s in slides), draws.num_injections),
        checks.finite(checks.silent_or_not_finite(placed.waveforms), draws.num_failed),
        checks.snr_threshold(placed.snr, config.waveforms.snr_threshold),
        checks.snr_distribution(placed.snr, config.waveforms.snr_threshold),
    ]
    snr = placed.snr
    title = f"Injections of {job.partition}, {len(slides)} slides"
    return Product(files, meta, found, {"snr": lambda: snr_plot(snr, config.waveforms.snr_threshold, title)} if slides else {})


def _log(job: Job, waveforms: int, start: float) -> None:
    seconds = time.perf_counter() - start
    if waveforms:
        job.log.info("%s: %d waveforms in %.1f s, %.1f ms each", job.asset, waveforms, seconds, 1e3 * seconds / waveforms)


def assets(config: Config) -> list[Any]:
    """Definitions of this room; the sets for training are left out when nothing is trained."""
    out: list[Any] = []
    tags = resources(cpus=1, memory_gb=4, time_min=240, disk_gb=10)
    if config.model.trains:
        w = config.waveforms
        if config.model.reads_signals:
            out += sharded_asset(
                "training_waveforms",
                make_training_shard,
                merge_training,
                config,
                num_shards=w.num_training_jobs,
                tags=tags,
                kinds={"hdf5"},
                checks=checks.RAW_CHECKS,
            )
        out += sharded_asset(
            "validation_waveforms",
            make_validation_shard,
            merge_validation,
            config,
            num_shards=w.num_validation_jobs,
            tags=tags,
            kinds={"hdf5"},
            checks=checks.CHECKS,
        )
    out += partitioned_asset(
        "injections",
        make_injections,
        config,
        tags=tags,
        kinds={"hdf5"},
        checks=checks.CHECKS,
    )
    return out
