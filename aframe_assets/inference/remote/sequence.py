"""One sequence of chunks through a server that keeps its state: what to send, what is acknowledged, what to send again.

The state of a snapshotter is the last samples that it was sent. It is lost with the server, and cannot be trusted after a
broken connection: which chunks arrived is not known. So a sequence is then continued as a new one. The chunks that fill the state
are sent again, their answers dropped; the last one that was acknowledged before must be answered as it was.
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from aframe_assets.inference.remote.connection import Connection, Refused


@dataclass(frozen=True)
class SequenceLayout:
    """What a model with sequences takes and gives.

    Attributes:
        model: an ensemble with a stateful member, or a stateful model.
        input, output: names of its one input and output.
        chunk: shape of a request (rows, ifo, samples).
        answer: shape of an answer.
        state: samples that the server keeps between requests; 0 for none.
        slots: sequences that the server works on at once; others wait there without an answer.
    """

    model: str
    input: str
    output: str
    chunk: tuple[int, ...]
    answer: tuple[int, ...]
    state: int
    slots: int

    @classmethod
    def of(cls, connection: Connection) -> SequenceLayout:
        """Of the connection's model, as the server describes it.

        Raises:
            Refused: no sequences, or a state that is not a stretch of the input.
        """
        about, config = connection.describe(), connection.configuration()
        stream, answer = about.only("input"), about.only("output")
        members = [s.model_name for s in config.ensemble_scheduling.step]
        stateful = [c for c in [config, *map(connection.configuration, members)] if c.HasField("sequence_batching")]
        if len(stateful) != 1:
            raise Refused(f"model {about.name} at {connection.url} has {len(stateful)} members with sequences; expected one")
        if min(stream.shape) < 1 or len(stream.shape) < 2 or min(answer.shape) < 1:
            raise Refused(f"model {about.name} takes {list(stream.shape)} and gives {list(answer.shape)}; expected fixed lengths")
        states = stateful[0].sequence_batching.state
        lengths = [s.dims[-1] for s in states if list(s.dims[:-1]) == list(stream.shape[:-1])]
        if len(lengths) != len(states):
            dims = [list(s.dims) for s in states]
            raise Refused(f"state {dims} of model {stateful[0].name}: expected {list(stream.shape[:-1])} and the samples that are kept")
        slots = sum(max(1, g.count) for g in stateful[0].instance_group) * max(1, stateful[0].max_batch_size)
        return cls(about.name, stream.name, answer.name, stream.shape, answer.shape, max(lengths, default=0), max(1, slots))

    @property
    def refill(self) -> int:
        """Chunks that the state is made of."""
        return math.ceil(self.state / self.chunk[-1])


@dataclass(frozen=True)
class Request:
    """A chunk to be sent. `id` is unique: no two requests of a sequence, of its replays or of other sequences share it."""

    id: str
    sequence_id: int
    start: bool
    end: bool
    values: np.ndarray


class Sequence:
    """See the module.

    Args:
        layout: of the model.
        chunks: arrays of the layout's shape, at least one; taken when there is room for them, one ahead.
        in_flight: requests without an answer at a time, >= 1.
        tolerance: by which the answer to a repeated chunk may differ from the first.

    Attributes:
        sequence_id: under which the server knows it now.
        acknowledged: chunks whose answers have been handed out.
    """

    def __init__(self, layout: SequenceLayout, chunks: Iterable[np.ndarray], in_flight: int, tolerance: float) -> None:
        self.layout, self.in_flight, self.tolerance = layout, in_flight, tolerance
        self._source: Iterator[np.ndarray] = iter(chunks)
        self._kept: deque[np.ndarray] = deque()
        self._first_kept = 0
        self._total: int | None = None
        self.acknowledged = 0
        self._last_answer: np.ndarray | None = None
        self._begin(0)
        self._take()
        if self._total == 0:
            raise ValueError("a sequence without chunks; expected at least one")

    def _begin(self, first: int) -> None:
        self.sequence_id = secrets.randbits(62) + 1
        self._start = self._next_sent = self._next_answer = first

    @property
    def done(self) -> bool:
        """Every chunk is acknowledged."""
        return self.acknowledged == self._total

    @property
    def started(self) -> bool:
        """The server may hold state of it."""
        return self._next_sent > self._start

    def _take(self) -> None:
        """The next chunk of the source, or its end."""
        chunk = next(self._source, None)
        if chunk is None:
            self._total = self._first_kept + len(self._kept)
            return
        chunk = np.asarray(chunk, np.float32)
        if chunk.shape != self.layout.chunk:
            raise ValueError(f"chunk of shape {chunk.shape}; model {self.layout.model} takes {self.layout.chunk}")
        self._kept.append(chunk)

    def request(self) -> Request | None:
        """The next chunk to be sent, or None while there is nothing or no room."""
        n = self._next_sent
        if n == self._total or n - self._next_answer >= self.in_flight:
            return None
        # whether a chunk is the last one is known from the one after it
        if self._total is None and n + 1 == self._first_kept + len(self._kept):
            self._take()
        self._next_sent += 1
        values = self._kept[n - self._first_kept]
        return Request(f"{self.sequence_id}.{n}", self.sequence_id, n == self._start, n + 1 == self._total, values)

    def answer(self, request_id: str, values: np.ndarray, start: bool | None = None) -> tuple[int, np.ndarray] | None:
        """Take the answer to a request.

        Args:
            request_id: the request's, as the answer repeats it.
            values: of the model's output.
            start: whether the server took the request for the first of its sequence; None where it does not say.

        Returns:
            Index and answer of the chunk, or None for one that was sent only to fill the state.

        Raises:
            Refused: it is not the answer that is due, or not one that can be right.
        """
        n, model = self._next_answer, self.layout.model
        if n >= self._next_sent or request_id != f"{self.sequence_id}.{n}":
            raise Refused(f"model {model} answered request {request_id}; due was {self.sequence_id}.{n}: answers are in order, each once")
        if values.shape != self.layout.answer:
            raise Refused(f"model {model} answered chunk {n} with shape {values.shape}; expected {self.layout.answer}")
        if start is not None and start != (n == self._start):
            raise Refused(f"model {model} took chunk {n} for {'the first' if start else 'a later one'} of its sequence, which it is not")
        # until the state is full it holds zeros, of which a preprocessor may make anything
        if n - self._start >= self.layout.refill and not np.isfinite(values).all():
            raise Refused(f"model {model} answered chunk {n} with values that are not finite")
        self._next_answer += 1
        if n < self.acknowledged:
            if n == self.acknowledged - 1:
                self._require_same(n, values)
            return None
        self.acknowledged, self._last_answer = n + 1, values
        while self._first_kept < n - self.layout.refill:
            self._kept.popleft()
            self._first_kept += 1
        return n, values

    def _require_same(self, n: int, values: np.ndarray) -> None:
        if not np.allclose(values, self._last_answer, rtol=self.tolerance, atol=self.tolerance, equal_nan=True):
            difference = np.abs(np.nan_to_num(values) - np.nan_to_num(self._last_answer)).max()
            raise Refused(
                f"model {self.layout.model} answered chunk {n} again, but {difference:.3g} apart from its first answer (accepted "
                f"{self.tolerance:g}): its state or its network is another one"
            )

    def restart(self) -> int:
        """Continue as a new sequence, from as far back as the state reaches and the last acknowledged chunk needs.

        Returns:
            The id that is given up.
        """
        old = self.sequence_id
        self._begin(max(0, self.acknowledged - 1 - self.layout.refill))
        return old
