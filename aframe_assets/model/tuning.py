"""A study of settings with optuna, in fixed rounds (reference 3.4).

What is known of a study are the records of its trainings: optuna's study is built from them anew where it is asked or told, with
a sampler seeded by experiment and round, so the same records give the same proposals wherever and whenever they are asked for.
Of a trial that is trained on, each rung is a training and a record of its own.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from aframe_assets.model.halving import promotions, rungs
from aframe_assets.model.search_space import Dimension, dimensions, overrides, read_elsewhere, with_values
from aframe_assets.store.work import trial_partition

if TYPE_CHECKING:
    import optuna

    from aframe_assets.config import Config
    from aframe_assets.store.base import ArtifactStore

BEST, JOURNAL = "best.json", "journal.log"
_ATTEMPTS = 100
"""Proposals of a round that may be impossible, for each trial, before the space is given up."""


@dataclass
class Trial:
    """One set of values and how far it was trained.

    Attributes:
        number: from 0, in the order in which trials were begun.
        params: values by key of the space.
        records: of its trainings, one for each rung, in order.
    """

    number: int
    params: dict[str, Any]
    records: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def failed(self) -> str | None:
        """Why it cannot be trained, as a loss that diverged; None if it can."""
        return self.records[-1]["meta"].get("failed")

    @property
    def value(self) -> float:
        """The objective of its best epoch; -inf if it failed."""
        return -math.inf if self.failed else float(self.records[-1]["meta"]["value"])

    @property
    def epochs(self) -> int:
        """Epochs after which it was last compared with others."""
        return int(self.records[-1]["epochs"])

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(epochs done, objective) of each epoch."""
        return [(int(e), float(v)) for e, v in self.records[-1]["meta"]["curve"]]

    def at(self, epochs: int) -> float | None:
        """The value when `epochs` were done; None if it never came there."""
        return next((Trial(0, {}, [r]).value for r in self.records if r["epochs"] == epochs), None)


def trials_of(records: Sequence[Mapping[str, Any]]) -> list[Trial]:
    """The trials that `records` are of, by number."""
    out: dict[int, Trial] = {}
    for r in sorted(records, key=lambda r: (r["round"], r["index"])):
        out.setdefault(r["trial"], Trial(r["trial"], dict(r["params"]))).records.append(r)
    return [out[n] for n in sorted(out)]


def objective(config: Config) -> str:
    """The validation metric that a study makes as large as it can: the one that decides which epoch of a training is kept."""
    return f"valid_{config.model.training.monitor}"


def ladder(config: Config) -> list[int]:
    """Epochs at which the trials of a study are compared; the last is ``model.tune.max_epochs``."""
    tune = config.model.tune
    return rungs(tune.min_epochs, tune.max_epochs, tune.reduction)


def _coded(dimension: Dimension, value: Any) -> Any:
    """A choice as optuna keeps it: lists and tables as text."""
    return json.dumps(value, sort_keys=True) if dimension.kind == "choice" and isinstance(value, list | tuple | dict) else value


def decoded(dimension: Dimension, value: Any) -> Any:
    """The value that optuna keeps as `value`."""
    return next(c for c in dimension.choices if _coded(dimension, c) == value) if dimension.kind == "choice" else value


def distributions(config: Config) -> dict[str, optuna.distributions.BaseDistribution]:
    """Optuna distributions of ``model.tune.space`` by key. Raises ValueError for a space that cannot be."""
    import optuna

    out: dict[str, optuna.distributions.BaseDistribution] = {}
    for d in dimensions(config):  # the order decides which random number is whose
        if d.kind == "choice":
            out[d.key] = optuna.distributions.CategoricalDistribution([_coded(d, c) for c in d.choices])
        elif d.kind == "int":
            out[d.key] = optuna.distributions.IntDistribution(int(d.low), int(d.high), log=d.log, step=int(d.step or 1))
        else:
            out[d.key] = optuna.distributions.FloatDistribution(d.low, d.high, log=d.log, step=d.step)
    return out


def study_of(config: Config, records: Sequence[Mapping[str, Any]], *, seed: int = 0, storage: Any = None) -> optuna.Study:
    """Optuna's study of `records`.

    A trial that reached the last rung is COMPLETE, one that failed FAIL, and any other PRUNED: it is so far. Intermediate values
    are the best up to an epoch, as that is what trials are compared by.

    Args:
        seed: of its sampler.
        storage: where it is kept; by default in memory.
    """
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, known, last = distributions(config), {d.key: d for d in dimensions(config)}, ladder(config)[-1]
    sampler = optuna.samplers.TPESampler(seed=seed % 2**32, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler, storage=storage, study_name=config.name)
    for t in trials_of(records):
        state = TrialState.FAIL if t.failed else TrialState.COMPLETE if t.epochs == last else TrialState.PRUNED
        best = [max(v for _, v in t.curve[: i + 1]) for i in range(len(t.curve))]
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                params={k: _coded(known[k], v) for k, v in t.params.items()},
                distributions=space,
                value=None if t.failed else t.value,
                intermediate_values={e: b for (e, _), b in zip(t.curve, best, strict=True) if math.isfinite(b)},
                user_attrs={"epochs": t.epochs, "trainings": [trial_partition(r) for r in t.records]}
                | ({"failed": t.failed} if t.failed else {}),
            )
        )
    return study


