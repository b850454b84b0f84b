"""Sequences through NVIDIA's server: two at once, the server killed while they run, and the events of a search in one process."""

from __future__ import annotations

import logging
import queue
import zlib

import numpy as np
import pytest

from aframe_assets.engine.engine import load_engine
from aframe_assets.engine.repository import ENSEMBLE, WHITENED_ENSEMBLE
from aframe_assets.inference.clustering import cluster, detection_statistic
from aframe_assets.inference.remote.client import SequenceClient
from aframe_assets.inference.slides import run_slides
from aframe_assets.inference.whitened import WhitenedChunk
from aframe_assets.segments.geometry import SlideGeometry
from aframe_assets.strain.background_file import read_background

pytestmark = pytest.mark.triton

SEGMENT = "1240610000-200"
SHIFTS = [(0.0, 0.0), (0.0, 3.0)]
LOG = logging.getLogger("test")


@pytest.fixture
def chunk(room):
    config, row = room.config, room.rows[SEGMENT]
    file = room.store.open_local(room.handles["background"][SEGMENT])
    strain = read_background(next(file.glob("*.hdf5")), config.ifos).strain
    return WhitenedChunk.of(strain.values(), row["gps_start"], config.sample_rate, config.conditioning, block=config.psd_block)


def reach(room) -> tuple[int, int]:
    """Samples from the beginning of a kernel to the end of its window, and of a step. Windows of a stream end after whole steps."""
    config = room.config
    seconds = config.conditioning.kernel_length + config.model.architecture.context
    return round(seconds * config.sample_rate), round(config.sample_rate / config.inference.inference_rate)


def slid(room, chunk: WhitenedChunk, shift, update: int):
    """A slide's stream in requests of `update` samples. Filled with zeros before, so that windows end where those of slides do, and
    after."""
    starts = [round(s * chunk.sample_rate) for s in shift]
    size = len(chunk.streams[0]) - max(starts)
    length, step = reach(room)
    stream = np.stack([np.pad(x[a : a + size], (-length % step, 0)) for x, a in zip(chunk.streams, starts, strict=True)])
    for i in range(0, stream.shape[1], update):
        part = stream[:, i : i + update]
        yield np.pad(part, ((0, 0), (0, update - part.shape[1])))[None]


def events(room, geometry: SlideGeometry, shift, answers: np.ndarray):
    """Statistic and output of each event of a slide from the answers of its sequence."""
    config, valid = room.config, geometry.valid(shift)
    # answer j is of the window that ends after j + 1 steps of the stream
    length, step = reach(room)
    skipped = -(-length // step) - 1
    scores = np.full(len(valid), np.nan)
    scores[: len(answers) - skipped] = answers[skipped : skipped + len(valid), 0]
    statistic = detection_statistic(scores, valid, geometry.boxcar)
    found = cluster(statistic, config.inference.inference_rate, config.inference.cluster_window_length)
    return statistic[found], found


@pytest.mark.parametrize("room", ["resnet", "streaming"], indirect=True)
def test_two_sequences_and_a_server_killed_between_give_the_events_of_one_process(room, chunk, tritonserver):
    config, row = room.config, room.rows[SEGMENT]
    geometry = SlideGeometry.of(config, row["gps_start"], row["gps_stop"])
    wanted = run_slides(chunk, geometry, load_engine(room.store.open_local(room.handles["engine"])), config.inference, SHIFTS[1:])
    server = tritonserver(room.store.open_local(room.handles["model_repository"]), streams=2)
    answers = {shift: [] for shift in SHIFTS}
    with SequenceClient(server.url, WHITENED_ENSEMBLE, in_flight=2, log=LOG) as client:
        update = client.layout.chunk[-1]
        assert client.layout.slots == 2 and client.layout.refill >= 1
        sources = {shift: slid(room, chunk, shift, update) for shift in SHIFTS}
        total = 0
        for answer in client.run(sources):
            answers[answer.name].append(answer.values)
            total += 1
            if total == 20:
                first = server.identity
                server.kill()
        assert client.interruptions >= 1 and server.restarts == 1 and server.identity != first
    for shift, reference in zip(SHIFTS, (wanted.zero_lag, wanted.background), strict=True):
        joined = np.concatenate(answers[shift])
        statistic, output = events(room, geometry, shift, joined)
        assert len(statistic) == len(reference) > 10
        times = geometry.whitened_start + config.conditioning.kernel_length + output / config.inference.inference_rate
        np.testing.assert_allclose(times - config.inference.integration_window_length, reference.detection_time, rtol=0, atol=1e-6)
        np.testing.assert_allclose(statistic, reference.detection_statistic, rtol=0, atol=1e-5)
    print(f"{total} chunks of two sequences; the server was killed after 20; events equal to 1e-5")


@pytest.mark.parametrize("room", ["resnet"], indirect=True)
def test_a_client_in_the_manner_of_hermes(room, tritonserver):
    """Reference 2.11: background and injections side by side, identities from adler32 and one more, answers by a callback."""
    from tritonclient.grpc import InferenceServerClient, InferInput

    server = tritonserver(room.store.open_local(room.handles["model_repository"]))
    rng, requests, batch = np.random.default_rng(2), 12, room.config.inference.batch_size
    with SequenceClient(server.url, ENSEMBLE, log=LOG) as own:
        rows, ifos, update = own.layout.chunk
        noise = (rng.standard_normal((ifos, requests * update)) * 1e-22).astype(np.float32)
        tone = (3e-22 * np.sin(np.arange(requests * update) * 0.9)).astype(np.float32)
        first = zlib.adler32(b"1240610000-200-0-1")
        streams = {first: np.stack([noise, noise]), first + 1: np.stack([noise, noise + tone])}
        answers = {name: np.full(requests * batch, np.nan) for name in streams}
        done: queue.Queue = queue.Queue()

        def callback(result, error):
            if error is None:
                response = result.get_response()
                name, i = map(int, response.id.split("_"))
                answers[name][i * batch : (i + 1) * batch] = result.as_numpy("discriminator")[:, 0]
            done.put(error)

        with InferenceServerClient(server.url) as client:
            client.start_stream(callback=callback)
            for i in range(requests):
                for name, stream in streams.items():
                    given = InferInput("stream", [rows, ifos, update], "FP32")
                    given.set_data_from_numpy(np.ascontiguousarray(stream[..., i * update : (i + 1) * update]))
                    flags = {"sequence_id": name, "sequence_start": i == 0, "sequence_end": i == requests - 1}
                    client.async_stream_infer(ENSEMBLE, [given], request_id=f"{name}_{i}", **flags)
                if i == 0:
                    assert [done.get(timeout=60) for _ in streams] == [None, None]
            assert [done.get(timeout=60) for _ in range((requests - 1) * len(streams))] == [None] * (requests - 1) * 2
            client.stop_stream()

        # the same strain by our client, the server killed on the way
        got = {name: [] for name in streams}
        cut = {n: [s[..., i * update : (i + 1) * update] for i in range(requests)] for n, s in streams.items()}
        for answer in own.run(cut):
            got[answer.name].append(answer.values[:, 0])
            if answer == (first, 7, answer.values):
                server.kill()
        assert own.interruptions >= 1
        settled = batch * own.layout.refill
    for name, wanted in answers.items():
        np.testing.assert_array_equal(np.concatenate(got[name])[settled:], wanted[settled:])
        assert np.isfinite(wanted[settled:]).all()
    assert np.abs(answers[first + 1] - answers[first])[settled:].max() > 1e-3
