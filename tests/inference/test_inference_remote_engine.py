"""An engine whose network a server evaluates, against the same network here, while connections drop and servers start again."""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import fake_triton as fake
import numpy as np
import pytest

from aframe_assets.engine.engine import Engine
from aframe_assets.engine.signature import Signature
from aframe_assets.inference.blocks import Row, through
from aframe_assets.inference.remote.connection import Absent, Refused, ServerError
from aframe_assets.inference.remote.engine import RemoteEngine
from aframe_assets.inference.remote.runner import Probe, RemoteRunner
from aframe_assets.inference.windows import SlidWindows

SIGNATURE = Signature(("H1", "L1"), 64.0, fake.KERNEL, {"kernel_length": fake.KERNEL / 64})
HERE = Path("/dev/shm")


@dataclass
class At:
    url: str
    local: bool = True


class Local:
    threads = 1

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return fake.score(x)


class Twice(Local):
    def __call__(self, x: np.ndarray) -> np.ndarray:
        return score_twice(x)


def windows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, fake.IFOS, fake.KERNEL)).astype(np.float32)


def local_engine(**change) -> Engine:
    return Engine(replace(SIGNATURE, **change), {}, "here", Local(), batch=4)


def remote(server: fake.FakeTriton, **change) -> RemoteEngine:
    values = {"patience": 5.0, "answer_timeout": 5.0, "in_flight": 3, "log": logging.getLogger("test")} | change
    return RemoteEngine(local_engine(), At(server.url), **values)


def left_behind() -> list[str]:
    return [n for n in os.listdir(HERE) if n.startswith(f"aframe-{os.getpid()}-")] if HERE.is_dir() else []


@pytest.mark.parametrize("share_memory", [True, False])
@pytest.mark.parametrize("count", [1, 4, 5, 61])
def test_a_server_answers_as_the_engine_does(share_memory, count):
    with fake.FakeTriton() as server, remote(server, share_memory=share_memory) as engine:
        x = windows(count)
        np.testing.assert_array_equal(engine.infer(x), local_engine().infer(x))
        np.testing.assert_array_equal(engine.score_windows(x), local_engine().score_windows(x))
        assert (engine.kernel, engine.ifos, engine.form, engine.head) == (fake.KERNEL, ["H1", "L1"], "windows", None)
        assert bool(server.regions) == (share_memory and HERE.is_dir())
    assert not server.regions and not left_behind()


def test_blocks_windows_and_the_filter_of_a_cascade_are_models_of_their_own():
    shape = {"stride": 4, "total_stride": 4, "block": fake.KERNEL}
    network = object()
    own = Engine(replace(SIGNATURE, form="maps", **shape), {}, "here", Local(), windows=lambda: score_twice, batch=4)
    local = Engine(
        replace(SIGNATURE, form="frames", **shape), {}, "here", Local(), windows=Local, head=lambda: network, batch=4, filter=own
    )
    asked: list[str] = []
    with fake.FakeTriton(fault=lambda n, request: asked.append(request.model_name)) as server:
        with RemoteEngine(local, At(server.url), patience=5.0) as engine:
            x = windows(9)
            assert engine.form == "frames" and engine.head is network and set(asked) == {"aframe-blocks", "filter-blocks"}
            np.testing.assert_array_equal(engine.infer(x), fake.score(x))
            np.testing.assert_array_equal(engine.filter.infer(x), fake.score(x))
            assert "aframe" not in asked, "a model is asked when it is needed"
            np.testing.assert_array_equal(engine.score_windows(x), fake.score(x)[:, 0])
            assert asked.count("aframe") == 2
            np.testing.assert_array_equal(engine.filter.score_windows(x), 2 * fake.score(x)[:, 0])
    assert not server.regions and not left_behind()


def score_twice(x: np.ndarray) -> np.ndarray:
    return 2 * fake.score(x)


def test_requests_under_way_are_bounded_and_answers_in_order():
    with fake.FakeTriton(fault=lambda n, request: "late" if n < 8 else None) as server, remote(server, in_flight=3) as engine:
        x = windows(40)
        np.testing.assert_array_equal(engine.infer(x), fake.score(x)[:, 0])
        assert server.most == 3


