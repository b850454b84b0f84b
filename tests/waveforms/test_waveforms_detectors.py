"""Geometry, sidereal time, projection and SNR against lal, lalsimulation, bilby, astropy and pycbc."""

from pathlib import Path

import numpy as np
import pytest

from aframe_assets.waveforms.detectors import BUILT_IN, get_detector, get_detectors
from aframe_assets.waveforms.frames import DetectorFrame
from aframe_assets.waveforms.generation import WaveformGenerator
from aframe_assets.waveforms.projection import antenna_patterns, project, sidereal_time
from aframe_assets.waveforms.snr import ifo_snrs, network_snr

IFOS = ("H1", "L1", "V1", "K1")
RATE = 2048
TIMES = np.array([1126259462.4, 1187008882.4, 1240610000.25, 1264316116.4, 1369419318.7])


def sky(n, seed=0):
    rng = np.random.default_rng(seed)
    values = {
        "ra": rng.uniform(0, 2 * np.pi, n),
        "dec": np.arcsin(rng.uniform(-1, 1, n)),
        "psi": rng.uniform(0, np.pi, n),
        "mass_1": np.full(n, 30.0),
        "mass_2": np.full(n, 20.0),
        "redshift": np.full(n, 0.1),
    }
    return DetectorFrame(values)


def lal_detector(ifo):
    import lal

    return lal.cached_detector_by_prefix[ifo]


def bilby_file(ifo):
    import bilby.gw.detector

    return Path(bilby.gw.detector.__file__).parent / "detectors" / f"{ifo}.interferometer"


def test_geometry_is_lals():
    for ifo in BUILT_IN:
        made = get_detector(ifo)
        # lal keeps tensors in float32 (6e-8) and the vertex of K1 to a millimetre
        assert made.tensor == pytest.approx(lal_detector(ifo).response, abs=1e-7)
        assert made.vertex == pytest.approx(lal_detector(ifo).location, abs=1e-3)


@pytest.mark.parametrize("ifo", ["A1", "CE", "GEO600", "K1"])
def test_geometry_by_file_is_bilbys(ifo):
    from bilby.gw.detector import get_empty_interferometer

    made, theirs = get_detector("X1", bilby_file(ifo)), get_empty_interferometer(ifo)
    assert made.name == "X1"
    # the same formula from the same numbers: rounding only
    assert made.tensor == pytest.approx(theirs.detector_tensor, abs=1e-12)
    assert made.vertex == pytest.approx(theirs.vertex, abs=1e-6)


def test_a_file_replaces_a_built_in_detector_and_serves_one_that_is_not():
    here, there = get_detectors(("H1", "X1"), {"H1": str(bilby_file("V1")), "X1": str(bilby_file("L1"))})
    assert (here.name, there.name) == ("H1", "X1")
    assert here.vertex == pytest.approx(get_detector("V1").vertex) and there.tensor == pytest.approx(get_detector("L1").tensor)


GOOD = {"latitude": "40", "longitude": "-(100 + 30. / 60)", "elevation": "100.", "xarm_azimuth": "45", "yarm_azimuth": "135"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"latitude": "__import__('os').getcwd()"}, r"line 1: latitude: .*no other code"),
        ({"latitude": "'forty'"}, r"line 1: latitude = 'forty': expected a finite number"),
        ({"latitude": "1 / 0"}, r"line 1: latitude: .*divides by zero"),
        ({"latitude": "95"}, r"latitude = 95 is beyond 90; angles are in degrees"),
        ({"elevation": None}, r"lacks elevation"),
        ({"xarm_azimut": "1"}, r"line 6: unknown key 'xarm_azimut'"),
        ({"shape": "'Triangle'"}, r"line 6: shape = 'Triangle'.*its own file"),
        ({"yarm_azimuth": "225"}, r"open no angle"),
        ({"longitude": "100 +"}, r"line 2: longitude: '100 \+' cannot be read"),
    ],
)
def test_geometry_files_that_cannot_be_used(tmp_path, change, text):
    path = tmp_path / "x.interferometer"
    path.write_text("".join(f"{k} = {v}\n" for k, v in (GOOD | change).items() if v))
    with pytest.raises(ValueError, match=text):
        get_detector("X1", path)


