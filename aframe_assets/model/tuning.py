"""Searching training settings with optuna in fixed rounds (reference 3.4, without its early culling).

Nothing is kept between rounds but the records of finished trials: the study is built from them anew, with a sampler
seeded by experiment and round, so the same records give the same proposals wherever and whenever they are asked for.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aframe_assets.config import Training

if TYPE_CHECKING:
    import optuna

    from aframe_assets.config import Config

OBJECTIVE = "valid_auroc"


def distributions(space: Mapping[str, Mapping[str, Any]]) -> dict[str, optuna.distributions.BaseDistribution]:
    """Optuna distributions of ``model.tune.space``: training key -> {low, high, log, step} or {choices}.

    Raises:
        ValueError: a key that `model.training` does not have, or a range that optuna refuses.
    """
    import optuna

    out: dict[str, optuna.distributions.BaseDistribution] = {}
    for key, given in sorted(space.items()):  # the order decides which random number is whose
        field = Training.model_fields.get(key)
        if field is None:
            raise ValueError(f"model.tune.space: {key} is no key of model.training; expected one of {', '.join(Training.model_fields)}")
        kinds = set(typing.get_args(field.annotation)) if isinstance(field.annotation, types.UnionType) else {field.annotation}
        try:
            if "choices" in given:
                out[key] = optuna.distributions.CategoricalDistribution(**given)
            elif int in kinds:
                out[key] = optuna.distributions.IntDistribution(**given)
            else:
                out[key] = optuna.distributions.FloatDistribution(**given)
        except (TypeError, ValueError) as e:
            raise ValueError(f"model.tune.space: {key} = {dict(given)}: {e}; expected low, high and log or step, or choices") from None
    return out


def _study(config: Config, records: Sequence[Mapping[str, Any]], number: int) -> optuna.Study:
    import optuna

    space = distributions(config.model.tune.space)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=(config.seed * 1000 + number) % 2**32, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for r in records:
        study.add_trial(optuna.trial.create_trial(params=dict(r["params"]), distributions=space, value=float(r["meta"][OBJECTIVE])))
    return study


def ask(config: Config, records: Sequence[Mapping[str, Any]], number: int) -> list[dict[str, Any]]:
    """Parameters of the trials of round `number`, given the finished ones. Raises ValueError as `distributions`."""
    study, space = _study(config, records, number), distributions(config.model.tune.space)
    return [study.ask(space).params for _ in range(config.model.tune.trials_per_round)]


def with_training(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with these keys of `model.training` changed. Raises ValueError (pydantic's) for an impossible value."""
    training = Training.model_validate({**config.model.training.model_dump(), **values})
    return config.model_copy(update={"model": config.model.model_copy(update={"training": training})})


def best_record(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The record of the highest objective; the first of equals. Raises ValueError when there is none."""
    if not records:
        raise ValueError("no trial was made")
    return max(records, key=lambda r: (r["meta"][OBJECTIVE], -r["round"], -r["index"]))


def write_study(records: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """best.json (the parameters `model` takes over) and study.json (every trial) in `folder`."""
    best = best_record(records)
    out = [folder / "best.json", folder / "study.json"]
    out[0].write_text(json.dumps({"params": best["params"], OBJECTIVE: best["meta"][OBJECTIVE]}, indent=1, sort_keys=True))
    out[1].write_text(json.dumps({"objective": OBJECTIVE, "direction": "maximize", "trials": list(records)}, indent=1, sort_keys=True))
    return out


def best_training(path: Path) -> dict[str, Any]:
    """The parameters in a best.json."""
    return json.loads(path.read_text())["params"]


def study_plot(records: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: the objective of every trial and the best so far; and against each parameter."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(records[0]["params"])
    values = [r["meta"][OBJECTIVE] for r in records]
    figure = Figure(figsize=(3.2 * (1 + len(names)), 2.8), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 + len(names), squeeze=False)[0]
    axes[0].plot(range(len(values)), values, "o")
    axes[0].step(range(len(values)), [max(values[: i + 1]) for i in range(len(values))], where="post")
    axes[0].set(xlabel="trial", ylabel=OBJECTIVE)
    for axis, name in zip(axes[1:], names, strict=True):
        axis.plot([r["params"][name] for r in records], values, "o")
        axis.set(xlabel=name)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
