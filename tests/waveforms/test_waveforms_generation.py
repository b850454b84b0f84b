"""How signals lie in their window, and how odd parameters are treated. Populations are compared in test_waveforms_approximants."""

import numpy as np
import pytest

from aframe_assets.waveforms.frames import DetectorFrame
from aframe_assets.waveforms.generation import WaveformGenerator, put
from aframe_assets.waveforms.parameters import luminosity_distance

RATE, DURATION, PAD = 2048, 8, 2
MATCH, SNR_ERROR, SAMPLES = 0.9999, 0.002, 0
"""Tolerances: match above, relative SNR within, merger aligned within (samples of 1/2048 s)."""


def generator(approximant="IMRPhenomPv2", **over):
    settings = {"sample_rate": RATE, "duration": DURATION, "minimum_frequency": 20, "reference_frequency": 50, "right_pad": PAD}
    return WaveformGenerator(approximant, **(settings | over))


def binary(mass_1, mass_2, **over):
    values = {
        "mass_1": mass_1, "mass_2": mass_2, "a_1": 0.0, "a_2": 0.0, "tilt_1": 0.0, "tilt_2": 0.0, "phi_12": 0.0, "phi_jl": 0.0,
        "ra": 1.0, "dec": 0.3, "redshift": 0.1, "psi": 0.0, "theta_jn": 0.7, "phase": 0.4,
    }  # fmt: skip
    return DetectorFrame({k: np.array([float(v)]) for k, v in (values | over).items()})


def reference(values):
    """Plus and cross of pycbc on the window, coalescence at the same sample; bilby's spin conversion."""
    from bilby.gw.conversion import bilby_to_lalsimulation_spins
    from lal import MSUN_SI
    from pycbc.waveform import get_td_waveform

    v = {k: float(x[0]) for k, x in values.items()}
    conditional = 1899 / (v["mass_1"] + v["mass_2"])
    low, ref = (conditional, conditional) if conditional < 20 else (20.0, 50.0)
    spins = bilby_to_lalsimulation_spins(
        v["theta_jn"], v["phi_jl"], v["tilt_1"], v["tilt_2"], v["phi_12"], v["a_1"], v["a_2"],
        v["mass_1"] * MSUN_SI, v["mass_2"] * MSUN_SI, ref, v["phase"],
    )  # fmt: skip
    names = ("inclination", "spin1x", "spin1y", "spin1z", "spin2x", "spin2y", "spin2z")
    hp, hc = get_td_waveform(
        approximant="IMRPhenomPv2", mass1=v["mass_1"], mass2=v["mass_2"], coa_phase=v["phase"], f_lower=low, f_ref=ref, delta_t=1 / RATE,
        distance=float(luminosity_distance(values["redshift"])[0]), **dict(zip(names, map(float, spins), strict=True)),
    )  # fmt: skip
    merger = -round(float(hp.start_time) * RATE)
    return tuple(on_window(h.numpy(), merger, int((DURATION - PAD) * RATE), DURATION * RATE) for h in (hp, hc))


def on_window(series, merger, coalescence, size):
    out = np.zeros((1, size))
    put(out, np.array([0]), series[None], merger, coalescence)
    return out[0]


def inner(a, b, low=30):
    """Noise-weighted correlation of two signals over time shift, with a design curve of bilby's library."""
    from bilby.gw.detector import PowerSpectralDensity

    curve = PowerSpectralDensity(asd_file="aLIGO_O4_high_asd.txt")
    f = np.fft.rfftfreq(len(a), 1 / RATE)
    psd = np.interp(f, curve.frequency_array, curve.psd_array)
    return np.fft.irfft(np.fft.rfft(a) * np.fft.rfft(b).conj() / psd * ((f >= low) & (f < 1000)))


CASES = [binary(36, 29), binary(20, 40, a_1=0.7, a_2=0.4, tilt_1=1.0, tilt_2=0.3, phi_12=1.0, phi_jl=0.3)]
"""As a user gives them, bilby's own conversion of spins included; also the lighter body first."""


