"""Sequences through a server that drops connections, loses its state, answers late or wrong; it speaks the real protocol."""

from __future__ import annotations

import logging
import threading

import fake_triton as fake
import numpy as np
import pytest

from aframe_assets.inference.remote.client import SequenceClient
from aframe_assets.inference.remote.connection import Absent, Refused, ServerError
from aframe_assets.inference.remote.sequence import Sequence, SequenceLayout

CHUNKS = 9


def stream(seed: int, chunks: int = CHUNKS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((fake.IFOS, chunks * fake.UPDATE)).astype(np.float32)


def cut(data: np.ndarray):
    for i in range(0, data.shape[1], fake.UPDATE):
        yield data[None, :, i : i + fake.UPDATE]


def client(server: fake.FakeTriton, **change) -> SequenceClient:
    values = {"in_flight": 3, "patience": 5.0, "answer_timeout": 5.0, "log": logging.getLogger("test")} | change
    return SequenceClient(server.url, "stream", **values)


def once(what: str, *numbers: int):
    """The fault `what` at the given requests of the server's life."""
    return lambda n, request: what if n in numbers else None


def test_layout_is_what_the_server_says():
    with fake.FakeTriton(slots=3) as server, client(server) as c:
        wanted = SequenceLayout("stream", "stream", "discriminator", (1, fake.IFOS, fake.UPDATE), (fake.WINDOWS, 1), fake.STATE, 3)
        assert c.layout == wanted and c.layout.refill == 2


@pytest.mark.parametrize("in_flight", [1, 2, 5])
def test_several_sequences_are_answered_as_if_each_were_alone(in_flight):
    data = {name: stream(i, 4 + i) for i, name in enumerate("abcde")}
    # an answer that a loaded machine delays is no interruption
    with fake.FakeTriton(slots=2) as server, client(server, in_flight=in_flight, answer_timeout=60.0, patience=60.0) as c:
        got = c.collect({n: cut(x) for n, x in data.items()})
        assert c.interruptions == 0 and not server.state and server.most == 2
    for name, x in data.items():
        np.testing.assert_array_equal(got[name], fake.expected(x))


@pytest.mark.parametrize("what", ["drop", "restart", "forget", "lose", "error", "end", "late"])
@pytest.mark.parametrize("at", [(1,), (2,), (7,), (5, 6, 20), (18,)])
def test_answers_do_not_depend_on_what_the_server_does(what, at):
    data = {name: stream(i) for i, name in enumerate("ab")}
    with fake.FakeTriton(fault=once(what, *at)) as server, client(server) as c:
        got = c.collect({n: cut(x) for n, x in data.items()})
        # nothing is lost with a state that there was not yet
        assert (c.interruptions > 0) == (what != "late" and (what, at) != ("lose", (1,)))
        assert len(set(server.started)) == len(server.started), "every beginning has an id of its own"
        assert not server.state, "no slot is left taken"
    for name, x in data.items():
        np.testing.assert_array_equal(got[name], fake.expected(x))


def test_answers_are_handed_out_one_by_one_in_order_and_each_once():
    with fake.FakeTriton(fault=once("restart", 8, 15)) as server, client(server) as c:
        indices = [a.index for a in c.run({"a": cut(stream(0))})]
    assert indices == list(range(CHUNKS))


def test_a_server_that_is_killed_and_comes_back():
    data, got = stream(3, 30), []
    # one request at a time: no later answer has arrived when the server is killed
    with fake.FakeTriton() as server, client(server, in_flight=1) as c:
        for answer in c.run({"a": cut(data)}):
            got.append(answer.values)
            if answer.index == 11:
                server.kill()
                back = threading.Timer(0.5, server.serve)
                back.start()
        back.join()
        assert c.interruptions >= 1
        # two chunks fill the state, and the last acknowledged one is compared
        replay = next(i for i, s in enumerate(server.seen) if s.partition(".")[0] == str(server.started[1]))
        assert server.seen[replay].endswith(".9")
    np.testing.assert_array_equal(np.concatenate(got), fake.expected(data))


def test_a_server_that_does_not_come_back_is_named():
    with fake.FakeTriton() as server, client(server, patience=0.5) as c:
        with pytest.raises(Absent, match=rf"127.0.0.1:{server.port}, model stream: no answer, for 0.5 s"):
            for answer in c.run({"a": cut(stream(0))}):
                if answer.index == 2:
                    server.kill()


def test_attempts_are_bounded_and_counted_without_progress_only():
    every_seventh = lambda n, request: "drop" if n % 7 == 0 else None  # noqa: E731
    with fake.FakeTriton(fault=every_seventh) as server, client(server, attempts=1, in_flight=1) as c:
        np.testing.assert_array_equal(c.collect({"a": cut(stream(0))})["a"], fake.expected(stream(0)))
        assert c.interruptions > c.attempts
    with fake.FakeTriton(fault=lambda n, request: "drop" if n > 4 else None) as server, client(server, attempts=2) as c:
        with pytest.raises(ServerError, match=r"sequence a, chunk \d: no answer in 2 attempts.*connection reset by peer"):
            c.collect({"a": cut(stream(0))})


def test_a_server_that_never_answers_is_taken_for_gone():
    with fake.FakeTriton(fault=lambda n, request: "swallow") as server, client(server, attempts=1, answer_timeout=0.3) as c:
        with pytest.raises(ServerError, match=r"no answer within 0.3 s"):
            c.collect({"a": cut(stream(0))})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("twice", "answers are in order, each once"),
        ("other_id", "answered request"),
        ("restarted", "took chunk 4 for the first of its sequence"),
        ("short", r"shape \(2, 1\); expected \(3, 1\)"),
        ("nan", "chunk 4 with values that are not finite"),
    ],
)
def test_answers_that_cannot_be_right_end_the_run(what, message):
    with fake.FakeTriton(fault=once(what, 5)) as server, client(server) as c:
        with pytest.raises(Refused, match=message):
            c.collect({"a": cut(stream(0))})
        assert not server.state


