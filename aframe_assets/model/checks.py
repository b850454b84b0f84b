"""What must hold of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from aframe_assets.store.job import Check

CHANCE = 0.5
"""Partial AUROC of scores without information (`aframe_assets.model.metric`)."""


def metric_checks(metrics: Mapping[str, float]) -> list[Check]:
    """The checks of a model with these validation metrics of its kept epoch."""
    if "valid_auroc" not in metrics:
        said = "weights from a file come without metrics; the injections of the search tell how good they are"
        return [Check(name, False, "warn", f"not known: {said}") for name in ("validation_metric_above_chance", "training_loss_finite")]
    area, loss = float(metrics.get("valid_auroc", math.nan)), float(metrics.get("train_loss", math.nan))
    return [
        Check(
            "validation_metric_above_chance",
            math.isfinite(area) and area > CHANCE,
            description=f"valid_auroc is {area:.4f}; expected above {CHANCE:g}. Train longer, or look at the learning curve",
            metadata={"valid_auroc": area} if math.isfinite(area) else {},
        ),
        Check(
            "training_loss_finite",
            math.isfinite(loss),
            description=f"training loss of the kept epoch is {loss:.4f}",
            metadata={"train_loss": loss} if math.isfinite(loss) else {},
        ),
    ]


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What an artifact's meta keeps of the row of an epoch."""
    return {k: float(v) for k, v in metrics.items() if k.startswith("valid_") or k in ("train_loss", "epoch")}
