"""Strain from GWOSC and from GWDataFind, by the real client libraries against servers on this machine with real files."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest

from aframe_assets.config import Config
from aframe_assets.strain.files import StrainError, describe, fetch_files, times_from_name
from aframe_assets.strain.remote import fetch_frames, fetch_gwosc

START = 1126259446
RUN = {"name": "O1", "detectors": ["H1", "L1"], "gps_start": 1126051217, "gps_end": 1137254417}
EVENT = {
    "name": "GW150914",
    "shortName": "GW150914-v3",
    "gps": 1126259462.4,
    "version": 3,
    "catalog": "GWTC-1-confident",
    "detectors": ["H1", "L1"],
}


class _Server(BaseHTTPRequestHandler):
    """The parts of GWOSC's API v2 and of GWDataFind's API v1 that the libraries ask for, and the files themselves."""

    def do_GET(self):
        url = urlparse(self.path)
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        parts = url.path.strip("/").split("/")
        self.server.asked.append(self.path)
        if parts[0] == "files":
            return self._file(parts[1])
        if parts[:2] == ["api", "v2"]:
            results = self._gwosc(parts[2:], query)
            return self._json(
                None if results is None else {"results_count": len(results), "num_pages": 1, "next": None, "results": results}
            )
        if parts[:2] == ["api", "v1"]:
            return self._json(self._datafind(parts[2:]))
        return self._json(None)

    def _gwosc(self, parts, query):
        if parts == ["runs"]:
            return [RUN]
        if parts == ["event-versions"]:
            return [EVENT] if self.server.events else []
        if parts[-1] == "strain-files":
            out = []
            for path in self.server.files:
                info = describe(path)[0]
                if info.kind != "gwosc_hdf5" or info.ifo != query["detector"] or info.sample_rate != 1024 * int(query["sample-rate"]):
                    continue
                if parts[0] == "runs" and (info.gps_start >= int(query["stop"]) or info.gps_stop <= int(query["start"])):
                    continue
                link = f"{self.server.url}/files/{path.name}"
                out.append({"hdf5_url": link, "download_url": link, "gps_start": int(info.gps_start), "duration": int(info.duration)})
            return out
        return None

    def _datafind(self, parts):
        frames = [p for p in self.server.files if p.suffix == ".gwf"]
        if parts[0] == "gwf" and parts[1] in ("H.json", "all.json"):
            return sorted({p.name.split("-")[1] for p in frames})
        if parts[0] == "gwf" and parts[1] == "H" and len(parts) >= 4:
            wanted = [p for p in frames if p.name.split("-")[1] == parts[2]]
            if parts[3] == "latest":
                return [wanted[-1].as_uri().replace("file://", "file://localhost")] if wanted else []
            start, stop = (float(x) for x in parts[3].split(","))
            return [
                p.as_uri().replace("file://", "file://localhost")
                for p in wanted
                if times_from_name(p)[0] < stop and times_from_name(p)[1] > start
            ]
        return None

    def _json(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(404 if answer is None else 200)
        self._send(body)

    def _file(self, name):
        body = next(p for p in self.server.files if p.name == name).read_bytes()
        if self.server.fail_first:
            self.server.fail_first -= 1
            self.send_response(503)
            return self._send(b"busy")
        self.send_response(200)
        self._send(body[: self.server.cut] if self.server.cut else body, len(body))

    def _send(self, body, length=None):
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(shared_data):
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    http.files = [*sorted((shared_data / "strain").glob("*.hdf5")), *sorted((shared_data / "frames").glob("H-H1*.gwf"))]
    http.url = f"http://127.0.0.1:{http.server_port}"
    http.asked, http.events, http.fail_first, http.cut = [], False, 0, 0
    thread = threading.Thread(target=lambda: http.serve_forever(poll_interval=0.05), daemon=True)
    thread.start()
    yield http
    http.shutdown()
    http.server_close()
    thread.join()


def config(source: str, sample_rate: float = 2048, **strain) -> Config:
    return Config(
        sample_rate=sample_rate,
        segments={"source": "fixed", "fixed": [(0, 1)], "train_start": 0, "train_stop": 1, "test_start": 1, "test_stop": 2},
        strain={"source": source, **strain},
    )


def local(shared_data, ifo, start, stop, sample_rate=2048.0):
    return fetch_files(config("files", sample_rate, files=[str(shared_data / "strain")]), ifo, start, stop)


@pytest.mark.parametrize("events", [False, True])
def test_gwosc_gives_what_the_files_hold(server, shared_data, events):
    server.events = events
    for ifo in ("H1", "L1"):
        stretch = fetch_gwosc(config("gwosc", host=server.url), ifo, START + 2, START + 26)
        expected = local(shared_data, ifo, START + 2, START + 26)
        assert np.array_equal(stretch.strain, expected.strain) and np.array_equal(stretch.mask, expected.mask)
        assert (stretch.ifo, stretch.gps_start, stretch.sample_rate, stretch.source) == (ifo, START + 2, 2048, server.url)
    assert sum(a.startswith("/files/") for a in server.asked) == 2
    assert any(("event-versions/GW150914-v3" if events else "runs/O1") in a for a in server.asked)


def test_gwosc_16_khz_when_the_experiment_needs_it(server):
    RUN_O2 = {"name": "O2", "detectors": ["H1", "L1", "V1"], "gps_start": 1164556817, "gps_end": 1187733618}
    saved = dict(RUN)
    RUN.update(RUN_O2)
    try:
        stretch = fetch_gwosc(config("gwosc", 8192, host=server.url), "V1", 1186741846, 1186741878)
    finally:
        RUN.clear()
        RUN.update(saved)
    assert stretch.sample_rate == 8192 and len(stretch.strain) == 32 * 8192 and stretch.mask.all()


def test_gwosc_retries_a_busy_server(server):
    server.fail_first = 1
    assert fetch_gwosc(config("gwosc", host=server.url), "H1", START, START + 8).duration == 8
    assert sum(a.startswith("/files/") for a in server.asked) == 2


def test_gwosc_errors(server):
    with pytest.raises(StrainError, match=r"GWOSC \(http://127\.0\.0\.1.*H1 at GPS 1126259400 to 1126259500.*no strain found"):
        fetch_gwosc(config("gwosc", host=server.url), "H1", 1126259400, 1126259500)
    server.cut = 1000
    with pytest.raises(
        StrainError, match=r"GWOSC.*H1 at GPS 1126259446.*H-H1_LOSC_4_V2-1126259446-32\.hdf5 (could not be fetched|ended after)"
    ):
        fetch_gwosc(config("gwosc", host=server.url), "H1", START, START + 8)
    with pytest.raises(StrainError, match=r"16384 Hz at most"):
        fetch_gwosc(config("gwosc", 32768, host=server.url), "H1", START, START + 8)
    server.shutdown()
    server.server_close()
    with pytest.raises(StrainError, match=r"GWOSC.*H1 at GPS 1126259000.*network"):
        fetch_gwosc(config("gwosc", host=server.url), "H1", START - 446, START - 440)


CHANNELS = {"H1": "H1:LOSC-STRAIN", "L1": "L1:LOSC-STRAIN"}
FRAME_START = 1128678884


def test_frames_by_datafind(server, shared_data):
    from gwpy.timeseries import TimeSeries

    from aframe_assets.strain.resample import resample

    c = config("frames", host=server.url, channels=CHANNELS)
    stretch = fetch_frames(c, "H1", FRAME_START + 1, FRAME_START + 31)
    path = str(shared_data / "frames" / "H-H1_LOSC_4_V2-1128678884-32.gwf")
    original = TimeSeries.read(path, "H1:LOSC-STRAIN", start=FRAME_START + 1, end=FRAME_START + 31).value
    assert np.array_equal(stretch.strain, resample(original, 4096, 2048))
    assert (stretch.gps_start, stretch.sample_rate, stretch.mask) == (FRAME_START + 1, 2048, None)
    assert any(a.startswith("/api/v1/gwf/H") for a in server.asked)
    with pytest.raises(StrainError, match=r"frames: H1:LOSC-STRAIN at GPS 1128678900 to .*is not available"):
        fetch_frames(c, "H1", FRAME_START + 16, FRAME_START + 40)
    with pytest.raises(StrainError, match=r"at 4096 Hz; expected at least sample_rate 8192 Hz"):
        fetch_frames(config("frames", 8192, host=server.url, channels=CHANNELS), "H1", FRAME_START, FRAME_START + 8)


def test_frames_from_files_and_from_gwosc(server, shared_data):
    c = config("frames", files=[str(shared_data / "frames")], channels=CHANNELS)
    stretch = fetch_frames(c, "H1", FRAME_START, FRAME_START + 32)
    assert stretch.mask.all() and np.isfinite(stretch.strain).all()
    assert 1e-20 < stretch.strain.std() < 1e-18
    # A channel that is a detector's name is open data (reference 2.2).
    c = config("frames", host=server.url, channels={"H1": "H1", "L1": "L1"})
    assert np.array_equal(fetch_frames(c, "L1", START, START + 8).strain, local(shared_data, "L1", START, START + 8).strain)
