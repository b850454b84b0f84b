"""One gRPC connection to a Triton server: what it says of itself and its models, and its errors in our words."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import triton_to_np_dtype

ASK_TIMEOUT = 20.0
"""Seconds that the server has to answer a question about itself."""

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # a new connection must not wait out the pauses that an old one to the same server has run up
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.enable_http_proxy", 0),
]

_PERMANENT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
}


class ServerError(RuntimeError):
    """Something between us and the server failed; the message names both ends."""


class Dropped(ServerError):
    """The server did not answer: it is gone, was started again, or is late. Worth another attempt."""


class Refused(ServerError):
    """The server answered that it will not do this, or answered what cannot be right."""


class Absent(ServerError):
    """No server was ready, for as long as one was willing to wait."""


def require_counts(**settings: int) -> None:
    """Raises ValueError when one of `settings` (requests under way, attempts) is below 1."""
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name} = {value}; expected at least 1")


@dataclass(frozen=True)
class Tensor:
    """Name, numpy type and shape of an input or output; -1 is any length."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    def accepts(self, shape: Sequence[int]) -> bool:
        """Whether an array of `shape` fits."""
        return len(shape) == len(self.shape) and all(w in (-1, n) for w, n in zip(self.shape, shape, strict=True))


@dataclass(frozen=True)
class ModelDescription:
    """What the server says of a model."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def only(self, what: str) -> Tensor:
        """The one input or output. Raises Refused where there are more, or it is not float32."""
        tensors = self.inputs if what == "input" else self.outputs
        if len(tensors) != 1 or tensors[0].dtype != np.float32:
            found = ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in tensors) or "none"
            raise Refused(f"model {self.name} has as {what}s: {found}; expected one of float32")
        return tensors[0]


class Connection:
    """A channel to one server.

    Args:
        url: host and port of the gRPC service.
        model: that will be used; named in errors, and waited for.
    """

    def __init__(self, url: str, model: str) -> None:
        self.url, self.model = url, model
        self._channel = grpc.insecure_channel(url, options=_OPTIONS)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    @classmethod
    def ready(cls, url: str, model: str, patience: float) -> Connection:
        """A connection whose server and model are ready.

        Args:
            url, model: see `Connection`.
            patience: seconds to wait for both.

        Raises:
            Absent: they were not ready in time.
        """
        deadline = time.monotonic() + patience
        while True:
            connection = cls(url, model)
            reason = connection._not_ready(max(0.1, min(2.0, deadline - time.monotonic())))
            if reason is None:
                return connection
            connection.close()
            if time.monotonic() >= deadline:
                raise Absent(f"Triton server at {url}, model {model}: {reason}, for {patience:g} s; is it running?")
            time.sleep(0.2)

    def _not_ready(self, timeout: float) -> str | None:
        try:
            if not self.stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=timeout, wait_for_ready=True).ready:
                return "the server is not ready"
            ready = self.stub.ModelReady(service_pb2.ModelReadyRequest(name=self.model), timeout=timeout).ready
            return None if ready else "the model is not ready"
        except grpc.RpcError as e:
            return "no answer" if e.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED) else e.details()

    def error(self, e: grpc.RpcError) -> ServerError:
        """`e` in our words, as `Dropped` or `Refused`."""
        details = (e.details() or "").strip() or "no details"
        text = f"Triton server at {self.url}, model {self.model}: {e.code().name}: {details}"
        # regions are registered with a server, so one that does not know them has been started since
        forgotten = "find shared memory region" in details
        return Refused(text) if e.code() in _PERMANENT and not forgotten else Dropped(text)

    def ask(self, method: str, request: object, timeout: float = ASK_TIMEOUT) -> object:
        """The answer of a method of the service.

        Raises:
            Dropped, Refused: there was none.
        """
        try:
            return getattr(self.stub, method)(request, timeout=timeout)
        except grpc.RpcError as e:
            raise self.error(e) from None

    def generation(self) -> str:
        """The server's own name. Our servers get a new one whenever they are started; others may always have the same."""
        return self.ask("ServerMetadata", service_pb2.ServerMetadataRequest()).name

    def describe(self, model: str | None = None) -> ModelDescription:
        """Inputs and outputs of a model."""
        found = self.ask("ModelMetadata", service_pb2.ModelMetadataRequest(name=model or self.model))

        def tensors(items: Sequence) -> tuple[Tensor, ...]:
            return tuple(Tensor(t.name, np.dtype(triton_to_np_dtype(t.datatype)), tuple(t.shape)) for t in items)

        return ModelDescription(found.name, tensors(found.inputs), tensors(found.outputs))

    def configuration(self, model: str | None = None) -> model_config_pb2.ModelConfig:
        """The configuration of a model."""
        return self.ask("ModelConfig", service_pb2.ModelConfigRequest(name=model or self.model)).config

    def close(self) -> None:
        """Ends what is under way."""
        self._channel.close()


def float_request(
    model: str, tensor: str, values: np.ndarray, output: str, request_id: str = "", *, inside: bool = True
) -> service_pb2.ModelInferRequest:
    """A request with one float32 input and one wanted output; unless `inside`, the data are to be found elsewhere."""
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    request.inputs.add(name=tensor, datatype="FP32", shape=values.shape)
    request.outputs.add(name=output)
    if inside:
        request.raw_input_contents.append(np.ascontiguousarray(values, np.float32).tobytes())
    return request


def float_answer(response: service_pb2.ModelInferResponse, output: str) -> np.ndarray:
    """The float32 output of an answer; read-only.

    Raises:
        Refused: the answer does not hold it, or not as many bytes as its shape says.
    """
    for i, tensor in enumerate(response.outputs):
        if tensor.name != output:
            continue
        raw = response.raw_output_contents[i] if i < len(response.raw_output_contents) else b""
        if tensor.datatype != "FP32" or len(raw) != 4 * int(np.prod(tensor.shape)):
            raise Refused(
                f"answer {response.id!r} of model {response.model_name}: {output} is {tensor.datatype} {list(tensor.shape)} in {len(raw)} "
                "bytes; a server whose Python has numpy 2 answers so"
            )
        return np.frombuffer(raw, np.float32).reshape(tuple(tensor.shape))
    names = ", ".join(t.name for t in response.outputs) or "nothing"
    raise Refused(f"answer {response.id!r} of model {response.model_name} holds {names}; expected {output}")
