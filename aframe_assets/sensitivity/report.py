"""The report: one static HTML page that works offline and holds everything a reader needs to judge the result."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any

from aframe_assets.provenance.citations import SOFTWARE, data_sources, statement
from aframe_assets.sensitivity.plots import COLOURS, PLOT_STYLE, Figure, embed, make_figure, plotly_script
from aframe_assets.sensitivity.report_events import event_pages, page_id
from aframe_assets.sensitivity.report_provenance import artifact_rows, graph_svg, step_rows, timeline_figure, total_text
from aframe_assets.sensitivity.report_results import (
    candidate_row,
    cards,
    catalog_rows,
    comparator_rows,
    duration,
    livetime_rows,
    low_snr_text,
    volume_row,
    zero_lag_text,
)
from aframe_assets.sensitivity.summary import caveats, gps_date

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.lineage import Node
    from aframe_assets.segments.catalog import Merger
    from aframe_assets.segments.vetoes import Veto
    from aframe_assets.sensitivity.examination import Examination
    from aframe_assets.store.handle import Manifest

PACKAGES = ("aframe-dagster", "dagster", "torch", "lightning", "ml4gw", "bilby", "gwpy", "numpy", "scipy", "astropy", "onnxruntime")
SHOWN = 100
"""Candidates in the report's table, besides those in a catalogue; the artifact `candidates` holds more."""

SECTIONS = (
    ("volume", "Sensitive volume"),
    ("candidates", "Candidates"),
    ("background", "Background and injections"),
    ("data", "Data"),
    ("training", "Training"),
    ("checks", "Checks"),
    ("resources", "Time"),
    ("provenance", "Provenance"),
)