def test_a_filter_that_is_refused_leaves_nothing_open():
    local = local_engine()
    local.filter = Engine(replace(SIGNATURE, form="frames", stride=4, total_stride=4, block=fake.KERNEL), {}, "here", Twice(), batch=4)
    with fake.FakeTriton() as server:
        with pytest.raises(Refused, match="filter-blocks answers"):
            RemoteEngine(local, At(server.url), patience=5.0)
        assert not server.regions and not left_behind()


def test_blocks_of_a_search_are_asked_for_together():
    local = local_engine(form="frames", stride=4, total_stride=4, block=fake.KERNEL)
    stream = windows(30)[:, 0].ravel()
    rows = [Row(stream, np.array([0]), np.array([len(stream)]), 0, 4)] * fake.IFOS
    with fake.FakeTriton(fault=lambda n, request: "late" if n < 8 else None) as server:
        with RemoteEngine(local, At(server.url), patience=5.0, in_flight=3) as engine:
            found = np.concatenate(list(through(engine, rows)))
            assert server.most == 3
    np.testing.assert_array_equal(found, np.concatenate(list(through(local, rows))))


@pytest.mark.parametrize(("batch", "count", "most"), [(4, 50, 3), (3, 50, 3), (64, 50, 3), (4, 3, 1), (5, 12, 3)])
def test_windows_of_a_search_are_asked_for_together(batch, count, most):
    """As many requests as may be under way, of the same windows and zeros as one at a time has."""
    streams = list(np.random.default_rng(1).standard_normal((fake.IFOS, 300)).astype(np.float32))
    slid, frame = SlidWindows(streams, (0,) * fake.IFOS, fake.KERNEL), np.arange(count) * 5
    shapes: list[int] = []

    def fault(n, request):
        shapes.append(request.inputs[0].shape[0])
        return "late" if n < 8 else None

    with fake.FakeTriton(fault=fault) as server, remote(server, in_flight=3) as engine:
        shapes.clear()  # the probe
        found = slid.score(engine, frame, batch)
        assert server.most == most
    alone, calls = local_engine(), []
    alone._runner = lambda x: calls.append(len(x)) or fake.score(x)
    np.testing.assert_array_equal(found, slid.score(alone, frame, batch))
    assert sorted(shapes) == sorted(calls)


@pytest.mark.parametrize("share_memory", [True, False])
@pytest.mark.parametrize("at", [(2,), (5, 6), (4, 9, 14)])
def test_requests_are_sent_again_when_a_connection_drops(share_memory, at):
    with fake.FakeTriton(fault=lambda n, r: "drop" if n in at else None) as server, remote(server, share_memory=share_memory) as engine:
        x = windows(40)
        np.testing.assert_array_equal(engine.infer(x), fake.score(x)[:, 0])
        assert server.infers > 11
    assert not server.regions and not left_behind()


def test_memory_that_the_server_still_uses_is_given_back_later():
    with fake.FakeTriton(fault=lambda n, r: {4: "drop", 5: "late", 6: "late"}.get(n)) as server, remote(server) as engine:
        np.testing.assert_array_equal(engine.infer(windows(40)), fake.score(windows(40))[:, 0])
    assert not server.regions and not left_behind()


@pytest.mark.parametrize("share_memory", [True, False])
def test_a_server_that_was_started_again_between_calls_is_asked_the_probe_again(share_memory, caplog):
    with fake.FakeTriton() as server, remote(server, share_memory=share_memory) as engine:
        engine.infer(windows(9))
        server.kill()
        server.serve()
        np.testing.assert_array_equal(engine.infer(windows(9)), fake.score(windows(9))[:, 0])
        server.kill()
        server.scale = 1.1
        server.serve()
        with pytest.raises(Refused, match="apart from this search's engine"):
            engine.infer(windows(9))
    assert not left_behind()


def test_a_server_that_is_killed_during_a_call_and_comes_back():
    def fault(n, request):
        if n == 5:
            threading.Thread(target=lambda: (server.kill(), server.serve())).start()
            return "late"
        return None

    with fake.FakeTriton(fault=fault) as server, remote(server) as engine:
        x = windows(40)
        np.testing.assert_array_equal(engine.infer(x), fake.score(x)[:, 0])