def test_detectors_that_are_not_known(tmp_path):
    with pytest.raises(ValueError, match=r"X1.*H1, L1, V1, K1.*detectors"):
        get_detectors(("H1", "X1"))
    with pytest.raises(ValueError, match="at least one"):
        get_detectors(())
    with pytest.raises(FileNotFoundError, match="interferometer format"):
        get_detector("X1", tmp_path / "none")


def test_sidereal_time_is_astropys():
    from astropy.coordinates import Angle
    from astropy.time import Time
    from astropy.utils import iers

    with iers.conf.set_temp("auto_download", False), iers.conf.set_temp("iers_degraded_accuracy", "ignore"):
        utc = Time(TIMES, format="gps").utc
        utc.delta_ut1_utc = 0.0
        theirs = utc.sidereal_time("mean", "greenwich", model="IAU1982").rad
        # the models of 1982 and 2006 and the true UT1 - UTC (within 0.9 s, 6.6e-5 radians)
        bulletin = Time(TIMES, format="gps").utc.sidereal_time("apparent", "greenwich").rad
    made = sidereal_time(TIMES)
    assert made == pytest.approx(theirs, abs=2e-8)
    assert np.abs(Angle(made - bulletin, "rad").wrap_at("180d").rad).max() < 1.5e-4
    assert sidereal_time(TIMES[0]).shape == () and ((made >= 0) & (made < 2 * np.pi)).all()
    with pytest.raises(ValueError, match="GPS"):
        sidereal_time(np.nan)


def test_antenna_patterns_are_lals_at_real_times():
    import lal

    values = sky(30)
    gps = np.resize(TIMES, 30)
    plus, cross = antenna_patterns(values, IFOS, gps)
    for j, ifo in enumerate(IFOS):
        for i in range(30):
            hour = lal.GreenwichMeanSiderealTime(lal.LIGOTimeGPS(float(gps[i])))
            at = (float(values["ra"][i]), float(values["dec"][i]), float(values["psi"][i]), hour)
            # lal's tensors are float32
            assert (plus[i, j], cross[i, j]) == pytest.approx(lal.ComputeDetAMResponse(lal_detector(ifo).response, *at), abs=2e-7)


def test_without_times_right_ascension_is_the_longitude():
    values, gps = sky(5), 1240610000.25
    turned = values | {"ra": values["ra"] + sidereal_time(gps)}
    assert np.allclose(antenna_patterns(values, IFOS), antenna_patterns(turned, IFOS, gps), rtol=0, atol=1e-12)


def sine_gaussian(n, size, centre, frequency=150.0, seed=5):
    """Plus and cross of (n, size) around sample `centre`, unlike each other, band-limited far below Nyquist."""
    t = (np.arange(size) - centre) / RATE
    envelope = np.exp(-((t / 0.02) ** 2))
    phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, (2, n, 1))
    plus, cross = envelope * np.cos(2 * np.pi * frequency * t + phases)
    return {"plus": plus, "cross": cross}


def shifted(series, samples):
    """`series` read `samples` later, by the shift theorem; long enough for what it is used for here."""
    size = series.shape[-1]
    length = 4 * size
    return np.fft.irfft(np.fft.rfft(series, length) * np.exp(2j * np.pi * np.fft.rfftfreq(length) * samples), length)[..., :size]


