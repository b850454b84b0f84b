"""What a cascade loses: slides that were searched both with and without the filter, compared event by event.

A few slides of every segment, the same ones whenever it is searched. Loss of injections is told at the statistic whose FAR in this
run's own background is one per day, and that of background also among the loudest events of these slides, whose livetime is
seldom long enough for events so rare; with the bounds that the sample's size allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from aframe_assets.inference.injected import Foreground
from aframe_assets.waveforms.ledger import EventSet

if TYPE_CHECKING:
    from aframe_assets.inference.slides import Pass, Shift

AUDIT = "audit.hdf5"

LOUDEST = 20
"""Background events of the audited slides of which none may be lost."""

SAME = 1e-4
"""Largest accepted difference of the statistic of an event with and without the filter, in standard deviations of all events'."""

CONFIDENCE = 0.9
"""Of each one-sided bound on a share."""

_DAY = 86_400.0


def audited(shifts: Sequence[tuple[float, ...]], with_signals: Sequence[tuple[float, ...]], num: int, seed: int) -> list[tuple[float, ...]]:
    """`num` of `shifts` (all, if there are fewer), drawn by `seed`; first those with injections, which show both kinds of loss."""
    order = np.random.default_rng(seed).permutation(len(shifts))
    injected = set(with_signals)
    chosen = sorted(order.tolist(), key=lambda i: shifts[i] not in injected)[:num]
    return [shifts[i] for i in sorted(chosen)]


@dataclass(frozen=True)
class Audit:
    """The same slides with and without the filter.

    Attributes:
        statistic: of the background events found without it (n,).
        kept: whether the search with the filter has the same event (n,), bool.
        injections, filtered: statistic of every injection without and with it (m,), -inf where missed.
        livetime: seconds of slides.
        unmatched: events that only the search with the filter has.
        difference: largest difference of the statistic of an event in the two, by rounding.
    """

    statistic: np.ndarray
    kept: np.ndarray
    injections: np.ndarray
    filtered: np.ndarray
    livetime: float
    unmatched: int
    difference: float

    @classmethod
    def of(cls, full: EventSet, filtered: EventSet, injections: np.ndarray, filtered_injections: np.ndarray) -> Audit:
        """Compare the events of the same slides, without and with the filter.

        Args:
            full, filtered: events; the livetime is that of `full`.
            injections, filtered_injections: statistics of the same injections, -inf where missed.

        Raises:
            ValueError: livetimes or numbers of injections differ.
        """
        if full.Tb != filtered.Tb or len(injections) != len(filtered_injections):
            raise ValueError(
                f"audit of {full.Tb:g} s with {len(injections)} injections, with the filter {filtered.Tb:g} s with "
                f"{len(filtered_injections)}; expected the same: an output that is not kept counts as searched"
            )
        theirs = dict(zip(_names(filtered), filtered.detection_statistic.tolist(), strict=True))
        names = _names(full)
        kept = np.array([n in theirs for n in names], bool)
        same = np.array([theirs[n] for n, k in zip(names, kept, strict=True) if k])
        difference = float(np.abs(same - full.detection_statistic[kept]).max(initial=0.0))
        arrays = (full.detection_statistic, kept, np.asarray(injections, np.float64), np.asarray(filtered_injections, np.float64))
        return cls(*arrays, full.Tb, len(filtered) - int(kept.sum()), difference)

    @classmethod
    def concatenate(cls, parts: Sequence[Audit]) -> Audit:
        """All `parts` as one; of none, an empty one."""
        arrays = {
            n: np.concatenate([np.empty(0, kind), *(getattr(p, n) for p in parts)])
            for n, kind in (("statistic", float), ("kept", bool), ("injections", float), ("filtered", float))
        }
        unmatched, difference = sum(p.unmatched for p in parts), max((p.difference for p in parts), default=0.0)
        return cls(**arrays, livetime=sum(p.livetime for p in parts), unmatched=unmatched, difference=difference)

    def write(self, path: Path) -> Path:
        """As HDF5: a data set or an attribute for each attribute of this class."""
        with h5py.File(path, "w") as f:
            for field in fields(self):
                value = getattr(self, field.name)
                if isinstance(value, np.ndarray):
                    f.create_dataset(field.name, data=value)
                else:
                    f.attrs[field.name] = value
        return path

    @classmethod
    def read(cls, path: Path) -> Audit:
        """What `write` wrote."""
        with h5py.File(path) as f:
            arrays = {k: v[:] for k, v in f.items()}
            return cls(
                **arrays, livetime=float(f.attrs["livetime"]), unmatched=int(f.attrs["unmatched"]), difference=float(f.attrs["difference"])
            )

    def loss(self, threshold: float, least: float = -np.inf) -> Loss:
        """Of events and injections at or above `threshold`, and of the LOUDEST events whatever it is, how many the filter loses.

        Args:
            threshold: of the statistic.
            least: smallest statistic that the cascade keeps; quieter events are not among the LOUDEST.
        """
        loud, found = self.statistic >= threshold, _found(self.injections, threshold)
        loudest = [i for i in np.argsort(-self.statistic, kind="stable")[:LOUDEST] if self.statistic[i] >= least]
        return Loss(
            threshold,
            Count.among(~self.kept[loud]),
            Count.among(~self.kept[loudest]),
            Count.among(~_found(self.filtered[found], threshold)),
            self.livetime,
            self.unmatched,
            len(self.statistic),
            self.difference,
            float(self.statistic.std()) if len(self.statistic) else 0.0,
        )


