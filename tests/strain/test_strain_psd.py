"""Reference PSDs: chosen by quality, stored readably, frozen when chosen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from aframe_assets.strain.checks import psd_checks
from aframe_assets.strain.psd import (
    Quality,
    Spectrum,
    choose_most_sensitive,
    choose_psd,
    frame_length,
    inspiral_range,
    read_psd,
    reference_spectrum,
    write_psd,
)
from aframe_assets.strain.simulated import SimulatedNoise, read_curve
from aframe_assets.strain.stretch import StrainError

FS, T0 = 2048, 1_240_600_000


def curve(scale: float = 1.0) -> Spectrum:
    f = np.arange(0, 1024.125, 0.125)
    return Spectrum(f, (scale * np.interp(np.maximum(f, 10.3), *read_curve("aLIGO_O4_high_asd.txt"))) ** 2)


@pytest.mark.parametrize("mass", [1.4, 10.0, 30.0])
def test_range_is_that_of_gwpy(mass):
    from gwpy.astro import sensemon_range
    from gwpy.frequencyseries import FrequencySeries

    series = FrequencySeries(curve().psd, df=curve().df, unit="1/Hz")
    theirs = sensemon_range(series, mass1=mass, mass2=mass, snr=8, fmin=20).value
    assert inspiral_range(curve(), mass=mass) == pytest.approx(theirs, rel=0.01)
    assert inspiral_range(curve(2.0), mass=mass) == pytest.approx(inspiral_range(curve(), mass=mass) / 2)


def test_spectrum_of_simulated_noise():
    x = SimulatedNoise("H1", *read_curve("aLIGO_O4_high_asd.txt"), sample_rate=FS, seed=5).strain(T0, T0 + 256)
    s = reference_spectrum(x, FS)
    assert s.df == 1 / 8 and len(s.psd) == 8 * FS // 2 + 1
    use = (s.frequencies > 100) & (s.frequencies < 250)
    assert np.mean(s.psd[use] / curve().psd[use]) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(("duration", "length"), [(4096, 8), (32, 8), (31, 4), (16, 4), (12, 2), (8, 2), (4, 1), (1, 0.25)])
def test_short_chunks_get_shorter_frames(duration, length):
    assert frame_length(duration) == length


def test_half_a_second_is_too_little():
    with pytest.raises(ValueError, match="at least 1 s"):
        frame_length(0.5)


def quality(duration, h1, l1) -> Quality:
    return Quality(duration, {"H1": h1, "L1": l1})


CHUNKS = {
    "a": quality(1000, 100, 120),
    "b": quality(900, 99, 118),
    "c": quality(1000, 103, 125),
    "d": quality(1000, 97, 117),
    "e": quality(30, 100, 119),  # as typical as any, but short
    "f": quality(1000, 20, 119),  # one detector is bad
}


def test_choice_is_typical_long_and_independent_of_order():
    for order in itertools.islice(itertools.permutations(CHUNKS), 0, 720, 37):
        choice = choose_psd({k: CHUNKS[k] for k in order})
        assert choice.partition == "a"
        assert "H1 100 Mpc" in choice.reason and "left out as unusual: f" in choice.reason


def test_a_last_short_noisy_remainder_changes_nothing():
    """Upstream's defect 24: the last file decides, whatever it is."""
    before = choose_psd({k: CHUNKS[k] for k in "abcd"})
    after = choose_psd({k: CHUNKS[k] for k in "abcd"} | {"z": quality(20, 5, 5)})
    assert before.partition == after.partition


def test_few_or_hopeless_chunks():
    assert choose_psd({"x": quality(32, 80, 90)}).partition == "x"
    assert choose_psd({"x": quality(32, np.nan, 90), "y": quality(32, 70, 90)}).partition == "y"
    with pytest.raises(ValueError, match="no chunk of 1 has a usable spectrum"):
        choose_psd({"x": quality(32, np.nan, 90)})


def partitions(chunks) -> dict[str, str]:
    return {ifo: c.partition for ifo, c in choose_most_sensitive(chunks).items()}