def lalsimulation_strain(waves, values, i, ifo, start):
    """Strain of signal i by XLALSimDetectorStrainREAL8TimeSeries, and the sample of `waves` that its first one lies at."""
    import lal
    import lalsimulation

    series = []
    for name in ("plus", "cross"):
        series.append(lal.CreateREAL8TimeSeries(name, lal.LIGOTimeGPS(start), 0, 1 / RATE, lal.StrainUnit, waves[name].shape[1]))
        series[-1].data.data = waves[name][i]
    at = [float(values[k][i]) for k in ("ra", "dec", "psi")]
    made = lalsimulation.SimDetectorStrainREAL8TimeSeries(*series, *at, lal_detector(ifo))
    return made.data.data, float(made.epoch - lal.LIGOTimeGPS(start)) * RATE


@pytest.mark.parametrize("frequency", [40.0, 150.0, 400.0])
def test_strain_is_lalsimulations(frequency):
    # lalsimulation's interpolation takes two delays for one when they differ by less than 1/260 of a sample (four times its
    # 65 coefficients), 1.9 microseconds; with plus and cross of amplitude 1 a response is at most sqrt(2)
    tolerance = 2**0.5 * 2 * np.pi * frequency / 260 / RATE + 1e-4
    values, gps = sky(len(TIMES), 7), TIMES
    waves = sine_gaussian(len(TIMES), 4096, 2048, frequency)
    mine = project(waves, values, IFOS, RATE, gps)
    scale = max(np.abs(w).max() for w in waves.values())
    for i, time in enumerate(gps):
        for j, ifo in enumerate(IFOS):
            theirs, first = lalsimulation_strain(waves, values, i, ifo, time - 1.0)
            assert np.abs(theirs[200:3800] - shifted(mine[i, j], first)[200:3800]).max() < tolerance * scale, (time, ifo)


def test_strain_of_binaries_is_lalsimulations():
    # lalsimulation turns the Earth during the 6 s, and its delays are good to 1.9 microseconds, 0.5 % at 400 Hz; a sample
    # of delay would be 20 % of the peak of the polarisations, and a wrong sidereal time anything
    generator = WaveformGenerator("IMRPhenomPv2", RATE, 8, 20, 50, 2)
    n = len(TIMES)
    rng = np.random.default_rng(1)
    values = sky(n, 9) | {"a_1": rng.uniform(0, 0.9, n), "tilt_1": rng.uniform(0, 3, n), "theta_jn": rng.uniform(0, 3, n)}
    waves, good = generator(values)
    assert good.all()
    mine = project(waves, values, IFOS, RATE, TIMES)
    for i, time in enumerate(TIMES):
        scale = np.hypot(waves["plus"][i], waves["cross"][i]).max()
        for j, ifo in enumerate(IFOS):
            theirs, first = lalsimulation_strain(waves, values, i, ifo, time - generator.coalescence / RATE)
            part = slice(200, generator.size - 200)
            assert np.abs(theirs[part] - shifted(mine[i, j], first)[part]).max() < 5e-3 * scale


def test_strain_is_bilbys():
    from bilby.gw.detector import get_empty_interferometer

    values, size = sky(len(TIMES), 11), 4096
    waves = sine_gaussian(len(TIMES), size, 1500)
    mine = project(waves, values, IFOS, RATE, TIMES)
    for j, ifo in enumerate(IFOS):
        detector = get_empty_interferometer(ifo)
        detector.set_strain_data_from_zero_noise(RATE, size / RATE, TIMES[0])
        detector.minimum_frequency, detector.maximum_frequency = 1.0, RATE / 2
        f = np.fft.rfftfreq(size, 1 / RATE)
        for i, time in enumerate(TIMES):
            at = {k: values[k][i] for k in ("ra", "dec", "psi")} | {"geocent_time": time}
            spectra = {k: np.fft.rfft(w[i]) for k, w in waves.items()}
            # bilby begins its data where ours does, so that only the delay is left
            detector.strain_data.start_time = time
            theirs = np.fft.irfft(detector.get_detector_response(spectra, at, frequencies=f), size)
            # bilby's sidereal time is good to 1e-6; it leaves out what lies below 1 Hz
            assert np.abs(theirs - mine[i, j]).max() < 1e-4, ifo