def assert_equal_signals(mine, theirs, match=MATCH):
    series = inner(mine, theirs)
    norm = np.sqrt(inner(mine, mine)[0] * inner(theirs, theirs)[0])
    lag = (np.argmax(series) + len(series) // 2) % len(series) - len(series) // 2
    # not maximised over phase: the conventions of sign and phase are lalsimulation's too
    assert series.max() / norm > match
    assert abs(lag) <= SAMPLES
    assert np.sqrt(inner(mine, mine)[0] / inner(theirs, theirs)[0]) == pytest.approx(1, abs=SNR_ERROR)


@pytest.mark.parametrize("values", CASES, ids=lambda v: f"{v['mass_1'][0]:g}+{v['mass_2'][0]:g}")
def test_agrees_with_lalsimulation(values):
    made, good = generator()(values)
    assert good.all()
    for mine, theirs in zip((made["plus"][0], made["cross"][0]), reference(values), strict=True):
        assert_equal_signals(mine, theirs)


@pytest.mark.parametrize("seconds", [4, 10])
@pytest.mark.parametrize("right_pad", [1 / RATE, 0.5, 1, 4])
def test_alignment_of_a_triangle(seconds, right_pad):
    # reference 4.2: the peak comes to int((D - right_pad) fs), in a window of D fs samples
    size, peak = seconds * RATE, int(0.8 * seconds * RATE)
    triangle = 1 - np.abs(np.arange(size) - peak) / size
    out = on_window(triangle, peak, int((DURATION - right_pad) * RATE), DURATION * RATE)
    assert len(out) == 16384 and int(out.argmax()) == int((8 - right_pad) * 2048)


@pytest.mark.parametrize("right_pad", [0.5, 2, 4])
def test_merger_lies_where_it_should(right_pad):
    make = generator(right_pad=right_pad)
    made, _ = make(binary(30, 30, theta_jn=0))
    envelope = np.hypot(made["plus"][0], made["cross"][0])
    # the IMRPhenom family's time of coalescence is that of the ringdown's phase: the peak comes up to 20 M before
    assert make.coalescence == int((8 - right_pad) * 2048)
    assert 0 <= make.coalescence - int(envelope.argmax()) <= 20 * 60 * 4.93e-6 * RATE + 1


def test_nothing_wraps_around():
    made, _ = generator()(binary(8, 7, redshift=0.02))
    envelope = np.hypot(made["plus"][0], made["cross"][0])
    # between ringdown and the end of the window there is nothing, at its start the fade-in
    assert envelope[12288 + 400 :].max() < 1e-4 * envelope.max()
    assert envelope[0] == 0
    made, _ = generator()(binary(70, 60))
    envelope = np.hypot(made["plus"][0], made["cross"][0])
    assert envelope[: 4 * RATE].max() < 1e-3 * envelope.max() and envelope[14000:].max() < 1e-4 * envelope.max()


def test_draws_that_cannot_be_made_are_marked_and_do_no_harm():
    parts = [binary(30, 20), binary(np.nan, 20), binary(30, -1), binary(30, 20, a_1=1.2), binary(30, 20, redshift=0), binary(30, 30)]
    values = DetectorFrame({k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
    made, good = generator()(values)
    assert good.tolist() == [True, False, False, False, False, True]
    assert all(np.isfinite(w).all() and not w[~good].any() for w in made.values())
    alone, _ = generator()(binary(30, 20))
    assert made["plus"][0] == pytest.approx(alone["plus"][0], abs=1e-9 * np.abs(alone["plus"]).max())


@pytest.mark.parametrize("approximant", ["IMRPhenomPv2", "IMRPhenomD", "TaylorF2"])
def test_a_signal_does_not_depend_on_its_company(approximant):
    """To 1e-9 of its peak: the frequencies of its spectrum and where its series is cut are its own; the rest is rounding, and a
    high-pass that is called 1 where it is so to 1e-11."""
    masses = [(1.2, 1.2), (1.4, 1.3), (1.9, 1.7), (2.9, 2.8), (2, 20), (8, 7), (10, 9), (30, 20), (35, 33), (60, 50), (100, 95), (120, 30)]
    parts = [binary(a, b, a_1=0.4 * (i % 3), tilt_1=0.3 * i) for i, (a, b) in enumerate(masses)]
    values = DetectorFrame({k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
    make = generator(approximant)
    together, good = make(values)
    assert good.all()
    for i, part in enumerate(parts):
        alone, _ = make(part)
        for name in ("plus", "cross"):
            assert np.abs(together[name][i] - alone[name][0]).max() < 1e-9 * np.abs(alone[name]).max(), (masses[i], name)


def test_order_of_the_masses_does_not_matter():
    a, _ = generator()(binary(40, 20, a_1=0.5, tilt_1=1.0))
    b, _ = generator()(binary(20, 40, a_2=0.5, tilt_2=1.0))
    # the in-plane spin's azimuth is that of phi_12 for the second body, here 0 for both
    assert_equal_signals(a["plus"][0], b["plus"][0])


def test_settings_that_cannot_work():
    unknown = "expected one of .*IMRPhenomPv2"
    for over, text in (({"approximant": "SEOBNRv9"}, unknown), ({"right_pad": 8}, "right_pad"), ({"minimum_frequency": 2000}, "Hz")):
        with pytest.raises(ValueError, match=text):
            generator(**over)


def test_empty_batch():
    made, good = generator()(binary(1, 1).rows(slice(0)))
    assert made["plus"].shape == (0, 16384) and not len(good)
