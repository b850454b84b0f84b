"""Q-scans and whitened traces of one event, against signals that are known."""

from __future__ import annotations

import numpy as np
import pytest

from aframe_assets.strain.event_plots import WhitenedStretch, event_plot, q_scan
from aframe_assets.strain.plots import range_plot, timeline_plot

RATE, GPS = 2048.0, 1240600000.0


def _burst(frequency, time, seconds=8.0, amplitude=8.0):
    """White noise of unit variance with a sine-Gaussian of Q 10 at `time` seconds."""
    t = np.arange(int(seconds * RATE)) / RATE
    tau = 10 / (np.sqrt(2) * np.pi * frequency)
    noise = np.random.default_rng(1).standard_normal(len(t))
    return noise + amplitude * np.exp(-(((t - time) / tau) ** 2)) * np.sin(2 * np.pi * frequency * (t - time))


@pytest.mark.parametrize("frequency", [60.0, 250.0])
def test_a_q_scan_is_brightest_where_the_burst_is(frequency):
    frequencies, energy = q_scan(_burst(frequency, 4.7), RATE)
    f, t = np.unravel_index(energy.argmax(), energy.shape)
    assert frequencies[f] == pytest.approx(frequency, rel=0.15)
    assert t / energy.shape[1] * 8 == pytest.approx(4.7, abs=0.03)
    assert energy.max() > 50 and np.median(energy) < 2


def test_a_stretch_is_cut_at_its_times():
    stretch = WhitenedStretch({"H1": np.arange(80.0)}, 100.0, 10.0)
    part = stretch.between(102.0, 103.0)
    assert (part.gps_start, part.strain["H1"].tolist()) == (102.0, list(range(20, 30)))
    assert stretch.between(90.0, 101.0).gps_start == 100.0 and len(stretch.between(90.0, 101.0).strain["H1"]) == 10


def test_the_plots_are_pictures_of_a_page_s_size():
    stretch = WhitenedStretch({"H1": _burst(100, 4), "L1": _burst(90, 4.01), "V1": _burst(90, 4.02)}, GPS, RATE)
    rows = {"train": {"train": [(GPS, GPS + 900)]}, "test": {"test": [(GPS + 2000, GPS + 2600)]}}
    pngs = [event_plot(stretch, GPS + 4, "loud"), timeline_plot(rows, "chunks"), timeline_plot({}, "none"), range_plot({}, "none")]
    assert all(p.startswith(b"\x89PNG") and len(p) < 149_000 for p in pngs[1:])
    assert pngs[0].startswith(b"\x89PNG")
    short = {ifo: x[: int(1.5 * RATE)] for ifo, x in stretch.strain.items()}
    assert event_plot(WhitenedStretch(short, GPS + 3.2, RATE), GPS + 4, centre=GPS + 4.01).startswith(b"\x89PNG")
