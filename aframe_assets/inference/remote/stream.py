"""A bidirectional stream of requests and answers."""

from __future__ import annotations

import contextlib
import queue
import threading

import grpc
from tritonclient.grpc import service_pb2

from aframe_assets.inference.remote.connection import Connection, Dropped

_ENDED = object()


class Stream:
    """Requests out, answers in, each in order of arrival. A thread of its own reads.

    tritonclient's stream is not used: it drops the id of a request that failed, and does not tell that a server ended the stream.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._out: queue.SimpleQueue[service_pb2.ModelInferRequest | None] = queue.SimpleQueue()
        self._in: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._call = connection.stub.ModelStreamInfer(iter(self._out.get, None))
        self._reader = threading.Thread(target=self._read, name="triton-stream", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for answer in self._call:
                self._in.put(answer)
            self._in.put(_ENDED)
        except grpc.RpcError as e:
            self._in.put(e)

    def send(self, request: service_pb2.ModelInferRequest) -> None:
        """Queue a request."""
        self._out.put(request)

    def receive(self, timeout: float) -> list[service_pb2.ModelStreamInferResponse]:
        """All answers that are there, waiting for the first one.

        Args:
            timeout: seconds.

        Raises:
            Dropped: none came in time, or the stream is at its end.
        """
        url, model = self._connection.url, self._connection.model
        try:
            found = [self._in.get(timeout=timeout)]
        except queue.Empty:
            raise Dropped(f"Triton server at {url}, model {model}: no answer within {timeout:g} s") from None
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._in.get_nowait())
        answers = [f for f in found if isinstance(f, service_pb2.ModelStreamInferResponse)]
        end = found[-1]
        if end is _ENDED:
            raise Dropped(f"Triton server at {url}, model {model}: the server ended the stream")
        if isinstance(end, grpc.RpcError):
            raise Dropped(str(self._connection.error(end)))
        return answers

    def close(self) -> None:
        """Ends the stream; answers under way are lost."""
        self._out.put(None)
        self._call.cancel()
        self._reader.join(5)
