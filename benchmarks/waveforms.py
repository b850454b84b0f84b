"""Waveforms per CPU second, ours against PyCBC in the same run: ``python -m benchmarks.waveforms [--json] [--num N]``.

Both make the same signals of the population `end_o3_ratesandpops` with the same approximant and rule for the lowest
frequency, on one thread; PyCBC's spins are converted beforehand, outside its time. Ours is everything from parameters
to a window of 8 s. The chain goes on to strain in H1 and L1 and its SNR; PyCBC's there is a loop too, with numpy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from aframe_assets.waveforms.frames import DetectorFrame
from aframe_assets.waveforms.generation import WaveformGenerator
from aframe_assets.waveforms.parameters import lal_spins, luminosity_distance
from aframe_assets.waveforms.priors import get_prior
from aframe_assets.waveforms.projection import project
from aframe_assets.waveforms.snr import ifo_snrs
from benchmarks.table import cpu_seconds, show

RATE, DURATION, PAD, LOW, REFERENCE, HIGHPASS = 2048, 8, 2, 20.0, 50.0, 32.0
IFOS = ("H1", "L1")
APPROXIMANTS = {"IMRPhenomPv2": 2.0, "IMRPhenomD": 4.0}
"""How many times faster than the loop each has to be."""
GPU_FACTOR = 50.0


def draws(number: int) -> DetectorFrame:
    prior = get_prior("end_o3_ratesandpops")
    return prior.sample(number, 1).detector()


def pycbc_arguments(values: Mapping[str, np.ndarray], approximant: str) -> list[dict[str, Any]]:
    conditional = 1899 / (values["mass_1"] + values["mass_2"])
    low, reference = np.minimum(LOW, conditional), np.where(conditional < LOW, conditional, REFERENCE)
    spins, distance = lal_spins(values, reference), luminosity_distance(values["redshift"])
    out = []
    for i in range(len(low)):
        one = {f"spin{k}{c}": float(spins[f"s{k}{c}"][i]) for k in (1, 2) for c in "xyz"}
        if approximant != "IMRPhenomPv2":
            one |= dict.fromkeys(("spin1x", "spin1y", "spin2x", "spin2y"), 0.0)
        one |= {"mass1": values["mass_1"][i], "mass2": values["mass_2"][i], "coa_phase": values["phase"][i], "distance": distance[i]}
        one |= {"inclination": spins["inclination"][i], "f_lower": low[i], "f_ref": reference[i], "delta_t": 1 / RATE}
        out.append({"approximant": approximant} | one)
    return out


def on_window(series: Any) -> np.ndarray:
    size, merger = DURATION * RATE, -round(float(series.start_time) * RATE)
    out, samples, coalescence = np.zeros(size), series.numpy(), (DURATION - PAD) * RATE
    left, right = min(merger, coalescence), min(len(samples) - merger, size - coalescence)
    out[coalescence - left : coalescence + right] = samples[merger - left : merger + right]
    return out


def curve() -> tuple[np.ndarray, np.ndarray]:
    from pycbc.psd import aLIGOZeroDetHighPower

    df = 0.25
    psd = aLIGOZeroDetHighPower(int(RATE / 2 / df) + 1, df, 10.0).numpy().copy()
    psd[psd == 0] = 1.0
    return np.arange(len(psd)) * df, psd


def pycbc_chain(arguments: list[dict[str, Any]], values: Mapping[str, np.ndarray], psd: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    from pycbc.detector import Detector
    from pycbc.waveform import get_td_waveform

    detectors, gps = [Detector(i) for i in IFOS], 1240000000.0
    f = np.fft.rfftfreq(DURATION * RATE, 1 / RATE)
    band = f >= HIGHPASS
    weight = 4 / np.interp(f[band], *psd) / DURATION / RATE**2
    snrs = np.empty((len(arguments), len(IFOS)))
    for i, one in enumerate(arguments):
        plus, cross = (on_window(h) for h in get_td_waveform(**one))
        ra, dec, psi = (values[k][i] for k in ("ra", "dec", "psi"))
        for j, detector in enumerate(detectors):
            fp, fc = detector.antenna_pattern(ra, dec, psi, gps)
            strain = np.roll(fp * plus + fc * cross, round(detector.time_delay_from_earth_center(ra, dec, gps) * RATE))
            snrs[i, j] = np.sqrt((np.abs(np.fft.rfft(strain)[band]) ** 2 * weight).sum())
    return snrs


def milliseconds(number: int, work: Callable[[], object]) -> float:
    start = cpu_seconds()
    work()
    return 1e3 * (cpu_seconds() - start) / number


def measure(number: int) -> tuple[list[list[Any]], dict[str, Any], list[str]]:
    from pycbc.waveform import get_td_waveform

    torch.set_num_threads(1)
    rows: list[list[Any]] = []
    result: dict[str, Any] = {}
    notes = []
    values, psd = draws(number), curve()
    first = values.rows(slice(8))
    for approximant, wanted in APPROXIMANTS.items():
        arguments = pycbc_arguments(values, approximant)
        generator = WaveformGenerator(approximant, RATE, DURATION, LOW, REFERENCE, PAD)

        def loop(arguments: list[dict[str, Any]] = arguments) -> None:
            for one in arguments:
                get_td_waveform(**one)

        def chain(generator: WaveformGenerator = generator) -> np.ndarray:
            polarizations, _ = generator(values)
            return ifo_snrs(project(polarizations, values, IFOS, RATE), dict.fromkeys(IFOS, psd), IFOS, RATE, HIGHPASS)

        # tables and libraries are loaded before the clock starts
        generator(first)
        pycbc_chain(arguments[:2], values, psd)
        ours, theirs = milliseconds(number, lambda g=generator: g(values)), milliseconds(number, loop)
        whole, their_whole = milliseconds(number, chain), milliseconds(number, lambda a=arguments: pycbc_chain(a, values, psd))
        rows.append([f"{approximant}, polarisations", ours, theirs, theirs / ours, f">= {wanted:g}"])
        rows.append([f"{approximant}, to strain and SNR in {' '.join(IFOS)}", whole, their_whole, their_whole / whole, "shown"])
        result[approximant] = {
            "ours_ms": ours, "pycbc_ms": theirs, "ratio": ours / theirs,
            "chain_ms": whole, "pycbc_chain_ms": their_whole, "chain_ratio": whole / their_whole,
        }  # fmt: skip
        if torch.cuda.is_available():
            on_gpu = _gpu_milliseconds(approximant, number)
            rows.append([f"{approximant}, polarisations on the GPU (elapsed)", on_gpu, theirs, theirs / on_gpu, f">= {GPU_FACTOR:g}"])
            result[approximant]["gpu_ms"] = on_gpu
    if not torch.cuda.is_available():
        notes.append("No GPU was there (torch.cuda.is_available() is False), so no row shows one.")
    return rows, {"ratio": max(result[a]["ratio"] for a in APPROXIMANTS), "num": number, **result}, notes


def _gpu_milliseconds(approximant: str, number: int) -> float:
    # a GPU's time is no CPU time; results are on the CPU again when the call returns, so nothing is left running
    values = draws(max(number, 4096))
    generator = WaveformGenerator(approximant, RATE, DURATION, LOW, REFERENCE, PAD, device="cuda")
    generator(values)
    start = time.perf_counter()
    generator(values)
    return 1e3 * (time.perf_counter() - start) / len(values["mass_1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one line of JSON: ratio is the larger of ours / PyCBC in CPU seconds")
    parser.add_argument("--num", type=int, default=400, help="signals (default 400)")
    arguments = parser.parse_args()
    if arguments.num < 1:
        parser.error("--num must be at least 1")
    rows, result, notes = measure(arguments.num)
    title = f"CPU milliseconds per waveform, {arguments.num} draws of end_o3_ratesandpops, {DURATION} s at {RATE} Hz, one thread"
    show(title, ["", "ours", "PyCBC loop", "times faster", "wanted"], rows, result, arguments.json, notes)


if __name__ == "__main__":
    main()
