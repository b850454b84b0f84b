"""One signal at a time from lalsimulation, conditioned by it (faded in below the minimum frequency, high-passed, tapered).

Also the program of a worker: ``python -m aframe_assets.waveforms.lalsim`` serves the pool of `lalsim_pool` on its
standard streams.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aframe_assets.waveforms.approximants import PYSEOBNR

PARAMETERS = ("mass_1", "mass_2", "s1x", "s1y", "s1z", "s2x", "s2y", "s2z", "distance", "inclination", "phase", "f_low", "f_ref")
"""What a signal is made of: solar masses, dimensionless spins in LAL's frame at f_ref, Mpc, radians, Hz."""
EDGE = 64
"""Samples of zeros around a signal when it is moved by a part of a sample."""


@dataclass(frozen=True)
class Window:
    """Where signals are put: `size` samples at `sample_rate` Hz with coalescence at sample `coalescence`."""

    approximant: str
    sample_rate: float
    size: int
    coalescence: int


def signal(window: Window, parameters: Mapping[str, float]) -> tuple[int, np.ndarray] | None:
    """One signal on a window.

    Args:
        window: what is made, and where it lies.
        parameters: `PARAMETERS`, numbers.

    Returns:
        The first sample and the signal from there, (2, samples) float64: cross and plus; nothing outside the window.
        None where lalsimulation refuses the parameters or returns no finite number.
    """
    make = _gwsignal if window.approximant in PYSEOBNR else _lalsimulation
    with _Quiet():
        try:
            series, epoch = make(window, parameters)
        except (RuntimeError, ValueError, ArithmeticError):
            # lalsimulation's own way to say that a model does not hold there
            return None
    if not np.isfinite(series).all():
        return None
    merger = -epoch * window.sample_rate
    series, merger = _on_samples(series, merger)
    begin = window.coalescence - merger
    left, right = max(0, -begin), min(series.shape[1], window.size - begin)
    if right <= left:
        return None
    return begin + left, np.ascontiguousarray(series[:, left:right])


def _on_samples(series: np.ndarray, merger: float) -> tuple[np.ndarray, int]:
    """Move a signal whose coalescence lies between two samples (models of the time domain) onto one, by the shift theorem."""
    whole = round(merger)
    # an epoch is given in whole nanoseconds
    if abs(merger - whole) < 1e-4:
        return series, whole
    n = series.shape[1] + 2 * EDGE
    fast = 1 << (n - 1).bit_length()
    spectrum = np.fft.rfft(np.pad(series, ((0, 0), (EDGE, fast - n + EDGE))))
    spectrum *= np.exp(-2j * np.pi * np.fft.rfftfreq(fast) * (whole - merger))
    return np.fft.irfft(spectrum, fast)[:, :n], whole + EDGE


def _lalsimulation(window: Window, p: Mapping[str, float]) -> tuple[np.ndarray, float]:
    import lal
    import lalsimulation as ls

    model = ls.GetApproximantFromString(window.approximant)
    support = ls.SimInspiralGetSpinSupportFromApproximant(model)
    spins = [p[k] for k in ("s1x", "s1y", "s1z", "s2x", "s2y", "s2z")]
    if support in (ls.SIM_INSPIRAL_SPINLESS, ls.SIM_INSPIRAL_ALIGNEDSPIN):
        spins = [s if k in (2, 5) and support == ls.SIM_INSPIRAL_ALIGNEDSPIN else 0.0 for k, s in enumerate(spins)]
    masses = p["mass_1"] * lal.MSUN_SI, p["mass_2"] * lal.MSUN_SI
    place = p["distance"] * 1e6 * lal.PC_SI, p["inclination"], p["phase"], 0.0, 0.0, 0.0
    plus, cross = ls.SimInspiralTD(*masses, *spins, *place, 1 / window.sample_rate, p["f_low"], p["f_ref"], None, model)
    return np.stack([cross.data.data, plus.data.data]), float(plus.epoch)


def _gwsignal(window: Window, p: Mapping[str, float]) -> tuple[np.ndarray, float]:
    from astropy import units as u
    from lalsimulation.gwsignal import gwsignal_get_waveform_generator
    from lalsimulation.gwsignal.core.errors import WaveformGenerationError
    from lalsimulation.gwsignal.core.waveform import GenerateTDWaveform

    generator = gwsignal_get_waveform_generator(window.approximant)
    precessing = window.approximant.endswith("PHM")
    spins = {f"spin{i}{c}": (p[f"s{i}{c}"] if precessing or c == "z" else 0.0) * u.dimensionless_unscaled for i in (1, 2) for c in "xyz"}
    given = {
        "mass1": p["mass_1"] * u.solMass,
        "mass2": p["mass_2"] * u.solMass,
        **spins,
        "deltaT": u.s / window.sample_rate,
        "f22_start": p["f_low"] * u.Hz,
        "f22_ref": p["f_ref"] * u.Hz,
        "phi_ref": p["phase"] * u.rad,
        "distance": p["distance"] * u.Mpc,
        "inclination": p["inclination"] * u.rad,
        "eccentricity": 0.0 * u.dimensionless_unscaled,
        "longAscNodes": 0.0 * u.rad,
        "meanPerAno": 0.0 * u.rad,
        "condition": 1,
    }
    try:
        plus, cross = GenerateTDWaveform(given, generator)
    except WaveformGenerationError as e:
        # a plain Exception, unlike all else that says that a model does not hold there
        raise ValueError(str(e)) from e
    return np.stack([np.asarray(cross.value, float), np.asarray(plus.value, float)]), float(plus.t0.value)


class _Quiet:
    """No messages of LAL about parameters that it refuses: each is counted as a failed draw."""

    def __enter__(self) -> None:
        import lal

        self._level = lal.GetDebugLevel()
        lal.ClobberDebugLevel(0)

    def __exit__(self, *_: object) -> None:
        import lal

        lal.ClobberDebugLevel(self._level)


def serve() -> None:
    """Answer requests until the parent closes its end, so that a worker never outlives who started it.

    A request is a pickled (window, list of parameters), the answer the list of what `signal` gives, or the exception.
    """
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # what lalsimulation may print is no answer
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    while True:
        try:
            window, several = pickle.load(requests)
        except EOFError:
            return
        try:
            answer: object = [signal(window, p) for p in several]
        except Exception as e:
            answer = RuntimeError(f"{type(e).__name__}: {e}")
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    serve()