def search_again(run: Pass, shifts: Sequence[Shift], signals: Path | None, background: EventSet, foreground: Foreground) -> Audit:
    """The slides of `shifts` without the filter, beside what the pass of a cascade has found in them.

    Args:
        run: the pass; the windows that are scored here are added to its 'audit'.
        shifts: among those that it searched.
        signals: ledger file of its injections, or None.
        background, foreground: what it found.
    """
    full = copy(run)
    full.scorer, full.windows = run.scorer.second, dict.fromkeys(run.windows, 0)
    again, events, filtered = Foreground(full, signals), [], []
    for shift in shifts:
        scores, valid = full.scores(run.geometry, [shift], "background")
        events.append(full.events(run.geometry, [shift], scores, valid))
        again.add([shift], scores, valid)
        filtered.append(background.select_shift(shift))
        # a part of a set keeps the livetime of the whole
        filtered[-1].Tb = run.geometry.livetime(shift)
    run.windows["audit"] += sum(full.windows.values())
    if not shifts:
        return Audit.concatenate([])
    joined = EventSet.concatenate(events), EventSet.concatenate(filtered)
    return Audit.of(*joined, again.statistics(shifts), foreground.statistics(shifts))


def _found(statistic: np.ndarray, threshold: float) -> np.ndarray:
    return (statistic >= threshold) & (statistic > -np.inf)


def _names(events: EventSet) -> list[tuple[float, ...]]:
    if not len(events):
        return []
    # times are those of outputs, made by one formula for both searches: equal to the bit
    shifts = np.asarray(events.shift, np.float64).reshape(len(events), -1)
    return list(map(tuple, np.column_stack([events.detection_time, shifts]).tolist()))


@dataclass(frozen=True)
class Count:
    """How many of how many were lost.

    Attributes:
        lost, of: numbers.
    """

    lost: int
    of: int

    @classmethod
    def among(cls, lost: np.ndarray) -> Count:
        """Of a bool for each."""
        return cls(int(lost.sum()), len(lost))

    @property
    def upper(self) -> float:
        """The share lost is below this with CONFIDENCE (Clopper and Pearson 1934, one-sided); 1 where nothing was looked at."""
        from scipy.stats import beta

        return float(beta.ppf(CONFIDENCE, self.lost + 1, self.of - self.lost)) if self.of > self.lost else 1.0

    def __str__(self) -> str:
        return f"{self.lost} of {self.of} (< {self.upper:.2g} at {CONFIDENCE:.0%})"


@dataclass(frozen=True)
class Loss:
    """What an audit says at one threshold.

    Attributes:
        threshold: of the statistic.
        events: background events at or above it.
        loudest: the LOUDEST of all that the cascade would keep, above it or not.
        injections: injections at or above it without the filter; lost are those below it with the filter.
        livetime: seconds of slides searched twice.
        unmatched, num_events: events that only the filtered search has; events of the full one.
        difference: see `Audit`.
        spread: standard deviation of the statistics of the full search's events.
    """

    threshold: float
    events: Count
    loudest: Count
    injections: Count
    livetime: float
    unmatched: int
    num_events: int
    difference: float
    spread: float

    def largest_difference(self, tolerance: float = 0.0) -> float:
        """What `difference` may be: SAME of the spread, or `tolerance` of an engine of reduced precision if that is more."""
        return max(SAME * self.spread, tolerance)

    def untested(self) -> list[str]:
        """What the sample had none of, so that nothing of it could be lost."""
        lacks = [] if self.injections.of else ["no injection at or above the threshold was found without the filter"]
        return lacks + ([] if self.loudest.of else ["no background event that a cascade keeps was found without it"])

    def acceptable(self, max_loss: float, tolerance: float = 0.0) -> bool:
        """At most `max_loss` of injections, none of the loudest events, the same statistics, and no event the full search has not.

        One event in a thousand may be another one: rounding can decide which of two equally loud neighbours is the peak.
        """
        few = self.injections.lost <= max_loss * self.injections.of
        same = self.difference <= self.largest_difference(tolerance)
        return few and not self.loudest.lost and same and self.unmatched <= 1e-3 * self.num_events

    def as_meta(self) -> dict[str, Any]:
        """Plain numbers."""
        out: dict[str, Any] = {n: getattr(self, n) for n in ("livetime", "unmatched", "difference", "spread")}
        if np.isfinite(self.threshold):
            out["threshold"] = self.threshold
        for name in ("events", "loudest", "injections"):
            count = getattr(self, name)
            out |= {f"{name}_lost": count.lost, f"{name}_of": count.of, f"{name}_lost_below": count.upper}
        return out


def daily_threshold(background: np.ndarray, livetime: float) -> tuple[float, float]:
    """Smallest statistic whose FAR is at most one per day, and that FAR per day; with less background than a day, its loudest event's.

    Args:
        background: statistics of all slid events of the run.
        livetime: of its slides, seconds.

    Returns:
        (statistic, FAR per day); (-inf, FAR) where there are fewer events than one a day, so that all of them count.
    """
    rank = max(1, int(livetime / _DAY))
    if len(background) < rank:
        return -np.inf, len(background) / livetime * _DAY if livetime else 0.0
    return float(np.sort(background)[-rank]), rank / livetime * _DAY
