"""How well scores of signals stand above scores of background: partial AUROC, and the efficiency at a false-alarm rate of a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torchmetrics.functional.classification import binary_auroc

from aframe_assets.inference.clustering import cluster_slides, detection_statistic

if TYPE_CHECKING:
    from aframe_assets.config import Training

HOUR = 3600.0


def max_pool(scores: np.ndarray, size: int) -> np.ndarray:
    """Largest of each `size` consecutive scores; the last group may be shorter. Shape (ceil(len / size),)."""
    scores = np.asarray(scores, np.float64)
    if size < 1:
        raise ValueError(f"pool of {size} scores: expected at least 1")
    return np.maximum.reduceat(scores, np.arange(0, len(scores), size)) if len(scores) else scores


def require_finite(scores: np.ndarray) -> None:
    """Raises ValueError, and what to do, where a score is not finite."""
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{(~np.isfinite(scores)).sum()} of {scores.size} validation scores are not finite;"
            " the training diverged, lower model.training.learning_rate"
        )


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
    require_finite(scores)
    _, rank = np.unique(scores, return_inverse=True)
    target = torch.cat([torch.zeros(len(background), dtype=torch.long), torch.ones(len(foreground), dtype=torch.long)])
    area = binary_auroc(torch.from_numpy(rank / max(rank.max(), 1)), target, max_fpr=None if max_fpr >= 1 else max_fpr)
    return float(area)


@dataclass(frozen=True)
class Pooling:
    """How scores become events, by the functions of the search itself (`aframe_assets.inference.clustering`).

    Attributes:
        rate: scores per second.
        boxcar: scores that are averaged into one output.
        window: of clustering, seconds.
    """

    rate: float
    boxcar: int
    window: float

    @classmethod
    def of(cls, training: Training) -> Pooling:
        """That of `config.model.training`."""
        rate = 1 / training.valid_stride
        return cls(rate, int(rate * training.integration_length) + 1, training.pool_length)

    def events(self, slides: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
        """Detection statistics of the events of all `slides`, and the livetime in seconds.

        Outputs that look back beyond the start of a slide do not count, as in a search.

        Args:
            slides: scores of each slide, in order of time.
        """
        found, outputs = [np.empty(0)], 0
        for scores in slides:
            statistic = self._statistic(np.asarray(scores, np.float64)[None])
            outputs += max(0, len(scores) - self.boxcar + 1)
            slide, sample = cluster_slides(statistic, self.rate, self.window)
            found.append(statistic[slide, sample])
        return np.concatenate(found), outputs / self.rate

    def recovered(self, slides: Sequence[np.ndarray], injected: Injected) -> np.ndarray:
        """Statistic of the loudest event that looks back on a window with the signal (signal,); -inf where there is none.

        A signal is searched for in its own slide, with the scores of the background around it and no other signal there.

        Args:
            slides: as in `events`.
            injected: the signals.
        """
        count, lead = injected.scores.shape[1], 2 * (self.boxcar + math.ceil(self.rate * self.window))
        table = np.full((len(injected.scores), count + 2 * lead), np.nan)
        for number in np.unique(injected.slide):
            rows = np.flatnonzero(injected.slide == number)
            padded = np.concatenate([np.full(lead, np.nan), slides[number], np.full(lead, np.nan)])
            table[rows] = np.lib.stride_tricks.sliding_window_view(padded, table.shape[1])[injected.first[rows]]
        table[:, lead : lead + count] = injected.scores
        statistic = self._statistic(table)
        row, sample = cluster_slides(statistic, self.rate, self.window)
        near = (sample >= lead) & (sample < lead + count + self.boxcar - 1)
        out = np.full(len(table), -np.inf)
        np.maximum.at(out, row[near], statistic[row[near], sample[near]])
        return out

    def _statistic(self, scores: np.ndarray) -> np.ndarray:
        valid = np.arange(scores.shape[1]) >= self.boxcar - 1
        return detection_statistic(scores, valid, self.boxcar)


@dataclass(frozen=True)
class Injected:
    """Signals in slides of background, one at a time, as a search meets them.

    Attributes:
        slide, first: slide of each signal, and the first window that has its merger in the kernel (signal,).
        scores: of this window and those after it that have the merger too (signal, window).
        snr: network SNR (signal,).
    """

    slide: np.ndarray
    first: np.ndarray
    scores: np.ndarray
    snr: np.ndarray


def threshold_at(events: np.ndarray, livetime: float, rate: float) -> float:
    """Statistic that a signal must exceed to have a false-alarm rate of at most `rate`.

    The rate of a statistic is the number of background events that are as loud, over their livetime. Below 1 / `livetime` no rate can
    be measured: then it is the statistic of the loudest event.

    Args:
        events: statistics of the background events, any order.
        livetime: of the background, seconds.
        rate: hertz, above 0.
    """
    ordered, allowed = np.sort(events)[::-1], math.floor(rate * livetime + 1e-9)
    return float(ordered[allowed]) if allowed < len(ordered) else -math.inf


def efficiencies(found: np.ndarray, snr: np.ndarray, edges: Sequence[float]) -> dict[str, float]:
    """Share of signals that are found: of all as `valid_efficiency`, and of each SNR bin that has signals.

    Bins [a, b) are named `valid_efficiency_snr_A_B`; the last, from the last edge on, `valid_efficiency_snr_A_up`.

    Args:
        found, snr: of each signal (signal,), bool and network SNR.
        edges: ascending.
    """
    out = {"valid_efficiency": float(np.mean(found))}
    for low, high in pairwise([*edges, math.inf]):
        inside = (snr >= low) & (snr < high)
        if inside.any():
            out[f"valid_efficiency_snr_{low:g}_{f'{high:g}' if math.isfinite(high) else 'up'}"] = float(np.mean(found[inside]))
    return out