def test_delays_are_lals_to_a_thousandth_of_a_sample():
    import lal

    values = sky(20, 3)
    gps = np.resize(TIMES, 20)
    pulse = np.zeros((20, 4096))
    pulse[:, 2000] = 1
    plus, cross = antenna_patterns(values, IFOS, gps)
    strain = project({"plus": pulse, "cross": pulse}, values, IFOS, RATE, gps)
    turns = np.fft.rfftfreq(4096)[:1500]
    for j, ifo in enumerate(IFOS):
        for i in range(20):
            at = (float(values["ra"][i]), float(values["dec"][i]), lal.LIGOTimeGPS(float(gps[i])))
            delay = lal.TimeDelayFromEarthCenter(lal_detector(ifo).location, *at) * RATE
            spectrum = np.fft.rfft(strain[i, j])[:1500] / (plus[i, j] + cross[i, j])
            slope = np.polyfit(turns, np.unwrap(np.angle(spectrum * np.exp(2j * np.pi * turns * 2000))), 1)[0]
            assert -slope / (2 * np.pi) == pytest.approx(delay, abs=1e-3)


@pytest.mark.parametrize("centre", [0, 12, 4095 - 12, 4095])
def test_nothing_wraps_around_near_an_edge(centre):
    values = sky(60, 8)
    waves = {k: np.zeros((60, 4096)) for k in ("plus", "cross")}
    pulse = np.exp(-0.5 * ((np.arange(4096) - centre) / 3.0) ** 2)
    for w in waves.values():
        w += pulse
    strain = project(waves, values, IFOS, RATE)
    plus, cross = antenna_patterns(values, IFOS)
    scale = np.abs(plus + cross)[..., None]
    far = strain[..., 2048:] if centre < 2048 else strain[..., :2048]
    # the jump of a cut pulse rings as sin(pi d) / (pi n), here 2e-4 and up to 3e-3 where the padding ends (n > 100);
    # a pulse that came back would be 1, and one that is not cut leaves nothing
    assert (np.abs(far) < (3e-3 if centre in (0, 4095) else 1e-6) * scale).all()
    # what stays in the window is the pulse shifted, as in a window with room on both sides
    room = {k: np.pad(w, ((0, 0), (200, 200))) for k, w in waves.items()}
    wide = project(room, values, IFOS, RATE)[..., 200:-200]
    inside = slice(200, 3896) if centre in (0, 4095) else slice(None)
    assert np.abs(wide - strain)[..., inside].max() < (3e-3 if centre in (0, 4095) else 1e-5)


def test_any_number_of_rows():
    values, waves = sky(130, 6), sine_gaussian(130, 600, 300)
    whole = project(waves, values, ("H1", "L1"), RATE, 1240610000.25)
    few = project({k: w[64:66] for k, w in waves.items()}, {k: v[64:66] for k, v in values.items()}, ("H1", "L1"), RATE, 1240610000.25)
    assert np.allclose(whole[64:66], few, rtol=0, atol=1e-13)
    assert project({k: w[:0] for k, w in waves.items()}, {k: v[:0] for k, v in values.items()}, ("H1",), RATE).shape == (0, 1, 600)
    with pytest.raises(ValueError, match=r"gps has shape \(3,\).*130"):
        project(waves, values, ("H1",), RATE, TIMES[:3])


def curve(frequencies):
    from bilby.gw.detector import PowerSpectralDensity

    c = PowerSpectralDensity(asd_file="aLIGO_O4_high_asd.txt")
    return np.interp(frequencies, c.frequency_array, c.psd_array)


