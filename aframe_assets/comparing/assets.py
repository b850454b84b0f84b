"""The assets ``compared_models`` and ``comparison``; there are none without `aframe compare`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from aframe_assets.comparing.models import ComparisonError, kept_bundle, step_name
from aframe_assets.inference.assets import search_tags
from aframe_assets.store.bodies import plain_asset
from aframe_assets.store.fanout import pieced_asset
from aframe_assets.store.io_managers import refusal
from aframe_assets.store.job import Job, Product
from aframe_assets.store.work import compared_parts, makes
from aframe_assets.tags import resources

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.store.handle import Handle

RESULT, PAGE = "comparison.json", "comparison.html"


def make_compared_model(job: Job, sha256: str) -> Product:
    """One model: its engine, its search of every test segment, its events.

    Raises:
        ComparisonError: it cannot be exported, gives no numbers, or the segments are too short for what it needs.
    """
    import numpy as np

    from aframe_assets.comparing.evaluation import alone, part, require, require_comparable, same_slides, searched_rows, seen
    from aframe_assets.comparing.measurement import SEEN
    from aframe_assets.comparing.models import of_model
    from aframe_assets.engine.assets import make_engine, make_exported_model
    from aframe_assets.inference.aggregate import FOREGROUND
    from aframe_assets.inference.assets import make_events, make_inference_results
    from aframe_assets.model.bundle import read_description
    from aframe_assets.waveforms.ledger import RecoveredInjectionSet

    bundle, rows = kept_bundle(job.store, sha256), searched_rows(job)
    config = same_slides(job, of_model(job.config, read_description(job.store.open_local(bundle))))
    model = sha256[:16]
    exported = part(job, config, "exported_model", make_exported_model, {"model": bundle}, model)
    engine = part(job, config, "engine", make_engine, {"exported_model": exported}, model)
    whole = {a: job.inputs[a] for a in ("segments", "vetoes") if a in job.inputs} | {"engine": engine}
    results = {}
    for segment, row in rows.items():
        inputs = whole | {a: job.handle(a, segment) for a in ("background", "injections")}
        results[segment] = part(job, config, "inference_results", make_inference_results, inputs, model, segment, row)
    injections = {segment: job.handle("injections", segment) for segment in rows}
    product = make_events(alone(job, config, {"inference_results": results, "injections": injections}))
    require(product, "events")
    whole_ones = seen(job, config, list(rows.values()), RecoveredInjectionSet.read(product.files[FOREGROUND]))
    require_comparable(product.meta["num_background"], whole_ones)
    np.save(job.scratch / SEEN, whole_ones)
    kept = ("Tb", "rings", "num_background", "num_foreground", "num_found", "num_segments")
    meta = {k: product.meta[k] for k in kept} | {"platform": engine.meta["platform"]}
    return Product({**product.files, SEEN: job.scratch / SEEN}, meta)


def _refusing(make: Callable[..., Product]) -> Callable[..., Product]:
    """`make`; a model that cannot be compared is not tried again, as a node that fails is."""

    @wraps(make)
    def made(*args: Any) -> Product:
        try:
            return make(*args)
        except ComparisonError as e:
            raise refusal(str(e)) from None

    return made


def make_compared_models(job: Job, found: list[Handle]) -> Product:
    """The same test data and injections searched with each model of a comparison, a step each; where their searches are."""
    from aframe_assets.sensitivity.measurement import write_json

    handles = dict(zip(job.config.comparison.bundles, (h.model_dump(mode="json") for h in found), strict=True))
    path = write_json(job.scratch / "models.json", {n: handles[sha256] for n, sha256 in job.config.comparison.models})
    return Product({path.name: path}, {"num_models": len(job.config.comparison.models)})


def make_comparison(job: Job) -> Product:
    """Models side by side: V(FAR) of all, shares of injections found, and how significant their differences are."""
    import json

    from aframe_assets.comparing import plots, summary
    from aframe_assets.comparing.checks import comparison_checks
    from aframe_assets.comparing.measurement import Search, compare
    from aframe_assets.sensitivity.measurement import write_json
    from aframe_assets.sensitivity.plots import page
    from aframe_assets.store.handle import Handle
    from aframe_assets.waveforms.priors import get_prior

    config, asked = job.config, job.config.comparison
    kept = json.loads(job.path("compared_models", "models.json").read_text())
    handles = {n: Handle.model_validate(kept[n]) for n, _ in asked.models}
    searches = {n: Search.read(job.store.open_local(h), h.meta["rings"]) for n, h in handles.items()}
    found = compare(config, searches, get_prior(config.injections.prior))
    table = found.table
    for m in table["models"]:
        m |= {"sha256": dict(asked.models)[m["name"]], "platform": handles[m["name"]].meta["platform"]}
    table["broken"] = dict(asked.broken)
    unit = "1/h" if config.sensitivity.fars_per_hour and not config.sensitivity.fars_per_year else "1/yr"
    least, title = config.sensitivity.min_effective_samples, f"Comparison of {len(handles)} models"
    png = plots.volume_png(found.curves, unit, least, title)
    figures = [*plots.volume_figures(found.curves, unit, least), plots.found_figure(found.curves, unit, table["num_injections"])]
    by_snr = plots.efficiency_figure(table)
    tables = [*summary.rate_tables(table), summary.differences_table(table)]
    text = page(title, [*figures, *([by_snr] if by_snr else [])], [*summary.notes(table), *table["warnings"]], tables)
    out = job.scratch
    (out / "comparison.png").write_bytes(png)
    (out / PAGE).write_text(text)
    write_json(out / RESULT, table)
    meta = {"num_models": len(handles), "num_broken": len(asked.broken), "num_injections": table["num_injections"]}
    names = (RESULT, PAGE, "comparison.png")
    return Product({n: out / n for n in names}, meta, comparison_checks(table), {"volumes": lambda: png})


def assets(config: Config) -> list[Any]:
    """Definitions of this room."""
    from aframe_assets.comparing.checks import COMPARISON_CHECKS

    if not config.comparison.models:
        return []
    searched = pieced_asset(
        "compared_models",
        _refusing(make_compared_model),
        make_compared_models,
        config,
        {sha256: step_name(name, sha256) for sha256, name in config.comparison.bundles.items()},
        compared_parts,
        makes("compared_models", "models"),
        tags=search_tags(config, time_min=1440, disk_gb=8),
        kinds={"hdf5"},
    )
    compared = plain_asset(
        "comparison",
        _refusing(make_comparison),
        config,
        tags=resources(cpus=1, memory_gb=8, time_min=60),
        kinds={"html", "json"},
        checks=COMPARISON_CHECKS,
    )
    return [*searched, compared]
