"""What `fetch_background` refuses, whatever the source."""

from __future__ import annotations

import numpy as np
import pytest

from aframe_assets.strain.fetch import first_fault, require_usable
from aframe_assets.strain.stretch import StrainError, Stretch

FS, T0 = 2048.0, 1_240_600_000


def stretch(**changes) -> Stretch:
    x = 1e-21 * np.random.default_rng(0).standard_normal(int(16 * FS))
    values = {"ifo": "H1", "gps_start": T0, "sample_rate": FS, "strain": x, "mask": np.ones(16, bool), "source": "/data/H1.hdf5"}
    return Stretch(**(values | changes))


def refusal(s: Stretch) -> str:
    with pytest.raises(StrainError) as e:
        require_usable(s, T0, T0 + 16, FS)
    return str(e.value)


def replaced(first: float, num: int, value: float) -> np.ndarray:
    """Good strain with `num` samples from `first` seconds on set to `value`."""
    x = stretch().strain.copy()
    x[int(first * FS) :][:num] = value
    return x


def test_good_strain_passes():
    for good in (stretch(), stretch(mask=None)):
        require_usable(good, T0, T0 + 16, FS)
        assert first_fault(good.strain, FS) is None


SCIENCE = np.ones(16, bool)
SCIENCE[[9, 10]] = False


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strain": replaced(3.25, 5, np.nan)}, "5 samples that are NaN or infinite, the first at GPS 1240600003.2500"),
        ({"strain": replaced(4.5, int(FS), 0)}, "a gap of 1.000 s (one value repeated) at GPS 1240600004.5"),
        ({"sample_rate": 4096.0}, "sampled at 4096 Hz, expected 2048 Hz"),
        ({"strain": stretch().strain[:-1]}, "got 32767 samples from GPS 1240600000.0000, expected 32768"),
        ({"gps_start": T0 + 1.0}, "from GPS 1240600001.0000"),
        ({"mask": SCIENCE}, "no science data at GPS 1240600009 (2 s in all"),
    ],
)
def test_faults_are_named_with_file_and_time(changes, words):
    text = refusal(stretch(**changes))
    assert words in text
    assert "/data/H1.hdf5" in text and str(T0) in text


def test_repeated_samples_are_no_gap_until_they_last():
    x = np.random.default_rng(1).standard_normal(4096)
    x[100:400] = x[100]
    assert first_fault(x, FS) is None
    x[2000:2600] = 0
    index, what = first_fault(x, FS)
    assert index == 2000 and "0.293 s" in what
    assert first_fault(np.zeros(4096), FS)[0] == 0
