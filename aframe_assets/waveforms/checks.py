"""What must hold of a set of signals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aframe_assets.store.job import Check, Declared

if TYPE_CHECKING:
    import numpy as np

COUNT, FINITE, THRESHOLD, TAIL = "count", "finite", "snr_threshold", "snr_distribution"
EXPONENTS = (1.0, 6.0)
"""Plausible exponents of the survival function of SNR, N(>rho) ~ rho^-a: 3 for sources even in Euclidean space
(p(rho) ~ rho^-4); less where the population ends before the threshold's horizon does."""
TAIL_SIGNALS = 100

RAW_CHECKS = [
    Declared(COUNT, True, "As many signals as asked for."),
    Declared(FINITE, True, "0 waveforms are not finite or zero throughout."),
]
"""Of a set without a cut on SNR."""
CHECKS = [
    *RAW_CHECKS,
    Declared(THRESHOLD, True, "0 signals lie below the network SNR `waveforms.snr_threshold`."),
    Declared(
        TAIL,
        False,
        f"N(> SNR) falls with an exponent of {EXPONENTS[0]:g} to {EXPONENTS[1]:g}, 3 nearby; from {TAIL_SIGNALS} signals on.",
    ),
]


def count(made: int, wanted: int, draws: int) -> Check:
    """As many signals as asked for."""
    text = "" if made == wanted else f"{made} signals, {wanted} were wanted"
    return Check(COUNT, made == wanted, "error", text, {"signals": made, "draws": draws, "accepted": made / draws if draws else 0.0})


def finite(num_bad: int, num_failed: int) -> Check:
    """Every waveform finite and not silent."""
    text = f"{num_bad} waveforms are not finite or zero throughout" if num_bad else ""
    return Check(FINITE, not num_bad, "error", text, {"bad": num_bad, "draws_not_generated": num_failed})


def silent_or_not_finite(waveforms: dict[str, np.ndarray]) -> int:
    """Rows that hold a number that is not finite, or nothing but zeros in every series."""
    import numpy as np

    if not waveforms:
        return 0
    # row by row blocks: a mask of a whole set would be as large as the set
    sums = []
    for series in waveforms.values():
        sums.append(np.concatenate([np.abs(series[i : i + 256]).max(axis=1) for i in range(0, len(series), 256)] or [np.empty(0)]))
    peaks = np.stack(sums)
    return int((~np.isfinite(peaks).all(axis=0) | ~(peaks > 0).any(axis=0)).sum())


def snr_threshold(snr: np.ndarray, threshold: float) -> Check:
    """No signal below the network SNR asked for."""
    below = int((snr < threshold).sum())
    text = f"{below} signals lie below network SNR {threshold:g}" if below else ""
    return Check(THRESHOLD, not below, "error", text, {"threshold": threshold, "below": below})


def snr_distribution(snr: np.ndarray, threshold: float) -> Check:
    """A power-law tail of plausible exponent, by Hill's estimator; not judged below `TAIL_SIGNALS` signals."""
    import numpy as np

    meta: dict[str, Any] = {"signals": len(snr)}
    if len(snr):
        meta |= {"lowest": float(snr.min()), "median": float(np.median(snr)), "highest": float(snr.max())}
    if len(snr) < TAIL_SIGNALS or threshold <= 0:
        return Check(TAIL, True, "warn", "", meta)
    exponent = len(snr) / float(np.log(snr / threshold).sum())
    meta["tail_exponent"] = exponent
    good = EXPONENTS[0] <= exponent <= EXPONENTS[1]
    span = f"between {EXPONENTS[0]:g} and {EXPONENTS[1]:g}, 3 nearby"
    return Check(TAIL, good, "warn", "" if good else f"N(> rho) falls as rho^-{exponent:.2f}; expected an exponent {span}", meta)
