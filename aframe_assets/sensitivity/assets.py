"""The assets ``sensitive_volume``, ``candidates`` and ``report``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aframe_assets.sensitivity.checks import CANDIDATE_CHECKS, VOLUME_CHECKS
from aframe_assets.store.bodies import plain_asset
from aframe_assets.store.job import Job, Product
from aframe_assets.tags import resources

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.sensitivity.candidates import Candidate
    from aframe_assets.sensitivity.far import Background

FIGURES = "figures.json"


def _unit(config: Config) -> str:
    """The unit FARs are shown in: per hour for an experiment that asks for rates per hour only."""
    return "1/h" if config.sensitivity.fars_per_hour and not config.sensitivity.fars_per_year else "1/yr"


def _vetoes(job: Job) -> list[Any]:
    """The run's vetoes; none when nothing was to be vetoed."""
    from aframe_assets.segments.vetoes import VETOES, read_vetoes

    return read_vetoes(job.path("vetoes", VETOES)) if "vetoes" in job.inputs else []


def make_sensitive_volume(job: Job) -> Product:
    """Sensitive volume in Gpc^3 against false-alarm rate, with errors, for each pair of masses; the p_astro model; plots."""
    from dataclasses import asdict

    from aframe_assets.sensitivity import comparators, plots, stills, volume_plots
    from aframe_assets.sensitivity.checks import volume_checks
    from aframe_assets.sensitivity.measurement import measure, summary, write_hdf5, write_json, write_p_astro
    from aframe_assets.sensitivity.population import ASTROPHYSICAL
    from aframe_assets.sensitivity.summary import caveats
    from aframe_assets.waveforms.ledger import EventSet, InjectionParameterSet, RecoveredInjectionSet
    from aframe_assets.waveforms.priors import get_prior

    config, s, unit = job.config, job.config.sensitivity, _unit(job.config)
    m = measure(
        config,
        EventSet.read(job.path("events", "background.hdf5")),
        RecoveredInjectionSet.read(job.path("events", "foreground.hdf5")),
        InjectionParameterSet.read(job.path("events", "rejected-parameters.hdf5")),
        get_prior(config.injections.prior),
        get_prior(ASTROPHYSICAL),
        zero_lag_livetime=EventSet.read_metadata(job.path("events", "0lag.hdf5"))["Tb"],
        rings=job.handle("events").meta.get("rings", ()),
    )
    meta = summary(config, m) | {"comparators": comparators.as_meta(config)}
    others, note = comparators.published(s.comparators), meta["comparators"]["note"]
    for text in (*meta["warnings"], *caveats(meta)):
        job.log.warning(text)
    measured = {(r["far"], r["far_unit"]): r["threshold"] for r in m.curves.rows if r["status"] != "not_measurable"}
    thresholds = [(f"FAR {far:g} {far_unit.removeprefix('1')}", x) for (far, far_unit), x in measured.items()]
    if not thresholds and len(m.curves.thresholds):
        thresholds = [(f"FAR {m.curves.fars[0] * plots.UNITS[unit]:.3g} {unit.removeprefix('1')}", float(m.curves.thresholds[0]))]
    figures = [
        volume_plots.volume_figure(m.curves, unit, s.min_effective_samples, others, note),
        plots.background_figure(m.background, unit, m.draws.statistic[m.draws.statistic > float("-inf")]),
        plots.efficiency_figure(m.draws, thresholds),
    ]
    if thresholds:
        figures.append(plots.found_missed_figure(m.draws, thresholds[0][1], thresholds[0][0]))
    by_mass = volume_plots.mass_figure(m.curves, others, note)
    if by_mass:
        figures.insert(1, by_mass)
    title = "Sensitive volume" + (" (an exercise, not a measurement)" if s.exercise else "")
    png = volume_plots.volume_png(m.curves, unit, s.min_effective_samples, title, others, note)
    out = job.scratch
    (out / "sensitive_volume.png").write_bytes(png)
    (out / "sensitive_volume.html").write_text(plots.page(title, figures, [*caveats(meta), *meta["warnings"]]))
    write_json(out / FIGURES, [asdict(f) for f in figures])
    write_json(out / "sensitive_volume.json", meta)
    write_hdf5(out / "sensitive_volume.h5", m)
    write_p_astro(out / "p_astro.json", m.p_astro)
    names = ("sensitive_volume.h5", "sensitive_volume.html", "sensitive_volume.png", "sensitive_volume.json", "p_astro.json", FIGURES)
    stills_of = {
        "volume": lambda: png,
        "far": lambda: stills.far_png(m.background, unit),
        "efficiency": lambda: stills.efficiency_png(m.draws, thresholds),
    }
    return Product({n: out / n for n in names}, meta, volume_checks(m), stills_of)


