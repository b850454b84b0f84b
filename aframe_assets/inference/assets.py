"""The assets ``inference_results`` (one artifact a segment) and ``events``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from aframe_assets.inference.checks import CASCADE_EVENT_CHECKS, CASCADE_RESULT_CHECKS, EVENT_CHECKS, RESULT_CHECKS
from aframe_assets.inference.remote.server import RESOURCE
from aframe_assets.store.bodies import plain_asset
from aframe_assets.store.fanout import partitioned_asset
from aframe_assets.store.job import Job, Product
from aframe_assets.tags import resources

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.engine.engine import Engine
    from aframe_assets.inference.cascade import Thresholds
    from aframe_assets.inference.slides import SlideResults
    from aframe_assets.segments.geometry import SlideGeometry
    from aframe_assets.strain.event_plots import WhitenedStretch

INJECTIONS = "waveforms.hdf5"


def _require_settings(engine: Engine, config: Config) -> None:
    """Refuse an engine that was trained on other data than it would now be shown."""
    from aframe_assets.config import Conditioning

    own = {
        "ifos": list(engine.ifos),
        "sample_rate": engine.sample_rate,
        "model.architecture.context": engine.context / engine.sample_rate,
        **{f"conditioning.{k}": v for k, v in Conditioning.model_validate(engine.conditioning)},
    }
    now = {
        "ifos": list(config.ifos),
        "sample_rate": config.sample_rate,
        "model.architecture.context": config.model.architecture.context,
        **{f"conditioning.{k}": v for k, v in config.conditioning},
    }
    different = [f"{k} = {now[k]}: the model was made with {v}" for k, v in own.items() if now[k] != v]
    if different:
        raise ValueError("; ".join(different) + "; set these keys to the model's values, or use another model")


def make_inference_results(job: Job) -> Product:
    """Zero-lag, background and foreground events of all slides of this segment, with their livetime in seconds.

    A chunk that is not of the test role gives empty sets without livetime.
    """
    from aframe_assets.inference.aggregate import BACKGROUND, FOREGROUND, ZERO_LAG
    from aframe_assets.inference.audit import AUDIT
    from aframe_assets.inference.checks import accounted_check, livetime_check, share_check
    from aframe_assets.waveforms.ledger import EventSet, RecoveredInjectionSet

    cascade, audit = None, None
    if job.row["role"] == "test":
        out, shifts, geometry, thresholds, loudest = _search(job)
        plots = _segment_plots(job, out, loudest)
        if thresholds:
            cascade, audit = {"thresholds": thresholds.as_meta(), **out.outputs}, out.audit
        ring = [geometry.whitened_start, geometry.whitened_duration] if geometry.ring else None
        background, zero_lag, foreground = out.background, out.zero_lag, out.foreground
        residuals = [[float(x) for x in row] for row in out.merger_residuals if (row == row).all()]
        expected, vetoed, windows = out.expected, out.vetoed, out.windows
        total = max(1, sum(windows.values()))
        job.log.info(
            "%s: %d slides, %d windows, network %.3f ms and all else %.3f ms per window; livetime %g s",
            job.partition, len(shifts), total, 1e3 * out.seconds["network"] / total, 1e3 * out.seconds["other"] / total, background.Tb,
        )  # fmt: skip
    else:
        background, zero_lag, foreground = EventSet(), EventSet(), RecoveredInjectionSet()
        expected, vetoed, residuals, windows, shifts = dict.fromkeys(("background", "zero_lag"), 0.0), {}, [], {}, []
        ring, plots = None, {}
    files = {}
    for name, events in ((BACKGROUND, background), (ZERO_LAG, zero_lag), (FOREGROUND, foreground)):
        files[name] = events.write(job.scratch / name)
    if audit is not None:
        files[AUDIT] = audit.write(job.scratch / AUDIT)
    livetime = {"background": background.Tb, "zero_lag": zero_lag.Tb}
    meta = {
        "livetime": livetime,
        "expected_livetime": expected,
        "vetoed_livetime": vetoed,
        "Tb": background.Tb,
        "T0": zero_lag.Tb,
        "num_slides": len(shifts),
        "ring": ring,
        "num_background": len(background),
        "num_zero_lag": len(zero_lag),
        "num_foreground": len(foreground),
        "merger_residuals": residuals,
        "kernel_length": job.config.conditioning.kernel_length,
        "inference_rate": job.config.inference.inference_rate,
        "windows": windows,
        "cascade": cascade,
    }
    checks = [
        livetime_check("livetime_as_expected", livetime, expected, job.config.inference.inference_rate),
        accounted_check(len(foreground), job.handle("injections").meta["num_signals"] if job.row["role"] == "test" else 0),
    ]
    if job.config.model.filter is not None:
        kept = cascade or {"kept": 0, "asked": 0}
        checks.append(share_check(kept["kept"], kept["asked"], job.config.inference.cascade.keep))
    return Product(files, meta, checks, plots)


def _segment_plots(job: Job, out: SlideResults, loudest: WhitenedStretch | None) -> dict[str, Any]:
    """Of one segment: its events, and the loudest one of zero lag."""
    from aframe_assets.inference.plots import statistics_plot
    from aframe_assets.strain.event_plots import event_plot

    sets, livetime = [s.detection_statistic for s in (out.background, out.zero_lag, out.foreground)], out.background.Tb
    plots: dict[str, Any] = {"statistics": lambda: statistics_plot(*sets, livetime)}
    if loudest is not None:
        i = int(out.zero_lag.detection_statistic.argmax())
        time, statistic = float(out.zero_lag.detection_time[i]), float(out.zero_lag.detection_statistic[i])
        plots["loudest_event"] = lambda: event_plot(loudest, time, f"loudest zero-lag event of {job.partition}: statistic {statistic:.2f}")
    return plots


def _search(
    job: Job,
) -> tuple[SlideResults, list[tuple[float, ...]], SlideGeometry, Thresholds | None, WhitenedStretch | None]:
    from aframe_assets.engine.engine import load_engine
    from aframe_assets.inference.audit import audited
    from aframe_assets.inference.cascade import TriggerChooser
    from aframe_assets.inference.slides import run_slides
    from aframe_assets.inference.whitened import WhitenedChunk
    from aframe_assets.segments.catalog import catalog_times
    from aframe_assets.segments.frozen import planned_rows
    from aframe_assets.segments.geometry import SlideGeometry, num_slides, shift_vectors
    from aframe_assets.segments.vetoes import vetoes_of
    from aframe_assets.strain.background_file import read_background
    from aframe_assets.strain.event_plots import AROUND, WhitenedStretch
    from aframe_assets.waveforms.ledger import InterferometerResponseSet

    config = job.config
    engine = load_engine(job.path("engine"))
    _require_settings(engine, config)
    mergers, vetoes = catalog_times(config.inference.exclude_catalog), vetoes_of(job)
    rows = planned_rows(job.handle("segments").meta).values()
    slides = num_slides(config, [SlideGeometry.of(config, r["gps_start"], r["gps_stop"], mergers, vetoes) for r in rows])
    shifts = shift_vectors(slides, config.inference.shifts)
    geometry = SlideGeometry.of(config, job.row["gps_start"], job.row["gps_stop"], mergers, vetoes)
    path = job.path("background", job.handle("background").files[0].name)
    # one detector's strain in memory at a time
    strain = (read_background(path, [ifo]).strain[ifo] for ifo in config.ifos)
    chunk = WhitenedChunk.of(
        strain,
        job.row["gps_start"],
        config.sample_rate,
        config.conditioning,
        block=config.psd_block,
        psd_source=config.inference.psd_source,
    )
    thresholds, signals = _thresholds(job), job.path("injections", INJECTIONS)
    chooser = TriggerChooser.of(thresholds, config.inference) if thresholds else None
    again = audited(shifts, InterferometerResponseSet.shifts_of(signals), config.inference.cascade.audit_slides, job.seed("audit"))
    with _evaluated(job, engine) as network:
        out = run_slides(chunk, geometry, network, config.inference, shifts, signals, chooser=chooser, audit=again)
    loudest, found = None, out.zero_lag
    if len(found):
        time = float(found.detection_time[found.detection_statistic.argmax()])
        streams = dict(zip(config.ifos, chunk.streams, strict=True))
        # a part, so that the chunk need not stay in memory
        loudest = WhitenedStretch(streams, chunk.whitened_start, chunk.sample_rate).between(time - AROUND, time + AROUND)
    return out, shifts, geometry, thresholds, loudest


def _thresholds(job: Job) -> Thresholds | None:
    """Of a cascade; the same for every segment."""
    if job.config.model.filter is None:
        return None
    from aframe_assets.inference.cascade import Thresholds
    from aframe_assets.model.background_scores import BACKGROUND_SCORES, BackgroundScores

    inference = job.config.inference
    filtered, joint = (
        BackgroundScores.read(job.path(m, BACKGROUND_SCORES)).at(inference.inference_rate) for m in ("filter_model", "model")
    )
    return Thresholds.of(filtered, joint, inference)


def _evaluated(job: Job, engine: Engine) -> AbstractContextManager[Engine]:
    """`engine`, or in its place a Triton server on the model repository that was made from it."""
    inference = job.config.inference
    if inference.mode == "inprocess":
        return nullcontext(engine)
    try:
        from aframe_assets.inference.remote.engine import RemoteEngine
    except ModuleNotFoundError as e:
        raise RuntimeError(f"inference.mode: triton needs {e.name}; install this project with [triton]") from None
    server = job.services[RESOURCE].open(job.path("model_repository"), job.log, engine.threads)
    return RemoteEngine(engine, server, tolerance=_tolerance(job.config), in_flight=inference.in_flight, log=job.log)


def _tolerance(config: Config) -> float:
    """Largest accepted difference of logits of an engine."""
    from aframe_assets.engine.support import TOLERANCES

    asked = config.engine
    return TOLERANCES[asked.precision] if asked.parity_tolerance is None else asked.parity_tolerance


def make_events(job: Job) -> Product:
    """Events of the whole search, sorted: background, zero lag, and injections with their parameters, recovered and rejected.

    With the total livetime Tb of the background and T0 of zero lag, in seconds, and the calibration of merger times.
    """
    import math

    import numpy as np

    from aframe_assets.inference.aggregate import (
        BACKGROUND,
        FOREGROUND,
        REJECTED,
        ZERO_LAG,
        aggregate_events,
        aggregate_foreground,
        aggregate_rejected,
    )
    from aframe_assets.inference.audit import AUDIT, Audit
    from aframe_assets.inference.cascade import Thresholds
    from aframe_assets.inference.checks import livetime_check, loss_check, louder_check, run_share_check, sane_check
    from aframe_assets.inference.merger_time import Calibration
    from aframe_assets.inference.plots import injections_plot, statistics_plot

    results = job.inputs["inference_results"]
    order = sorted(results)
    out = job.scratch
    kernel = max((results[p].meta["kernel_length"] for p in order), default=0.0)
    rate = max((results[p].meta["inference_rate"] for p in order), default=1.0)

    def paths(asset: str, name: str) -> list[Any]:
        return [job.path(asset, name, p) for p in order]

    background = aggregate_events(paths("inference_results", BACKGROUND), out / BACKGROUND, rate)
    zero_lag = aggregate_events(paths("inference_results", ZERO_LAG), out / ZERO_LAG, rate)
    foreground = aggregate_foreground(paths("inference_results", FOREGROUND), out / FOREGROUND)
    rejected = aggregate_rejected(paths("injections", REJECTED), out / REJECTED)
    residuals = np.array([r for p in order for r in results[p].meta["merger_residuals"]])
    due = {k: math.fsum(results[p].meta["expected_livetime"][k] for p in order) for k in ("background", "zero_lag")}
    meta = {
        "Tb": background.Tb,
        "T0": zero_lag.Tb,
        # own times of slid events wrap inside these
        "rings": [results[p].meta["ring"] for p in order if results[p].meta.get("ring")],
        "vetoed_livetime": {k: math.fsum(results[p].meta.get("vetoed_livetime", {}).get(k, 0.0) for p in order) for k in due},
        "num_background": len(background),
        "num_zero_lag": len(zero_lag),
        "num_foreground": len(foreground),
        "num_found": int(np.isfinite(foreground.detection_statistic).sum()),
        "num_rejected": rejected,
        "num_segments": len(order),
        "merger_time_calibration": Calibration.of(residuals, kernel).as_meta(),
    }
    stats = background.detection_statistic, zero_lag.detection_statistic, foreground.detection_statistic
    checks = [
        livetime_check("livetime_is_the_sum", {"background": background.Tb, "zero_lag": zero_lag.Tb}, due, rate),
        sane_check(*stats),
        louder_check(stats[0], stats[2], filtered=job.config.model.filter is not None),
    ]
    if job.config.model.filter is not None:
        audit = Audit.concatenate([Audit.read(p) for p in paths("inference_results", AUDIT)])
        cascade, precision = job.config.inference.cascade, job.config.engine.precision
        # the two searches share an engine: in fp32 what rounding leaves is far below the difference accepted of two engines
        tolerance = 0.0 if precision == "fp32" else _tolerance(job.config)
        searched = [m for p in order if (m := results[p].meta["cascade"])]
        thresholds = next((m["thresholds"] for m in searched), None)
        least = Thresholds.from_meta(thresholds).joint.value if thresholds else float("-inf")
        loss = loss_check(audit, stats[0], background.Tb, cascade.max_loss, tolerance, least)
        share = run_share_check([(m["kept"], m["asked"]) for m in searched], thresholds, cascade.keep)
        checks += [loss, share]
        meta["cascade"], meta["thresholds"] = {**loss.metadata, **share.metadata}, thresholds
    files = {name: out / name for name in (BACKGROUND, ZERO_LAG, FOREGROUND, REJECTED)}
    plots = {
        "statistics": lambda: statistics_plot(*stats, background.Tb),
        "injections": lambda: injections_plot(foreground.snr, stats[2], float(stats[0].max()) if len(stats[0]) else None),
    }
    return Product(files, meta, checks, plots)


def search_tags(config: Config, *, time_min: int, disk_gb: float) -> dict[str, str]:
    """Op tags of a step that searches with one engine, a chunk at a time."""
    memory_gb, gpus = max(4, config.inference.memory_gb + 2), int(config.engine.device == "cuda")
    return resources(cpus=1, memory_gb=memory_gb, gpus=gpus, time_min=time_min, disk_gb=disk_gb)


def assets(config: Config) -> list[Any]:
    """Definitions of this room."""
    return [
        *partitioned_asset(
            "inference_results",
            make_inference_results,
            config,
            tags=search_tags(config, time_min=480, disk_gb=4),
            kinds={"hdf5"},
            checks=RESULT_CHECKS + (CASCADE_RESULT_CHECKS if config.model.filter else []),
            services=(RESOURCE,) if config.inference.mode == "triton" else (),
        ),
        plain_asset(
            "events",
            make_events,
            config,
            tags=resources(cpus=1, memory_gb=4, time_min=60, disk_gb=4),
            kinds={"hdf5"},
            checks=EVENT_CHECKS + (CASCADE_EVENT_CHECKS if config.model.filter else []),
        ),
    ]
