"""Sequences through a Triton ensemble: many at once, none of them ever in a state that is not its own."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from tritonclient.grpc import service_pb2

from aframe_assets.inference.remote.connection import Connection, Dropped, Refused, ServerError, float_answer, float_request, require_counts
from aframe_assets.inference.remote.sequence import Sequence, SequenceLayout
from aframe_assets.inference.remote.stream import Stream

ATTEMPTS = 5
"""Times in a row that a sequence may fail without a new answer between."""

PATIENCE = 60.0
"""Seconds that a server may take to be ready (again)."""

ANSWER_TIMEOUT = 300.0
"""Seconds without any answer after which a server is taken for gone."""

_END = "end"
_FAREWELL = 5.0
_PAUSE, _LONGEST_PAUSE = 0.2, 5.0


class Answer(NamedTuple):
    """The answer to one chunk of one sequence."""

    name: Hashable
    index: int
    values: np.ndarray


class SequenceClient:
    """Drives sequences through a model that keeps their state, over one stream.

    Answers are handed out chunk by chunk, in order within a sequence. An answer counts only if the server still has the name
    (`Connection.generation`) that it had when the stream was opened. When the connection breaks, the server is started again or
    refuses a request, the sequences are continued as `Sequence` describes; their answers do not depend on it.

    No request has a time limit in the server: Triton's limits are microseconds, and count while a sequence waits for a slot. So at
    most as many sequences as there are slots are under way at once.

    Args:
        url: host and port of the gRPC service.
        model: ensemble or model with sequences.
        in_flight: requests without an answer, for each sequence, >= 1.
        attempts: see ATTEMPTS.
        patience, answer_timeout: seconds, see PATIENCE and ANSWER_TIMEOUT.
        tolerance: by which an answer to a repeated chunk may differ from the first.
        log: is told of interruptions.

    Attributes:
        layout: what the model takes and gives.
        interruptions: how often sequences were continued anew.

    Raises:
        ValueError: in_flight or attempts below 1.
        ServerError: no server is ready, or its model has no sequences.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        in_flight: int = 4,
        attempts: int = ATTEMPTS,
        patience: float = PATIENCE,
        answer_timeout: float = ANSWER_TIMEOUT,
        tolerance: float = 1e-3,
        log: logging.Logger | None = None,
    ) -> None:
        require_counts(in_flight=in_flight, attempts=attempts)
        self.url, self.model, self.in_flight, self.attempts = url, model, in_flight, attempts
        self.patience, self.answer_timeout, self.tolerance = patience, answer_timeout, tolerance
        self.log = log or logging.getLogger(__name__)
        self.interruptions = 0
        self._connection = Connection.ready(url, model, patience)
        self.layout = SequenceLayout.of(self._connection)

    def __enter__(self) -> SequenceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def run(self, sources: Mapping[Hashable, Iterable[np.ndarray]]) -> Iterator[Answer]:
        """Answers to all chunks of all sequences.

        Args:
            sources: name -> chunks (rows, ifo, samples) float32, at least one; read as they are needed.

        Raises:
            ValueError: a chunk of another shape, or a sequence without any.
            ServerError: attempts are used up, or an answer cannot be right; names server and model.
        """
        run = _Run(self, deque(sources.items()))
        try:
            yield from run.answers()
        finally:
            run.close()

    def collect(self, sources: Mapping[Hashable, Iterable[np.ndarray]]) -> dict[Hashable, np.ndarray]:
        """All answers of each sequence, joined along their first axis."""
        parts: dict[Hashable, list[np.ndarray]] = {name: [] for name in sources}
        for answer in self.run(sources):
            parts[answer.name].append(answer.values)
        return {name: np.concatenate(values) for name, values in parts.items()}

    def reconnect(self) -> Connection:
        """A new connection, once the server is ready. Raises Refused if the model is another one now."""
        self._connection.close()
        self._connection = Connection.ready(self.url, self.model, self.patience)
        layout = SequenceLayout.of(self._connection)
        if layout != self.layout:
            raise Refused(f"Triton server at {self.url} now has another model {self.model}: {layout}; it was {self.layout}")
        return self._connection

    @property
    def connection(self) -> Connection:
        """The one in use."""
        return self._connection


