"""The trainings of a study: each a step of its own, which may go on where another one left a trial."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aframe_assets.model.checks import numbers
from aframe_assets.model.progress import write_rows
from aframe_assets.model.search_space import with_values
from aframe_assets.model.tuning import objective
from aframe_assets.store.job import Product

if TYPE_CHECKING:
    from aframe_assets.model.training import Trained
    from aframe_assets.store.job import Job

CHECKPOINTS = "checkpoints"
"""Folder of checkpoints in a training's folder, and of those that a trial hands on in its artifact."""


def train_trial(job: Job, record: Mapping[str, Any], train: Callable[..., Trained]) -> Product:
    """One training of a study, from the first epoch or from where the trial was left.

    A training that diverges, or for which a GPU has too little memory, is a result and not an error. The values after each epoch
    go to ``job.services["report"]`` as [epochs done, objective].

    Args:
        job: asset and partition are those of this training.
        record: what `aframe_assets.model.tuning.ask` proposed.
        train: (job, config, until, on_epoch) as `aframe_assets.model.training.train`.

    Raises:
        RuntimeError: the training that it goes on from is not in the store any more.
    """
    config = with_values(job.config, {**record["params"], "max_epochs": record["of"]})
    place, metric, rows = job.workdir / CHECKPOINTS, objective(config), []
    if record["source"]:
        _go_on_from(job, record["source"], place)

    def told(history: Sequence[Mapping[str, float]]) -> None:
        rows[:] = history
        job.services["report"]([[r["epoch"] + 1, r[metric]] for r in history])

    said: dict[str, Any] = {"metric": metric}
    try:
        # a trial is the same training in each of its rounds
        result = train(replace(job, partition=record["began"]), config, until=record["epochs"], on_epoch=told)
    except (FloatingPointError, torch.OutOfMemoryError) as e:
        job.log.warning(f"trial {record['trial']} with {record['params']} failed: {e}")
        said |= {"failed": f"{type(e).__name__}: {e}"}
    else:
        rows = result.history
        said |= {"value": float(result.metrics[metric]), **numbers(result.metrics)}
    said["curve"] = [[int(r["epoch"]) + 1, float(r[metric])] for r in rows]
    files = {"metrics.csv": write_rows(rows, job.scratch / "metrics.csv")}
    if "value" in said and record["epochs"] < record["of"]:
        files |= {f"{CHECKPOINTS}/{p.name}": p for p in sorted(place.glob("*.ckpt"))}
    return Product(files, said)


def _go_on_from(job: Job, source: Mapping[str, str], place: Path) -> None:
    """Puts the checkpoints of the training `source` into `place`, unless this training has its own already."""
    if place.is_dir() and any(place.glob("*.ckpt")):
        return
    manifest = job.store.manifest("tuned_model_trial", source["partition"])
    if manifest is None or manifest.handle is None or manifest.handle.key != source["key"]:
        raise RuntimeError(
            f"the training {source['partition']} of this study, which a trial is to go on from, is not in the store any more; has "
            "another study been made there meanwhile? Run again: it is made anew"
        )
    names = [f.name for f in manifest.handle.files if f.name.startswith(f"{CHECKPOINTS}/")]
    found = [job.store.open_local(manifest.handle, name) for name in names]
    # beside it first: a kill while copying must not leave some of them
    copied = place.with_name(f"{CHECKPOINTS}.part")
    shutil.rmtree(copied, ignore_errors=True)
    copied.mkdir(parents=True)
    for path in found:
        shutil.copyfile(path, copied / path.name)
    shutil.rmtree(place, ignore_errors=True)
    copied.rename(place)