def ask(config: Config, records: Sequence[Mapping[str, Any]], number: int) -> list[dict[str, Any]]:
    """The trainings of round `number`, given the finished ones: trials that go on, and new ones.

    Returns:
        trial (number), params, epochs (when it stops) and of (how many learning rates are made for), began (partition of the
        trial's first training), source (partition and identity of the one that it goes on from, or None).

    Raises:
        ValueError: as `distributions`; or hardly any values of the space are possible.
    """
    import optuna

    tune, steps, known = config.model.tune, ladder(config), trials_of(records)
    growing = number + len(steps) <= tune.num_rounds
    values = [{k: v for k, e in enumerate(steps) if (v := t.at(e)) is not None} for t in known]
    out = []
    for t, rung in promotions(values, len(steps), tune.reduction, tune.trials_per_round, growing):
        before = known[t].records
        source = {"partition": trial_partition(before[-1]), **before[-1]["made"]}
        said = {"began": trial_partition(before[0]), "source": source}
        out.append({"trial": t, "params": known[t].params, "epochs": steps[rung], "of": steps[-1], **said})
    if not growing:
        return out
    study, space = study_of(config, records, seed=config.seed * 1000 + number), distributions(config)
    found, refused = {d.key: d for d in dimensions(config)}, 0
    while len(out) < tune.trials_per_round:
        asked = study.ask(space)
        params = {k: decoded(found[k], v) for k, v in asked.params.items()}
        try:
            with_values(config, params)
        except ValueError as e:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
            refused += 1
            if refused > _ATTEMPTS * tune.trials_per_round:
                raise ValueError(f"model.tune.space: of its values hardly any are possible together; the last was {params}: {e}") from None
            continue
        began = trial_partition({"round": number, "index": len(out)})
        trial = len(known) + sum(p["source"] is None for p in out)
        out.append({"trial": trial, "params": params, "epochs": steps[0], "of": steps[-1], "began": began, "source": None})
    return out


def best_trial(records: Sequence[Mapping[str, Any]]) -> Trial:
    """The trial of the highest objective among those that were trained longest; the first of equals.

    Raises:
        ValueError: there is none that did not fail.
    """
    known = trials_of(records)
    good = [t for t in known if not t.failed]
    if not good:
        why = f"; the last: {known[-1].failed}" if known else ""
        raise ValueError(f"none of {len(known)} trials could be trained{why}. Look at model.tune.space")
    longest = max(t.epochs for t in good)
    return max((t for t in good if t.epochs == longest), key=lambda t: (t.value, -t.number))


def write_study(config: Config, records: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """In `folder`: best.json (values that `model` takes over), best.yaml (the same, for an experiment file), study.json (every trial)."""
    best, last, metric = best_trial(records), ladder(config)[-1], objective(config)
    trials = [
        {
            "trial": t.number,
            "params": t.params,
            "state": "failed" if t.failed else "complete" if t.epochs == last else "stopped",
            "epochs": t.epochs,
            "value": None if t.failed else t.value,
            "curve": t.curve,
            "trainings": [trial_partition(r) for r in t.records],
            **({"failed": t.failed} if t.failed else {}),
        }
        for t in trials_of(records)
    ]
    out = [folder / BEST, folder / "best.yaml", folder / "study.json"]
    out[0].write_text(json.dumps({"params": best.params, "metric": metric, "value": best.value}, indent=1, sort_keys=True))
    out[1].write_text(yaml.safe_dump(overrides(best.params), sort_keys=False))
    out[2].write_text(json.dumps({"objective": metric, "direction": "maximize", "trials": trials}, indent=1, sort_keys=True))
    return out


def write_journal(config: Config, records: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """The study as optuna's journal, which ``optuna.storages.journal.JournalFileBackend`` and optuna-dashboard read."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    study_of(config, records, storage=JournalStorage(JournalFileBackend(str(path))))
    return path


def load_study(store: ArtifactStore) -> optuna.Study | None:
    """Optuna's study as it was told last, in memory; None before the first round.

    Raises:
        ArtifactGone: the next round was told meanwhile; call again.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    manifest = store.manifest("tuned_model_journal")
    if manifest is None or manifest.handle is None:
        return None
    path = store.open_local(manifest.handle, JOURNAL)
    with tempfile.TemporaryDirectory() as folder:
        # a copy: optuna locks what it reads by files beside it
        storage = JournalStorage(JournalFileBackend(shutil.copyfile(path, Path(folder) / JOURNAL).as_posix()))
        kept = optuna.load_study(study_name=None, storage=storage)
        study = optuna.create_study(direction="maximize", study_name=kept.study_name)
        study.add_trials(kept.trials)
    return study


def tuned_experiment(config: Config, best: Path) -> tuple[Config, dict[str, Any]]:
    """`config` with the values of a best.json, and these.

    Raises:
        ValueError: among them are values that not only the model reads, so that the experiment itself must have them.
    """
    params = json.loads(best.read_text())["params"]
    shared = read_elsewhere(config, params)
    if shared:
        said = yaml.safe_dump(overrides(params), sort_keys=False, default_flow_style=True, width=10_000).strip()
        raise ValueError(
            f"the study found {', '.join(f'{k} = {v}' for k, v in shared.items())}, which PSDs, validation signals or the search read too: "
            f"put all that it found, {said}, into the experiment in place of model.tune (it is best.yaml of tuned_model), and run again"
        )
    return with_values(config, params), params
