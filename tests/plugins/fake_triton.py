"""A Triton server of a few lines: the real protocol over loopback, an arithmetic for a network, and faults on demand.

Models: ``net`` (also under the names of a repository's networks), (any, ifo, kernel) -> (any, 1) without state; ``snap`` (sequences)
and ``net`` in the ensemble ``stream``: (1, ifo, update) -> (windows, 1), where every window is scored on the last samples before
and inside of it.
"""

from __future__ import annotations

import itertools
import mmap
import os
import threading
import time
from collections.abc import Callable
from concurrent import futures

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

IFOS, KERNEL, STRIDE, WINDOWS = 2, 20, 4, 3
UPDATE = STRIDE * WINDOWS
NETWORKS = ("net", "aframe", "aframe-blocks", "filter-blocks")
STATE = KERNEL - STRIDE
_names = itertools.count()


def score(windows: np.ndarray) -> np.ndarray:
    """The network: (any, ifo, kernel) -> (any, 1), a function of every sample and its place."""
    weights = np.linspace(0.5, 1.5, windows.shape[1] * windows.shape[2], dtype=np.float32).reshape(windows.shape[1:])
    return (windows * weights).sum(axis=(1, 2), dtype=np.float32)[:, None]


def windows_of(whole: np.ndarray) -> np.ndarray:
    """Windows (n, ifo, kernel) of (ifo, samples)."""
    view = np.lib.stride_tricks.sliding_window_view(whole, KERNEL, axis=1)[:, ::STRIDE]
    return np.ascontiguousarray(view.transpose(1, 0, 2))