@dataclass(frozen=True)
class Material:
    """What a report is made of, all plain.

    Attributes:
        config: the resolved experiment.
        segments, background_index, psd, model, engine, events, volume: meta of these artifacts; `volume` is `measurement.summary`.
        candidates: content of candidates.json.
        metrics_csv: text of the model's metrics.csv, or None.
        figures: of sensitive_volume and candidates.
        manifests: asset -> partition (None where there are none) -> manifest.
        catalog: known mergers, None when no catalogue is configured.
        vetoes: vetoed time of the search.
        seen: what there is to see at some candidates, loudest first.
        far_errors: rank of a candidate -> relative error of its background count.
        graph: the experiment's assets (`aframe_assets.lineage.graph`).
        made: when, as text.
    """

    config: Config
    segments: Mapping[str, Any]
    background_index: Mapping[str, Any]
    psd: Mapping[str, Any]
    model: Mapping[str, Any]
    engine: Mapping[str, Any]
    events: Mapping[str, Any]
    volume: Mapping[str, Any]
    candidates: Mapping[str, Any]
    metrics_csv: str | None
    figures: Sequence[Figure]
    manifests: Mapping[str, Mapping[str | None, Manifest]]
    catalog: Sequence[Merger] | None = None
    vetoes: Sequence[Veto] = ()
    seen: Sequence[Examination] = ()
    far_errors: Mapping[int, float] = field(default_factory=dict)
    graph: Mapping[str, Node] = field(default_factory=dict)
    made: str = ""
    versions: Mapping[str, str] = field(default_factory=lambda: versions())


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on."""
    import platform

    out = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def render(m: Material) -> str:
    """The page."""
    import jinja2
    import yaml

    folder = resources.files("aframe_assets.sensitivity")
    env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    figures = {f.id: embed(f) for f in (*m.figures, *_training_figure(m), *timeline_figure(m.manifests))}
    for id in ("volume", "mass", "zero-lag", "background", "efficiency", "found-missed", "training", "timeline"):
        figures.setdefault(id, "")
    config, unit, found = m.config, m.candidates["far_unit"], m.candidates["candidates"]
    sources = data_sources(config, [(r["gps_start"], r["gps_stop"]) for r in m.segments["rows"].values()])
    pages = {e.rank: page_id(e.rank) for e in m.seen}
    shown = [c for i, c in enumerate(found) if i < SHOWN or c["matches"]]
    checks = _checks(m)
    return env.from_string((folder / "report.html.j2").read_text()).render(
        style=(folder / "report.css").read_text() + PLOT_STYLE,
        plotly=plotly_script(),
        script=(folder / "report.js").read_text(),
        package=f"aframe-dagster {m.versions.get('aframe-dagster', '')}".strip(),
        failed=_failed_text(checks),
        name=config.name,
        preset=config.preset,
        ifos=config.ifos,
        seed=config.seed,
        made=m.made,
        sections=SECTIONS,
        cards=cards(m),
        caveats=caveats(m.volume),
        exercise=m.volume["exercise"],
        sigma=f"{config.sensitivity.target_sigma:g}",
        v0=f"{m.volume['V0']:.4g}",
        volumes=[volume_row(r) for r in m.volume["rows"]],
        comparator_rows=comparator_rows(m),
        comparator_note=m.volume["comparators"]["note"],
        figures=figures,
        unit=unit,
        zero_lag_text=zero_lag_text(m),
        candidates=[candidate_row(c, unit, m.far_errors.get(c["rank"]), pages.get(c["rank"], "")) for c in shown],
        more=f"{len(found) - len(shown):,} fainter ones are in candidates.csv." if len(found) > len(shown) else "",
        events=event_pages(found, m.seen, unit, m.far_errors, duration(m.events["T0"])),
        low_snr_text=low_snr_text(m),
        catalog_rows=None if m.catalog is None else catalog_rows(m, pages),
        catalog_names=", ".join(sorted({x.catalog for x in m.catalog or ()})),
        match_window=f"{config.sensitivity.match_window:g}",
        roles=_roles(m),
        strain_source=config.strain.source,
        livetimes=livetime_rows(m),
        sources=sources,
        stretches=[
            {"key": k, "role": r["role"], "start": f"{r['gps_start']:.10g}", "stop": f"{r['gps_stop']:.10g}"}
            for k, r in sorted(m.segments["rows"].items(), key=lambda x: x[1]["gps_start"])
        ],
        training_text=_training_text(m),
        metrics=_metrics(m),
        warnings=_warnings(m),
        checks=checks,
        steps=step_rows(m.manifests),
        total_text=total_text(m.manifests),
        artifacts=artifact_rows(m.graph, m.manifests),
        graph=graph_svg(m.graph, m.manifests),
        software=SOFTWARE,
        versions=list(m.versions.items()),
        config=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120),
        credit=statement(config, sources),
    )


def _roles(m: Material) -> list[dict[str, Any]]:
    out = []
    for role, about in m.background_index["roles"].items():
        inside = [r for r in m.segments["rows"].values() if r["role"] == role]
        if not inside:
            continue
        psd = m.psd["roles"].get(role)
        out.append(
            {
                "role": role,
                "count": len(about["partitions"]),
                "livetime": duration(about["livetime"]),
                "start": gps_date(min(r["gps_start"] for r in inside)),
                "stop": gps_date(max(r["gps_stop"] for r in inside)),
                "psd": f"{psd['partition']}: {psd['reason']}" if psd else "",
            }
        )
    return out


def _training_text(m: Material) -> str:
    engine = m.engine.get("platform", m.engine.get("backend", ""))
    ran = f" It ran as {engine}." if engine else ""
    if m.model.get("imported") or m.config.model.weights:
        return f"The model was not trained in this run; its weights come from {m.config.model.weights}.{ran}"
    return f"Trained in this run on the train stretches and judged on the validation stretches.{ran}"


def _metrics(m: Material) -> list[tuple[str, str]]:
    numbers = {k: v for k, v in m.model.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return [(k.replace("_", " "), f"{v:,}" if isinstance(v, int) else f"{v:.5g}") for k, v in numbers.items()]


_JUDGED = ("valid_auroc", "valid_efficiency", "valid_correlation")
"""Columns of metrics.csv from 0 to 1; those of single SNR bins would hide them, and stand in the table."""


def _training_figure(m: Material) -> list[Figure]:
    """Loss and validation metrics against the epoch; nothing for imported weights."""
    from plotly.subplots import make_subplots

    rows, t = list(csv.DictReader(io.StringIO(m.metrics_csv or ""))), m.config.model.training
    curves = {}
    for name in ("train_loss", *_JUDGED):
        points = [(float(r.get("epoch") or i), float(r[name])) for i, r in enumerate(rows) if r.get(name) not in (None, "")]
        if points:
            curves[name] = points
    if not curves:
        return []
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    for i, (name, points) in enumerate(curves.items()):
        x, y = zip(*points, strict=True)
        line = {"color": COLOURS[i % len(COLOURS)]}
        figure.add_scatter(x=x, y=y, mode="lines+markers", name=name.replace("_", " "), line=line, secondary_y=name in _JUDGED)
    figure.update_xaxes(title="epoch, counted from 0", **({"dtick": 1} if len(rows) <= 20 else {}))
    figure.update_yaxes(title="training loss", secondary_y=False)
    figure.update_yaxes(title="validation metric", secondary_y=True, showgrid=False, tickmode="auto", range=[0, 1.02])
    caption = (
        "Training loss (left) and validation metrics (right) of each epoch. valid auroc: partial, up to a false-positive rate of "
        f"{t.max_fpr:g}, chance is 0.5; valid efficiency: share of validation signals found at {t.valid_far_per_hour:g} "
        "false alarms per hour."
    )
    return [make_figure("training", "Training", caption, figure, 360)]


def _warnings(m: Material) -> list[str]:
    out = list(m.volume["warnings"])
    missing = m.background_index.get("missing") or []
    if missing:
        names = sorted(k for group in missing.values() for k in group) if isinstance(missing, Mapping) else [str(x) for x in missing]
        if names:
            out.append(f"{len(names)} stretches are missing from the data: {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}")
    return out


def _checks(m: Material) -> list[dict[str, Any]]:
    grouped: dict[tuple[str, str], list[tuple[str | None, Mapping[str, Any]]]] = {}
    for asset, records in m.manifests.items():
        for partition, manifest in records.items():
            for c in manifest.checks:
                grouped.setdefault((asset, c["name"]), []).append((partition, c))
    out = []
    for (asset, name), found in grouped.items():
        bad = [(p, c) for p, c in found if not c["passed"]]
        warn = all(c["severity"] == "warn" for _, c in bad)
        outcome = "passed" if not bad else "warning" if warn else "failed"
        if len(found) > 1:
            outcome += f" ({len(found) - len(bad)} of {len(found)} stretches passed)" if bad else f" ({len(found)} stretches)"
        # of one that holds everywhere the first says what was asked, with its numbers
        notes = [f"{p}: {c['description']}" if p else c["description"] for p, c in bad[:3]] or [found[0][1]["description"]]
        rank, kind = (2, "pass") if not bad else (1, "warned") if warn else (0, "fail")
        row = {"asset": asset, "name": name.replace("_", " "), "outcome": outcome, "kind": kind}
        out.append({**row, "note": "; ".join(n for n in notes if n), "sort": rank})
    return sorted(out, key=lambda c: c["sort"])


def _failed_text(checks: Sequence[Mapping[str, Any]]) -> str:
    failed, warned = (sum(c["kind"] == kind for c in checks) for kind in ("fail", "warned"))
    if not failed and not warned:
        return ""
    return f"Of {len(checks)} checks {failed} failed and {warned} warned."
