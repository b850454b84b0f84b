"""Checks of this room's assets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aframe_assets.store.job import Check

if TYPE_CHECKING:
    import numpy as np

RESULT_CHECKS = [("livetime_as_expected", True), ("every_injection_accounted", True)]
EVENT_CHECKS = [("livetime_is_the_sum", True), ("statistics_sane", True), ("signals_louder_than_noise", False)]


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


def louder_check(background: np.ndarray, foreground: np.ndarray) -> Check:
    """The median injection is louder than the median background event: a network that learnt nothing fails."""
    import numpy as np

    if not len(background) or not len(foreground):
        return Check("signals_louder_than_noise", True, "warn", "nothing to compare")
    noise, signal = float(np.median(background)), float(np.median(foreground))
    text = f"median statistic: background {noise:.3g}, injections {signal:.3g}"
    share = float((foreground > background.max()).mean())
    metadata = {"share_above_all_background": share} | ({"median_injection": signal} if np.isfinite(signal) else {})
    return Check("signals_louder_than_noise", signal > noise, "warn", text, {**metadata, "median_background": noise})
