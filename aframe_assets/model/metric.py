"""How well scores of signals stand above scores of background."""

from __future__ import annotations

import math

import numpy as np
import torch
from torchmetrics.functional.classification import binary_auroc


def max_pool(scores: np.ndarray, size: int) -> np.ndarray:
    """Largest of each `size` consecutive scores; the last group may be shorter. Shape (ceil(len / size),)."""
    scores = np.asarray(scores, np.float64)
    if size < 1:
        raise ValueError(f"pool of {size} scores: expected at least 1")
    return np.maximum.reduceat(scores, np.arange(0, len(scores), size)) if len(scores) else scores


def partial_auroc(background: np.ndarray, foreground: np.ndarray, max_fpr: float) -> float:
    """Area under the ROC curve up to `max_fpr`, rescaled so that chance is 0.5 and perfection 1 (McClish 1989).

    Scores enter by rank: torchmetrics maps logits through a sigmoid, which makes the loudest equal in float32.

    Args:
        background, foreground: scores, any finite numbers, at least one each.
        max_fpr: in (0, 1].

    Raises:
        ValueError: no scores, or one that is not finite.
    """
    background, foreground = np.asarray(background, np.float64), np.asarray(foreground, np.float64)
    if not len(background) or not len(foreground):
        raise ValueError(f"AUROC needs scores of both kinds, got {len(background)} of background and {len(foreground)} of signals")
    scores = np.concatenate([background, foreground])
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{(~np.isfinite(scores)).sum()} of {len(scores)} validation scores are not finite;"
            " the training diverged, lower model.training.learning_rate"
        )
    _, rank = np.unique(scores, return_inverse=True)
    target = torch.cat([torch.zeros(len(background), dtype=torch.long), torch.ones(len(foreground), dtype=torch.long)])
    area = binary_auroc(torch.from_numpy(rank / max(rank.max(), 1)), target, max_fpr=None if max_fpr >= 1 else max_fpr)
    return float(area)


def efficiency(background: np.ndarray, foreground: np.ndarray, max_fpr: float) -> float:
    """Share of signals louder than all but a share `max_fpr` of the background (than all of it, where that is less than one score)."""
    ordered = np.sort(np.asarray(background, np.float64))[::-1]
    threshold = ordered[min(math.floor(max_fpr * len(ordered)), len(ordered) - 1)]
    return float((np.asarray(foreground, np.float64) > threshold).mean())