@pytest.mark.parametrize("unanswered", [0, 2])
def test_a_server_that_dies_before_it_is_known_and_comes_back(unanswered):
    def fault(n, request):
        if n == 1:
            threading.Thread(target=lambda: (server.kill(), server.serve())).start()
            return "late"
        return "drop" if n == 2 else None

    with fake.FakeTriton(fault=fault) as server:
        server.unanswered = unanswered
        with remote(server) as engine:
            np.testing.assert_array_equal(engine.infer(windows(9)), fake.score(windows(9))[:, 0])
        assert server.infers > 3 and not server.unanswered
    assert not server.regions and not left_behind()


def test_attempts_to_know_a_server_are_bounded():
    with fake.FakeTriton(fault=lambda n, r: "drop") as server:
        with pytest.raises(ServerError, match=rf"2 attempts to connect failed; the last: Triton server at {server.url}, model aframe"):
            remote(server, attempts=2)
        assert server.infers == 2
        server.unanswered = 3
        with pytest.raises(ServerError, match=r"3 attempts to connect failed; the last.*Socket closed"):
            remote(server, attempts=3)
        assert server.infers == 2 and not server.unanswered
    assert not server.regions and not left_behind()


def test_attempts_are_bounded():
    with fake.FakeTriton(fault=lambda n, r: "drop" if n > 3 else None) as server, remote(server, attempts=2) as engine:
        with pytest.raises(ValueError, match="attempts = 0; expected at least 1"):
            remote(server, attempts=0)
        with pytest.raises(ServerError, match=rf"2 attempts.*failed; the last: Triton server at {server.url}, model aframe"):
            engine.infer(windows(40))
    with fake.FakeTriton() as server, remote(server, patience=0.3) as engine:
        server.kill()
        with pytest.raises(Absent, match=f"{server.url}, model aframe: no answer, for 0.3 s"):
            engine.infer(windows(4))
    assert not left_behind()


def test_a_server_that_does_not_share_memory_is_sent_the_data(caplog):
    with fake.FakeTriton() as server, caplog.at_level(logging.INFO, "test"):
        server.share_memory = False
        with remote(server) as engine:
            np.testing.assert_array_equal(engine.infer(windows(9)), fake.score(windows(9))[:, 0])
    assert "no shared memory with this server" in caplog.text and not left_behind()


@pytest.mark.parametrize(("what", "message"), [("short", r"shape \(3, 1\); expected \(4, 1\)"), ("nan", "not finite")])
@pytest.mark.parametrize("share_memory", [True, False])
def test_answers_that_cannot_be_right_are_refused(what, message, share_memory):
    with fake.FakeTriton(fault=lambda n, r: what if n == 3 else None) as server, remote(server, share_memory=share_memory) as engine:
        with pytest.raises(Refused, match=message):
            engine.infer(windows(40))
    assert not server.regions and not left_behind()


def test_another_network_or_shape_is_refused_at_once():
    with fake.FakeTriton() as server:
        server.scale = 0.0
        with pytest.raises(Refused, match=r"apart from this search's engine .* numpy 2; serve the model_repository of this run"):
            remote(server)
        server.scale, server.about = 1.0, json.dumps(asdict(replace(SIGNATURE, sample_rate=4096.0)))
        with pytest.raises(Refused, match=r"sample_rate = 4096.0: the engine of this search has 64.0"):
            remote(server)
        server.about = json.dumps(asdict(SIGNATURE))
        remote(server).close()
        probe = Probe(windows(2)[:, :, 1:], np.zeros((2, 1), np.float32), 1.0)
        with pytest.raises(Refused, match=r"takes input_0 \[-1, 2, 20\]; the engine of this search takes \[-1, 2, 19\]"):
            RemoteRunner(At(server.url), "net", probe)
        with pytest.raises(Absent, match="model other: the model is not ready"):
            RemoteRunner(At(server.url), "other", probe, patience=0.2)
    assert not left_behind()
