"""Strain from services: GWOSC open data, and frames by GWDataFind or NDS."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aframe_assets.strain.files import describe, fetch_files, resampled_stretch, times_from_name
from aframe_assets.strain.resample import BLOCK, resample_stream
from aframe_assets.strain.stretch import StrainError, Stretch

if TYPE_CHECKING:
    from aframe_assets.config import Config

log = logging.getLogger(__name__)

GWOSC_RATES = (4096, 16384)
"""Sample rates, hertz, in which GWOSC releases strain."""
_TIMEOUT_S = 60
_ATTEMPTS = 5


def fetch_gwosc(config: Config, ifo: str, start: float, stop: float) -> Stretch:
    """Open strain of [start, stop) at ``config.sample_rate``, with its data-quality mask.

    The files that the ``gwosc`` library names are fetched to a temporary folder and read as any other strain file.
    The service is ``config.strain.host`` or gwosc.org.

    Raises:
        StrainError: nothing is released for this time, the service or a file fails, or the strain is unusable.
    """
    from gwosc.api import DEFAULT_URL
    from gwosc.locate import get_urls

    host = config.strain.host or DEFAULT_URL
    what = f"GWOSC ({host}): {ifo} at GPS {start:.14g} to {stop:.14g}"
    rates = [r for r in GWOSC_RATES if r >= config.sample_rate]
    if not rates:
        raise StrainError(f"{what}: released at {GWOSC_RATES[-1]} Hz at most; expected sample_rate {config.sample_rate:g} Hz or below that")
    try:
        urls = get_urls(ifo, int(np.floor(start)), int(np.ceil(stop)), sample_rate=rates[0], host=host)
    except Exception as e:  # requests', tenacity's and json's errors, and ValueError where nothing is released
        raise StrainError(f"{what}: no strain found: {type(e).__name__}: {e}; check the time, strain.host and the network") from e
    with tempfile.TemporaryDirectory(prefix="aframe-gwosc-") as folder:
        infos = []
        for url in _covering(urls, start, stop):
            path = Path(folder) / url.rsplit("/", 1)[-1]
            _download(url, path, what)
            infos += describe(path)
        stretch = resampled_stretch(infos, ifo, start, stop, config.sample_rate, min_dq=config.strain.min_dq)
    return Stretch(ifo, start, config.sample_rate, stretch.strain, stretch.mask, host)


def _covering(urls: Sequence[str], start: float, stop: float) -> list[str]:
    # An event's release lists files of 32 s and 4096 s around it that hold the same strain: one that covers all will do.
    spans = {u: times_from_name(u.rsplit("/", 1)[-1]) for u in urls}
    near = {u: s for u, s in spans.items() if s is None or (s[0] < stop and s[1] > start)}
    whole = [u for u, s in near.items() if s and s[0] <= start and s[1] >= stop]
    if whole:
        return [min(whole, key=lambda u: near[u][1] - near[u][0])]
    return sorted(near, key=lambda u: (near[u] or (0.0, 0.0), u))


def _download(url: str, path: Path, what: str) -> None:
    import requests
    from urllib3.util import Retry

    retry = Retry(total=_ATTEMPTS, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504), respect_retry_after_header=True)
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retry))
        try:
            with session.get(url, stream=True, timeout=_TIMEOUT_S) as response, open(path, "wb") as out:
                response.raise_for_status()
                for piece in response.iter_content(1 << 20):
                    out.write(piece)
                expected = response.headers.get("Content-Length")
        except requests.RequestException as e:
            raise StrainError(f"{what}: {url} could not be fetched: {e}") from e
    if expected and "Content-Encoding" not in response.headers and path.stat().st_size != int(expected):
        raise StrainError(f"{what}: {url} ended after {path.stat().st_size} of {expected} bytes; run again")


def fetch_frames(config: Config, ifo: str, start: float, stop: float) -> Stretch:
    """Strain of ``config.strain.channels[ifo]`` on [start, stop) at ``config.sample_rate``.

    From the frames in ``config.strain.files`` if there are any; else by gwpy's TimeSeries.get, which asks GWDataFind
    (``config.strain.host``, or the site's server) and then NDS. A channel that is only a detector's name means GWOSC open
    data (reference 2.2).

    Raises:
        StrainError: the channel is not found for this time, has a gap or NaN, or too low a rate.
    """
    channel = config.strain.channels[ifo]
    if channel == ifo:
        return fetch_gwosc(config, ifo, start, stop)
    if config.strain.files:
        return fetch_files(config, ifo, start, stop)
    first = _get(config, channel, start, min(stop, start + 1))
    rate = float(first.sample_rate.value)

    def read(a: float, b: float) -> np.ndarray:
        series = _get(config, channel, a, b)
        where = f"frames: {channel} at GPS {a:.14g} to {b:.14g}"
        if series.sample_rate.value != rate:
            raise StrainError(f"{where}: {series.sample_rate.value:g} Hz; expected {rate:g} Hz as at GPS {start:.14g}")
        values = series.value.astype(np.float64)
        if len(values) != round((b - a) * rate) or abs(series.t0.value - a) > 0.5 / rate:
            raise StrainError(
                f"{where}: got {len(values)} samples from GPS {series.t0.value:.14g}; expected {round((b - a) * rate)}, there is a gap"
            )
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise StrainError(f"{where}: {len(bad)} samples are NaN or infinite, the first at GPS {a + bad[0] / rate:.14g}")
        return values

    if rate < config.sample_rate:
        raise StrainError(
            f"frames: {channel} at GPS {start:.14g} is at {rate:g} Hz; expected at least sample_rate {config.sample_rate:g} Hz"
        )
    strain = resample_stream(read, start, stop, rate, config.sample_rate, BLOCK)
    return Stretch(ifo, start, config.sample_rate, strain, None, f"{channel} ({config.strain.host or 'default frame server'})")


def _get(config: Config, channel: str, start: float, stop: float):
    from gwpy.timeseries import TimeSeries

    options = {"host": config.strain.host} if config.strain.host else {}
    try:
        return TimeSeries.get(channel, start, stop, allow_tape=True, **options)
    except Exception as e:  # each of gwpy's sources has errors of its own
        raise StrainError(
            f"frames: {channel} at GPS {start:.14g} to {stop:.14g} is not available from {config.strain.host or 'the default servers'}: "
            f"{type(e).__name__}: {e}; check strain.channels, strain.host and your credentials"
        ) from e
