"""Checks of this room's assets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aframe_assets.store.job import Check, Declared

if TYPE_CHECKING:
    import numpy as np

    from aframe_assets.inference.audit import Audit

RESULT_CHECKS = [
    Declared("livetime_as_expected", True, "Livetime that was scored equals what the slides' geometry gives, to one output."),
    Declared("every_injection_accounted", True, "Every injection that was placed is in the foreground, found or missed."),
]
EVENT_CHECKS = [
    Declared("livetime_is_the_sum", True, "Livetime equals the sum over segments, to one output."),
    Declared("statistics_sane", True, "0 detection statistics are NaN or infinite; -inf only for missed injections."),
    Declared("signals_louder_than_noise", False, "The median injection is louder than the median background event."),
]
CASCADE_RESULT_CHECKS = [
    Declared("cascade_keeps_its_share", False, "The joint network scored at most twice the share `inference.cascade.keep` of outputs.")
]
"""Of `inference_results`, where there is a filter."""
CASCADE_EVENT_CHECKS = [
    Declared(
        "cascade_loses_nothing",
        False,
        "Of slides searched twice, the filter loses at most the share `inference.cascade.max_loss` of injections at one per day.",
    ),
    Declared("cascade_share_of_the_run", False, "The joint network scored at most the share `inference.cascade.keep` of all outputs."),
]
"""Of `events`, where there is a filter."""


def livetime_check(name: str, found: Mapping[str, float], expected: Mapping[str, float], rate: float) -> Check:
    """Livetimes (seconds) that were counted equal those that are due, to the output.

    Args:
        found, expected: kind -> seconds.
        rate: outputs per second; livetimes are whole numbers of outputs, compared as such.
    """
    wrong = {k: (found[k], expected[k]) for k in expected if round(found[k] * rate) != round(expected[k] * rate)}
    text = "; ".join(f"{k}: {a:g} s counted, {b:g} s due: outputs are missing or not finite" for k, (a, b) in wrong.items())
    return Check(name, not wrong, description=text, metadata={f"{k}_livetime": float(v) for k, v in found.items()})


def accounted_check(found: int, placed: int) -> Check:
    """Every injection that was placed is in the foreground, found or missed."""
    text = "" if found == placed else f"{placed} injections were placed, {found} are in the foreground"
    return Check("every_injection_accounted", found == placed, description=text, metadata={"placed": placed, "in_foreground": found})


def sane_check(background: np.ndarray, zero_lag: np.ndarray, foreground: np.ndarray) -> Check:
    """No NaN anywhere, no infinite event, and -inf only for missed injections."""
    import numpy as np

    bad = int((~np.isfinite(background)).sum() + (~np.isfinite(zero_lag)).sum() + (np.isnan(foreground) | (foreground == np.inf)).sum())
    text = f"{bad} detection statistics are not numbers" if bad else ""
    return Check(
        "statistics_sane",
        not bad,
        description=text,
        metadata={"background": len(background), "zero_lag": len(zero_lag), "foreground": len(foreground)},
    )


def louder_check(background: np.ndarray, foreground: np.ndarray, filtered: bool = False) -> Check:
    """The median injection is louder than the median background event: a network that learnt nothing fails.

    Where a filter lets only the loudest through (`filtered`), injections that it dropped are compared no more than the noise that it
    dropped is.
    """
    import numpy as np

    if filtered:
        foreground = foreground[np.isfinite(foreground)]
    if not len(background) or not len(foreground):
        return Check("signals_louder_than_noise", True, "warn", "nothing to compare")
    noise, signal = float(np.median(background)), float(np.median(foreground))
    text = f"median statistic: background {noise:.3g}, injections {signal:.3g}"
    share = float((foreground > background.max()).mean())
    metadata = {"share_above_all_background": share} | ({"median_injection": signal} if np.isfinite(signal) else {})
    return Check("signals_louder_than_noise", signal > noise, "warn", text, {**metadata, "median_background": noise})


def share_check(kept: int, asked: int, keep: float) -> Check:
    """Of a segment: the joint network scored no more than twice the share `keep` of `asked` outputs: more costs time, nothing else.

    Twice, since the filter's threshold is one number and noise differs from segment to segment; the run's share is compared with
    `keep` itself (`run_share_check`).
    """
    share = kept / asked if asked else 0.0
    text = f"{share:.3g} of the outputs of slides were scored by the joint network; inference.cascade.keep is {keep:g}"
    return Check("cascade_keeps_its_share", share <= 2 * keep, "warn", text, {"share": share, "kept": kept, "outputs": asked})


def run_share_check(segments: Sequence[tuple[int, int]], thresholds: Mapping[str, Any] | None, keep: float) -> Check:
    """Of all segments together: the joint network scored no more than the share `keep` of the outputs.

    Args:
        segments: outputs (kept, asked) of each.
        thresholds: `Thresholds.as_meta`, which says how well the share is known from validation background; None of no search.
        keep: ``inference.cascade.keep``.
    """
    from aframe_assets.inference.cascade import Thresholds

    name = "cascade_share_of_the_run"
    kept, asked = (sum(s[i] for s in segments) for i in (0, 1))
    if not asked or thresholds is None:
        return Check(name, False, "warn", "not tested: the filter was asked for no output")
    share, shares = kept / asked, [k / n for k, n in segments if n]
    validation = Thresholds.from_meta(thresholds)
    text = (
        f"{share:.3g} of the outputs of all slides were scored by the joint network, in segments from {min(shares):.3g} to "
        f"{max(shares):.3g}; inference.cascade.keep is {keep:g}. Of validation background its thresholds keep "
        f"{validation.filtered.share:.3g} of {validation.filtered.livetime:.0f} s to judge triggers, {validation.filtered.stretches} "
        f"stretches, and at most {validation.joint.share:.3g} of {validation.joint.livetime:.0f} s around loud ones, "
        f"{validation.joint.stretches} stretches: a scatter of {validation.scatter:.1g} at least"
    )
    return Check(name, share <= keep, "warn", text, {"share": share, "kept": kept, "outputs": asked, "scatter": validation.scatter})


def loss_check(
    audit: Audit, background: np.ndarray, livetime: float, max_loss: float, tolerance: float = 0.0, least: float = float("-inf")
) -> Check:
    """What the filter loses of the audited slides: injections at a FAR of one per day of this run's background, and the loudest events.

    A sample with neither a found injection nor an event shows nothing, and does not pass.

    Args:
        audit: of all segments.
        background: statistics of all slid events of the run, `livetime` seconds.
        max_loss: largest accepted share of injections.
        tolerance: accepted difference of a statistic, of an engine of reduced precision (see `Loss.largest_difference`).
        least: smallest statistic that the cascade keeps.
    """
    from aframe_assets.inference.audit import daily_threshold

    name = "cascade_loses_nothing"
    if not audit.livetime:
        lacks = "no slide was searched without the filter: inference.cascade.audit_slides is 0, or there are none"
        return Check(name, False, "warn", f"not tested: {lacks}")
    threshold, far = daily_threshold(background, livetime)
    loss = audit.loss(threshold, least)
    # so many are kept that a FAR of one per day has a statistic; else nothing can be said of it
    enough = threshold > float("-inf") or not len(audit.statistic)
    text = (
        f"lost in {loss.livetime:.0f} s of slides searched twice: at a FAR of {far:.2g} per day injections {loss.injections} and "
        f"background events {loss.events}; of the loudest background events, to a FAR of {loss.loudest.of / loss.livetime * 86400:.2g} "
        f"per day, {loss.loudest}; statistics differ by {loss.difference:.2g} at most (accepted {loss.largest_difference(tolerance):.2g})"
    )
    if loss.unmatched:
        text += f"; {loss.unmatched} events only with the filter, which should be none"
    lacks = loss.untested()
    if lacks:
        text = f"not tested: {' and '.join(lacks)}, so raise inference.cascade.audit_slides. {text}"
    elif not enough:
        text = f"the filter keeps fewer background events than one a day; raise inference.cascade.keep. {text}"
    passed = enough and not lacks and loss.acceptable(max_loss, tolerance)
    return Check(name, passed, "warn", text, {**loss.as_meta(), "far_per_day": far})
