"""What a cascade's filter keeps of a slide for the joint network, and from where it has its threshold.

An output whose integrated filter score is at least the threshold is a trigger. Kept are, around each trigger, the scores behind
all outputs within half a clustering window: there the statistic is that of the search without filter, and whether a trigger
is an event is settled there (`aframe_assets.inference.clustering.cluster_slides`, with what was not kept as unknown).

The threshold is one number for background, zero lag and injections of all segments. It follows from the scores that the
filter gave the slid background of the training time, and from no test data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aframe_assets.inference.clustering import detection_statistic, half_window

if TYPE_CHECKING:
    from aframe_assets.config import Inference
    from aframe_assets.engine.engine import Engine


@dataclass(frozen=True)
class Reach:
    """How far around a trigger scores are needed, in outputs.

    Attributes:
        half: half of the clustering window.
        boxcar: of the integration.
    """

    half: int
    boxcar: int

    @classmethod
    def of(cls, inference: Inference) -> Reach:
        """Under these settings."""
        rate = inference.inference_rate
        return cls(half_window(rate, inference.cluster_window_length), int(rate * inference.integration_window_length) + 1)

    @property
    def before(self) -> int:
        """Outputs before a trigger."""
        return self.half + self.boxcar - 1

    @property
    def after(self) -> int:
        """Outputs after a trigger."""
        return self.half

    def dilate(self, triggers: np.ndarray) -> np.ndarray:
        """Outputs [..., time] whose scores are needed around `triggers` [..., time], bool."""
        # a sliding maximum by doubling: `out` looks at `width` samples, the first of them `after` samples back
        size, time = self.before + self.after + 1, triggers.shape[-1]
        out = np.zeros((*triggers.shape[:-1], time + size - 1), triggers.dtype)
        out[..., self.after : self.after + time] = triggers
        return _sliding_max(out, size)

    def loudest(self, statistic: np.ndarray) -> np.ndarray:
        """For every output [..., time] the largest statistic of a trigger that would keep it."""
        size, time = self.before + self.after + 1, statistic.shape[-1]
        out = np.full((*statistic.shape[:-1], time + size - 1), -np.inf)
        out[..., self.after : self.after + time] = statistic
        return _sliding_max(out, size)


def _sliding_max(x: np.ndarray, size: int) -> np.ndarray:
    """Maxima of `size` consecutive samples of [..., time], [..., time - size + 1]."""
    width = 1
    while width < size:
        step = min(width, size - width)
        x = np.maximum(x[..., step:], x[..., :-step])
        width += step
    return x


@dataclass(frozen=True)
class TriggerChooser:
    """The `Chooser` of a cascade (`aframe_assets.inference.scoring`).

    Attributes:
        threshold: smallest integrated filter score of a trigger.
        reach: what is kept around a trigger.
    """

    threshold: float
    reach: Reach

    def triggers(self, scores: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Triggers among the outputs [slide, output], bool.

        Args:
            scores: of the filter, NaN where not wanted.
            wanted: outputs that the search asks for; one without all scores of its integration is no trigger.
        """
        return detection_statistic(scores, wanted, self.reach.boxcar) >= max(self.threshold, np.finfo(float).min)

    def keep(self, scores: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """See `Chooser.keep`."""
        return self.reach.dilate(self.triggers(scores, wanted)) & wanted


@dataclass(frozen=True)
class FilterThreshold:
    """A threshold and what it keeps of the background it was found on.

    Attributes:
        value: integrated filter score.
        share: of outputs that are kept.
        livetime: seconds of slid background.
        stretches: separate stretches that are kept; few of them make `share` uncertain.
    """

    value: float
    share: float
    livetime: float
    stretches: int

    @classmethod
    def of(cls, slides: Sequence[np.ndarray], inference: Inference) -> FilterThreshold:
        """The lowest threshold that keeps at most ``inference.cascade.keep`` of background after dilation.

        An output is kept if the largest integrated score of the triggers that would keep it reaches the threshold, so the share
        is the distribution of that maximum.

        Args:
            slides: filter scores of stretches of slid background, at the inference rate.
            inference: rates, windows and share.

        Raises:
            ValueError: no stretch is as long as integration and clustering window together, or the share is less than one such.
        """
        reach, keep = Reach.of(inference), inference.cascade.keep
        loudest = []
        for scores in slides:
            if len(scores) >= reach.before + reach.after + 1:
                valid = np.arange(len(scores)) >= reach.boxcar - 1
                loudest.append(reach.loudest(detection_statistic(scores, valid, reach.boxcar)))
        if not loudest:
            need = (reach.before + reach.after + 1) / inference.inference_rate
            raise ValueError(
                f"background scores of the filter last {max(map(len, slides), default=0) / inference.inference_rate:g} s at most; "
                f"expected stretches of at least {need:g} s to find its threshold: longer validation chunks in filter_model"
            )
        joined = np.sort(np.concatenate(loudest))[::-1]
        count = int(keep * len(joined) + 1e-9)
        value = -np.inf
        if count < len(joined):
            # between the loudest that would be too much and the next, far from the rounding of both
            above = joined[: np.searchsorted(-joined, -joined[count], side="left")]
            value = max(float((joined[count] + above[-1]) / 2) if len(above) else -np.inf, float(np.nextafter(joined[count], np.inf)))
        if count < reach.before + reach.after + 1:
            window, seconds = ((n / inference.inference_rate) for n in (reach.before + reach.after + 1, len(joined)))
            raise ValueError(
                f"inference.cascade.keep = {keep:g}: of the {seconds:g} s of slid background that the filter scored this is less than the "
                f"{window:g} s around one trigger; expected a larger share, or a filter_model made with more model.training.valid_livetime"
            )
        stretches = sum(int((np.diff(np.concatenate([[False], x >= value]).astype(np.int8)) == 1).sum()) for x in loudest)
        return cls(value, float((joined >= value).mean()), len(joined) / inference.inference_rate, stretches)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> FilterThreshold:
        """Of `as_meta`."""
        value = -np.inf if meta["threshold"] is None else float(meta["threshold"])
        return cls(value, float(meta["share"]), float(meta["livetime"]), int(meta["stretches"]))

    def as_meta(self) -> dict[str, Any]:
        """Plain data; -inf, with which all is kept, is None."""
        return {
            "threshold": self.value if np.isfinite(self.value) else None,
            "share": self.share,
            "livetime": self.livetime,
            "stretches": self.stretches,
        }


def unfiltered(engine: Engine) -> Engine:
    """The same engine with which everything is scored by the joint network."""
    out = copy(engine)
    out.filter = None
    return out
