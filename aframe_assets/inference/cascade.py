"""What a cascade's filter keeps of a slide for the joint network, and from where it has its thresholds.

An output whose integrated filter score reaches a threshold is a trigger. The joint network scores what is integrated there, and
where its statistic reaches a threshold as well, all outputs within half a clustering window of the trigger are kept: there the
statistic is that of the search without filter, and whether the trigger is an event is settled there
(`aframe_assets.inference.clustering.cluster_slides`, with what was not kept as unknown). Judging a trigger costs a third of what
keeping it costs, so that the filter may let through three times as many.

Both thresholds are one number for background, zero lag and injections of all segments. They follow from the scores that the
two networks gave the slid background of the training time, and from no test data.
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

AROUND = 0.2
"""Of the share that the joint network may score, what is for the surroundings of triggers that are loud in it."""

MARGIN = 0.9
"""Of the share that is allowed, what the thresholds aim at: noise of another time may have more triggers than that they were found on."""

_LOWEST = np.finfo(float).min
"""The threshold of all that has a statistic at all."""


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

    @property
    def near(self) -> Reach:
        """What settles the statistic of a trigger, and no more."""
        return Reach(0, self.boxcar)

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
        filtered: smallest integrated filter score of a trigger.
        joint: smallest statistic of a trigger that is kept.
        reach: what is kept around it.
    """

    filtered: float
    joint: float
    reach: Reach

    @classmethod
    def of(cls, thresholds: Thresholds, inference: Inference) -> TriggerChooser:
        """With these thresholds."""
        return cls(thresholds.filtered.value, thresholds.joint.value, Reach.of(inference))

    @property
    def span(self) -> int:
        """See `Chooser`."""
        return self.reach.boxcar - 1

    def triggers(self, scores: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Triggers among the outputs [slide, output], bool.

        Args:
            scores: of the filter, NaN where not wanted.
            wanted: outputs that the search asks for; one without all scores of its integration is no trigger.
        """
        return detection_statistic(scores, wanted, self.reach.boxcar) >= max(self.filtered, _LOWEST)

    def look(self, scores: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """See `Chooser.look`: what is integrated at the triggers."""
        return self.reach.near.dilate(self.triggers(scores, wanted)) & wanted

    def keep(self, scores: np.ndarray, seen: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """See `Chooser.keep`."""
        triggers = self.triggers(scores, wanted)
        loud = detection_statistic(np.where(np.isnan(seen), 0.0, seen), triggers, self.reach.boxcar) >= max(self.joint, _LOWEST)
        return self.reach.dilate(triggers & loud) & wanted


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it keeps of the background it was found on.

    Attributes:
        value: integrated score.
        share: of outputs that are kept.
        livetime: seconds of slid background.
        stretches: separate stretches that are kept; few of them make `share` uncertain.
    """

    value: float
    share: float
    livetime: float
    stretches: int

    @classmethod
    def of(cls, slides: Sequence[np.ndarray], reach: Reach, rate: float, keep: float) -> Threshold:
        """The lowest threshold that keeps at most the share `keep` of background after dilation by `reach`.

        An output is kept if the largest integrated score of the triggers that would keep it reaches the threshold, so the share
        is the distribution of that maximum.

        Args:
            slides: scores of stretches of slid background.
            reach: what a trigger keeps.
            rate: scores per second.
            keep: 0 ... 1.

        Raises:
            ValueError: no stretch is as long as the reach, or the share is less than one such.
        """
        size, loudest = reach.before + reach.after + 1, []
        for scores in slides:
            if len(scores) >= size:
                valid = np.arange(len(scores)) >= reach.boxcar - 1
                loudest.append(reach.loudest(detection_statistic(scores, valid, reach.boxcar)))
        if not loudest:
            raise ValueError(
                f"background scores last {max(map(len, slides), default=0) / rate:g} s at most; expected stretches of at least "
                f"{size / rate:g} s to find a cascade's thresholds: longer validation chunks where the network was trained"
            )
        joined = np.sort(np.concatenate(loudest))[::-1]
        count = int(keep * len(joined) + 1e-9)
        value = -np.inf
        if count < len(joined):
            # between the loudest that would be too much and the next, far from the rounding of both
            above = joined[: np.searchsorted(-joined, -joined[count], side="left")]
            value = max(float((joined[count] + above[-1]) / 2) if len(above) else -np.inf, float(np.nextafter(joined[count], np.inf)))
        if count < size:
            raise ValueError(
                f"inference.cascade.keep: the share {keep:g} of {len(joined) / rate:g} s of slid background that a network scored is less "
                f"than the {size / rate:g} s around one trigger; expected a larger share, or networks trained with more "
                "model.training.background_livetime"
            )
        stretches = sum(int((np.diff(np.concatenate([[False], x >= value]).astype(np.int8)) == 1).sum()) for x in loudest)
        return cls(value, float((joined >= value).mean()), len(joined) / rate, stretches)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Threshold:
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


@dataclass(frozen=True)
class Thresholds:
    """Of the two steps of a cascade.

    Attributes:
        filtered: of the integrated filter score; its share is what the joint network scores to judge the triggers.
        joint: of the statistic; its share is what is kept around triggers that are loud in it, or more.
    """

    filtered: Threshold
    joint: Threshold

    @classmethod
    def of(cls, filtered: Sequence[np.ndarray], joint: Sequence[np.ndarray], inference: Inference) -> Thresholds:
        """The lowest with which at most MARGIN of ``inference.cascade.keep`` is scored by the joint network.

        Args:
            filtered, joint: scores of slid background of the filter and of the joint network, at the inference rate; need not be of
                the same background.
            inference: rates, windows and share.

        Raises:
            ValueError: too little background.
        """
        reach, rate, keep = Reach.of(inference), inference.inference_rate, inference.cascade.keep
        around = 1.0 if keep == 1 else AROUND * MARGIN * keep
        near = 1.0 if keep == 1 else MARGIN * keep - around
        return cls(Threshold.of(filtered, reach.near, rate, near), Threshold.of(joint, reach, rate, around))

    @property
    def share(self) -> float:
        """The largest share of background that the joint network scores, where both thresholds were found."""
        return min(1.0, self.filtered.share + self.joint.share)

    @property
    def scatter(self) -> float:
        """Standard deviation of `share` at least: separate stretches come as a Poisson process does."""
        return sum(t.share**2 / max(1, t.stretches) for t in (self.filtered, self.joint)) ** 0.5

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Thresholds:
        """Of `as_meta`."""
        return cls(Threshold.from_meta(meta["filtered"]), Threshold.from_meta(meta["joint"]))

    def as_meta(self) -> dict[str, Any]:
        """Plain data."""
        return {"filtered": self.filtered.as_meta(), "joint": self.joint.as_meta()}


def unfiltered(engine: Engine) -> Engine:
    """The same engine with which everything is scored by the joint network."""
    out = copy(engine)
    out.filter = None
    return out
