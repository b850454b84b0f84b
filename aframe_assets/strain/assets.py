"""The assets ``background``, ``background_index`` and ``psd``."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from aframe_assets.lineage import ROLES, combined
from aframe_assets.store.bodies import plain_asset
from aframe_assets.store.fanout import partitioned_asset
from aframe_assets.store.job import Check, Job, Product
from aframe_assets.strain.checks import BACKGROUND_CHECKS, INDEX_CHECKS, PSD_CHECKS
from aframe_assets.tags import resources

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from aframe_assets.config import Config
    from aframe_assets.strain.background_file import Background
    from aframe_assets.strain.background_index import Chunk
    from aframe_assets.strain.psd import Choice, Spectrum


def make_background(job: Job) -> Product:
    """Strain of every detector over one chunk, resampled to `sample_rate` and checked.

    `background-{start}-{duration}.hdf5`, laid out as Aframe's: a float64 dataset per detector, without gaps.
    """
    from aframe_assets.strain.background_file import background_name, write_background
    from aframe_assets.strain.fetch import fetch_background

    config, start, stop = job.config, job.row["gps_start"], job.row["gps_stop"]
    strain = fetch_background(config, start, stop)
    path = job.scratch / background_name(start, stop - start)
    write_background(path, strain, start, config.sample_rate, config.strain.channels)
    return background_product(job, strain, path)


def background_product(job: Job, strain: Mapping[str, np.ndarray], path: Path) -> Product:
    """The artifact of a chunk whose `strain` (ifo -> shape (time,)) the file at `path` holds."""
    import numpy as np

    from aframe_assets.strain.background_file import background_name
    from aframe_assets.strain.checks import DESIGN_CURVE, background_checks
    from aframe_assets.strain.plots import asd_plot
    from aframe_assets.strain.psd import inspiral_range, reference_spectrum
    from aframe_assets.strain.simulated import read_curve

    config, start, stop = job.config, job.row["gps_start"], job.row["gps_stop"]
    spectra = {ifo: reference_spectrum(x, config.sample_rate) for ifo, x in strain.items()}
    ranges = {ifo: inspiral_range(s) for ifo, s in spectra.items()}
    meta = {
        "ifos": list(strain),
        "gps_start": start,
        "duration": stop - start,
        "sample_rate": config.sample_rate,
        "source": config.strain.source,
        "std": {ifo: float(np.std(x)) for ifo, x in strain.items()},
        "range_mpc": ranges,
    }
    name = background_name(start, stop - start)
    job.log.info("%s: %g s; inspiral range %s", name, stop - start, ", ".join(f"{i} {r:.4g} Mpc" for i, r in ranges.items()))
    title = f"Strain of GPS {start:.14g}, {stop - start:g} s"
    return Product(
        {name: path},
        meta,
        background_checks(strain, start, config.sample_rate),
        {"asd": lambda: asd_plot(spectra, title, (DESIGN_CURVE, *read_curve(DESIGN_CURVE)))},
    )


def make_background_index(job: Job) -> Product:
    """Chunks of background that are there, by role, with their livetime and inspiral range; and those that are missing.

    Fewer than the share `execution.min_segment_fraction` of the segments is an error.
    """
    from aframe_assets.strain.background_index import INDEX_FILE, BackgroundIndex, Chunk

    rows, backgrounds = job.handle("segments").meta["rows"], job.inputs["background"]
    missing: dict[str, list[str]] = {}
    chunks = []
    for partition, row in sorted(rows.items(), key=lambda item: item[1]["gps_start"]):
        handle = backgrounds.get(partition)
        if handle is None:
            missing.setdefault(row["role"], []).append(partition)
            continue
        meta = handle.meta
        chunks.append(Chunk(partition, row["role"], meta["gps_start"], meta["duration"], handle.key, handle.sha256, meta["range_mpc"]))
    absent = [p for keys in missing.values() for p in keys]
    text = f"background is missing for {len(absent)} of {len(rows)} segments: {', '.join(absent[:20])}" if absent else ""
    needed = job.config.execution.min_segment_fraction
    if len(chunks) < needed * len(rows) or not chunks:
        raise RuntimeError(
            f"{text or 'no segments'}; execution.min_segment_fraction is {needed:g}; "
            "see why with `aframe status`, make them with `aframe run --until background`"
        )
    index = BackgroundIndex(tuple(chunks), missing)
    index.write(job.scratch / INDEX_FILE)
    roles = {}
    for role in ROLES:
        own = index.of(role)
        if own:
            identity = combined({c.partition: {"key": c.key, "sha256": c.sha256} for c in own})
            roles[role] = identity | {"livetime": sum(c.duration for c in own), "partitions": [c.partition for c in own]}
    meta = {"roles": roles, "missing": missing, "num_missing": len(absent)} | {f"{r}_livetime": v["livetime"] for r, v in roles.items()}
    return Product(
        {INDEX_FILE: job.scratch / INDEX_FILE},
        meta,
        [Check("all_segments_present", not absent, "warn", text, {"segments": len(rows), "missing": len(absent)})],
        {"range": lambda: _ranges(chunks)},
    )


def _ranges(chunks: list[Chunk]) -> bytes:
    from aframe_assets.strain.plots import range_plot

    out: dict[str, dict[float, float]] = {}
    for c in chunks:
        for ifo, r in c.ranges.items():
            out.setdefault(ifo, {})[c.gps_start + c.duration / 2] = r
    return range_plot(out, "Inspiral range of each chunk")


def make_psd(job: Job) -> Product:
    """Reference power spectra of each detector and role: of a typical chunk, and of the detector's most sensitive one.

    A choice once made stays when data are added, so that late segments change nothing that was trained or injected.
    """
    from aframe_assets.strain.background_file import read_background
    from aframe_assets.strain.background_index import INDEX_FILE, BackgroundIndex, open_chunk
    from aframe_assets.strain.checks import DESIGN_CURVE, EXCEEDED, most_sensitive_check, psd_checks, whitened_std
    from aframe_assets.strain.plots import asd_plot
    from aframe_assets.strain.psd import MOST_SENSITIVE, Quality, choose_most_sensitive, choose_psd, reference_spectrum, write_psd
    from aframe_assets.strain.simulated import read_curve

    config = job.config
    index = BackgroundIndex.read(job.path("background_index", INDEX_FILE))
    before = _previous_choices(job)
    spectra, attributes, meta, stds, plots, exceeded, doubted = {}, {}, {}, {}, {}, {}, {}
    for role in ROLES:
        chunks = {c.partition: c for c in index.of(role)}
        if not chunks:
            continue
        old = before.get(role, {})
        qualities = {p: Quality(c.duration, c.ranges) for p, c in chunks.items()}
        choice = _kept(old, chunks) or choose_psd(qualities)
        chunk = chunks[choice.partition]
        background = read_background(open_chunk(job, chunk), config.ifos)
        spectra[role] = {ifo: reference_spectrum(x, config.sample_rate) for ifo, x in background.strain.items()}
        stds[role] = {ifo: whitened_std(x, config.sample_rate, config.conditioning) for ifo, x in background.strain.items()}
        best, anew = {}, choose_most_sensitive(qualities)
        for ifo in config.ifos:
            best[ifo] = _kept(old.get("most_sensitive", {}).get(ifo, {}), chunks) or anew[ifo]
            if chunks[anew[ifo].partition].ranges[ifo] > EXCEEDED * chunks[best[ifo].partition].ranges[ifo]:
                exceeded[f"{role} {ifo}"] = anew[ifo].reason
            if anew[ifo].doubt:
                doubted[f"{role} {ifo}"] = anew[ifo].doubt
        spectra[role + MOST_SENSITIVE] = {
            ifo: spectra[role][ifo] if b.partition == choice.partition else _spectrum(job, chunks[b.partition], ifo)
            for ifo, b in best.items()
        }
        used = {choice.partition, *(c.partition for c in best.values())}
        meta[role] = {
            "key": combined({p: {"key": chunks[p].key, "sha256": chunks[p].sha256} for p in used})["key"],
            "sha256": _digest(spectra[role], spectra[role + MOST_SENSITIVE]),
            **_named(choice, chunks),
            "most_sensitive": {ifo: _named(c, chunks) for ifo, c in best.items()},
        }
        attributes[role] = {
            "partition": choice.partition,
            "reason": choice.reason,
            "gps_start": chunk.gps_start,
            "duration": chunk.duration,
        }
        attributes[role + MOST_SENSITIVE] = {f"{ifo}_{k}": getattr(c, k) for ifo, c in best.items() for k in ("partition", "reason")}
        job.log.info("%s PSD from %s: %s", role, choice.partition, choice.reason)
        for c in best.values():
            job.log.info("%s most sensitive PSD from %s: %s", role, c.partition, c.reason)
        design = (DESIGN_CURVE, *read_curve(DESIGN_CURVE))
        drawn = spectra[role] | {f"{ifo} most sensitive": s for ifo, s in spectra[role + MOST_SENSITIVE].items()}
        plots[f"{role}_asd"] = partial(asd_plot, drawn, f"{role}: {choice.partition}", design)
        plots[f"{role}_whitened"] = partial(_whitened_picture, _first_seconds(background, config), config, role)
    write_psd(job.scratch / "psd.hdf5", spectra, attributes)
    c = config.conditioning
    band = (c.highpass or 0.0, min(c.lowpass or config.sample_rate, config.sample_rate / 2))
    found = [*psd_checks(spectra, stds, band), most_sensitive_check(exceeded, doubted, len(meta))]
    return Product({"psd.hdf5": job.scratch / "psd.hdf5"}, {"roles": meta, "whitened_std": stds}, found, plots)


def _kept(old: dict[str, Any], chunks: dict[str, Chunk]) -> Choice | None:
    """The choice made before, if its chunk is still the same data."""
    from aframe_assets.strain.psd import Choice

    same = old and old["partition"] in chunks and old["background_sha256"] == chunks[old["partition"]].sha256
    return Choice(old["partition"], old["reason"]) if same else None


def _named(choice: Choice, chunks: dict[str, Chunk]) -> dict[str, str]:
    return {"partition": choice.partition, "reason": choice.reason, "background_sha256": chunks[choice.partition].sha256}


def _spectrum(job: Job, chunk: Chunk, ifo: str) -> Spectrum:
    from aframe_assets.strain.background_file import read_background
    from aframe_assets.strain.background_index import open_chunk
    from aframe_assets.strain.psd import reference_spectrum

    return reference_spectrum(read_background(open_chunk(job, chunk), [ifo]).strain[ifo], job.config.sample_rate)


def _digest(*spectra: dict[str, Spectrum]) -> str:
    digest = hashlib.sha256()
    for of_ifos in spectra:
        for ifo, s in of_ifos.items():
            digest.update(ifo.encode() + str(s.df).encode() + s.psd.tobytes())
    return digest.hexdigest()


def _previous_choices(job: Job) -> dict[str, Any]:
    manifest = job.store.manifest("psd")
    return ((manifest.decided if manifest else None) or {}).get("roles", {})


def _first_seconds(background: Background, config: Config) -> Background:
    """What whitening needs to give its first two seconds; a copy, so that the whole chunk need not stay in memory."""
    c, size = config.conditioning, config.sample_rate
    seconds = min(c.psd_length + c.fduration + 2, background.duration)
    return replace(background, strain={ifo: x[: round(seconds * size)].copy() for ifo, x in background.strain.items()})


def _whitened_picture(background: Background, config: Config, role: str) -> bytes:
    """The first two seconds that whitening gives, with the PSD of what precedes them."""
    import torch

    from aframe_assets.strain.conditioning import Whitener
    from aframe_assets.strain.plots import whitened_plot

    c, fs = config.conditioning, config.sample_rate
    size = round(min(c.psd_length + c.fduration + 2, background.duration) * fs)
    white = Whitener(c, fs)(torch.as_tensor(background.stacked()[:, :size])).numpy()
    start = background.gps_start + c.psd_length + c.fduration / 2
    return whitened_plot(dict(zip(background.ifos, white, strict=True)), start, fs, f"{role}: whitened strain")


def assets(config: Config) -> list[Any]:
    """Definitions of this room."""
    return [
        *partitioned_asset(
            "background",
            make_background,
            config,
            tags=resources(cpus=1, memory_gb=4, time_min=120, disk_gb=2),
            kinds={"hdf5"},
            checks=BACKGROUND_CHECKS,
        ),
        plain_asset(
            "background_index",
            make_background_index,
            config,
            tags=resources(cpus=1, memory_gb=1, time_min=10),
            kinds={"json"},
            checks=INDEX_CHECKS,
        ),
        plain_asset(
            "psd",
            make_psd,
            config,
            tags=resources(cpus=1, memory_gb=4, time_min=30),
            kinds={"hdf5"},
            checks=PSD_CHECKS,
        ),
    ]
