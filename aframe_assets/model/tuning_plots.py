"""Pictures of a study: history, importance, parallel coordinates, values while trials were trained."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aframe_assets.model.search_space import dimensions
from aframe_assets.model.tuning import Trial, ladder, objective, study_of, trials_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from aframe_assets.config import Config
    from aframe_assets.model.search_space import Dimension

_LEAST = 4
"""Trials from which on an importance says something."""

_COLOURS = 64
"""Of a picture."""


def importances(config: Config, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How much each setting decides the value at the first rung, as shares of 1 (PED-ANOVA, Watanabe et al. 2023, arXiv:2304.10255).

    The first rung is where every trial was compared. Empty with fewer than four trials, or where all are alike.
    """
    import optuna

    first = ladder(config)[0]
    compared = [r for r in records if r["epochs"] == first and not r["meta"].get("failed")]
    if len(compared) < _LEAST or len({r["meta"]["value"] for r in compared}) == 1:
        return {}
    study = optuna.create_study(direction="maximize")
    for t in study_of(config, compared).trials:
        study.add_trial(optuna.trial.create_trial(params=t.params, distributions=t.distributions, value=t.value))
    found = optuna.importance.get_param_importances(study)
    return found if all(math.isfinite(v) for v in found.values()) else {}


def study_plot(config: Config, records: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG, below 150 kB also of hundreds of trials with hundreds of epochs."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    trials, metric = trials_of(records), objective(config)
    good = [t for t in trials if not t.failed]
    figure = Figure(figsize=(11, 7), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    (history, curves), (importance, parallel) = figure.subplots(2, 2)
    _history(history, good, metric)
    _curves(curves, trials, ladder(config), metric)
    _importance(importance, importances(config, records))
    _parallel(parallel, config, good, metric)
    figure.canvas.draw()
    buffer = io.BytesIO()
    # all colours would take four times as many bytes, more than an asset's page may carry
    Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3]).quantize(_COLOURS).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def write_plot(config: Config, records: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """`study_plot` as a file."""
    path.write_bytes(study_plot(config, records))
    return path


def _history(axis: Axes, trials: Sequence[Trial], metric: str) -> None:
    longest = max((t.epochs for t in trials), default=0)
    for epochs in sorted({t.epochs for t in trials}):
        some = [t for t in trials if t.epochs == epochs]
        axis.plot([t.number for t in some], [t.value for t in some], "o", label=str(epochs), alpha=1 if epochs == longest else 0.5)
    best = [max(u.value for u in trials[: i + 1]) for i in range(len(trials))]
    axis.step([t.number for t in trials], best, where="post", color="0.5", label="best so far")
    axis.set(xlabel="trial", ylabel=metric, title="history")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(title="epochs", fontsize="small")


def _curves(axis: Axes, trials: Sequence[Trial], steps: Sequence[int], metric: str) -> None:
    for t in trials:
        if t.curve:
            axis.plot(*zip(*t.curve, strict=True), marker="x" if t.failed else ".", label=str(t.number) if len(trials) <= 12 else None)
    for epochs in steps[:-1]:
        axis.axvline(epochs, color="0.8", zorder=0)
    axis.set(xlabel="epochs", ylabel=metric, title="values while trained; lines: rungs")
    axis.xaxis.get_major_locator().set_params(integer=True)
    if 0 < len(trials) <= 12:
        axis.legend(title="trial", fontsize="small", ncols=2)


def _importance(axis: Axes, shares: Mapping[str, float]) -> None:
    axis.set(title="importance", xlim=(0, 1), xlabel="share of the variance")
    names = sorted(shares, key=lambda k: shares[k])
    axis.barh(range(len(names)), [shares[k] for k in names])
    axis.set_yticks(range(len(names)), [k.rsplit(".", 1)[-1] for k in names])
    if not names:
        axis.text(0.5, 0.5, f"needs {_LEAST} trials that differ", ha="center", transform=axis.transAxes)


def _parallel(axis: Axes, config: Config, trials: Sequence[Trial], metric: str) -> None:
    from matplotlib import colormaps

    space = dimensions(config)
    values = [t.value for t in trials]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    for t in sorted(trials, key=lambda t: t.value):
        share = (t.value - low) / (high - low) if high > low else 1.0
        places = [_place(d, t.params[d.key]) for d in space]
        axis.plot(range(len(space) + 1), [*places, share], color=colormaps["viridis"](share), alpha=0.4 + 0.6 * share)
    names = [f"{d.key.rsplit('.', 1)[-1]}\n{_range(d)}" for d in space]
    names += [f"{metric}\n{low:.3g} to {high:.3g}"]
    axis.set_xticks(range(len(names)), names, fontsize="small", rotation=25 if len(names) > 4 else 0)
    axis.set(yticks=[], title="parallel coordinates")


def _place(d: Dimension, value: Any) -> float:
    """Where `value` lies in its range, 0 to 1."""
    if d.kind == "choice":
        return d.choices.index(value) / max(1, len(d.choices) - 1)
    if d.high == d.low:
        return 0.5
    if d.log:
        return math.log(value / d.low) / math.log(d.high / d.low)
    return (value - d.low) / (d.high - d.low)


def _range(d: Dimension) -> str:
    return f"{len(d.choices)} choices" if d.kind == "choice" else f"{d.low:.3g} to {d.high:.3g}"