def test_infinite_values_are_let_through_only_while_the_state_fills():
    with fake.FakeTriton(fault=once("nan", 2)) as server, client(server) as c:
        assert np.isnan(c.collect({"a": cut(stream(0))})["a"]).sum() == 1


def test_another_network_after_a_restart_is_noticed():
    with fake.FakeTriton() as server, client(server, in_flight=1) as c:
        with pytest.raises(Refused, match=r"chunk 4 again, but .* apart from its first answer"):
            for answer in c.run({"a": cut(stream(0))}):
                if answer.index == 4:
                    server.scale = 1.1
                    server.kill()
                    server.serve()


def test_slots_are_freed_when_the_caller_stops_early():
    with fake.FakeTriton() as server, client(server) as c:
        answers = c.run({"a": cut(stream(0)), "b": cut(stream(1))})
        next(answers)
        answers.close()
        assert not server.state
        np.testing.assert_array_equal(c.collect({"c": cut(stream(2))})["c"], fake.expected(stream(2)))


def test_an_error_of_the_source_frees_the_slots_too():
    def broken():
        yield from cut(stream(0, 3))
        raise OSError("no more strain")

    with fake.FakeTriton() as server, client(server) as c:
        with pytest.raises(OSError, match="no more strain"):
            c.collect({"a": broken()})
        assert not server.state


def test_wrong_chunks_models_and_settings_are_refused():
    with fake.FakeTriton() as server, client(server) as c:
        with pytest.raises(ValueError, match=r"chunk of shape \(1, 2, 11\); model stream takes \(1, 2, 12\)"):
            c.collect({"a": iter([np.zeros((1, 2, 11), np.float32)])})
        with pytest.raises(ValueError, match="without chunks"):
            c.collect({"a": iter([])})
        with pytest.raises(Refused, match=r"model net .* has 0 members with sequences"):
            SequenceClient(server.url, "net", patience=5)
        with pytest.raises(Absent, match="model nothing: the model is not ready"):
            SequenceClient(server.url, "nothing", patience=0.2)
        with pytest.raises(ValueError, match="in_flight = 0"):
            client(server, in_flight=0)
        with pytest.raises(ValueError, match="attempts = 0"):
            client(server, attempts=0)


def test_a_sequence_keeps_only_what_a_replay_needs():
    layout = SequenceLayout("m", "x", "y", (1, 1, 4), (1, 1), 10, 1)
    chunks = (np.full((1, 1, 4), i, np.float32) for i in range(1000))
    sequence = Sequence(layout, chunks, in_flight=2, tolerance=0.0)
    for i in range(500):
        while (request := sequence.request()) is not None:
            pass
        assert sequence.answer(f"{sequence.sequence_id}.{i}", np.zeros((1, 1), np.float32))[0] == i
    assert len(sequence._kept) <= layout.refill + 1 + 2 + 1
    sequence.restart()
    request = sequence.request()
    assert request.start and request.values[0, 0, 0] == 499 - layout.refill == 496