def make_candidates(job: Job) -> Product:
    """Zero-lag events, loudest first, with false-alarm rate or its upper limit, p_astro, vetoes and catalogue matches."""
    from dataclasses import asdict

    from aframe_assets.segments.catalog import catalogs
    from aframe_assets.sensitivity import plots, stills
    from aframe_assets.sensitivity.candidates import find_candidates, write_csv
    from aframe_assets.sensitivity.checks import candidate_checks
    from aframe_assets.sensitivity.measurement import read_p_astro, write_json
    from aframe_assets.waveforms.ledger import EventSet

    background = _background(job)
    zero = EventSet.read(job.path("events", "0lag.hdf5"))
    s, ifos = job.config.sensitivity, job.config.ifos
    found = find_candidates(
        zero.detection_statistic,
        zero.detection_time,
        zero.Tb,
        background,
        read_p_astro(job.path("sensitive_volume", "p_astro.json")),
        catalogs(s.catalog),
        ifos=ifos,
        vetoes=_vetoes(job),
        match_window=s.match_window,
    )
    out, unit = job.scratch, _unit(job.config)
    meta = {
        "num_zero_lag": len(zero),
        "T0": zero.Tb,
        "num_candidates": len(found),
        "far_unit": unit,
        "catalog": s.catalog,
        "match_window": s.match_window,
        "matched": [m.name for c in found for m in c.matches],
        "loudest_statistic": found[0].detection_statistic if found else None,
        "loudest_far_per_year": found[0].far_per_year if found else None,
        "loudest_far_is_limit": found[0].far_is_limit if found else None,
    }
    write_csv(out / "candidates.csv", found, ifos)
    write_json(out / "candidates.json", {**meta, "candidates": [asdict(c) for c in found]})
    write_json(out / FIGURES, [asdict(plots.zero_lag_figure(zero.detection_statistic, zero.Tb, background))])
    stills_of: dict[str, Any] = {"zero_lag": lambda: stills.zero_lag_png(zero.detection_statistic, zero.Tb, background)}
    if found:
        stills_of["loudest_event"] = lambda: _loudest_event(job, found[0])
    names, table = ("candidates.csv", "candidates.json", FIGURES), {"loudest": stills.candidate_table(found, unit)}
    return Product({n: out / n for n in names}, meta, candidate_checks(found), stills_of, markdown=table)


def _loudest_event(job: Job, loudest: Candidate) -> bytes:
    """Whitened strain and Q-scans at `loudest`, from the background of its segment."""
    from dataclasses import asdict

    from aframe_assets.sensitivity.event_plots import strain_png
    from aframe_assets.sensitivity.summary import candidate_far_text
    from aframe_assets.sensitivity.surroundings import surroundings
    from aframe_assets.strain.background_index import strain_at

    time, config, unit = loudest.detection_time, job.config, _unit(job.config)
    about = surroundings(strain_at(job, time), config, time)
    far = f"{candidate_far_text(asdict(loudest), unit, None)} {unit.removeprefix('1')}"
    title = f"loudest candidate: statistic {loudest.detection_statistic:.2f}, FAR {far}"
    return strain_png(about, config.conditioning, time, title=title)


