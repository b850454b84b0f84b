"""Simulated strain: spectrum, lines, glitches, and that any chunk is reproducible alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import signal, stats

from aframe_assets.config_load import build_config
from aframe_assets.strain.fetch import fetch_background
from aframe_assets.strain.glitches import MAX_DURATION, draw_shape, draw_snr, glitch_bank, optimal_snr, waveform
from aframe_assets.strain.simulated import BLOCK, SimulatedNoise, packaged_curve, read_curve, simulator
from aframe_assets.strain.stretch import StrainError

FS = 2048
T0 = 1_240_600_007
LINES = [36.0, 60.0, 500.0, 1000.0]
CURVE = read_curve("aLIGO_O4_high_asd.txt")


def noise(ifo="H1", seed=1, **more) -> SimulatedNoise:
    return SimulatedNoise(ifo, *CURVE, sample_rate=FS, seed=seed, **more)


def full(ifo="H1", seed=1) -> SimulatedNoise:
    return noise(ifo, seed, lines=LINES, line_snr=30, glitch_rate=200)


def test_spectrum_follows_the_curve():
    x = noise().strain(T0, T0 + 1024)
    f, p = signal.welch(x, FS, nperseg=8 * FS, average="median")
    asd = np.interp(f, *CURVE)
    # beside the curve's own narrow features, which a filter of 4 s rounds
    smooth = np.abs(asd / signal.medfilt(asd, 41) - 1) < 0.03
    use = smooth & (f > 20) & (f < 1000)
    ratio = p[use] / asd[use] ** 2
    frames = 1024 / 8 * 2 - 1
    # median of n exponential variables: relative error 1 / ln 2 / sqrt(n), a little more for overlapping frames
    assert abs(ratio.mean() - 1) < 0.01
    assert ratio.std() < 1.15 / np.log(2) / np.sqrt(frames)
    bands = [ratio[i : i + 200].mean() for i in range(0, len(ratio) - 200, 200)]
    assert max(abs(b - 1) for b in bands) < 0.05


def test_gwpy_sees_the_same_spectrum():
    from gwpy.timeseries import TimeSeries

    x = TimeSeries(noise().strain(T0, T0 + 256), t0=T0, sample_rate=FS)
    asd = x.asd(fftlength=4, method="median", window="hann")
    band = (asd.frequencies.value > 80) & (asd.frequencies.value < 250)
    expected = np.interp(asd.frequencies.value[band], *CURVE)
    assert abs(np.median(asd.value[band] / expected) - 1) < 0.02


def test_noise_is_gaussian_and_white_in_time():
    x = noise().strain(T0, T0 + 240)
    y = signal.sosfilt(signal.butter(8, [100, 300], "bandpass", fs=FS, output="sos"), x)[FS:]
    thin = y[::97] / y.std()
    assert stats.kstest(thin, "norm").pvalue > 1e-3
    # no joints: the variance beside the block edges is that of everywhere
    edges = [(k * BLOCK - T0) * FS for k in range(T0 // BLOCK + 1, T0 // BLOCK + 4)]
    near = np.concatenate([y[e - FS - 400 : e - FS + 400] for e in edges])
    assert abs(near.std() / y.std() - 1) < 0.1


@pytest.mark.parametrize(("first", "last"), [(100, 200), (0, 1), (59.5, 60.25), (52.99951171875, 53.00048828125), (113, 300)])
def test_a_chunk_alone_is_the_chunk_within(first, last):
    whole = full().strain(T0, T0 + 300)
    part = full().strain(T0 + first, T0 + last)
    assert np.array_equal(part, whole[round(first * FS) : round(last * FS)])


def test_backwards_or_forwards_makes_no_difference():
    one = full()
    late, early = one.strain(T0 + 200, T0 + 300), one.strain(T0, T0 + 100)
    assert np.array_equal(early, full().strain(T0, T0 + 100))
    assert np.array_equal(late, full().strain(T0 + 200, T0 + 300))


def test_detectors_and_seeds_are_independent():
    a, b, c = (n.strain(T0, T0 + 120) for n in (noise("H1"), noise("L1"), noise("H1", seed=2)))
    band = signal.butter(4, [30, 500], "bandpass", fs=FS, output="sos")
    a, b, c = (signal.sosfilt(band, x)[FS:] for x in (a, b, c))
    for x, y in ((a, b), (a, c)):
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.02


def test_lines_stand_out_as_asked():
    x = noise(lines=LINES, line_snr=30).strain(T0, T0 + 64)
    quiet = noise().strain(T0, T0 + 64)
    _, p = signal.welch(x, FS, nperseg=8 * FS)
    _, q = signal.welch(quiet, FS, nperseg=8 * FS)
    for line in LINES:
        i = int(line * 8)
        floor = np.median(q[i - 40 : i + 41])
        # a sine of amplitude A has power A^2 / 2 in the 1.5 bins of a Hann window; A^2 = snr^2 S / 1 s
        assert p[i] / floor == pytest.approx(30**2 / 2 / (1.5 / 8) + q[i] / floor, rel=0.25)
    # one sine through all blocks: its phase fits the whole stretch
    t = np.arange(len(x)) / FS
    amplitude = 2 * abs(np.mean((x - quiet) * np.exp(-2j * np.pi * 500 * t)))
    assert amplitude == pytest.approx(np.abs(x - quiet).max() / len(LINES), rel=1)
    half = [2 * np.mean((x - quiet)[s] * np.exp(-2j * np.pi * 500 * t[s])) for s in (slice(0, 32 * FS), slice(32 * FS, None))]
    assert abs(half[0] / half[1] - 1) < 1e-3


def test_glitches_come_at_the_rate_and_with_the_snr():
    found = noise(glitch_rate=50).glitches(T0, T0 + 40 * 3600)
    assert abs(len(found) - 2000) < 4 * np.sqrt(2000)
    times = np.array([g.gps for g in found])
    assert np.all(np.diff(times) >= 0) and times[0] >= T0 and times[-1] < T0 + 40 * 3600
    assert stats.kstest(np.diff(times), "expon", args=(0, 72)).pvalue > 1e-3
    snr = np.array([g.snr for g in found])
    assert snr.min() >= 5 and snr.max() <= 100

    def cdf(s):
        return (5**-2 - np.asarray(s) ** -2.0) / (5**-2 - 100**-2)

    assert stats.kstest(snr, cdf).pvalue > 1e-3
    assert {g.shape.kind for g in found} == {"blip", "sine_gaussian", "whistle", "scattering"}
    assert not noise(glitch_rate=0).glitches(T0, T0 + 3600)


def test_a_glitch_has_its_snr_in_the_data():
    loud = noise(glitch_rate=60)
    x = loud.strain(T0, T0 + 600) - noise().strain(T0, T0 + 600)
    found = loud.glitches(T0 - 5, T0 + 605)
    alone = [g for g in found if T0 + 4 < g.gps < T0 + 596 and all(abs(g.gps - o.gps) > 6 for o in found if o is not g)]
    assert alone
    f = np.fft.rfftfreq(4 * FS, 1 / FS)
    for g in alone:
        first = round((g.gps - T0) * FS) - 2 * FS
        spectrum = np.abs(np.fft.rfft(x[first : first + 4 * FS]) / FS) ** 2
        use = f >= 20
        rho = np.sqrt(4 * np.sum(spectrum[use] / np.interp(f[use], *CURVE) ** 2) / 4)
        assert rho == pytest.approx(g.snr, rel=0.02)


def test_snr_of_a_sine_in_white_noise():
    """A^2 T / S for a sine of amplitude A over T seconds."""
    t = np.arange(4 * FS) / FS
    psd = np.full(1025, 1e-46)
    assert optimal_snr(3e-23 * np.sin(2 * np.pi * 100 * t), FS, psd) == pytest.approx(np.sqrt((3e-23) ** 2 * 4 / 1e-46), rel=1e-6)
    both = optimal_snr(np.ones((3, 2, 1)) * np.sin(2 * np.pi * 100 * t), FS, np.ones((2, 1025)))
    assert both.shape == (3, 2)


def test_glitch_shapes_fit_their_window():
    rng = np.random.default_rng(0)
    t = (np.arange(int(MAX_DURATION * FS)) - MAX_DURATION * FS / 2) / FS
    for _ in range(200):
        w = waveform(draw_shape(rng), t, FS)
        assert np.isfinite(w).all() and np.abs(w).max() <= 1 and np.abs(w[[0, -1]]).max() < 1e-3
    bank = glitch_bank(np.random.default_rng(1), 16, FS, 2.5)
    assert bank.shape == (16, int(2.5 * FS))
    assert np.array_equal(bank, glitch_bank(np.random.default_rng(1), 16, FS, 2.5))
    assert glitch_bank(rng, 0, FS).shape[0] == 0
    assert draw_snr(rng, 5, 100, 10).shape == (10,)


def test_other_rates_curves_and_bad_input(tmp_path):
    two = SimulatedNoise("V1", *read_curve("AdV_psd.txt"), sample_rate=4096, seed=1)
    assert two.strain(T0, T0 + 2).shape == (8192,)
    f, asd = read_curve("AdV_asd.txt")
    use = (f > 30) & (f < 1000)
    np.testing.assert_allclose(np.interp(f[use], *read_curve("AdV_psd.txt")), asd[use], rtol=0.05)
    own = tmp_path / "own_asd.txt"
    np.savetxt(own, np.c_[[10.0, 2000.0], [1e-23, 1e-23]])
    assert packaged_curve(str(own)) == own
    assert SimulatedNoise("H1", *read_curve(str(own)), sample_rate=FS, seed=1).strain(T0, T0 + 60).std() == pytest.approx(
        1e-23 * 32, rel=0.02
    )
    with pytest.raises(FileNotFoundError, match=r"no packaged noise curve 'nothing\.txt'; packaged are"):
        packaged_curve("nothing.txt")
    np.savetxt(own, np.c_[[10.0, 20.0], [1e-23, 1e-23]])
    with pytest.raises(StrainError, match="covers 10 to 20 Hz"):
        read_curve(str(own))
    own.write_text("a b\n")
    with pytest.raises(StrainError, match="two columns"):
        read_curve(str(own))
    with pytest.raises(ValueError, match="no whole sample"):
        noise().strain(T0 + 0.0001, T0 + 1)
    with pytest.raises(ValueError, match="start < stop"):
        noise().strain(T0, T0)
    with pytest.raises(ValueError, match="whole number"):
        SimulatedNoise("H1", *CURVE, sample_rate=2048.5, seed=1)


def test_a_detector_without_curve_is_named():
    config = build_config({"preset": "demo"}).model_copy(update={"ifos": ["V1"]})
    with pytest.raises(StrainError, match="no noise curve for V1"):
        fetch_background(config, T0, T0 + 8)


def test_fetch_gives_every_detector():
    config = build_config({"preset": "demo"})
    out = fetch_background(config, T0, T0 + 16)
    assert list(out) == ["H1", "L1"] and all(x.shape == (16 * FS,) and x.dtype == np.float64 for x in out.values())
    assert np.array_equal(out["L1"], simulator(config, "L1").strain(T0, T0 + 16))
    assert not np.array_equal(out["H1"], out["L1"])


def test_faster_than_a_thousand_times_real_time():
    import time

    source = full()
    source.strain(T0, T0 + 60)
    start = time.process_time()
    source.strain(T0 + 60, T0 + 660)
    assert 600 / (time.process_time() - start) > 500  # measured 4600; half the aim leaves room for a busy machine