class _Run:
    """The sequences of one call."""

    def __init__(self, client: SequenceClient, waiting: deque[tuple[Hashable, Iterable[np.ndarray]]]) -> None:
        self.client, self.layout, self.waiting = client, client.layout, waiting
        self.where = f"Triton server at {client.url}, model {client.model}"
        self.active: dict[Hashable, Sequence] = {}
        self.failures: dict[Hashable, int] = {}
        self.past: set[str] = set()
        self.to_end: set[str] = set()
        self.stream: Stream | None = None
        self.generation: str | None = None

    def answers(self) -> Iterator[Answer]:
        while self.waiting or self.active:
            while self.waiting and len(self.active) < self.layout.slots:
                name, chunks = self.waiting.popleft()
                self.active[name] = Sequence(self.layout, chunks, self.client.in_flight, self.client.tolerance)
            try:
                if self.stream is None:
                    self._open()
                self._send()
                found = self.stream.receive(self.client.answer_timeout)
                # what arrived counts only if it came from the server that holds these sequences
                self._require(self.client.connection.generation())
            except Dropped as e:
                self._hang_up()
                self._continue(list(self.active), e)
                continue
            for response in found:
                yield from self._take(response)

    def _open(self) -> None:
        connection = self.client.reconnect() if self.past or self.failures else self.client.connection
        self.generation = connection.generation()
        self.stream = Stream(connection)
        for old in self.to_end:
            self._end(old)

    def _require(self, generation: str) -> None:
        if generation != self.generation:
            raise Dropped(f"{self.where}: the server was started again ({self.generation} is now {generation})")

    def _hang_up(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.stream = None

    def _send(self) -> None:
        for sequence in self.active.values():
            while (request := sequence.request()) is not None:
                self._put(request.id, request.values, request.sequence_id, request.start, request.end)

    def _end(self, old: str) -> None:
        """Frees the slot of a sequence that is not continued; a server that does not know it refuses, which is as well."""
        self._put(f"{old}.{_END}", np.zeros(self.layout.chunk, np.float32), int(old), False, True)

    def _put(self, request_id: str, values: np.ndarray, sequence_id: int, start: bool, end: bool) -> None:
        message = float_request(self.layout.model, self.layout.input, values, self.layout.output, request_id)
        message.parameters["sequence_id"].int64_param = sequence_id
        message.parameters["sequence_start"].bool_param = start
        message.parameters["sequence_end"].bool_param = end
        self.stream.send(message)

    def _take(self, response: service_pb2.ModelStreamInferResponse) -> Iterator[Answer]:
        request_id = response.infer_response.id
        owner, _, what = request_id.partition(".")
        if owner in self.past:
            if what == _END:
                self.to_end.discard(owner)
            return
        name = next((n for n, s in self.active.items() if str(s.sequence_id) == owner), None)
        if response.error_message:
            # one without an id may be anyone's
            names = list(self.active) if name is None else [name]
            for old in self._continue(names, Dropped(f"{self.where}: {response.error_message}")):
                self._end(old)
            return
        if name is None:
            raise Refused(f"{self.where}: answered {request_id!r}, which was not asked")
        sequence = self.active[name]
        echo = response.infer_response.parameters
        start = echo["sequence_start"].bool_param if "sequence_start" in echo else None
        try:
            taken = sequence.answer(request_id, float_answer(response.infer_response, self.layout.output), start)
        except Refused as e:
            raise Refused(f"{self.where}, sequence {name}: {e}") from None
        if sequence.done:
            del self.active[name]
        if taken is not None:
            self.failures.pop(name, None)
            yield Answer(name, *taken)

    def _continue(self, names: list[Hashable], error: Dropped) -> list[str]:
        """Begin sequences anew, unless that was done too often; what the server may still know of them."""
        out = []
        for name in names:
            sequence = self.active[name]
            self.failures[name] = self.failures.get(name, 0) + 1
            if self.failures[name] > self.client.attempts:
                where = f"sequence {name}, chunk {sequence.acknowledged}"
                raise ServerError(f"{where}: no answer in {self.client.attempts} attempts; the last: {error}")
            started = sequence.started
            old = str(sequence.restart())
            if started:
                self.past.add(old)
                out.append(old)
        self.to_end.update(out)
        self.client.interruptions += 1
        self.client.log.warning("%s; %d sequences continue from their last acknowledged chunks", error, len(names))
        time.sleep(min(_PAUSE * max((self.failures[n] for n in names), default=0), _LONGEST_PAUSE))
        return out

    def close(self) -> None:
        """Frees the slots of sequences that were left unfinished."""
        if self.stream is None:
            return
        try:
            left = {str(s.sequence_id) for s in self.active.values() if s.started} - self.to_end
            for old in left:
                self._end(old)
            self.to_end |= left
            with contextlib.suppress(ServerError):
                while self.to_end:
                    for response in self.stream.receive(_FAREWELL):
                        owner, _, what = response.infer_response.id.partition(".")
                        self.to_end -= {owner} if what == _END else set()
        finally:
            self._hang_up()