def make_report(job: Job) -> Product:
    """The search on one static page that needs no network: volumes, candidates and a page of each, data, training, checks, provenance."""
    import json
    from datetime import UTC, datetime

    from aframe_assets import lineage
    from aframe_assets.segments.catalog import catalogs
    from aframe_assets.sensitivity.event_files import GRACEDB, LIGOLW, gracedb_events, write_gracedb, write_ligolw
    from aframe_assets.sensitivity.examination import chosen, examinations
    from aframe_assets.sensitivity.plots import Figure
    from aframe_assets.sensitivity.report import PACKAGES, Material, render, versions

    config, graph = job.config, lineage.graph(job.config)
    rows = job.handle("segments").meta["rows"]
    manifests = {}
    for asset, node in graph.items():
        if asset == "report":
            continue
        kept = {p: x for p, x in job.store.manifests(asset).items() if (p in rows if node.partitioned else p is None)}
        if kept:
            manifests[asset] = kept
    text = {name: job.path(name, FIGURES).read_text() for name in ("sensitive_volume", "candidates")}
    held, vetoes = {f.name for f in job.handle("model").files}, _vetoes(job)
    candidates = json.loads(job.path("candidates", "candidates.json").read_text())
    background, found = _background(job), candidates["candidates"]
    seen = examinations(job, chosen(found, config.execution.report_pages), vetoes)
    page = render(
        Material(
            config=config,
            **{a: job.handle(a).meta for a in ("segments", "background_index", "psd", "model", "engine", "events")},
            volume=json.loads(job.path("sensitive_volume", "sensitive_volume.json").read_text()),
            candidates=candidates,
            metrics_csv=job.path("model", "metrics.csv").read_text() if "metrics.csv" in held else None,
            figures=[Figure(**f) for t in text.values() for f in json.loads(t)],
            manifests=manifests,
            catalog=catalogs(config.sensitivity.catalog) if config.sensitivity.catalog else None,
            vetoes=vetoes,
            seen=seen,
            far_errors={c["rank"]: float(background.independence.relative_error(c["num_louder"])) for c in found if c["num_louder"]},
            graph=graph,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )
    path = job.scratch / "report.html"
    path.write_text(page)
    mergers = {e.rank: e.response.merger[0] for e in seen if e.response and e.response.merger}
    events = gracedb_events(found, config.ifos, mergers)
    program = {"name": config.name, "preset": config.preset, "seed": config.seed, "events": job.handle("events").key}
    program["version"] = versions().get(PACKAGES[0])
    files = {
        "report.html": path,
        GRACEDB: write_gracedb(job.scratch / GRACEDB, events),
        LIGOLW: write_ligolw(job.scratch / LIGOLW, events, program),
    }
    how = "Open it with `aframe report` in the run directory, or copy `report.html` from the folder named here: it needs no other file."
    meta = {"exercise": config.sensitivity.exercise, "num_bytes": len(page.encode()), "num_pages": len(seen)}
    return Product(files, meta, markdown={"how_to_open": how})


def _background(job: Job) -> Background:
    """Slid events of the search, with the number of independent ones among them."""
    from aframe_assets.sensitivity.far import Background
    from aframe_assets.waveforms.ledger import EventSet

    slides = EventSet.read(job.path("events", "background.hdf5"))
    return Background.of_slides(slides, job.config.inference.cluster_window_length, job.handle("events").meta.get("rings", ()))


def assets(config: Config) -> list[Any]:
    """Definitions of this room."""
    large = resources(cpus=1, memory_gb=8, time_min=60)
    return [
        plain_asset(
            "sensitive_volume",
            make_sensitive_volume,
            config,
            tags=large,
            kinds={"hdf5", "html"},
            checks=VOLUME_CHECKS,
        ),
        plain_asset(
            "candidates",
            make_candidates,
            config,
            tags=large,
            kinds={"csv", "json"},
            checks=CANDIDATE_CHECKS,
        ),
        plain_asset(
            "report",
            make_report,
            config,
            tags=resources(cpus=1, memory_gb=4, time_min=30),
            kinds={"html"},
        ),
    ]