def expected(stream: np.ndarray) -> np.ndarray:
    """All answers to a stream (ifo, samples) that starts with a state of zeros."""
    return score(windows_of(np.concatenate([np.zeros((len(stream), STATE), np.float32), stream], axis=1)))


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """See the module; a context manager.

    Args:
        slots: instances of the snapshotter, as its configuration says.
        network, kernel: what ``net`` computes, (any, ifo, kernel) -> (any, 1).
        fault: called with (sequence request number, request), returns None or the name of a fault: 'drop' the stream, 'restart'
            (state and name are lost too), 'forget' (the same with the stream left up), 'lose' (state is lost, the name stays),
            'late', 'twice', 'other_id', 'restarted' (says that it began there), 'short', 'nan', 'error', 'swallow', 'end' (of the
            stream, without an error).
    """

    def __init__(
        self,
        slots: int = 2,
        fault: Callable[[int, service_pb2.ModelInferRequest], str | None] | None = None,
        network: Callable[[np.ndarray], np.ndarray] = score,
        kernel: int = KERNEL,
    ) -> None:
        self.slots, self.fault, self.network, self.kernel = slots, fault or (lambda n, request: None), network, kernel
        self.state: dict[int, np.ndarray] = {}
        self.regions: dict[str, mmap.mmap] = {}
        self.started, self.seen, self.infers, self.busy, self.most = [], [], 0, 0, 0
        self.name, self.scale, self.share_memory = f"fake-{next(_names)}", 1.0, True
        self.about, self.in_use = "", set()
        self.unanswered = 0  # questions for a configuration that find the server gone
        self.lock = threading.Lock()
        self.port = 0

    def __enter__(self) -> FakeTriton:
        self.serve()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def serve(self) -> None:
        """Start (again), on the same port, knowing nothing."""
        self.name, self.state, self.regions = f"fake-{next(_names)}", {}, {}
        self.server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        self.server.start()

    def kill(self) -> None:
        """Every connection breaks."""
        self.server.stop(0).wait()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ServerReady(self, request, context):
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=request.name in (*NETWORKS, "snap", "stream"))

    def ServerMetadata(self, request, context):
        return service_pb2.ServerMetadataResponse(name=self.name, version="fake")

    def ModelMetadata(self, request, context):
        shapes = {
            "net": (("input_0", [-1, IFOS, self.kernel]), ("discriminator", [-1, 1])),
            "snap": (("stream", [1, IFOS, UPDATE]), ("windows", [WINDOWS, IFOS, KERNEL])),
            "stream": (("stream", [1, IFOS, UPDATE]), ("discriminator", [WINDOWS, 1])),
        }
        tensor = service_pb2.ModelMetadataResponse.TensorMetadata
        (i, a), (o, b) = shapes["net" if request.name in NETWORKS else request.name]
        inputs, outputs = [tensor(name=i, datatype="FP32", shape=a)], [tensor(name=o, datatype="FP32", shape=b)]
        return service_pb2.ModelMetadataResponse(name=request.name, inputs=inputs, outputs=outputs)

    def ModelConfig(self, request, context):
        if self.unanswered:
            self.unanswered -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        config = model_config_pb2.ModelConfig(name=request.name)
        if request.name == "aframe" and self.about:
            config.parameters["aframe"].string_value = self.about
        if request.name == "stream":
            config.ensemble_scheduling.step.add(model_name="snap")
            config.ensemble_scheduling.step.add(model_name="net")
        if request.name == "snap":
            config.instance_group.add(count=self.slots)
            config.sequence_batching.state.add(input_name="a", output_name="b", dims=[1, IFOS, STATE])
        return service_pb2.ModelConfigResponse(config=config)

    def SystemSharedMemoryRegister(self, request, context):
        try:
            if not self.share_memory:
                raise FileNotFoundError
            fd = os.open(f"/dev/shm{request.key}", os.O_RDWR)
        except FileNotFoundError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Unable to open shared memory region: '{request.key}'")
        self.regions[request.name] = mmap.mmap(fd, request.byte_size)
        os.close(fd)
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request, context):
        if request.name in self.in_use:
            context.abort(grpc.StatusCode.INTERNAL, f"Cannot unregister shared memory region '{request.name}', it is currently in use.")
        self.regions.pop(request.name, None)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def ModelInfer(self, request, context):
        with self.lock:
            self.infers, self.busy = self.infers + 1, self.busy + 1
            self.most, number = max(self.most, self.busy), self.infers
            shared = [t.parameters for t in (*request.inputs, *request.outputs) if "shared_memory_region" in t.parameters]
            used = [p["shared_memory_region"].string_param for p in shared]
            self.in_use.update(used)
        try:
            return self._infer(request, context, self.fault(number, request))
        finally:
            with self.lock:
                self.busy -= 1
                self.in_use.difference_update(used)

    def _infer(self, request, context, what):
        if what == "late":
            time.sleep(0.3)
        if what == "drop":
            context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
        given, wanted = request.inputs[0], request.outputs[0]
        for tensor in (given, wanted):
            name = tensor.parameters["shared_memory_region"].string_param if "shared_memory_region" in tensor.parameters else None
            if name and name not in self.regions:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Unable to find shared memory region: '{name}'")
        if "shared_memory_region" in given.parameters:
            raw = self.regions[given.parameters["shared_memory_region"].string_param]
            x = np.frombuffer(raw[: given.parameters["shared_memory_byte_size"].int64_param], np.float32)
        else:
            x = np.frombuffer(request.raw_input_contents[0], np.float32)
        y = self.scale * self.network(x.reshape(tuple(given.shape)))
        if what == "nan":
            y[0] = np.nan
        if what == "short":
            y = y[:-1]
        response = service_pb2.ModelInferResponse(id=request.id, model_name=request.model_name)
        tensor = response.outputs.add(name="discriminator", datatype="FP32", shape=y.shape)
        if "shared_memory_region" in wanted.parameters:
            self.regions[wanted.parameters["shared_memory_region"].string_param][: y.nbytes] = y.astype(np.float32).tobytes()
            tensor.parameters["shared_memory_region"].string_param = wanted.parameters["shared_memory_region"].string_param
        else:
            response.raw_output_contents.append(y.astype(np.float32).tobytes())
        return response

    def ModelStreamInfer(self, requests, context):
        for request in requests:
            with self.lock:
                self.seen.append(request.id)
                what = self.fault(len(self.seen), request)
            if what in ("restart", "forget", "lose"):
                self.state.clear()
            if what in ("restart", "forget"):
                self.name = f"fake-{next(_names)}"
            if what in ("drop", "restart"):
                context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset by peer")
            if what == "end":
                return
            if what == "late":
                time.sleep(0.3)
            if what == "swallow":
                continue
            answer = self._answer(request, what)
            for _ in range(2 if what == "twice" else 1):
                yield answer

    def _answer(self, request, what):
        sequence = request.parameters["sequence_id"].int64_param
        start, end = (request.parameters[f"sequence_{w}"].bool_param for w in ("start", "end"))
        if what == "error":
            return self._error(request, "inference failed")
        if start:
            self.started.append(sequence)
            self.state[sequence] = np.zeros((IFOS, STATE), np.float32)
            self.most = max(self.most, len(self.state))
        elif sequence not in self.state:
            if what != "forget":
                return self._error(request, f"inference request for sequence {sequence} must specify the START flag on the first request")
            self.state[sequence] = np.zeros((IFOS, STATE), np.float32)
        chunk = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(IFOS, UPDATE)
        whole = np.concatenate([self.state[sequence], chunk], axis=1)
        self.state[sequence] = whole[:, -STATE:]
        if end:
            del self.state[sequence]
        y = self.scale * score(windows_of(whole))
        if what == "nan":
            y[0] = np.nan
        if what == "short":
            y = y[:-1]
        response = service_pb2.ModelStreamInferResponse()
        response.infer_response.id = f"{sequence}.999" if what == "other_id" else request.id
        response.infer_response.model_name = request.model_name
        response.infer_response.parameters["sequence_start"].bool_param = start or what == "restarted"
        response.infer_response.outputs.add(name="discriminator", datatype="FP32", shape=y.shape)
        response.infer_response.raw_output_contents.append(y.astype(np.float32).tobytes())
        return response

    @staticmethod
    def _error(request, text):
        response = service_pb2.ModelStreamInferResponse(error_message=text)
        response.infer_response.id = request.id
        return response