def test_snr_is_pycbcs_sigma():
    from pycbc.filter import sigma
    from pycbc.types import FrequencySeries, TimeSeries
    from pycbc.waveform import get_td_waveform

    hp, _ = get_td_waveform(approximant="IMRPhenomD", mass1=30, mass2=25, delta_t=1 / RATE, f_lower=20, distance=500)
    merger = -round(float(hp.start_time) * RATE)
    strain = np.zeros(8 * RATE)
    strain[: 6 * RATE + 1000] = hp.numpy()[merger - 6 * RATE : merger + 1000]
    f = np.arange(0, 1024.01, 1 / 8)
    psd = curve(f)
    theirs = sigma(TimeSeries(strain, delta_t=1 / RATE), FrequencySeries(psd, delta_f=1 / 8), 32.0, 900.0)
    mine = ifo_snrs(strain[None, None], {"H1": (f, psd)}, ("H1",), RATE, 32, 900)
    assert mine[0, 0] == pytest.approx(theirs, rel=2e-3)
    # a coarser PSD is interpolated linearly
    coarse = f[::4]
    assert ifo_snrs(strain[None, None], {"H1": (coarse, psd[::4])}, ("H1",), RATE, 32, 900)[0, 0] == pytest.approx(theirs, rel=5e-3)


def test_snr_of_a_sine_in_white_noise():
    # rho^2 = 4 int |h|^2 / S df = 2 A^2 T / (2 S): amplitude A for T seconds, one-sided PSD S
    amplitude, psd, seconds = 3e-22, 1e-46, 4
    t = np.arange(seconds * RATE) / RATE
    strain = amplitude * np.sin(2 * np.pi * 100 * t)[None, None] * np.ones((1, 2, 1))
    flat = (np.array([0.0, 1024.0]), np.array([psd, psd]))
    snr = ifo_snrs(strain, {"H1": flat, "L1": flat}, ("H1", "L1"), RATE, 32)
    assert snr[0] == pytest.approx([amplitude * np.sqrt(seconds / psd)] * 2)
    assert network_snr(snr)[0] == pytest.approx(np.sqrt(2) * snr[0, 0])
    assert ifo_snrs(strain, {"H1": flat, "L1": flat}, ("H1", "L1"), RATE, 120)[0, 0] < 1e-6 * snr[0, 0]


@pytest.mark.parametrize(
    ("psds", "text"),
    [
        ({}, "no PSD of H1"),
        ({"H1": (np.arange(100.0), np.ones(100))}, "covers 0 to 99 Hz"),
        ({"H1": (np.arange(1025.0), np.r_[np.ones(50), 0, np.ones(974)])}, "not positive and finite at 50"),
    ],
)
def test_psds_that_cannot_be_used(psds, text):
    with pytest.raises(ValueError, match=text):
        ifo_snrs(np.zeros((1, 1, 2048)), psds, ("H1",), RATE, 32)


def test_the_content_of_a_geometry_file_is_part_of_the_keys_that_read_it(tmp_path):
    from aframe_assets import lineage
    from aframe_assets.config_load import load_config
    from aframe_assets.store.workspace import Workspace

    site = tmp_path / "x1.interferometer"
    site.write_text("".join(f"{k} = {v}\n" for k, v in GOOD.items()))
    (tmp_path / "aframe.yaml").write_text(
        "preset: demo\nifos: [H1, X1]\ndetectors: {X1: x1.interferometer}\nstrain: {simulated: {asd: {X1: aLIGO_O4_high_asd.txt}}}\n"
    )
    config = load_config(tmp_path / "aframe.yaml", env={})
    assert config.detectors == {"X1": str(site)}

    def identities(asset):
        return Workspace(config, None)._named_files(asset)

    readers = [n for n, node in lineage.graph(config).items() if "detectors" in node.files]
    assert readers == ["validation_waveforms", "injections", "model"]
    before = {a: identities(a) for a in readers}
    site.write_text(site.read_text().replace("40", "41"))
    assert all(identities(a)["detectors.X1"] != before[a]["detectors.X1"] for a in readers)
