"""A network that a Triton server evaluates, as a `Runner` of an engine: no state, several requests under way."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from aframe_assets.inference.remote.client import ANSWER_TIMEOUT, ATTEMPTS, PATIENCE
from aframe_assets.inference.remote.connection import (
    Connection,
    Dropped,
    Refused,
    ServerError,
    Tensor,
    float_answer,
    float_request,
    require_counts,
)
from aframe_assets.inference.remote.server import RunningServer
from aframe_assets.inference.remote.shared import Region

_PAUSE, _FAREWELL = 0.2, 5.0


@dataclass
class _Slot:
    """Shared memory for the input and the output of one request."""

    given: Region
    taken: Region


@dataclass(frozen=True)
class Probe:
    """Inputs whose answers are known, so that a server that has another network, or cannot count, is found out.

    Attributes:
        inputs: (n, ifo, samples) float32.
        answers: to them, in the shape of the model's output.
        tolerance: accepted difference, times the largest answer where that is above 1.
    """

    inputs: np.ndarray
    answers: np.ndarray
    tolerance: float


class RemoteRunner:
    """Runs a model of a server. Not for use by several threads at a time.

    Requests are sent again when the connection breaks or the server is started again; the probe is asked for whenever a
    connection is made, and when the server has been started meanwhile.

    Args:
        server: that runs.
        model: without state, (any, ifo, samples) -> (any, ...).
        probe: what it must answer.
        in_flight: requests under way, >= 1.
        attempts: times in a row that requests may fail, >= 1.
        patience: seconds that the server may take to be ready (again).
        answer_timeout: seconds that a request may take.
        share_memory: use shared memory where the server is local.
        log: is told of interruptions.

    Raises:
        ValueError: in_flight or attempts below 1.
        ServerError: no server, or its model is not the one that is meant.
    """

    threads = 1

    def __init__(
        self,
        server: RunningServer,
        model: str,
        probe: Probe,
        *,
        in_flight: int = 4,
        attempts: int = ATTEMPTS,
        patience: float = PATIENCE,
        answer_timeout: float = ANSWER_TIMEOUT,
        share_memory: bool = True,
        log: logging.Logger | None = None,
    ) -> None:
        require_counts(in_flight=in_flight, attempts=attempts)
        self.url, self.model, self.probe = server.url, model, probe
        self.in_flight, self.attempts, self.patience, self.answer_timeout = in_flight, attempts, patience, answer_timeout
        self.log = log or logging.getLogger(__name__)
        self._share = share_memory and server.local
        self._free: list[_Slot] = []
        self._lingering: list[Region] = []
        self._closed = True
        try:
            # it may die, and be started again, before it has answered the probe
            self._reconnect()
        except BaseException:
            self.close()
            raise

    @property
    def _where(self) -> str:
        return f"Triton server at {self.url}, model {self.model}"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The answer to one batch; see `Runner`."""
        (answer,) = self.each([x])
        return answer

    def each(self, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Answers to several batches, in order.

        Raises:
            ServerError: attempts are used up, or an answer cannot be right.
        """
        yield from self._each(deque(parts))
        try:
            same = self._connection.generation() == self._generation
        except Dropped:
            same = False
        if not same:
            # answers of a server that was never asked the probe are not believed before it has been
            self.log.warning("%s: the server was started again", self._where)
            self._reconnect()

    def _each(self, todo: deque[np.ndarray]) -> Iterator[np.ndarray]:
        under_way: deque[_Call] = deque()
        failures = 0
        try:
            while todo or under_way:
                try:
                    while todo and len(under_way) < self.in_flight:
                        under_way.append(self._send(todo[0]))
                        todo.popleft()
                    values = under_way[0].result()
                except Dropped as e:
                    failures += 1
                    if failures > self.attempts:
                        raise ServerError(f"{self.attempts} attempts failed; the last: {e}") from None
                    self.log.warning("%s; %d requests are sent again", e, len(under_way))
                    todo.extendleft(reversed([call.part for call in under_way]))
                    self._give_up(under_way)
                    self._reconnect()
                    continue
                call, failures = under_way.popleft(), 0
                if call.slot is not None:
                    self._free.append(call.slot)
                yield values
        finally:
            self._give_up(under_way)

    def _send(self, part: np.ndarray) -> _Call:
        shape = (len(part), *self._output.shape[1:])
        slot = self._slot(part.nbytes, 4 * int(np.prod(shape)))
        request = float_request(self.model, self._input.name, part, self._output.name, inside=slot is None)
        if slot is not None:
            slot.given.floats(part.shape)[...] = part
            # what the server does not write is seen to be missing
            slot.taken.floats(shape)[...] = np.nan
            slot.given.mark(request.inputs[0], part.nbytes)
            slot.taken.mark(request.outputs[0], 4 * int(np.prod(shape)))
        future = self._connection.stub.ModelInfer.future(request, timeout=self.answer_timeout)
        return _Call(self, part, shape, slot, future)

    def _slot(self, given: int, taken: int) -> _Slot | None:
        """Shared memory of at least these sizes; None where there is none."""
        if not self._share:
            return None
        while self._free:
            slot = self._free.pop()
            if slot.given.size >= given and slot.taken.size >= taken:
                return slot
            self._give_back(slot.given, slot.taken)
        try:
            region = Region(self._connection, given)
            try:
                return _Slot(region, Region(self._connection, taken))
            except BaseException:
                self._give_back(region)
                raise
        except Dropped:
            raise
        except (OSError, ServerError) as e:
            self.log.info("%s: no shared memory with this server (%s); data are sent by gRPC", self._where, e)
            self._share = False
            return None

    def _give_up(self, under_way: deque[_Call]) -> None:
        """Forget requests. Their memory is not used again: the server may still write there."""
        while under_way:
            call = under_way.popleft()
            call.future.cancel()
            if call.slot is not None:
                self._give_back(call.slot.given, call.slot.taken)

    def _give_back(self, *regions: Region) -> None:
        """Take memory back from the server, now or when it has done what it is doing there."""
        self._lingering = [r for r in (*self._lingering, *regions) if not r.close(self._connection)]

    def _reconnect(self) -> None:
        for attempt in range(self.attempts):
            time.sleep(_PAUSE * attempt)
            self.close()
            self._connection, self._closed = Connection.ready(self.url, self.model, self.patience), False
            try:
                return self._get_to_know()
            except Dropped as e:
                last = e
        raise ServerError(f"{self.attempts} attempts to connect failed; the last: {last}")

    def _get_to_know(self) -> None:
        """Who answers, whether the model is the right one, and whether it answers what is known."""
        about = self._connection.describe()
        self._input, self._output = about.only("input"), about.only("output")
        self._require_shape(self._input, self.probe.inputs.shape, "takes")
        self._require_shape(self._output, self.probe.answers.shape, "gives")
        if min(self._output.shape[1:], default=1) < 1:
            raise Refused(f"{self._where} gives {list(self._output.shape)}; expected fixed lengths after the batch")
        self._generation = self._connection.generation()
        call = self._send(np.ascontiguousarray(self.probe.inputs, np.float32))
        try:
            answers = call.result()
        finally:
            self._give_up(deque([call]))
        known = self.probe.answers
        difference, accepted = float(np.abs(answers - known).max()), self.probe.tolerance * max(1.0, float(np.abs(known).max()))
        if not difference <= accepted:
            raise Refused(
                f"{self._where} answers {difference:.3g} apart from this search's engine (accepted {accepted:.3g}): it serves another "
                "network, or its Python has numpy 2; serve the model_repository of this run"
            )

    def _require_shape(self, tensor: Tensor, shape: tuple[int, ...], verb: str) -> None:
        if not tensor.accepts(shape) or tensor.shape[0] != -1:
            wanted = [-1, *shape[1:]]
            raise Refused(f"{self._where} {verb} {tensor.name} {list(tensor.shape)}; the engine of this search {verb} {wanted}")

    def close(self) -> None:
        """Gives memory back and ends the connection; may be called again."""
        if self._closed:
            return
        self._closed = True
        while self._free:
            slot = self._free.pop()
            self._give_back(slot.given, slot.taken)
        deadline = time.monotonic() + _FAREWELL
        while self._lingering and time.monotonic() < deadline:
            time.sleep(0.05)
            self._give_back()
        self._lingering.clear()
        self._connection.close()


@dataclass
class _Call:
    """A request under way."""

    runner: RemoteRunner
    part: np.ndarray
    shape: tuple[int, ...]
    slot: _Slot | None
    future: grpc.Future

    def result(self) -> np.ndarray:
        """Its answer.

        Raises:
            Dropped, Refused: see there.
        """
        runner = self.runner
        try:
            response: service_pb2.ModelInferResponse = self.future.result()
        except grpc.FutureCancelledError:
            raise Dropped(f"{runner._where}: the request was cancelled") from None
        except grpc.RpcError as e:
            raise runner._connection.error(e) from None
        if self.slot is None:
            values = float_answer(response, runner._output.name)
        else:
            shape = tuple(response.outputs[0].shape) if len(response.outputs) == 1 else ()
            if shape != self.shape or response.outputs[0].datatype != "FP32":
                raise Refused(f"{runner._where} answered with shape {shape}; expected {self.shape}")
            values = self.slot.taken.floats(shape).copy()
        if values.shape != self.shape:
            raise Refused(f"{runner._where} answered with shape {values.shape}; expected {self.shape}")
        if not np.isfinite(values).all():
            raise Refused(f"{runner._where} answered with values that are not finite")
        return values