def test_most_sensitive_is_chosen_for_each_detector_whatever_the_order():
    """c has the best H1 and L1 of the typical ones; when L1 of c is bad its H1 is as good as before."""
    for order in itertools.islice(itertools.permutations(CHUNKS), 0, 720, 37):
        assert partitions({k: CHUNKS[k] for k in order}) == {"H1": "c", "L1": "c"}
    chosen = choose_most_sensitive(CHUNKS | {"c": quality(1000, 103, 3)})
    assert {i: c.partition for i, c in chosen.items()} == {"H1": "c", "L1": "a"}
    assert "H1 103 Mpc (median 99), the largest of 5 chunks of at least 500 s" in chosen["H1"].reason


def test_a_detector_that_was_off_is_never_the_most_sensitive():
    """Dark or miscalibrated strain has a range beyond that of any detector; also a chunk a few percent too good is left out,
    since five others agree to 4 %."""
    for odd in (120, 160, 1e4, np.inf, np.nan):
        assert partitions(CHUNKS | {"z": quality(1000, odd, 119)})["H1"] == "c", odd
    reason = choose_most_sensitive(CHUNKS | {"z": quality(1000, 1e4, 119)})["H1"].reason
    assert reason.endswith("; 1 not trusted, up to 1e+04 Mpc in z")
    assert choose_most_sensitive(CHUNKS | {"z": quality(1000, 1e4, 119)})["H1"].doubt.startswith("1 of 6 chunks, up to 1e+04 Mpc in z,")
    assert choose_most_sensitive(CHUNKS)["H1"].doubt == ""


@pytest.mark.parametrize(
    ("ranges", "chosen", "doubted"),
    [
        ((100, 10), 100, True),
        ((100, 10, 10), 100, True),
        ((100, 100, 10, 10), 100, False),
        ((100, 90, 10, 10), 100, False),
        ((110, 100), 110, False),
        ((100,), 100, False),
        ((100, 100, 20, 20, 20), 100, False),
        ((101, 100, 22, 21, 20, 19, 18, 20), 101, False),
        ((100, 20, 20, 20, 20), 20, True),
        ((1e4, 100, 99, 98, 20, 20, 20), 100, True),
        ((1e4, 100, 100, 20, 20, 20, 20, 20), 100, True),
    ],
)
def test_bad_data_do_not_outvote_good_ones(ranges, chosen, doubted):
    """A detector falls to a tenth of its range in bad data, and never rises so: a spectrum too noisy for the SNR cut would reject
    signals that can be found, and V would be too low. Only of five chunks and more is one alone at the top put aside, and told."""
    choice = choose_most_sensitive({f"{k:02d}": Quality(1000, {"H1": r}) for k, r in enumerate(ranges)})["H1"]
    assert ranges[int(choice.partition)] == chosen and bool(choice.doubt) == doubted


def test_the_luckiest_of_short_chunks_is_not_the_most_sensitive():
    assert partitions(CHUNKS | {"short": quality(400, 105, 126)}) == {"H1": "c", "L1": "c"}
    # 20000 s and 4096 s give spectra of the same length, PROBE
    assert partitions({"a": quality(20_000, 100, 100), "b": quality(4096, 110, 90)}) == {"H1": "b", "L1": "a"}


def test_a_better_state_of_the_detector_counts():
    """A fifth of the chunks, all much above the rest, is a detector that was improved: signals there can be found."""
    chunks = {f"old{i}": quality(1000, 60 + i / 10, 100) for i in range(12)}
    new = {f"new{i}": quality(1000, 110 + i, 100) for i in range(3)}
    assert partitions(chunks | new)["H1"] == "new2"
    assert partitions(chunks | {"new0": new["new0"]})["H1"] == "old11"  # a single one is not believed
    off = {f"off{i}": quality(1000, 600 + i, 100) for i in range(3)}
    assert partitions(chunks | off)["H1"] == "old11"  # nor is what no detector reaches
    assert partitions(chunks | new | off)["H1"] == "new2"


def test_no_usable_spectrum_of_a_detector():
    with pytest.raises(ValueError, match="no chunk of 1 has a usable spectrum of H1"):
        choose_most_sensitive({"x": quality(32, np.nan, 90)})


def test_short_chunks_look_more_sensitive_than_they_are():
    """Why short chunks are left out: the mean of 1/S over a median of few frames is too large."""
    noise = SimulatedNoise("H1", *read_curve("aLIGO_O4_high_asd.txt"), sample_rate=FS, seed=5)
    x = noise.strain(T0, T0 + 512)
    whole = inspiral_range(reference_spectrum(x, FS))
    parts = [inspiral_range(reference_spectrum(x[i * 32 * FS : (i + 1) * 32 * FS], FS)) for i in range(16)]
    assert min(parts) > whole and max(parts) > 1.03 * whole


def test_files_of_older_versions_hold_no_most_sensitive_psd(tmp_path):
    path = tmp_path / "psd.hdf5"
    write_psd(path, {"test": {"H1": curve()}})
    with pytest.raises(StrainError, match=r"only the typical PSD of role 'test'.*`aframe run --until psd`"):
        read_psd(path, "test", most_sensitive=True)
    write_psd(path, {"test": {"H1": curve(2)}, "test_most_sensitive": {"H1": curve()}}, {"test_most_sensitive": {"H1_partition": "a"}})
    np.testing.assert_array_equal(read_psd(path, "test", ["H1"], most_sensitive=True)["H1"][1], curve().psd)
    np.testing.assert_array_equal(read_psd(path, "test", ["H1"])["H1"][1], curve(2).psd)
    with pytest.raises(StrainError, match="no test_most_sensitive PSD of L1; the file holds H1"):
        read_psd(path, "test", ["L1"], most_sensitive=True)
    with pytest.raises(StrainError, match=r"no reference PSD for role 'train'; the file holds test$"):
        read_psd(path, "train", most_sensitive=True)


def test_file_round_trip_and_gwpy(tmp_path):
    from gwpy.frequencyseries import FrequencySeries

    path = tmp_path / "psd.hdf5"
    write_psd(
        path,
        {"train": {"H1": curve(), "L1": curve(2)}, "test": {"H1": curve(3), "L1": curve()}},
        {"train": {"partition": "a", "reason": "why"}},
    )
    found = read_psd(path, "train", ["L1", "H1"])
    assert list(found) == ["L1", "H1"]
    frequencies, psd = found["L1"]
    np.testing.assert_array_equal(frequencies, curve().frequencies)
    np.testing.assert_array_equal(psd, curve(2).psd)
    series = FrequencySeries.read(path, path="train/H1", format="hdf5")
    assert series.df.value == 0.125 and series.f0.value == 0
    with pytest.raises(StrainError, match="no reference PSD for role 'validation'; the file holds test, train"):
        read_psd(path, "validation")
    with pytest.raises(StrainError, match="no train PSD of V1"):
        read_psd(path, "train", ["V1"])
    path.write_bytes(b"nothing")
    with pytest.raises(StrainError, match="not a readable PSD file"):
        read_psd(path, "train")


def test_checks_see_what_is_wrong():
    def passed(**spectra):
        checks = psd_checks({"train": spectra}, {"train": dict.fromkeys(spectra, 1.0)})
        return {c.name: c.passed for c in checks}

    assert all(passed(H1=curve(), L1=curve(2)).values())
    zero = Spectrum(curve().frequencies, curve().psd * (curve().frequencies != 500))
    assert not passed(H1=zero, L1=curve())["psd_finite"]
    f = curve().frequencies
    rolled = Spectrum(f, curve().psd * np.where(f > 950, 1e-4, 1))
    for lowpass, holds in ((1024.0, False), (900.0, True)):
        checks = psd_checks({"test": {"H1": rolled}}, {"test": {"H1": 1.0}}, (32.0, lowpass))
        (edge,) = [c for c in checks if c.name == "psd_holds_to_its_edges"]
        assert edge.passed == holds and (holds or "test H1" in edge.description)
    assert not passed(H1=curve(1000), L1=curve(1000))["psd_near_design"]
    assert not passed(H1=curve(20), L1=curve())["detectors_comparable"]
    (std,) = [c for c in psd_checks({"train": {"H1": curve()}}, {"train": {"H1": 3.9}}) if c.name == "whitened_std"]
    assert not std.passed and "3.9" in std.description
